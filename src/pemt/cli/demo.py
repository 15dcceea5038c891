"""`pemt demo`: both stages on real data, beside what one would do without them."""

from __future__ import annotations

import json as json_format
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pemt.bench.cell import Cell
    from pemt.experts import ExpertLibrary

SOURCES = ("film_reviews", "question_types", "sarcasm", "tweets")
NEAR, FAR = "product_reviews", "sms_spam"
OURS = ("ensemble", "pemt")  # what `pemt adapt` takes with few labels, and the paper
METHODS = (*OURS, "single", "lora", "adapter", "probe")
# rows per source, epochs per target: what two cores do in six minutes
BUDGETS: dict[str, dict[str, Any]] = {
    "encoder-only": {"rows": 1800, "epochs": 9, "test_rows": 200},
    "decoder-only": {"rows": 300, "epochs": 6, "test_rows": 100},
    "encoder-decoder": {"rows": 1800, "epochs": 9, "test_rows": 200},
}


def demo(
    *,
    base: str = "minilm",
    output: Path = Path("demo-out"),
    shots: int = 16,
    seeds: int = 3,
    rows: int | None = None,
    json: bool = False,
) -> int:
    """Train four experts, adapt to two targets with few labels, and compare with doing without.

    Real data from pinned wheels; nothing but a package registry is needed. The experts are
    sentiment of film reviews and of tweets, question types, and sarcasm. The targets are
    product-review sentiment, which two experts are close to, and SMS spam, which none is close to.
    Every method gets the same labels. Stopped, it goes on where it was.

    Args:
        base: minilm (a classifier), smollm2 (text to text, slower), or any other base.
        output: folder for the experts, the adapted models, the gate heat map and results.json.
        shots: labels per class, for training and again for validation.
        seeds: data seeds, at least three.
        rows: training rows per source; by default what fits the base.
        json: print results.json on stdout.
    """
    from rich.console import Console

    from pemt.bases import load_base
    from pemt.bench.grid import Grid
    from pemt.bench.progress import Progress
    from pemt.bench.running import GridRun
    from pemt.errors import ConfigError
    from pemt.experts import ExpertLibrary
    from pemt.training import TrainSettings
    from pemt.training.record import run_record, write_json

    if seeds < 3:
        raise ConfigError(f"seeds={seeds}", "few-shot results vary: give at least 3")
    console = Console(stderr=True, highlight=False)
    started = time.perf_counter()
    loaded = load_base(base)
    budget = BUDGETS[loaded.backbone.family]
    library = ExpertLibrary(output / "experts")
    _train_experts(console, loaded, library, rows or budget["rows"])
    targets = (NEAR, FAR)

    def keep(job: Any, result: Any) -> None:
        if (job.method, job.data_seed) == ("pemt", 0):
            from pemt.analysis.gates import GateReport
            from pemt.analysis.heat_maps import gate_heat_map

            folder = output / "adapted" / job.task.name
            result.model.save_pretrained(
                folder, base_name=loaded.name,
                extra={"task": result.task.to_dict(), "settings": result.settings.to_dict()},
            )  # fmt: skip
            gate_heat_map(
                GateReport.from_means(result.gates, result.model, result.experts),
                output / f"gates-{job.task.name}.png", title=f"Mean gates on {job.task.name}",
            )  # fmt: skip

    grid = Grid(
        base=base, libraries={"experts": str(library)}, experts=SOURCES, tasks=targets,
        methods=METHODS, shots=[shots], data_seeds=range(seeds), test_rows=budget["test_rows"],
        settings=TrainSettings(
            epochs=budget["epochs"], batch_size=16, evaluations=6, dropout=0.0,
            max_source_length=96,
        ),
    )  # fmt: skip
    bench = GridRun(grid, output=output, base=loaded, on_result=keep, progress=Progress(plain=True))
    cells = bench.go()
    if bench.tally.failed:
        print("\n".join(bench.tally.lines()))
        return 1
    seconds = time.perf_counter() - started
    results = {
        **run_record(stage="demo", base=loaded.name, shots=shots, seeds=seeds, seconds=seconds),
        "experts": {name: library.info(name).metrics for name in SOURCES},
        "cells": [c.__dict__ for c in cells],
        "verdicts": [_verdict(cells, t, m) for t in targets for m in OURS],
    }
    write_json(output / "results.json", results)
    if json:
        print(json_format.dumps(results, default=str))
        return 0
    _print(cells, list(targets), shots, seeds)
    print(
        f"\nExperts, adapted models, gate heat maps and results.json are in {output}/ "
        f"({seconds:.0f} s)."
    )
    return 0


def _train_experts(console: Any, base: Any, library: ExpertLibrary, rows: int) -> None:
    from pemt.model import SourceConfig
    from pemt.training import TrainSettings, train_source
    from pemt.training.memory import give_back_memory

    for i, name in enumerate(SOURCES):
        if name in library:
            continue
        started = time.perf_counter()
        made = train_source(
            base, name, library, rows=rows, validation_rows=300, test_rows=300,
            config=SourceConfig(rank=32, alpha=32),
            settings=TrainSettings(
                epochs=1, batch_size=32, warmup_steps=20, evaluations=2, dropout=0.0,
                max_source_length=96, checkpoints=False, report_to="none",
            ),
            progress=False,
        )  # fmt: skip
        give_back_memory()
        console.print(
            f"Expert {i + 1}/{len(SOURCES)} {name}: {100 * made.metrics['accuracy']:.1f} % of "
            f"{made.metrics['n']:.0f} test rows ({time.perf_counter() - started:.0f} s)"
        )


def _verdict(cells: list[Cell], task: str, method: str) -> str:
    """One honest sentence about a method of ours on a target."""
    from pemt.bench.summary import paired, summarise
    from pemt.methods import METHODS as TABLE

    others = [m for m in METHODS if m not in OURS]
    means = {
        m: summarise([c.metrics["accuracy"] for c in cells if (c.task, c.method) == (task, m)]).mean
        for m in others
    }
    rival = max(others, key=lambda m: means[m])
    gap = paired(cells, task, "accuracy", method, rival)
    word = "ahead of" if gap.mean > 0 else "behind"
    clear = "" if abs(gap.mean) > gap.deviation else ", within the spread over seeds"
    return (
        f"{task}: {TABLE[method].title} is {100 * abs(gap.mean):.1f} points {word} the best other "
        f"method ({TABLE[rival].title}){clear}; paired over n={gap.n} draws, deviation "
        f"{100 * gap.deviation:.1f}."
    )


def _print(cells: list[Cell], tasks: list[str], shots: int, seeds: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from pemt.bench.summary import summarise
    from pemt.methods import METHODS as TABLE

    console = Console()
    table = Table(
        title=f"Accuracy, {shots} labels per class, mean ± deviation over n={seeds} draws"
    )
    table.add_column("method")
    for task in tasks:
        table.add_column(task, justify="right")
    table.add_column("trained parameters", justify="right")
    for method in METHODS:
        mine = [c for c in cells if c.method == method]
        row = [str(summarise([c.metrics["accuracy"] for c in mine if c.task == t])) for t in tasks]
        table.add_row(TABLE[method].title, *row, f"{mine[0].trained:,}")
    console.print(table)
    for task in tasks:
        guides = [c.notes["guide"]["weights"] for c in cells
                  if (c.task, c.method) == (task, "ensemble")]  # fmt: skip
        weights = {k: sum(g[k] for g in guides) / len(guides) for k in guides[0]}
        print(f"What the labels give to each expert on {task}: "
              + ", ".join(f"{k} {v:.2f}" for k, v in weights.items()))  # fmt: skip
        gates = [c.gates for c in cells if (c.task, c.method) == (task, "pemt") and c.gates]
        means = {k: sum(g[k] for g in gates) / len(gates) for k in gates[0]}
        print("  gates of PEMT: " + ", ".join(f"{k} {v:.2f}" for k, v in means.items()))
        chosen = [c.notes.get("expert") for c in cells if (c.task, c.method) == (task, "single")]
        print(f"  best single expert by validation: {', '.join(map(str, chosen))}")
    for task in tasks:
        for method in OURS:
            print(_verdict(cells, task, method))
