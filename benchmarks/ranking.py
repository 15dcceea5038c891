"""Does the ranking before training find the experts that help? And what does it cost?

    python benchmarks/ranking.py --data-dir MIRROR --output RESULTS

Truth: for every source and target, the test score of stage 2 with that expert alone (a mixture of
one), a mean over data seeds. Ranking: from the training rows of each seed, before training.
Restartable: experts and cells on disk are kept. Several processes may share the work by naming
different sources or targets; `--stage table` reads what is there, `--stage again` ranks the cells
that are there once more and keeps their truth.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pemt.bases import Base, load_base
from pemt.bench.grid import Grid, GridTask
from pemt.bench.progress import Progress
from pemt.bench.running import GridRun
from pemt.experts import ExpertLibrary
from pemt.model import SourceConfig
from pemt.tasks import Task
from pemt.training import TrainSettings, train_source
from pemt.training.adapting import target_rows
from pemt.training.choosing import ranked
from pemt.training.record import run_record, write_json

SOURCES = ["mnli", "qnli", "qqp", "sst2", "cola", "sarcasm", "question_types", "film_reviews"]
TARGETS = ["cb", "rte", "mrpc", "product_reviews", "subj"]
# accuracy says little on skewed sets: MRPC's majority alone is 68 %
SCORE = {"mrpc": "balanced_accuracy"}
HELPFUL = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--stage", default="all", choices=["sources", "cells", "again", "table", "all"]
    )
    parser.add_argument("--sources", nargs="*", default=SOURCES)
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--source-rows", type=int, default=6000)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--test-rows", type=int, default=300)
    parser.add_argument("--max-source-length", type=int, default=96)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    library = ExpertLibrary(given.output / "experts")
    base = load_base(given.base)
    if given.stage in ("sources", "all"):
        train_sources(base, library, given)
    if given.stage in ("cells", "all"):
        truth = {source: alone(base, library, source, given) for source in given.sources}
        for target in given.targets:
            for seed in range(given.seeds):
                cell(base, library, target, seed, given, truth)
    if given.stage == "again":
        for file in sorted((given.output / "cells").glob("*.json")):
            kept = json.loads(file.read_text(encoding="utf-8"))
            measured = rank(base, library, kept["target"], kept["seed"], given)
            write_json(file, {**kept, **measured})
    if given.stage in ("table", "again", "all"):
        table(base, library, given)


def train_sources(base: Base, library: ExpertLibrary, given: argparse.Namespace) -> None:
    for name in given.sources:
        if name in library:
            continue
        made = train_source(
            base, name, library, rows=given.source_rows, data_dir=given.data_dir,
            config=SourceConfig(rank=given.rank, alpha=given.rank), progress=False,
            settings=TrainSettings(
                epochs=1, batch_size=32, evaluations=2, warmup_steps=given.source_rows // 320,
                dropout=0.0, max_source_length=given.max_source_length, checkpoints=False,
                report_to="none",
            ),
        )  # fmt: skip
        print(name, made.metrics, flush=True)


def validation_of(target: str) -> Any:
    """CB has too few neutral rows for a second draw: its 28 validation rows are used."""
    return "full" if target == "cb" else "shots"


def alone(
    base: Base, library: ExpertLibrary, source: str, given: argparse.Namespace
) -> dict[tuple[str, int], float]:
    """Stage 2 with one expert alone on every target and seed: the scores."""
    tasks = [
        GridTask(task=Task.named(t), validation=validation_of(t), score=SCORE.get(t, ""))
        for t in given.targets
    ]
    grid = Grid(
        base=given.base, libraries={"experts": str(library)}, experts=[source], tasks=tasks,
        methods=["pemt"], shots=[given.shots], data_seeds=range(given.seeds),
        test_rows=given.test_rows,
        settings=TrainSettings(
            epochs=given.epochs, batch_size=16, evaluations=6, dropout=0.0,
            max_source_length=given.max_source_length,
        ),
    )  # fmt: skip
    run = GridRun(
        grid, output=given.output / "alone", data_dir=given.data_dir, base=base,
        progress=Progress(plain=True),
    )  # fmt: skip
    cells = run.go()
    if run.tally.failed:
        raise SystemExit("\n".join(run.tally.lines()))
    return {(c.task, c.data_seed): c.value for c in cells}


def cell(
    base: Base, library: ExpertLibrary, target: str, seed: int, given: argparse.Namespace,
    truth: dict[str, dict[tuple[str, int], float]],
) -> None:  # fmt: skip
    """One target and seed: the ranking, and the score with each expert alone."""
    file = given.output / "cells" / f"{target}-{seed}.json"
    if file.exists():
        return
    scores = {source: found[target, seed] for source, found in truth.items()}
    measured = rank(base, library, target, seed, given)
    write_json(file, {"target": target, "seed": seed, **measured, "scores": scores})


def rank(
    base: Base, library: ExpertLibrary, target: str, seed: int, given: argparse.Namespace
) -> dict[str, Any]:
    """The ranking on the training rows of a draw, and how long it took."""
    task = Task.named(target)
    rows = target_rows(
        task, shots=given.shots, data_seed=seed, data_dir=given.data_dir,
        validation=validation_of(target),
    )  # fmt: skip
    begun = time.perf_counter()
    ranking = ranked(base, task, library, rows.train, max_source_length=given.max_source_length)
    return {"ranking": ranking.to_dict(), "seconds": time.perf_counter() - begun}


def table(base: Base, library: ExpertLibrary, given: argparse.Namespace) -> None:
    """How often the first of the ranking is among the two that help most, and the time of 24."""
    cells = [
        json.loads(f.read_text(encoding="utf-8")) for f in (given.output / "cells").glob("*.json")
    ]
    hits, first, correlations, gaps = [], [], [], []
    print("| target | seeds | two best (truth) | ranked first, by seed | hits |")
    print("| --- | --- | --- | --- | --- |")
    for target in sorted({c["target"] for c in cells}):
        mine = sorted((c for c in cells if c["target"] == target), key=lambda c: c["seed"])
        truth = {s: float(np.mean([c["scores"][s] for c in mine])) for s in mine[0]["scores"]}
        helpful = sorted(truth, key=lambda s: -truth[s])[:HELPFUL]
        tops = [c["ranking"]["ranks"][0]["name"] for c in mine]
        found = [top in helpful for top in tops]
        hits += found
        first += [top == helpful[0] for top in tops]
        gaps += [truth[helpful[0]] - truth[top] for top in tops]
        for c in mine:
            gains = {r["name"]: r["gain"] for r in c["ranking"]["ranks"]}
            correlations.append(_spearman([gains[s] for s in truth], list(truth.values())))
        best = ", ".join(f"{s} {100 * truth[s]:.1f}" for s in helpful)
        print(f"| {target} | {len(mine)} | {best} | {', '.join(tops)} | {sum(found)} |")
    sources = len(cells[0]["scores"])
    chance = HELPFUL / sources
    print(
        f"\nFirst of the ranking among the two best: {sum(hits)} of {len(hits)} (chance "
        f"{chance:.0%}); the best itself: {sum(first)}; mean loss against the best "
        f"{100 * float(np.mean(gaps)):.1f} points; rank correlation {np.mean(correlations):.2f} "
        f"± {np.std(correlations, ddof=1):.2f}."
    )
    timed = time_of(base, library, given)
    print(f"24 experts on {timed['rows']} rows: {timed['seconds']:.1f} s.")
    summary = {
        "hits": int(sum(hits)), "n": len(hits), "chance": chance, "best": int(sum(first)),
        "gap_points": 100 * float(np.mean(gaps)), "correlation": float(np.mean(correlations)),
        "correlation_sd": float(np.std(correlations, ddof=1)), "time": timed, "cells": cells,
    }  # fmt: skip
    settings = {
        k: str(v) for k, v in vars(given).items() if k not in ("data_dir", "output", "stage")
    }
    record = run_record(stage="benchmark", base=given.base, settings=settings)
    write_json(given.output / "results.json", {**record, **summary})


def time_of(base: Base, library: ExpertLibrary, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds to rank 24 experts on 16 rows per class, after a first pass that warms up."""
    task = Task.named("product_reviews")
    rows = target_rows(task, shots=given.shots, data_seed=0, data_dir=given.data_dir).train
    loaded = library.load_many(library.names())
    many = []
    for i in range(24):
        expert = loaded[i % len(loaded)]
        name = f"{expert.name}-{i}"
        many.append(replace(expert, name=name, info=replace(expert.info, name=name)))
    ranked(base, task, many[:2], rows, max_source_length=given.max_source_length)
    begun = time.perf_counter()
    ranked(base, task, many, rows, max_source_length=given.max_source_length)
    return {
        "experts": len(many), "rows": len(rows), "seconds": time.perf_counter() - begun,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _spearman(a: list[float], b: list[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


if __name__ == "__main__":
    main()
