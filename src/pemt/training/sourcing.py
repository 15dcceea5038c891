"""Stage 1: train one expert, or a prompt alone, on one source task and put it into the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pemt.backbones import down_projections, fingerprint
from pemt.bases import Base, load_base
from pemt.errors import ConfigError
from pemt.experts import ExpertInfo, ExpertLibrary
from pemt.model import (
    SourceConfig,
    SourceModel,
    description_prompt,
    random_prompt,
    vocabulary_prompt,
)
from pemt.model.description import description_ids
from pemt.tasks import Example, Task, load_splits
from pemt.tasks.encoding import fingerprint as tokenizer_fingerprint
from pemt.training import processes
from pemt.training.evaluating import evaluate, report_of
from pemt.training.fitting import Fit, fingerprint_of, fit
from pemt.training.record import run_record, versions, write_json
from pemt.training.settings import TrainSettings

# the paper's 5e-4 is far too low for a small budget on the small bases (docs/log.md)
SOURCE_RATES = {"encoder-decoder": 5e-4, "decoder-only": 1e-3, "encoder-only": 2e-3}
PROMPT_RATES = {"encoder-decoder": 3e-1, "decoder-only": 2e-2, "encoder-only": 2e-2}
"""Of source prompts: prompts need rates far above those of weights."""
SOURCE_DEFAULTS = {"epochs": 3, "batch_size": 32, "warmup_steps": 50, "evaluations": 6}


@dataclass(frozen=True)
class SourceResult:
    """What stage 1 made.

    Attributes:
        name: of the expert in the library.
        metrics: on the task's test rows.
        fit: how training went.
        constant: the answer it gave to every test row, or None where its answers differ. An expert
            that always says the same has learnt nothing, and can take a mixture's gates.
    """

    name: str
    metrics: dict[str, float]
    fit: Fit
    constant: str | None = None


def outputs_of(task: Task, family: str) -> int | None:
    """Width of the head an encoder-only base needs for a task; None for the other families.

    Raises:
        ConfigError: a generation task on an encoder-only base.
    """
    if family != "encoder-only":
        return None
    if task.kind == "generation":
        raise ConfigError(
            f"Task {task.name!r} asks for free text, and an encoder-only base generates none",
            "use an encoder-decoder or decoder-only base",
        )
    return 1 if task.kind == "regression" else task.num_labels


def start_prompt(base: Base, task: Task, kind: str, *, seed: int = 0) -> torch.Tensor:
    """First values of a prompt for a task: description embeddings, or noise of the same length."""
    if kind == "random":
        rows = len(description_ids(base.tokenizer, task.description))
        width = base.model.get_input_embeddings().weight.shape[1]
        return random_prompt(rows, width, seed=seed)
    return description_prompt(base.model, base.tokenizer, task.description)


def some(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """At most `count` rows, drawn by seed, of whole groups where rows have one; None takes all.

    Raises:
        ConfigError: a count or seed below 0.
    """
    if count is not None and count < 0:
        raise ConfigError(f"{count} rows", "give 0 or more, or no number for all of them")
    if seed < 0:
        raise ConfigError(f"seed={seed}", "give 0 or more")
    if count is None or count >= len(examples):
        return list(examples)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(examples))
    if not any(e.group for e in examples):
        return [examples[i] for i in order[:count]]
    members: dict[str, list[Example]] = {}
    for i in order:
        members.setdefault(examples[i].group or f"\0{i}", []).append(examples[i])
    chosen: list[Example] = []
    for group in members.values():
        if len(chosen) + len(group) <= count:
            chosen += group
    return chosen


def scored(
    examples: Sequence[Example], count: int | None, seed: int, name: str = "test_rows"
) -> list[Example]:
    """`some` rows to score: at least one, said before the work rather than after it.

    Args:
        examples: to draw from.
        count: at most; None takes all.
        seed: of the draw.
        name: of the count, for the message.

    Raises:
        ConfigError: a count below 1, or one that no whole group fits.
    """
    if count is not None and count < 1:
        raise ConfigError(f"{name}={count}", "give a whole number of at least 1")
    chosen = some(examples, count, seed)
    if examples and not chosen:
        raise ConfigError(f"{name}={count}", "give more: rows of one group stay together")
    return chosen


def train_source(
    base: Base | str,
    task: Task | str,
    library: ExpertLibrary | str | Path,
    *,
    name: str | None = None,
    config: SourceConfig | None = None,
    settings: TrainSettings | None = None,
    rows: int | None = None,
    validation_rows: int | None = 1000,
    test_rows: int | None = 1000,
    data_seed: int = 0,
    data_dir: str | Path | None = None,
    folder: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> SourceResult:
    """Train an expert on a source task (METHOD.md, stage 1).

    Under `torchrun` or `accelerate launch` all processes call it, and all get the result.

    Args:
        base: a loaded base, or its name.
        task: a task, or its name in the registry.
        library: where the expert goes.
        name: of the expert; the task's by default.
        config: kind, rank and prompt of the expert.
        settings: of the run; by default `SOURCE_DEFAULTS`, with the family's `SOURCE_RATES`, or its
            `PROMPT_RATES` for kind "prompt".
        rows: at most this many training rows, drawn by `data_seed`.
        validation_rows: at most this many rows for selection; 0 keeps the last step.
        test_rows: at most this many rows for the reported metrics.
        data_seed: of the draws.
        data_dir: local mirror of datasets.
        folder: for checkpoints, logs and the record; a run found there is resumed.
        overwrite: replace an expert of the same name.
        progress: show progress bars.

    Returns:
        The expert's name, its test metrics and how training went.

    Raises:
        ConfigError: a name that is taken, or a number of rows that none can be drawn for.
        DataError: no training rows.
    """
    processes.start()
    progress = progress and processes.is_main()
    if isinstance(base, str):
        with processes.main_first():
            base = load_base(base)
    task = Task.named(task) if isinstance(task, str) else task
    folder = None if folder is None else Path(folder).expanduser()
    library = library if isinstance(library, ExpertLibrary) else ExpertLibrary(library)
    library.require_writable()
    config = config or SourceConfig()
    settings = settings or TrainSettings(**SOURCE_DEFAULTS)  # type: ignore[arg-type]
    if settings.learning_rate is None:
        rates = PROMPT_RATES if config.kind == "prompt" else SOURCE_RATES
        settings = settings.changed(learning_rate=rates[base.backbone.family])
    name = name or task.name
    if name in library and not overwrite:
        raise ConfigError(
            f"The library already has an expert {name!r}", "pick another name, or overwrite it"
        )
    with processes.main_first():
        splits = load_splits(task, data_dir=data_dir)
    train = some(splits.train, rows, data_seed)
    validation: list[Example] = []
    if validation_rows != 0:
        validation = scored(splits.validation, validation_rows, data_seed, "validation_rows")
    test = scored(splits.test, test_rows, data_seed)
    site = down_projections(base.model, base.backbone)[0]
    prompt: torch.Tensor | None = None
    if config.prompt == "vocabulary":
        prompt = vocabulary_prompt(base.model, config.prompt_tokens, seed=settings.init_seed)
    elif config.prompt != "none":
        prompt = start_prompt(base, task, config.prompt, seed=settings.init_seed)
    torch.manual_seed(settings.init_seed)
    model = SourceModel(
        base.model,
        config,
        prompt=prompt,
        outputs=outputs_of(task, base.backbone.family),
        backbone=base.backbone,
    )
    try:
        fitted = fit(
            model,
            task,
            base.tokenizer,
            train,
            validation,
            settings,
            folder=folder,
            progress=progress,
        )
        metrics, made = evaluate(
            model, task, base.tokenizer, test, settings, progress=progress, shared=True
        )
        interval = report_of(task, test, made).main_interval()
        alone = config.kind == "prompt"
        info = ExpertInfo(
            name=name, kind=config.kind, task=task.name, task_version=task.version,
            description=task.description, label_words=tuple(task.labels), base=base.name,
            base_family=base.backbone.family,
            base_fingerprint=fingerprint(base.model, base.backbone),
            tokenizer_fingerprint=tokenizer_fingerprint(base.tokenizer), width=site.width,
            hidden=site.hidden, rank=0 if alone else config.rank,
            alpha=0.0 if alone else config.alpha,
            fan_in_fan_out=type(site.module).__name__ == "Conv1D",
            data_fingerprint=fingerprint_of(train),
            settings={"source": config.to_dict(), "train": settings.to_dict(), "rows": len(train),
                      "data_seed": data_seed, "origin": splits.origin,
                      "best_step": fitted.best_step},
            metrics={"test": {**metrics, "interval": interval}, "validation": fitted.best},
            versions=versions(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )  # fmt: skip
        if processes.is_main():
            library.add(model.to_expert(info), overwrite=overwrite)
    finally:
        model.detach()
    if folder is not None and processes.is_main():
        write_json(folder / "run.json", run_record(stage="source", **_plain(info)))
        write_json(folder / "results.json", {"metrics": metrics, "fit": fitted.__dict__})
    processes.wait()
    said = set(made.texts)
    constant = said.pop() if len(said) == 1 and len({e.target for e in test}) > 1 else None
    return SourceResult(name, metrics, fitted, constant)


def _plain(info: ExpertInfo) -> dict[str, Any]:
    return {k: v for k, v in info.to_json().items() if k not in ("versions", "created")}
