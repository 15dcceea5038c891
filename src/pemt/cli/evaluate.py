"""`pemt evaluate`: score an adapted model."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pemt.training.settings import Answers

if TYPE_CHECKING:
    from pemt.tasks.reporting import Report


def evaluate(
    run: Path,
    *,
    task: str | None = None,
    split: Literal["test", "validation", "train"] = "test",
    rows: int | None = None,
    library: str | None = None,
    base: str | None = None,
    data_dir: Path | None = None,
    precision: str = "auto",
    answers: Answers | None = None,
    json: bool = False,
) -> int:
    """Score an adapted model on a split of its task, or of another task with the same labels.

    Prints the metrics, the 95 % bootstrap interval of the main one over the test rows, how many
    generated answers were none of the task's, and the scores of each class.

    Example: pemt evaluate runs/product_reviews-pemt-16-0 --task film_reviews

    Args:
        run: folder that `pemt adapt` wrote, or the model folder in it.
        task: another task; its label words must be the model's. Or a data file (.csv, .tsv, .jsonl,
            .parquet): its rows are scored, read and left out as the model's own task does.
        split: which rows.
        rows: at most this many, drawn by seed 0.
        library: folder or hf:// address of the experts, if they were not saved with the model.
        base: load the base from here instead of from where the model says.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        precision: of the frozen base: float32, bfloat16, or auto: that it was adapted in.
        answers: rank the label words, generate, or auto; by default as the model was adapted with.
        json: print metrics, interval, scores per class and invalid answers as JSON on stdout.
    """
    from pemt import training
    from pemt.cli.choose import task_from
    from pemt.errors import ConfigError
    from pemt.tasks import load_examples, official_splits
    from pemt.tasks.adhoc import is_data_file, task_on_file
    from pemt.training.deploying import load_run
    from pemt.training.evaluating import answers_of
    from pemt.training.sourcing import scored

    loaded = load_run(run, library=library, base=base, precision=precision)
    own_file = task is not None and is_data_file(task)
    if own_file and split != "test":
        raise ConfigError(f"--split {split} with the file {task}", "a file is scored whole")
    if own_file:
        asked = task_on_file(loaded.task, str(task))
    else:
        asked = loaded.task if task is None else task_from(task)
    if asked.labels != loaded.task.labels:
        raise ConfigError(
            f"Task {asked.name!r} answers with {', '.join(asked.labels)}",
            f"this model answers with {', '.join(loaded.task.labels)}: "
            "take a task with the same words",
        )
    raw = load_examples(asked, data_dir=data_dir)
    part = raw["test"] if own_file else getattr(official_splits(asked, raw), split)
    examples = scored(part, rows, 0, "rows")
    settings = loaded.settings if answers is None else loaded.settings.changed(answers=answers)
    metrics, made = training.evaluate(
        loaded.model, asked, loaded.base.tokenizer, examples, settings, progress=not json
    )
    report = training.report_of(asked, examples, made)
    head = loaded.model.head is not None
    how = "head" if head else answers_of(asked, loaded.model.family, settings.answers)
    if json:
        shown = {"task": asked.name, "split": split, "answers": how, "metrics": metrics}
        print(json_format.dumps(shown | report.to_dict()))
        return 0
    scores = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k != "n")
    print(f"{asked.name} {split}: {scores} on {len(examples)} rows (answers: {how}).")
    print("\n".join(report.lines()))
    _print_classes(report)
    return 0


def _print_classes(report: Report) -> None:
    """Scores of each class beside how its rows were answered."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if report.per_class is None or report.confusion is None:
        return
    table = Table("class", box=None)
    words = list(report.per_class)
    for name in ("precision", "recall", "f1", "rows", *(f"as {w}" for w in words), "invalid"):
        table.add_column(Text(name), justify="right")
    for (word, scores), answered in zip(report.per_class.items(), report.confusion, strict=True):
        shown = (f"{scores.precision:.3f}", f"{scores.recall:.3f}", f"{scores.f1:.3f}")
        table.add_row(Text(word), *shown, str(scores.support), *map(str, answered))
    Console().print(table)
