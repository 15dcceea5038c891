"""How to train: one frozen dataclass for both stages."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pemt.errors import ConfigError

Answers = Literal["auto", "rank", "generate"]
LARGEST_SEED = 2**32 - 1
"""That numpy takes, whose random numbers a run seeds too."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of one training run.

    Attributes:
        learning_rate: peak; it decays linearly to 0 (METHOD.md, protocol). None takes the default
            of the method and family.
        batch_size: examples per optimiser step before accumulation, of all processes together.
        epochs: passes over the training rows.
        max_steps: optimiser steps; above 0 it replaces `epochs`.
        warmup_steps: of the learning rate.
        accumulation: micro-batches per optimiser step; gradients equal one large batch's.
        clip: greatest gradient norm.
        dropout: of the base while training; None keeps the base's own.
        evaluations: at most this many evaluations on validation, evenly spread over the run.
        patience: stop after this many evaluations without a better one; None never stops early.
        eval_batch_size: examples per forward pass in evaluation.
        max_source_length: tokens of text, longer texts lose their end; the prompt is not counted.
            None takes 256 (METHOD.md), or what the base has room for.
        max_target_length: tokens of an answer, end token included.
        answers: "rank" the label words in one forward pass, or "generate" greedily (the paper);
            "auto" ranks where there are label words.
        checkpoints: write a checkpoint at every evaluation, so that a killed run resumes.
        gradient_checkpointing: recompute layers in the backward pass to save memory.
        init_seed: of new weights and dropout, from 0 to 2**32 - 1.
        order_seed: of the order of the training rows, from 0 to 2**32 - 1.
        report_to: where the Trainer logs to, such as "tensorboard"; "none" for nowhere.
    """

    learning_rate: float | None = None
    batch_size: int = 32
    epochs: float = 20
    max_steps: int = -1
    warmup_steps: int = 0
    accumulation: int = 1
    clip: float = 1.0
    dropout: float | None = None
    evaluations: int = 20
    patience: int | None = None
    eval_batch_size: int = 64
    max_source_length: int | None = None
    max_target_length: int = 16
    answers: Answers = "auto"
    checkpoints: bool = True
    gradient_checkpointing: bool = False
    init_seed: int = 0
    order_seed: int = 0
    report_to: str = "tensorboard"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value}", "give a finite number above 0")
        if not self.clip > 0:  # "not" refuses nan too
            raise ConfigError(f"clip={self.clip}", "give a number above 0")
        for name in ("batch_size", "accumulation", "evaluations", "eval_batch_size",
                     "max_source_length", "max_target_length"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}", "give a whole number of at least 1")
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps={self.warmup_steps}", "give 0 or more")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout}", "give 0 or more, below 1")
        for name in ("init_seed", "order_seed"):
            value = getattr(self, name)
            if not 0 <= value <= LARGEST_SEED:
                raise ConfigError(
                    f"{name}={value}", f"give a whole number from 0 to {LARGEST_SEED}"
                )
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience={self.patience}", "give at least 1, or None")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def changed(self, **changes: Any) -> TrainSettings:
        """A copy with some values changed."""
        return replace(self, **changes)
