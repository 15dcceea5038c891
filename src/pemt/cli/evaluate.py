"""`pemt evaluate`: score an adapted model."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Literal


def evaluate(
    run: Path,
    *,
    task: str | None = None,
    split: Literal["test", "validation", "train"] = "test",
    rows: int | None = None,
    library: Path | None = None,
    base: str | None = None,
    data_dir: Path | None = None,
    precision: str = "auto",
    json: bool = False,
) -> int:
    """Score an adapted model on a split of its task, or of another task with the same labels.

    Example: pemt evaluate runs/product_reviews-pemt-16-0 --task film_reviews

    Args:
        run: folder that `pemt adapt` wrote, or the model folder in it.
        task: another task; its label words must be the model's.
        split: which rows.
        rows: at most this many, drawn by seed 0.
        library: where the experts are, if they were not saved with the model.
        base: load the base from here instead of from where the model says.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        precision: of the frozen base: auto, float32 or bfloat16.
        json: print the metrics as JSON on stdout.
    """
    from pemt import training
    from pemt.cli.choose import task_from
    from pemt.errors import ConfigError
    from pemt.tasks import load_examples, official_splits
    from pemt.training.deploying import load_run
    from pemt.training.sourcing import some

    loaded = load_run(run, library=library, base=base, precision=precision)
    asked = loaded.task if task is None else task_from(task)
    if asked.labels != loaded.task.labels:
        raise ConfigError(
            f"Task {asked.name!r} answers with {', '.join(asked.labels)}",
            f"this model answers with {', '.join(loaded.task.labels)}: "
            "take a task with the same words",
        )
    splits = official_splits(asked, load_examples(asked, data_dir=data_dir))
    examples = some(getattr(splits, split), rows, 0)
    metrics, made = training.evaluate(
        loaded.model, asked, loaded.base.tokenizer, examples, loaded.settings, progress=not json
    )
    if json:
        print(json_format.dumps({"task": asked.name, "split": split, "metrics": metrics}))
        return 0
    scores = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k != "n")
    print(
        f"{asked.name} {split}: {scores} on {len(examples)} rows, {made.invalid} invalid answers."
    )
    return 0
