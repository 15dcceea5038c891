"""Answers of a router: rows of several tasks, each as its own model would answer it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch

from pemt.errors import ConfigError, DataError
from pemt.model.router import TaskRouter
from pemt.tasks import Example, Task
from pemt.tasks.encoding import Collator, Encoded, encode_prompts_only
from pemt.tasks.metrics import parse_answer
from pemt.training.evaluating import (
    answers_of,
    evaluating,
    generated,
    lengths,
    score_text,
    side_of,
    word_ids,
)
from pemt.training.settings import TrainSettings
from pemt.training.streaming import WINDOW, Answer

Row = tuple[str, Example]
"""A row and the name of its task."""


@dataclass(frozen=True)
class _Asked:
    """One row on its way: what kind of pass it needs decides whom it shares a batch with."""

    number: int
    name: str
    task: Task
    example: Example
    encoded: Encoded
    kind: tuple[str, int]

    @property
    def words(self) -> tuple[str, ...]:
        return self.example.options or self.task.labels


def predict_routed(
    router: TaskRouter,
    tasks: Mapping[str, Task],
    tokenizer: Any,
    rows: Iterable[Row],
    settings: Mapping[str, TrainSettings] | TrainSettings | None = None,
    *,
    window: int = WINDOW,
) -> Iterator[Answer]:
    """Answer rows of several tasks as they come, in their order.

    Rows of different tasks share batches where they are answered in the same way: by a head, by
    ranking equally many words, or by generating.

    Args:
        router: of all the tasks.
        tasks: by the router's names.
        tokenizer: the base's.
        rows: read lazily, at most `window` ahead of the answers.
        settings: of each task, or of all.
        window: rows that are read, sorted by length and answered together.

    Raises:
        ConfigError: a task that the router does not have, or as `pemt.training.predict`.
        DataError: no options for a row that needs its own, and whatever `rows` raises.
    """
    missing = sorted(set(router.names) - set(tasks))
    if missing:
        raise ConfigError(f"No definition of the task {missing[0]!r}", "give one for each task")
    chosen = (
        settings
        if isinstance(settings, Mapping)
        else dict.fromkeys(router.names, settings or TrainSettings())
    )
    coming = iter(rows)
    while taken := list(islice(coming, window)):
        yield from _window(router, tasks, tokenizer, taken, chosen)


def _window(
    router: TaskRouter, tasks: Mapping[str, Task], tokenizer: Any, rows: Sequence[Row],
    settings: Mapping[str, TrainSettings],
) -> list[Answer]:  # fmt: skip
    asked: list[_Asked] = []
    words: dict[str, dict[tuple[str, ...], list[list[int]]]] = {}
    for name in dict.fromkeys(name for name, _ in rows):
        with router.on([name]):
            task, own = tasks[name], settings[name]
        mine = [(i, e) for i, (other, e) in enumerate(rows) if other == name]
        bare = [e.id for _, e in mine if task.option_columns and not e.options]
        if bare:
            raise DataError(
                f"The example {bare[0]} of task {name!r} has no options",
                f"give its own label words (columns {', '.join(task.option_columns)})",
            )
        taken = int(router.prompt_lengths[router.names.index(name)])  # type: ignore[index]
        encoded = encode_prompts_only(
            [e for _, e in mine], task, tokenizer, router.family, **lengths(router, own, taken)
        )
        how = answers_of(task, router.family, own.answers)
        if how == "rank" and router.head is None:
            words[name] = word_ids(
                task, tokenizer, router, [e.options or task.labels for _, e in mine]
            )
        for (i, e), row in zip(mine, encoded, strict=True):
            kind = ("rank", len(e.options or task.labels))
            if router.head is not None:
                kind = ("head", 0)
            elif how == "generate":
                kind = ("generate", own.max_target_length)
            asked.append(_Asked(i, name, task, e, row, kind))
    size = min(settings[name].eval_batch_size for name in {name for name, _ in rows})
    made: list[Answer | None] = [None] * len(rows)
    with evaluating(router):
        for kind in dict.fromkeys(a.kind for a in asked):
            alike = [a for a in asked if a.kind == kind]
            alike.sort(key=lambda a: -len(cast("list[int]", a.encoded["input_ids"])))
            for start in range(0, len(alike), size):
                batch = alike[start : start + size]
                for a, answer in zip(batch, _batch(router, tokenizer, batch, words), strict=True):
                    made[a.number] = answer
    return cast("list[Answer]", made)


@torch.no_grad()
def _batch(
    router: TaskRouter, tokenizer: Any, batch: Sequence[_Asked],
    words: Mapping[str, Mapping[tuple[str, ...], list[list[int]]]],
) -> Iterator[Answer]:  # fmt: skip
    """Answers of one batch, all of one kind."""
    kind, number = batch[0].kind
    made = Collator(tokenizer, router.family, side=side_of(router.family))(
        [a.encoded for a in batch]
    )
    ids, mask = (made[k].to(router.device) for k in ("input_ids", "attention_mask"))
    with router.on([a.name for a in batch]):
        if kind == "generate":
            said = generated(router, tokenizer, ids, mask, number)
            for a, text in zip(batch, said, strict=True):
                free = a.task.kind == "generation"
                value = text.strip() if free else parse_answer(a.task, text, a.example.options)
                yield Answer(a.example, value, text.strip(), task=a.name)
            return
        if kind == "head":
            scores = router(ids, mask).logits
        else:
            answers = [words[a.name][a.words] for a in batch]
            scores = router.score_answers(ids, mask, answers)
    for a, row in zip(batch, scores.float().cpu(), strict=True):
        if kind == "head" and router.outputs_of[a.name] == 1:
            value = float(row[0])
            yield Answer(a.example, value, score_text(a.task, value), task=a.name)
            continue
        chances = row[: len(a.words)].softmax(-1)
        best = int(chances.argmax())
        probabilities = dict(zip(a.words, chances.tolist(), strict=True))
        yield Answer(a.example, best, a.words[best], probabilities, a.name)
