"""Answers for any number of rows in bounded memory: a window of rows at a time, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pemt.model import AdaptedModel
from pemt.tasks import Example, Task
from pemt.training.evaluating import predict
from pemt.training.settings import TrainSettings

WINDOW = 1024
"""Rows in memory at once. Batches are of similar length inside a window, so a longer one wastes a
little less padding; below `pemt.tasks.cache.THRESHOLD` no encoded rows are written to disk."""


@dataclass(frozen=True)
class Answer:
    """What a model says to one row.

    Attributes:
        example: the row.
        value: class number, score or text; None for an invalid generated answer.
        text: the answer as text.
        probabilities: of the task's label words or the row's own options; None where no classes
            were scored.
        task: the row's, where rows are of several tasks.
    """

    example: Example
    value: Any
    text: str
    probabilities: dict[str, float] | None = None
    task: str | None = None


def predict_stream(
    model: AdaptedModel,
    task: Task,
    tokenizer: Any,
    examples: Iterable[Example],
    settings: TrainSettings | None = None,
    *,
    window: int = WINDOW,
) -> Iterator[Answer]:
    """Answer rows as they come, in their order.

    Args:
        model: on any family.
        task: decides what an answer is.
        tokenizer: the base's.
        examples: read lazily, at most `window` ahead of the answers.
        settings: batch size, lengths and how to answer.
        window: rows that are read, sorted by length and answered together.

    Raises:
        ConfigError: as `pemt.training.predict`.
        DataError: as `pemt.training.predict`, and whatever `examples` raises.
    """
    rows = iter(examples)
    while taken := list(islice(rows, window)):
        made = predict(model, task, tokenizer, taken, settings)
        for i, example in enumerate(taken):
            chances = None
            if made.log_probabilities is not None:
                words = example.options or task.labels
                numbers = made.log_probabilities[i].softmax(-1)[: len(words)].tolist()
                chances = dict(zip(words, numbers, strict=True))
            yield Answer(example, made.values[i], made.texts[i], chances)
        del taken, made
