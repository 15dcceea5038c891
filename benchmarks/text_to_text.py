"""Experts of a text-to-text base at a small budget, scored by generation and by ranking words.

    python benchmarks/text_to_text.py --data-dir MIRROR --output RESULTS

Restartable: an expert in the library is scored, not trained again, and a finished score is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from pemt.bases import load_base
from pemt.experts import ExpertLibrary
from pemt.model import SourceConfig, SourceModel
from pemt.tasks import Task, load_examples, official_splits
from pemt.training import TrainSettings, evaluate, train_source
from pemt.training.record import versions, write_json
from pemt.training.sourcing import some

ROWS = {"sst2": 4000, "qqp": 6000, "mnli": 6000, "squad": 4000}
LENGTHS = {"sst2": 96, "qqp": 96, "mnli": 96, "squad": 256}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sources", nargs="*", default=list(ROWS))
    parser.add_argument("--rows", type=int, help="training rows of every source")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--test-rows", type=int, default=500)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    base = load_base(given.base)
    for name in given.sources:
        print(json.dumps(one(base, name, given)), flush=True)
    table(given.output)


def one(base: Any, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train one expert and score it and the bare base; what is on disk is not done again."""
    file = given.output / f"{name}.json"
    if file.exists():
        done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return done
    task, library = Task.named(name), ExpertLibrary(given.output / "experts")
    rows = given.rows or ROWS[name]
    steps = rows // given.batch_size
    settings = TrainSettings(
        epochs=1, batch_size=given.batch_size, evaluations=2, warmup_steps=steps // 10,
        dropout=0.0, max_source_length=LENGTHS[name], eval_batch_size=32, checkpoints=False,
        report_to="none", max_target_length=24 if task.kind == "generation" else 8,
    )  # fmt: skip
    started = time.perf_counter()
    if name not in library:
        train_source(
            base, task, library, config=SourceConfig(rank=given.rank, alpha=given.rank),
            settings=settings, rows=rows, validation_rows=200, test_rows=8,
            data_dir=given.data_dir, progress=False,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    splits = official_splits(task, load_examples(task, data_dir=given.data_dir))
    test = some(splits.test, given.test_rows, 0)
    expert = library.load(name)
    model = SourceModel(
        base.model,
        SourceConfig(rank=given.rank, alpha=given.rank),
        prompt=expert.prompt,
        backbone=base.backbone,
    )
    scores: dict[str, Any] = {}
    try:
        model.load_expert(expert)
        for how in ("generate",) if task.kind == "generation" else ("generate", "rank"):
            begun = time.perf_counter()
            metrics, made = evaluate(
                model, task, base.tokenizer, test, settings.changed(answers=how)
            )
            metrics["invalid"] = made.invalid
            metrics["rows_per_second"] = len(test) / (time.perf_counter() - begun)
            scores[how] = metrics
        with model.disable():
            metrics, made = evaluate(model, task, base.tokenizer, test, settings)
            scores["base"] = {**metrics, "invalid": made.invalid}
    finally:
        model.detach()
    done = {
        "task": name, "train_rows": rows, "train_seconds": seconds, "test_rows": len(test),
        "settings": settings.to_dict(), "rank": given.rank, "threads": torch.get_num_threads(),
        "scores": scores, "versions": versions(),
    }  # fmt: skip
    write_json(file, done)
    return done


def table(folder: Path) -> None:
    """The Markdown table of what is in a folder."""
    print("| source | rows | base alone | generated | invalid | ranked | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in ROWS:
        file = folder / f"{name}.json"
        if not file.exists():
            continue
        done = json.loads(file.read_text(encoding="utf-8"))
        metrics = [m for m in Task.named(name).metrics if m in done["scores"]["generate"]]

        def cell(how: str, done: dict[str, Any] = done, metrics: list[str] = metrics) -> str:
            found = done["scores"].get(how)
            if found is None:
                return "-"
            return " / ".join(f"{100 * found[m]:.1f}" for m in metrics)

        print(
            f"| {name} ({', '.join(metrics)}, n={done['test_rows']}) | {done['train_rows']} "
            f"| {cell('base')} | {cell('generate')} | {done['scores']['generate']['invalid']} "
            f"| {cell('rank')} | {done['train_seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
