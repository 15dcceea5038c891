"""One training run of any model on rows: the part that both stages and every method share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from pemt.errors import ConfigError, DataError, TrainingError
from pemt.model import AdaptedModel, PemtModel
from pemt.tasks import Example, Task
from pemt.tasks.cache import encode_cached
from pemt.tasks.encoding import Collator
from pemt.training import processes
from pemt.training.evaluating import evaluate, lengths, side_of
from pemt.training.memory import give_back_memory
from pemt.training.record import write_json
from pemt.training.settings import TrainSettings
from pemt.training.trainer import (
    BEST_RECORD,
    BEST_STATE,
    TRAINED,
    BestState,
    PemtTrainer,
    read_state,
)
from pemt.training.watching import GateWatch

IDENTITY = "identity.json"
RATES = ("dropout", "attention_dropout", "activation_dropout")
"""Where modules keep a rate as a number: T5's and Llama's attention, all of BART."""


@dataclass(frozen=True)
class Fit:
    """How a run went.

    Attributes:
        best_step: the optimiser step whose parameters were kept.
        best: validation value of the main metric there; None without validation rows.
        steps: optimiser steps done.
        seconds: of training and validation.
        history: one entry per evaluation.
        train_seconds: of `seconds`, what was not spent on validation.
        losses: training loss by step, the Task Sparsity Loss in it; each is a mean over the steps
            since the entry before.
    """

    best_step: int
    best: float | None
    steps: int
    seconds: float
    history: list[dict[str, float]]
    train_seconds: float = 0.0
    losses: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: AdaptedModel,
    task: Task,
    tokenizer: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: TrainSettings,
    *,
    folder: Path | None = None,
    progress: bool = True,
) -> Fit:
    """Train on rows, evaluate along the way, keep the best parameters.

    Args:
        model: to train; what requires a gradient trains.
        task: of the rows.
        tokenizer: the base's.
        train: rows to learn from.
        validation: rows to select on; empty keeps the last step.
        settings: of the run.
        folder: for checkpoints, logs and the gates at each evaluation; a checkpoint found there is
            resumed. None writes nothing.
        progress: show the Trainer's progress bar.

    Raises:
        DataError: no training rows.
        TrainingError: a loss that is not finite.
    """
    if not train:
        raise DataError(f"No training rows for task {task.name!r}", "give at least one")
    with processes.main_first():
        rows = encode_cached(train, task, tokenizer, model.family, **lengths(model, settings))
    return run(
        model,
        rows,
        Collator(tokenizer, model.family, side=side_of(model.family)),
        settings,
        total=steps_of(len(rows), settings),
        metric=task.metrics[0],
        score=(lambda: evaluate(model, task, tokenizer, validation, settings, shared=True)[0])
        if validation
        else None,
        identity=lambda: _identity(model, task, train, validation, settings),
        folder=folder,
        progress=progress,
    )


def steps_of(rows: int, settings: TrainSettings) -> int:
    """Optimiser steps of a run over this many rows."""
    if settings.max_steps > 0:
        return settings.max_steps
    per_epoch = math.ceil(rows / (settings.batch_size * settings.accumulation))
    return math.ceil(per_epoch * settings.epochs)


def run(
    model: AdaptedModel,
    rows: Any,
    collate: Callable[[Any], dict[str, Any]],
    settings: TrainSettings,
    *,
    total: int,
    metric: str,
    score: Callable[[], dict[str, float]] | None,
    identity: Callable[[], dict[str, Any]],
    folder: Path | None = None,
    progress: bool = True,
) -> Fit:
    """The run itself, whatever its rows are: what `fit` and MPT's source stage share.

    Args:
        model: to train; what requires a gradient trains.
        rows: a dataset of torch; an iterable one decides the order of its rows itself.
        collate: makes a batch of a list of them.
        settings: of the run.
        total: optimiser steps.
        metric: which of the score's numbers selects.
        score: the validation metrics of the model as it is; None keeps the last step.
        identity: what must be equal for a checkpoint in `folder` to be resumed.
        folder: for checkpoints and logs; None writes nothing.
        progress: show the Trainer's progress bar.

    Raises:
        TrainingError: a loss that is not finite.
        ConfigError: rows in an order of their own, for several processes.
        UnknownNameError: nothing that the Trainer logs to.
    """
    if processes.world() > 1 and isinstance(rows, IterableDataset):
        raise ConfigError(
            f"{processes.world()} processes for rows that decide their own order",
            "run this stage in one process",
        )
    processes.same_start(model)
    every = max(1, math.ceil(total / settings.evaluations))
    keep = folder is not None and settings.checkpoints
    best = BestState(
        model,
        metric,
        patience=settings.patience if score else None,
        folder=folder if keep else None,
    )
    progress = progress and processes.is_main()
    with contextlib.ExitStack() as stack:
        if folder is None:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="pemt-"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            place = str(folder)
        stack.enter_context(_quiet(not progress))
        stack.enter_context(_dropout(model, settings.dropout))
        args = TrainingArguments(
            output_dir=place,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.accumulation,
            num_train_epochs=settings.epochs,
            max_steps=total,
            learning_rate=settings.learning_rate or 1e-3,
            lr_scheduler_type="linear",
            warmup_steps=settings.warmup_steps,
            weight_decay=0.0,
            adam_beta1=0.9,
            adam_beta2=0.999,
            max_grad_norm=settings.clip,
            eval_strategy="steps" if score else "no",
            eval_steps=every,
            save_strategy="steps" if keep else "no",
            save_steps=every,
            save_total_limit=1,
            logging_strategy="steps",
            logging_steps=every,
            report_to=settings.report_to if folder is not None else "none",
            seed=settings.init_seed,
            data_seed=settings.order_seed,
            remove_unused_columns=False,
            disable_tqdm=not progress,
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=model.device.type == "cpu",
        )
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
            stack.callback(model.gradient_checkpointing_disable)
        checkpoint = None
        if keep:
            checkpoint = processes.on_main(lambda: _resumable(Path(place), identity))
        watch = None
        if folder is not None and score and isinstance(model, PemtModel) and model.gated_sites():
            watch = GateWatch(model, folder, resumed=checkpoint is not None)
        trainer = PemtTrainer(
            model=model,
            args=args,
            train_dataset=rows,
            eval_dataset=rows if score else None,
            data_collator=collate,
            score=score or dict,
            watch=watch,
            callbacks=[best],
        )
        if not progress:
            _drop_printer(trainer)
        if checkpoint is not None:
            best.resume()
        started = time.perf_counter()
        if checkpoint is not None and _ended(Path(checkpoint), total, best):
            trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            read_state(model, Path(checkpoint) / TRAINED)
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.perf_counter() - started
        steps, training = trainer.state.global_step, seconds - trainer.judged
        losses = [
            {"step": entry["step"], "loss": entry["loss"]}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
    best.restore()
    model.eval()
    del trainer
    give_back_memory()  # a program that adapts in a loop must not grow with it
    processes.wait()
    if keep and processes.is_main():
        for old in Path(place).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            _remove(old)
        for name in (BEST_STATE, BEST_RECORD, IDENTITY):
            (Path(place) / name).unlink(missing_ok=True)
    value = best.best[0] if best.best is not None else None
    step = best.step if best.step >= 0 else steps
    return Fit(step, value, steps, seconds, best.history, training, losses)


def _identity(
    model: AdaptedModel,
    task: Task,
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: TrainSettings,
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be a part of this run."""
    return {
        "task": [task.name, task.version, task.kind, list(task.labels), list(task.metrics)],
        "train": fingerprint_of(train),
        "validation": fingerprint_of(validation),
        "settings": settings.to_dict(),
        "trained": {n: list(p.shape) for n, p in sorted(model.trained_state().items())},
        "base": model.base_fingerprint(),
        "model": [type(model).__name__, model.options()],
    }


def fingerprint_of(examples: Sequence[Example]) -> str:
    """Identity of rows: sha256 over ids, texts and targets."""
    digest = hashlib.sha256()
    for e in examples:
        digest.update(f"{e.id}\x1f{e.text}\x1f{e.target}\x1e".encode())
    return digest.hexdigest()


def _resumable(folder: Path, identify: Callable[[], dict[str, Any]]) -> str | None:
    """The last whole checkpoint to go on from, if there is one; writes what this run is.

    Raises:
        TrainingError: the checkpoint there was made with other settings, rows or parameters.
    """
    path, identity = folder / IDENTITY, identify()
    for left in folder.glob(f".{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(left)
    for place in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not _is_whole(place):
            _remove(place)
    checkpoint: str | None = get_last_checkpoint(str(folder))
    if checkpoint is not None and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [k for k in identity if before.get(k) != identity[k]]
        if changed:
            raise TrainingError(
                f"{folder} holds a checkpoint of a run with other {' and '.join(changed)}",
                "give another folder, remove this one, or run with the settings it began with",
            )
    write_json(path, identity)
    return checkpoint


def _is_whole(checkpoint: Path) -> bool:
    """Not one that a kill cut off: the Trainer writes its state last."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (checkpoint / TRAINED).is_file()


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint away; killed on the way, what is left is not taken for one."""
    hidden = checkpoint.with_name(f".{checkpoint.name}")
    checkpoint.replace(hidden)
    shutil.rmtree(hidden)


def _ended(checkpoint: Path, total: int, best: BestState) -> bool:
    """Whether the run was over when this checkpoint was written: only its end was not."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    judged = bool(best.history) and best.history[-1]["step"] <= state.global_step
    return state.global_step >= total or (judged and best.waited_enough())


@contextlib.contextmanager
def _dropout(model: AdaptedModel, rate: float | None) -> Iterator[None]:
    """The base's dropout at another rate, for as long as it trains."""
    places = [
        (module, name)
        for module in model.base.modules()
        for name in (["p"] if isinstance(module, torch.nn.Dropout) else RATES)
        if isinstance(getattr(module, name, None), (int, float))
    ]
    before = [getattr(module, name) for module, name in places]
    for module, name in places if rate is not None else []:
        setattr(module, name, float(rate or 0.0))
    try:
        yield
    finally:
        for (module, name), own in zip(places, before, strict=True):
            setattr(module, name, own)


def _drop_printer(trainer: PemtTrainer) -> None:
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


@contextlib.contextmanager
def _quiet(yes: bool) -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    if yes:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
