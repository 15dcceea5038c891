"""How long a task's texts are to a base's tokenizer, and whether its label words can be written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pemt.errors import ConfigError, DataError
from pemt.tasks.encoding import Family, encode_prompts_only, label_word_ids
from pemt.tasks.rows import Example
from pemt.tasks.task import Task

Refusal = Callable[[DataError | ConfigError], None]

MEASURED = 10_000
"""Texts measured at most, evenly spaced over all rows: quantiles need no more."""

TRUNCATED = 0.2
"""A larger share of truncated texts is noted."""

_UNLIMITED = 2**30


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What measures the texts: a base's tokenizer and limits.

    Args:
        base: its name, for people.
        tokenizer: a transformers tokenizer.
        family: of the base.
        positions: how many the base has, None where there is no limit.
        max_source_length: limit of a text's tokens.
        max_target_length: limit of an answer's tokens.
    """

    base: str
    tokenizer: Any
    family: Family
    positions: int | None = None
    max_source_length: int = 256
    max_target_length: int = 16


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the rendered texts for a base, special tokens included, the prompt not.

    Args:
        base: the base.
        family: of the base.
        measured: texts measured.
        quantiles: "min", "p50", "p90", "p99" and "max", by nearest rank.
        limit: the tokens of a text that this base is given beside the task's prompt.
        truncated: share of the measured texts that are longer.
        prompt: tokens of the prompt that starts from the description.
        label_tokens: label word -> its tokens.
        answers_truncated: share of the answers that are longer than the limit (generation).
    """

    base: str
    family: str
    measured: int
    quantiles: Mapping[str, int]
    limit: int
    truncated: float
    prompt: int
    label_tokens: Mapping[str, Sequence[str]]
    answers_truncated: float = 0.0


def measure(
    task: Task, examples: Sequence[Example], reader: Reader, refuse: Refusal
) -> Lengths | None:
    """The lengths of examples, or None where there is nothing to measure.

    Args:
        task: the task.
        examples: its usable rows.
        reader: what measures.
        refuse: is told of what keeps the reader's base from learning the task.
    """
    tokenizer, family = reader.tokenizer, reader.family
    # As the prompt is made: the description's tokens and an end token, where there is one.
    ends = tokenizer.eos_token_id is not None or tokenizer.sep_token_id is not None
    prompt = len(tokenizer(task.description, add_special_tokens=False)["input_ids"]) + ends
    limit = reader.max_source_length
    if reader.positions is not None:
        answer = reader.max_target_length if family == "decoder-only" else 0
        limit = min(limit, reader.positions - prompt - answer)
    if limit < 8:
        refuse(
            ConfigError(
                f"The description makes a prompt of {prompt} tokens, and {reader.base} has "
                f"{reader.positions} positions for prompt and text",
                "shorten the description",
            )
        )
    label_tokens = _label_tokens(task, reader, refuse)
    chosen = examples[:: max(1, math.ceil(len(examples) / MEASURED))]
    try:
        encoded = encode_prompts_only(
            chosen, task, tokenizer, family, max_source_length=_UNLIMITED,
            max_target_length=reader.max_target_length,
        )  # fmt: skip
    except ConfigError as error:
        refuse(error)
        return None
    if not chosen:
        return None
    sizes = sorted(len(row["input_ids"]) for row in encoded)  # type: ignore[arg-type]
    ranks = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    too_long = 0.0
    if task.kind == "generation":
        answers = tokenizer([e.target for e in chosen], add_special_tokens=False)["input_ids"]
        too_long = sum(len(ids) >= reader.max_target_length for ids in answers) / len(answers)
    return Lengths(
        base=reader.base, family=family, measured=len(sizes),
        quantiles={k: sizes[max(0, math.ceil(q * len(sizes)) - 1)] for k, q in ranks.items()},
        limit=limit, truncated=sum(size > limit for size in sizes) / len(sizes), prompt=prompt,
        label_tokens=label_tokens, answers_truncated=too_long,
    )  # fmt: skip


def _label_tokens(task: Task, reader: Reader, refuse: Refusal) -> dict[str, list[str]]:
    tokenizer = reader.tokenizer
    # Words that differ per row are the rows', and an encoder-only base writes none.
    if task.labels and not task.option_columns and reader.family != "encoder-only":
        try:
            written = label_word_ids(task, tokenizer, reader.family)
        except DataError as error:
            refuse(error)
        else:
            for word, ids in zip(task.labels, written, strict=True):
                if len(ids) > reader.max_target_length:
                    refuse(
                        ConfigError(
                            f"The label word {word!r} takes {len(ids)} tokens, and an answer has "
                            f"room for {reader.max_target_length}",
                            f"shorten it, or train with max_target_length {len(ids)}",
                        )
                    )
    return {word: list(tokenizer.tokenize(word)) for word in task.labels}


def notes_on(lengths: Lengths) -> list[str]:
    """What is worth knowing about lengths, in sentences."""
    notes = []
    if lengths.truncated > TRUNCATED:
        notes.append(
            f"{lengths.truncated:.1%} of the texts are longer than {lengths.limit} tokens and lose "
            "their end: raise max_source_length, or put what matters first in the template."
        )
    if lengths.answers_truncated > 0 and lengths.family != "encoder-only":
        notes.append(
            f"{lengths.answers_truncated:.1%} of the answers are longer than the limit and lose "
            "their end: raise max_target_length."
        )
    return notes
