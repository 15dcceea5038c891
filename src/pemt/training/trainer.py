"""transformers' Trainer, taught to keep only what trains and to select on validation answers."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import IntervalStrategy

from pemt.errors import ConfigError, DivergedError, TrainingError, UnknownNameError
from pemt.model import AdaptedModel
from pemt.tasks.cache import lengths_of
from pemt.training import processes
from pemt.training.memory import heap
from pemt.training.watching import GateWatch

TRAINED = "trained.safetensors"
BEST_STATE, BEST_RECORD = "best.safetensors", "best.json"
# optimiser steps per epoch from which on rows of similar length share a batch
GROUPED_FROM = 20


class PemtTrainer(Trainer):  # type: ignore[misc]
    """Checkpoints hold the trained parameters alone; accumulation is exact; a bad loss stops it.

    Args:
        score: called at evaluation; returns metrics, "loss" among them where there is one.
        watch: of the gates at evaluation; None watches nothing.
        **kwargs: of transformers' Trainer.

    Raises:
        ConfigError: `report_to` names something that is not installed.
        UnknownNameError: nothing that the Trainer logs to.
    """

    control: Any
    state: Any
    judged: float = 0.0
    """Seconds spent on `score` so far."""

    def __init__(
        self, *, score: Callable[[], dict[str, float]], watch: GateWatch | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        _check_installed(kwargs["args"].report_to)
        super().__init__(**kwargs)
        self._score = score
        self._watch = watch
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self._examples: int | None = None
        if processes.world() > 1:  # gradients are averaged here, see pemt.training.processes
            self.accelerator.prepare_model = partial(
                self.accelerator.prepare_model, evaluation_mode=True
            )

    def get_train_dataloader(self) -> Any:
        """transformers' loader; of several processes each gets its rows of the same batches."""
        if processes.world() == 1:
            return super().get_train_dataloader()
        collate, first, each = self.data_collator, processes.number(), processes.world()

        def own(rows: list[Any]) -> dict[str, Any]:
            mine = rows[first::each]
            return collate(mine) if mine else {}

        rows: Any = self.train_dataset
        loader = DataLoader(
            rows, batch_size=self.args.train_batch_size, sampler=self._get_train_sampler(rows),
            collate_fn=own, pin_memory=self.args.dataloader_pin_memory,
        )  # fmt: skip
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True,
            use_seedable_sampler=True, data_seed=self.args.data_seed,
        )  # fmt: skip

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Group by length where there are enough rows for batches to stay random."""
        rows = train_dataset if train_dataset is not None else self.train_dataset
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        if len(rows) < GROUPED_FROM * step:
            return super()._get_train_sampler(train_dataset)
        return LengthGrouped(lengths_of(rows).tolist(), step, self.args.data_seed or 0)

    def create_optimizer(self, model: Any = None) -> Any:
        """transformers' optimiser; what the model learns at a rate of its own is in own groups."""
        optimizer = super().create_optimizer(model)
        factors = self.accelerator.unwrap_model(model or self.model).rate_factors()
        for factor in sorted(set(factors.values()) - {1.0}):
            chosen = {id(p) for p, own in factors.items() if own == factor}
            moved = [p for g in optimizer.param_groups for p in g["params"] if id(p) in chosen]
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in chosen]
            if moved:
                optimizer.add_param_group(
                    {"params": moved, "lr": self.args.learning_rate * factor, "weight_decay": 0.0}
                )
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Also count the examples of the optimiser step, for the mean of the Task Sparsity Loss."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = sum(len(batch["input_ids"]) for batch in samples if batch)
        self._examples = processes.total(count, device)
        return samples, items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Labels of the optimiser step in all processes, some of which may have no rows."""
        counted = [_countable(batch) for batch in batch_samples if batch]
        if processes.world() == 1:
            return super()._get_num_items_in_batch(counted, device)
        count = sum(int((batch["labels"] != -100).sum()) for batch in counted)
        return torch.tensor(processes.total(count, device), device=device)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward pass of one micro-batch; gradients are averaged after the last."""
        if inputs:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = torch.zeros((), device=self.args.device)
        if self.accelerator.sync_gradients:
            processes.average_gradients(model.parameters())
        heap.settle()
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of one micro-batch; their sum over the step is the large batch's loss.

        Raises:
            DivergedError: the loss is not a finite number.
        """
        counted = {**inputs, "num_examples_in_batch": self._examples} if self._examples else inputs
        result = super().compute_loss(model, counted, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if not math.isfinite(float(loss.detach())):
            raise DivergedError(
                f"The loss became {float(loss.detach())} at step {self.state.global_step + 1}",
                "lower the learning rate, look at the rows for empty labels, or train in float32",
            )
        return result

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the model's answers on validation and tell the callbacks."""
        del eval_dataset, ignore_keys  # `score` has its own rows
        begun = time.perf_counter()
        found = (
            self._score()
            if self._watch is None
            else self._watch.scored(self._score, self.state.global_step)
        )
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in found.items()}
        self.judged += time.perf_counter() - begun
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        del state_dict  # of the whole model, the base included
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_state(self.accelerator.unwrap_model(self.model), folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        del model  # always ours
        read_state(
            self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint) / TRAINED
        )


def _countable(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as labels are counted: a score of -100 is one like any other."""
    labels = batch.get("labels")
    if labels is None or not labels.is_floating_point():
        return batch
    return {**batch, "labels": torch.zeros_like(labels)}


def _check_installed(names: Sequence[str]) -> None:
    """Whether the Trainer can log to these; it says so in an error without a remedy.

    Raises:
        ConfigError: one that is not installed.
        UnknownNameError: nothing that the Trainer logs to.
    """
    for name in set(names) - set(get_available_reporting_integrations()):
        if name not in INTEGRATION_TO_CALLBACK:
            raise UnknownNameError("report_to", name, (*INTEGRATION_TO_CALLBACK, "none"))
        try:
            INTEGRATION_TO_CALLBACK[name]()  # transformers does not list all that can be had
        except (ImportError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"report_to={name!r}: {error}",
                "install it, or log to tensorboard or none",
            ) from None


def write_state(model: AdaptedModel, path: Path) -> None:
    """Write the trained parameters; the file is there whole or not at all."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.trained_state().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(state, temporary)
    temporary.replace(path)


def read_state(model: AdaptedModel, path: Path) -> None:
    """Read what `write_state` wrote.

    Raises:
        TrainingError: there is no such file.
        ConfigError: the parameters are not this model's.
    """
    if not path.is_file():
        raise TrainingError(
            f"No trained parameters at {path}", "start the run again without resuming"
        )
    model.load_trained_state(load_file(path))


class LengthGrouped(LengthGroupedSampler):  # type: ignore[misc]
    """Batches of similar length, so that little is padded; seed and epoch decide the order.

    Args:
        lengths: of every row.
        batch_size: rows of one optimiser step.
        seed: of the order.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer, also when it resumes in a later epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        return iter(super().__iter__())


class BestState(TrainerCallback):  # type: ignore[misc]
    """Keeps the parameters of the best evaluation; stops a run that no longer improves.

    Better means a higher main metric; with few validation rows that often ties, and then the lower
    loss wins, and after that the earlier evaluation.

    Args:
        model: whose parameters are kept.
        metric: name of the main metric.
        patience: evaluations without improvement before stopping; None never stops.
        folder: where the best is also written, for a resumed run; None keeps it in memory.
    """

    def __init__(
        self, model: AdaptedModel, metric: str, *, patience: int | None, folder: Path | None
    ) -> None:
        self.model, self.metric, self.patience, self.folder = model, metric, patience, folder
        self.best: tuple[float, float] | None = None
        self.step = -1
        self.waited = 0
        self.state: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    def resume(self) -> None:
        """Take up the best of an earlier part of the same run."""
        if self.folder is not None and (self.folder / BEST_RECORD).is_file():
            kept = json.loads((self.folder / BEST_RECORD).read_text())
            self.best, self.step, self.waited = tuple(kept["best"]), kept["step"], kept["waited"]
            self.history = kept["history"]
            self.state = load_file(self.folder / BEST_STATE)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """The last step is always judged, also where the run does not divide evenly."""
        if state.global_step >= state.max_steps and args.eval_strategy != IntervalStrategy.NO:
            control.should_evaluate = True
        return control

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> Any:
        """Compare, keep, stop."""
        del args
        if self.history and self.history[-1]["step"] >= state.global_step:
            # judged before the run was killed, after which its checkpoint was never written
            self._stop_if_waited(control)
            return control
        value = float(metrics[f"eval_{self.metric}"])
        loss = float(metrics.get("eval_loss", 0.0))
        self.history.append({"step": state.global_step, self.metric: value, "loss": loss})
        if self.best is None or (value, -loss) > (self.best[0], -self.best[1]):
            self.best, self.step, self.waited = (value, loss), state.global_step, 0
            self.state = {
                k: v.detach().cpu().clone() for k, v in self.model.trained_state().items()
            }
            if self.folder is not None and state.is_world_process_zero:
                write_state(self.model, self.folder / BEST_STATE)
        else:
            self.waited += 1
            self._stop_if_waited(control)
        if self.folder is not None and state.is_world_process_zero:
            kept = {
                "best": self.best, "step": self.step, "waited": self.waited, "history": self.history
            }  # fmt: skip
            temporary = self.folder / ".best.json"
            temporary.write_text(json.dumps(kept))
            temporary.replace(self.folder / BEST_RECORD)
        return control

    def waited_enough(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    def _stop_if_waited(self, control: Any) -> None:
        if self.waited_enough():
            control.should_training_stop = True

    def restore(self) -> None:
        """Put the best parameters into the model."""
        if self.state:
            self.model.load_trained_state(self.state)
