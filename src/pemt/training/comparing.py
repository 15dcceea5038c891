"""Many methods on the same rows: the cells of a small table, restartable."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pemt.backbones import fingerprint
from pemt.bases import Base
from pemt.experts import Expert
from pemt.methods import method_named
from pemt.model import PemtConfig
from pemt.tasks import FewShot, Task, draw, load_splits
from pemt.training.adapting import AdaptResult, adapt
from pemt.training.memory import give_back_memory
from pemt.training.record import write_json
from pemt.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one task with one draw of labels.

    Attributes:
        task: its name.
        method: its name.
        shots: labels per class.
        data_seed: of the draw.
        metrics: on the test rows.
        validation: of the main metric.
        learning_rate: chosen; None where nothing trains by gradient.
        trained: parameters that trained.
        seconds: building, training and evaluating.
        gates: mean gate per expert over layers, by name; None for methods without gates.
        notes: of the method.
    """

    task: str
    method: str
    shots: int
    data_seed: int
    metrics: dict[str, float]
    validation: float | None
    learning_rate: float | None
    trained: int
    seconds: float
    gates: dict[str, float] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def compare(
    base: Base,
    experts: Sequence[Expert],
    tasks: Sequence[Task],
    methods: Sequence[str],
    data_seeds: Sequence[int],
    *,
    shots: int = 16,
    validation: Literal["shots", "full"] = "shots",
    settings: TrainSettings | None = None,
    learning_rates: dict[str, Sequence[float]] | None = None,
    config: PemtConfig | None = None,
    test_rows: int | None = None,
    data_dir: Path | None = None,
    folder: Path | None = None,
    on_cell: Callable[[Cell, AdaptResult | None], None] | None = None,
) -> list[Cell]:
    """Run every method on every draw of every task; cells found in `folder` are not run again.

    The order is task, seed, method, so that an interrupted run leaves whole comparisons.

    Args:
        base: loaded, with nothing attached.
        experts: for the methods that transfer.
        tasks: target tasks.
        methods: names.
        data_seeds: one draw each; initialisation and order use the same number.
        shots: labels per class.
        validation: as in `adapt`.
        settings: of training, shared by all methods.
        learning_rates: by method, to choose from on validation; the methods' own by default.
        config: PEMT's options.
        test_rows: at most this many test rows.
        data_dir: local mirror of datasets.
        folder: one JSON file per finished cell.
        on_cell: called after each cell; the result is None for a cell found on disk.
    """
    settings = settings or TrainSettings(report_to="none", checkpoints=False)
    config = config or PemtConfig()

    def draws(task: Task) -> Callable[[int], FewShot]:
        splits = load_splits(task, data_dir=data_dir)
        return lambda seed: draw(splits, task, shots=shots, data_seed=seed, validation=validation)

    made = fingerprint(base.model, base.backbone)
    cells = []
    for task, seed, method, rows in _order(tasks, data_seeds, methods, draws):
        chosen = method_named(method)
        rates = (learning_rates or {}).get(method) or [chosen.learning_rates[base.backbone.family]]
        path = None
        if folder is not None:
            key = {
                "base": [base.name, made, str(base.model.dtype)], "rows": rows.manifest,
                "task": task.name, "version": task.version, "method": method,
                "shots": shots, "validation": validation, "seed": seed, "rates": list(rates),
                "settings": settings.to_dict(), "config": config.to_dict(), "test_rows": test_rows,
                "experts": [e.info.content_hash for e in experts] if chosen.transfers else [],
            }  # fmt: skip
            mark = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
            path = folder / f"{task.name}-{shots}-{seed}-{method}-{mark}.json"
            if path.is_file():
                cell = Cell(**json.loads(path.read_text()))
                cells.append(cell)
                if on_cell:
                    on_cell(cell, None)
                continue
        started = time.perf_counter()
        result = adapt(
            base, task, experts,
            rows=rows, method=method, config=config,
            settings=settings.changed(init_seed=seed, order_seed=seed),
            learning_rates=rates, test_rows=test_rows, progress=False,
        )  # fmt: skip
        try:
            gates = None
            if result.gates is not None:
                mean = result.gates.mean(0).tolist()
                gates = dict(zip(result.experts, mean, strict=True))
            cell = Cell(
                task=task.name, method=method, shots=shots, data_seed=seed, metrics=result.metrics,
                validation=result.validation, learning_rate=result.settings.learning_rate,
                trained=result.parameters[0], seconds=time.perf_counter() - started, gates=gates,
                notes=result.notes,
            )  # fmt: skip
            if path is not None:
                write_json(path, asdict(cell))
            cells.append(cell)
            if on_cell:
                on_cell(cell, result)
        finally:
            result.model.detach()
        del result
        give_back_memory()
    return cells


def _order(
    tasks: Sequence[Task],
    seeds: Sequence[int],
    methods: Sequence[str],
    draws: Callable[[Task], Callable[[int], FewShot]],
) -> Iterator[tuple[Task, int, str, FewShot]]:
    """Rows of a task are read once, drawn once per seed, and shared by the methods."""
    for task in tasks:
        draw_of = draws(task)
        for seed in seeds:
            rows = draw_of(seed)
            for method in methods:
                yield task, seed, method, rows


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and number of values."""

    mean: float
    deviation: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f}"


def summarise(values: Sequence[float]) -> Summary:
    """Mean and spread of one number over seeds; one value has no spread."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Summary(statistics.fmean(values), deviation, len(values))


def paired(cells: Sequence[Cell], task: str, metric: str, method: str, other: str) -> Summary:
    """Difference of two methods on the same draws of a task."""

    def by_seed(name: str) -> dict[int, float]:
        return {c.data_seed: c.metrics[metric] for c in cells if (c.task, c.method) == (task, name)}

    a, b = by_seed(method), by_seed(other)
    return summarise([a[s] - b[s] for s in sorted(a.keys() & b.keys())])
