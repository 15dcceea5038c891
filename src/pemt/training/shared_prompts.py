"""MPT's source stage: prompts of all source tasks tuned together, see `pemt.model.shared`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from pemt.backbones import down_projections
from pemt.bases import Base, load_base
from pemt.errors import ConfigError, DataError
from pemt.experts import Expert, ExpertInfo, ExpertLibrary, PromptFactors
from pemt.model import vocabulary_prompt
from pemt.model.shared import SharedPromptModel
from pemt.tasks import Splits, Task, load_splits
from pemt.tasks.cache import encode_cached
from pemt.tasks.encoding import Collator
from pemt.tasks.encoding import fingerprint as tokenizer_fingerprint
from pemt.training.evaluating import evaluate, lengths, report_of, side_of
from pemt.training.fitting import Fit, fingerprint_of, run, steps_of
from pemt.training.record import run_record, versions, write_json
from pemt.training.settings import TrainSettings
from pemt.training.sourcing import PROMPT_RATES, SOURCE_DEFAULTS, outputs_of, scored, some

HOW = "tune one on each source first: pemt train-source TASK LIBRARY --source.kind prompt"


@dataclass(frozen=True)
class SharedResult:
    """What the stage made.

    Attributes:
        metrics: on each source's test rows, by the name of its prompt in the library.
        fit: how training went; its best is the mean of the sources' main metrics.
    """

    metrics: dict[str, dict[str, float]]
    fit: Fit


class MixedBatches(IterableDataset[dict[str, Any]]):
    """One batch after another, each of one source that is drawn uniformly; without end.

    The paper mixes tasks inside a batch; one task a batch is the same in the mean, and lets each
    have its own kind of label. A source's rows come in a new random order each time round.

    Args:
        rows: encoded rows of each source.
        collate: pads them.
        batch_size: rows of a batch.
        seed: of all draws.
    """

    def __init__(
        self, rows: Sequence[Sequence[Any]], collate: Collator, batch_size: int, seed: int
    ) -> None:
        self.rows, self.collate, self.batch_size, self.seed = rows, collate, batch_size, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        draw = np.random.Generator(np.random.PCG64(self.seed))
        waiting: list[list[int]] = [[] for _ in self.rows]
        while True:
            source = int(draw.integers(len(self.rows)))
            own = self.rows[source]
            if not waiting[source]:
                waiting[source] = draw.permutation(len(own)).tolist()
            chosen = waiting[source][: self.batch_size]
            del waiting[source][: self.batch_size]
            yield {**self.collate([own[i] for i in chosen]), "source": source}


def teachers_of(
    tasks: Sequence[Task], base: Base, library: ExpertLibrary | Sequence[Expert]
) -> list[Expert]:
    """For each task the prompt that was tuned on it.

    Raises:
        ConfigError: no such prompt or two, or prompts of different lengths.
        ExpertError: a prompt of another base or tokenizer.
    """
    from pemt.training.choosing import check_experts

    infos = (
        [found for _, found in library.infos() if isinstance(found, ExpertInfo)]
        if isinstance(library, ExpertLibrary)
        else [e.info for e in library]
    )
    chosen = []
    for task in tasks:
        fitting = [i.name for i in infos if i.kind == "prompt" and i.task == task.name]
        if len(fitting) != 1:
            there = sorted(f"{i.name} ({i.kind}, {i.task})" for i in infos)
            raise ConfigError(
                f"{len(fitting)} prompts tuned on {task.name!r} among {there or 'no experts'}",
                HOW if not fitting else "keep one of them in the library of teachers",
            )
        chosen += fitting
    if isinstance(library, ExpertLibrary):
        check_experts(base, library, chosen)
        teachers = library.load_many(chosen)
    else:
        by_name = {e.name: e for e in library}
        teachers = [by_name[name] for name in chosen]
    rows = {e.name: len(e.prompt) for e in teachers}
    if len(set(rows.values())) > 1:
        raise ConfigError(f"Teachers of {rows} rows", "tune them with one --source.prompt_tokens")
    return teachers


def train_shared_prompt(
    base: Base | str,
    tasks: Sequence[Task | str],
    library: ExpertLibrary | str | Path,
    teachers: ExpertLibrary | str | Path | Sequence[Expert],
    *,
    distillation: float = 0.9,
    settings: TrainSettings | None = None,
    rows: int | None = None,
    validation_rows: int | None = 1000,
    test_rows: int | None = 1000,
    data_seed: int = 0,
    data_dir: str | Path | None = None,
    folder: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> SharedResult:
    """Tune one shared prompt on several sources, distilling from their own prompts.

    Args:
        base: a loaded base, or its name.
        tasks: the sources, at least two: tasks, or names in the registry.
        library: where the prompts go, one for each source, by the tasks' names.
        teachers: where the prompts tuned on each source alone are; they decide the length.
        distillation: lambda of the loss.
        settings: of the run; by default `SOURCE_DEFAULTS`, at the family's `PROMPT_RATES`. An epoch
            is as many rows as all sources have, each source as often as the others.
        rows: at most this many training rows of each source, drawn by `data_seed`.
        validation_rows: at most this many of each for selection, by the mean of main metrics.
        test_rows: at most this many of each for the reported metrics.
        data_seed: of the draws.
        data_dir: local mirror of datasets.
        folder: for checkpoints, logs and the record; a run found there is resumed.
        overwrite: replace prompts of the same names.
        progress: show progress bars.

    Raises:
        ConfigError: fewer than two sources, one twice, a name that is taken, or no teacher.
        ExpertError: a teacher of another base or tokenizer.
    """
    base = load_base(base) if isinstance(base, str) else base
    sources = [Task.named(t) if isinstance(t, str) else t for t in tasks]
    names = [t.name for t in sources]
    if len(names) < 2 or len(set(names)) != len(names):
        raise ConfigError(f"Sources {names}", "give at least two, each once")
    folder = None if folder is None else Path(folder).expanduser()
    library = library if isinstance(library, ExpertLibrary) else ExpertLibrary(library)
    library.require_writable()
    taken = [n for n in names if n in library]
    if taken and not overwrite:
        raise ConfigError(
            f"The library already has {taken}", "give another library, or overwrite them"
        )
    if isinstance(teachers, (str, Path)):
        teachers = ExpertLibrary(teachers)
    chosen = teachers_of(sources, base, teachers)
    settings = settings or TrainSettings(**SOURCE_DEFAULTS)  # type: ignore[arg-type]
    family = base.backbone.family
    if settings.learning_rate is None:
        settings = settings.changed(learning_rate=PROMPT_RATES[family])
    splits = [
        _drawn(load_splits(t, data_dir=data_dir), rows, validation_rows, test_rows, data_seed)
        for t in sources
    ]
    for task, split in zip(sources, splits, strict=True):
        if not (split.train and split.validation):
            raise DataError(
                f"Source {task.name!r} has {len(split.train)} training and "
                f"{len(split.validation)} validation rows",
                "give at least one of each",
            )
    start = vocabulary_prompt(base.model, len(chosen[0].prompt), seed=settings.init_seed)
    torch.manual_seed(settings.init_seed)
    model = SharedPromptModel(
        base.model, chosen, start, outputs=[outputs_of(t, family) for t in sources],
        backbone=base.backbone, distillation=distillation,
    )  # fmt: skip
    try:
        fitted = _fit(model, sources, base, splits, settings, folder, progress)
        metrics: dict[str, dict[str, float]] = {}
        made = []
        for k, (task, split) in enumerate(zip(sources, splits, strict=True)):
            model.choose(k)
            scores, answers = evaluate(
                model, task, base.tokenizer, split.test, settings, progress=progress
            )
            metrics[task.name] = scores
            interval = report_of(task, split.test, answers).main_interval()
            about = {
                "shared_prompt": {"sources": names, "distillation": distillation},
                "teacher": [chosen[k].name, chosen[k].info.content_hash],
                "train": settings.to_dict(), "rows": len(split.train), "data_seed": data_seed,
                "origin": split.origin, "best_step": fitted.best_step,
            }  # fmt: skip
            info = _info(model, task, base, split, about, {**scores, "interval": interval})
            made.append(_expert(model, k, info))
        for expert in made:
            library.add(expert, overwrite=overwrite)
    finally:
        model.detach()
    if folder is not None:
        record = run_record(
            stage="shared-prompt", sources=names, base=base.name, distillation=distillation,
            settings=settings.to_dict(), data_seed=data_seed,
            teachers=[[e.name, e.info.content_hash] for e in chosen],
        )  # fmt: skip
        write_json(folder / "run.json", record)
        write_json(folder / "results.json", {"metrics": metrics, "fit": fitted.__dict__})
    return SharedResult(metrics, fitted)


def _drawn(
    splits: Splits, rows: int | None, validation: int | None, test: int | None, seed: int
) -> Splits:
    from dataclasses import replace

    return replace(
        splits, train=some(splits.train, rows, seed),
        validation=some(splits.validation, validation, seed), test=scored(splits.test, test, seed),
    )  # fmt: skip


def _fit(
    model: SharedPromptModel, sources: Sequence[Task], base: Base, splits: Sequence[Splits],
    settings: TrainSettings, folder: Path | None, progress: bool,
) -> Fit:  # fmt: skip
    encoded = [
        encode_cached(split.train, task, base.tokenizer, model.family, **lengths(model, settings))
        for task, split in zip(sources, splits, strict=True)
    ]
    collate = Collator(base.tokenizer, model.family, side=side_of(model.family))
    batches = MixedBatches(encoded, collate, settings.batch_size, settings.order_seed)

    def score() -> dict[str, float]:
        """Means over the sources."""
        found = []
        for k, (task, split) in enumerate(zip(sources, splits, strict=True)):
            model.choose(k)
            scores, _ = evaluate(model, task, base.tokenizer, split.validation, settings)
            found.append((scores[task.metrics[0]], scores.get("loss", 0.0)))
        main, loss = np.array(found).mean(0)
        return {"mean": float(main), "loss": float(loss)}

    def identity() -> dict[str, Any]:
        return {
            "tasks": [[t.name, t.version] for t in sources],
            "rows": [[fingerprint_of(s.train), fingerprint_of(s.validation)] for s in splits],
            "settings": settings.to_dict(),
            "base": model.base_fingerprint(),
            "model": [model.options(), [fingerprint(p) for p in model.teachers]],
        }

    return run(
        model, batches, lambda one: one[0], settings.changed(batch_size=1),
        total=steps_of(sum(len(e) for e in encoded), settings), metric="mean", score=score,
        identity=identity, folder=folder, progress=progress,
    )  # fmt: skip


def fingerprint(prompt: torch.Tensor) -> str:
    """sha256 of a prompt's values."""
    import hashlib

    return hashlib.sha256(prompt.detach().cpu().numpy().tobytes()).hexdigest()


def _info(
    model: SharedPromptModel, task: Task, base: Base, split: Splits, settings: dict[str, Any],
    metrics: dict[str, Any],
) -> ExpertInfo:  # fmt: skip
    site = down_projections(base.model, base.backbone)[0]
    return ExpertInfo(
        name=task.name, kind="prompt", task=task.name, task_version=task.version,
        description=task.description, label_words=tuple(task.labels), base=base.name,
        base_family=base.backbone.family, base_fingerprint=model.base_fingerprint(),
        tokenizer_fingerprint=tokenizer_fingerprint(base.tokenizer), width=site.width,
        hidden=site.hidden, rank=0, alpha=0.0,
        fan_in_fan_out=type(site.module).__name__ == "Conv1D",
        data_fingerprint=fingerprint_of(split.train), settings=settings,
        metrics={"test": metrics}, versions=versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


def _expert(model: SharedPromptModel, source: int, info: ExpertInfo) -> Expert:
    live = model.factors(source)
    own = PromptFactors(
        **{n: getattr(live, n).detach().to("cpu", torch.float32).clone() for n in "uv"},
        shared=live.shared.detach().to("cpu", torch.float32).clone(),
    )
    head = {}
    if model.heads is not None:
        state = model.heads.heads[source].state_dict()
        head = {k: v.detach().cpu().clone() for k, v in state.items()}
    return Expert(
        name=info.name, kind="prompt", activation=None, layers=(), prompt=own.prompt(), head=head,
        info=info, factors=own,
    )  # fmt: skip
