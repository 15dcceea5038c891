"""`pemt train-shared-prompt`: MPT's source stage."""

from __future__ import annotations

import json as json_format
from pathlib import Path

from pemt.cli.choose import run_folder, source_run, task_named
from pemt.errors import ConfigError
from pemt.training.settings import TrainSettings


def train_shared_prompt(
    library: str,
    *,
    sources: list[str] | str,
    teachers: str,
    base: str = "minilm",
    distillation: float = 0.9,
    rows: int | None = None,
    validation_rows: int | None = 1000,
    test_rows: int | None = 1000,
    data_seed: int = 0,
    data_dir: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    precision: str = "auto",
    settings: TrainSettings = TrainSettings(  # noqa: B008 - frozen
        epochs=3, warmup_steps=50, evaluations=6
    ),
    json: bool = False,
) -> int:
    """Tune one prompt for several source tasks at once, as `pemt adapt --method mpt` needs it.

    Each source scales the shared prompt by a factor of its own, and is taught by the prompt that
    was tuned on it alone. First, for each source: pemt train-source TASK PROMPTS --source.kind
    prompt. A run that was killed goes on where it stopped.

    Example: pemt train-shared-prompt shared --sources mnli,qnli --teachers prompts

    Args:
        library: folder of the library for the prompts, one for each source, which also hold the
            shared one; made where it does not exist.
        sources: names of tasks or their YAML files, as mnli,qnli or a list; at least two.
        teachers: library of the prompts tuned on each source alone.
        base: the base that the teachers were tuned on.
        distillation: weight of the teachers in the loss; 0 leaves them out.
        rows: at most this many training rows of each source, drawn by data_seed.
        validation_rows: select on at most this many validation rows of each; null takes all.
        test_rows: score at most this many test rows of each; null takes all.
        data_seed: of the draw of rows.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        output: folder of the run (default: runs/shared-prompt-SOURCES-LIBRARY-BASE).
        overwrite: replace a finished run and prompts of the same names.
        precision: of the frozen base: auto, float32 or bfloat16.
        settings: of training.
        json: print the result as JSON on stdout.
    """
    from pemt.bases import load_base
    from pemt.cli.experts import open_library
    from pemt.training.shared_prompts import train_shared_prompt as train

    asked = sources.split(",") if isinstance(sources, str) else sources
    tasks = [task_named(name.strip()) for name in asked if name.strip()]
    if len(tasks) < 2:
        raise ConfigError(f"sources={sources!r}", "name at least two tasks: --sources mnli,qnli")
    names = "-".join(t.name for t in tasks)
    default = source_run(f"shared-prompt-{names}", library, base)
    files = [file for t in tasks for file in t.rows.files.values()]
    reads = (library, teachers, base, data_dir, *asked, *files)
    with run_folder(output, default, overwrite=overwrite, reads=reads) as folder:
        made = train(
            load_base(base, precision=precision),  # type: ignore[arg-type]
            tasks, library, open_library(teachers), distillation=distillation, settings=settings,
            rows=rows, validation_rows=validation_rows, test_rows=test_rows, data_seed=data_seed,
            data_dir=data_dir, folder=folder, overwrite=overwrite, progress=not json,
        )  # fmt: skip
    if json:
        print(json_format.dumps({"metrics": made.metrics, "run": str(folder)}))
        return 0
    for name, metrics in made.metrics.items():
        scores = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k != "n")
        print(f"Prompt {name!r} is in {library}: {scores} on {metrics['n']:.0f} test rows.")
    return 0
