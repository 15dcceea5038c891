"""Where cells are made: a process with a loaded base and experts, and the making of one cell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pemt.bench.cell import Cell
from pemt.bench.identity import BaseIdentity
from pemt.bench.plan import Job
from pemt.errors import ConfigError, ExpertError
from pemt.experts import Expert, ExpertLibrary
from pemt.methods import method_named
from pemt.tasks import FewShot

if TYPE_CHECKING:
    from pemt.bases import Base
    from pemt.training.result import AdaptResult

Predictions = list[dict[str, str]]
Made = tuple[Cell, Predictions]


@dataclass(kw_only=True)
class Workplace:
    """What a process keeps between cells; base and experts are loaded when first needed.

    Attributes:
        identity: of the base; another one is refused.
        libraries: kind -> folder or Hub address.
        record: versions and code state, written into every cell.
        threads: for torch; None leaves it alone.
    """

    identity: BaseIdentity
    libraries: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    loaded: Base | None = field(default=None, repr=False)
    experts: dict[str, dict[str, Expert]] = field(default_factory=dict, repr=False)

    def base(self) -> Base:
        """The base, with nothing attached.

        Raises:
            ConfigError: the weights, the configuration or the tokenizer here are other ones than
                the grid was planned with.
        """
        if self.loaded is None:
            import torch

            from pemt.bases import load_base

            if self.threads is not None:
                torch.set_num_threads(self.threads)
            asked, precision = self.identity.asked, self.identity.precision
            made = load_base(asked, precision=precision)  # type: ignore[arg-type]
            if BaseIdentity.of(made, asked) != self.identity:
                raise ConfigError(
                    f"The base {asked!r} is another one here than where the grid was planned",
                    "give every machine the same files",
                )
            self.loaded = made
        return self.loaded

    def forget_base(self) -> None:
        """Load it anew for the next cell: after an unknown failure nobody knows what it holds."""
        self.loaded = None

    def experts_for(self, job: Job) -> list[Expert]:
        """The job's experts in order.

        Raises:
            ExpertError: one of them changed since the grid was planned.
        """
        kept = self.experts.setdefault(job.library, {})
        for name, content in job.experts.items():
            if name not in kept:
                kept[name] = ExpertLibrary(self.libraries[job.library]).load(name)
            if kept[name].info.content_hash != content:
                raise ExpertError(
                    f"The expert {name!r} changed while the grid ran",
                    "run the same command again: cells with another expert are other cells",
                )
        return [kept[name] for name in job.experts]


def run_cell(
    place: Workplace,
    job: Job,
    rows: FewShot,
    *,
    seen: Callable[[Job, AdaptResult], None] | None = None,
) -> Made:
    """Run one method on one draw, once; the base is given back as it was.

    Args:
        place: with the base and the experts.
        job: what to run.
        rows: of its draw.
        seen: is shown the result while the model is still on its base.

    Returns:
        The cell, and id, target and answer of every test row.
    """
    from pemt.training.adapting import adapt
    from pemt.training.memory import PeakMemory, give_back_memory

    base, experts = place.base(), place.experts_for(job)
    method = method_named(job.method)
    peak = PeakMemory.started(base.model.device)
    started = time.perf_counter()
    result = adapt(
        base, job.task, experts,
        names=job.auto, rows=rows, validation=job.validation, method=job.method, config=job.pemt,
        settings=job.settings, learning_rates=job.rates or None, test_rows=job.test_rows,
        diagnose=False, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    try:
        memory = peak.bytes()
        if seen is not None:
            seen(job, result)
        gates = layers = None
        if result.gates is not None:
            layers = result.gates.tolist()
            means = result.gates.mean(0).tolist()
            gates = dict(zip(result.experts, means, strict=True))
        cell = Cell(
            key=job.key, base=place.identity.name, task=job.task.name, method=job.method,
            variant=job.variant, shots=job.shots, data_seed=job.data_seed, score=job.score,
            metrics=result.metrics, validation=result.validation,
            learning_rate=result.settings.learning_rate if method.trains else None,
            tried=result.tried, trained=result.parameters[0], total=result.parameters[1],
            seconds=seconds, train_seconds=result.train_seconds, peak_memory=memory, gates=gates,
            gates_by_layer=layers, gate_spread=result.gate_spread,
            notes=result.notes,
            config={
                "base": {"name": place.identity.name, "precision": place.identity.precision,
                         "weights": place.identity.weights,
                         "tokenizer": place.identity.tokenizer,
                         "exact": place.identity.exact},
                "task": {"name": job.task.name, "version": job.task.version,
                         **({"description": job.task.description} if job.variant else {})},
                "settings": result.settings.to_dict(), "learning_rates": list(job.rates),
                "pemt": job.pemt.to_dict(), "library": job.library, "experts": job.experts,
                "auto": job.auto, "validation": job.validation, "test_rows": job.test_rows,
                "rows": result.manifest,
            },
            versions=place.record,
        )  # fmt: skip
        answers = [
            {"id": e.id, "target": e.target, "answer": a}
            for e, a in zip(rows.test, result.predictions.texts, strict=True)
        ]
    finally:
        result.model.detach()
        del result
        give_back_memory()  # nothing of this cell may weigh on the next one's peak
    return cell, answers


def record_of() -> dict[str, Any]:
    """Versions of the libraries and the code state, once a run."""
    from pemt.training.record import git_state, versions

    return {**versions(), "git": git_state()}
