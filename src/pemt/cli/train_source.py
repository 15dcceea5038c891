"""`pemt train-source`: stage 1."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

from pemt.cli.choose import run_folder, source_run, task_from
from pemt.model.config import SourceConfig
from pemt.training.settings import TrainSettings


def train_source(
    task: str,
    library: str,
    *,
    base: str = "minilm",
    name: str | None = None,
    rows: int | None = None,
    validation_rows: int | None = 1000,
    test_rows: int | None = 1000,
    data_seed: int = 0,
    data_dir: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    precision: str = "auto",
    source: SourceConfig = SourceConfig(),  # noqa: B008 - frozen
    settings: TrainSettings = TrainSettings(  # noqa: B008 - frozen
        epochs=3, warmup_steps=50, evaluations=6
    ),
    json: bool = False,
    **flags: Any,
) -> int:
    """Train one expert on one source task and put it into a library.

    An expert is a low-rank branch beside every feed-forward down projection of the frozen base, and
    a prompt started from the task's description. Run this once per source task; `pemt adapt` then
    mixes the experts for a new target task. A run that was killed goes on where it stopped.

    With --source.kind prompt it tunes a prompt alone, which the methods spot, attempt and mpt take
    (--source.prompt_tokens of them, 100 by default: keep those in a library of their own).

    Example: pemt train-source film_reviews experts --rows 6000 --source.rank 32

    Args:
        task: a name of `pemt tasks list`, a YAML file of your own, or a data file (.csv, .tsv,
            .jsonl, .parquet) with --text-template, --label-column and --description; --train FILE
            may stand in its place.
        library: folder of the library; made where it does not exist.
        base: minilm, smollm2, a folder, or a Hub id such as google-t5/t5-base.
        name: of the expert; the task's name by default.
        rows: at most this many training rows, drawn by data_seed; all by default.
        validation_rows: select on at most this many validation rows; null takes all, 0 keeps the
            last step.
        test_rows: score at most this many test rows; null takes all.
        data_seed: of the draw of rows.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        output: folder of the run (default: runs/source-NAME-LIBRARY-BASE).
        overwrite: replace a finished run and an expert of the same name.
        precision: of the frozen base: auto, float32 or bfloat16.
        source: kind, rank and prompt of the expert.
        settings: of training.
        json: print the result as JSON on stdout.
        flags: of `choose.task_from`: how to read a data file.
    """
    from pemt import training
    from pemt.bases import load_base
    from pemt.training import processes

    chosen = task_from(task, **flags)
    default = source_run(f"source-{name or chosen.name}", library, base)
    reads = (task, library, base, data_dir, *chosen.rows.files.values())
    with run_folder(output, default, overwrite=overwrite, reads=reads) as folder:
        with processes.main_first():
            loaded = load_base(base, precision=precision)  # type: ignore[arg-type]
        made = training.train_source(
            loaded, chosen, library, name=name, config=source, settings=settings, rows=rows,
            validation_rows=validation_rows, test_rows=test_rows, data_seed=data_seed,
            data_dir=data_dir, folder=folder, overwrite=overwrite, progress=not json,
        )  # fmt: skip
    if json:
        shown = {"name": made.name, "metrics": made.metrics, "constant": made.constant}
        print(json_format.dumps({**shown, "run": str(folder)}))
        return 0
    scores = ", ".join(f"{k} {v:.3f}" for k, v in made.metrics.items() if k != "n")
    print(f"Expert {made.name!r} is in {library}: {scores} on {made.metrics['n']:.0f} test rows.")
    if made.constant is not None:
        print(
            f"It answers {made.constant!r} to every test row: it has learnt nothing, and can spoil "
            "a mixture. Train it again (--overwrite true) with a lower --settings.learning_rate, "
            "more rows or more epochs, or remove it (pemt experts remove)."
        )
    return 0
