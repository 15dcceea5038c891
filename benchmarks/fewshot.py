"""Few-shot comparison on a local mirror: train experts, then every method on the same labels.

    python benchmarks/fewshot.py --base minilm --data-dir MIRROR --output RESULTS

Restartable: experts in the library and cells on disk are kept. `--stage sources` or
`--stage targets` does one half; several processes may share the work by naming different sources or
targets.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from pemt.bases import load_base
from pemt.experts import ExpertLibrary
from pemt.methods import METHODS
from pemt.model import SourceConfig
from pemt.tasks import Task
from pemt.training import TrainSettings, compare, train_source
from pemt.training.comparing import paired, summarise
from pemt.training.record import run_record, write_json

SOURCES = ["mnli", "qnli", "qqp", "sst2"]
TARGETS = ["cb", "rte", "mrpc", "product_reviews"]
# accuracy says little on skewed sets: MRPC's majority alone is 68 %
SCORE = {"mrpc": "balanced_accuracy"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--stage", choices=["sources", "targets", "table", "all"], default="all")
    parser.add_argument("--sources", nargs="*", default=SOURCES)
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--source-rows", type=int, default=16000)
    parser.add_argument("--source-batch-size", type=int, default=32)
    parser.add_argument("--source-validation", type=int, default=1000)
    parser.add_argument("--source-test", type=int, default=1000)
    parser.add_argument("--source-epochs", type=float, default=1)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--test-rows", type=int, default=400)
    parser.add_argument("--max-source-length", type=int, default=96)
    parser.add_argument("--rates", type=float, nargs="*", help="chosen among on validation")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    library = ExpertLibrary(given.output / "experts")
    if given.stage != "table":
        base = load_base(given.base)
    if given.stage in ("sources", "all"):
        for name in given.sources:
            if name in library:
                continue
            steps = given.source_rows * given.source_epochs / given.source_batch_size
            started = time.perf_counter()
            made = train_source(
                base, name, library, rows=given.source_rows, data_dir=given.data_dir,
                validation_rows=given.source_validation, test_rows=given.source_test,
                config=SourceConfig(rank=given.rank, alpha=given.rank),
                settings=TrainSettings(
                    epochs=given.source_epochs, batch_size=given.source_batch_size, evaluations=2,
                    warmup_steps=int(steps / 10),
                    dropout=0.0,
                    max_source_length=given.max_source_length, checkpoints=False, report_to="none",
                ),
                progress=False,
            )  # fmt: skip
            print(name, made.metrics, f"{time.perf_counter() - started:.0f} s", flush=True)
    if given.stage in ("targets", "all"):
        experts = library.load_many(given.sources)
        for target in given.targets:
            task = Task.named(target)
            compare(
                base, experts, [task], given.methods, range(given.seeds), shots=given.shots,
                # CB has too few neutral rows for a second draw: its 28 validation rows are used
                validation="full" if target == "cb" else "shots",
                learning_rates=dict.fromkeys(given.methods, given.rates) if given.rates else None,
                settings=TrainSettings(
                    epochs=given.epochs, batch_size=given.batch_size, evaluations=given.evaluations,
                    dropout=0.0, max_source_length=given.max_source_length, checkpoints=False,
                    report_to="none",
                ),
                test_rows=given.test_rows, data_dir=given.data_dir, folder=given.output / "cells",
                on_cell=lambda cell, _: print(
                    cell.task, cell.method, cell.data_seed,
                    f"{cell.metrics[_score(cell.task)]:.3f}",
                    f"{cell.seconds:.0f} s", cell.notes.get("expert", ""), flush=True,
                ),
            )  # fmt: skip
    if given.stage in ("table", "all"):
        table(given, library)


def _score(task: str) -> str:
    return SCORE.get(task, Task.named(task).metrics[0])


def table(given: argparse.Namespace, library: ExpertLibrary) -> None:
    """Print the table and write it with everything behind it."""
    from pemt.training.comparing import Cell

    cells = [
        Cell(**json.loads(p.read_text())) for p in sorted((given.output / "cells").glob("*.json"))
    ]
    lines = [
        "| target | score | "
        + " | ".join(METHODS[m].title for m in given.methods)
        + " | PEMT - best single-task |",
        "| --- | --- |" + " --- |" * (len(given.methods) + 1),
    ]
    means: dict[str, list[float]] = {m: [] for m in given.methods}
    for target in given.targets:
        score, row = _score(target), []
        for method in given.methods:
            values = [c.metrics[score] for c in cells if (c.task, c.method) == (target, method)]
            if values:
                means[method].append(summarise(values).mean)
            row.append(f"{summarise(values)} ({len(values)})" if values else "-")
        single = [m for m in given.methods if not METHODS[m].transfers]
        rival = max(single, key=lambda m: means[m][-1] if means[m] else 0.0)
        difference = paired(cells, target, score, "pemt", rival)
        lines.append(
            f"| {target} | {score} | "
            + " | ".join(row)
            + f" | {difference} against {METHODS[rival].title} |"
        )
    mean = [
        f"{100 * sum(v) / len(v):.1f}" if len(v) == len(given.targets) else "-"
        for v in means.values()
    ]
    lines.append("| mean | | " + " | ".join(mean) + " | |")
    print("\n".join(lines))
    experts = {n: library.info(n).metrics for n in library.names()}
    (given.output / "table.md").write_text("\n".join(lines) + "\n")
    paths = ("data_dir", "output")
    write_json(
        given.output / "results.json",
        {
            **run_record(settings={k: v for k, v in vars(given).items() if k not in paths}),
            "experts": experts, "table": lines,
            "cells": [c.__dict__ for c in cells],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
