"""From examples to token ids, and from token ids to padded batches, for the three families.

============== =============================== ====================================
family         input_ids                       labels
============== =============================== ====================================
encoder-decoder text, end token                answer, end token
decoder-only   text, "\\nanswer:", answer, end  -100 over the prefix, then the answer
encoder-only   text with its special tokens    label index, or score
============== =============================== ====================================

The soft prompt is the model's affair; only its length matters here, for the position limit.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pemt.errors import ConfigError, DataError
from pemt.tasks.rows import Example
from pemt.tasks.task import Task

if TYPE_CHECKING:
    import torch

Family = Literal["encoder-decoder", "decoder-only", "encoder-only"]
FAMILIES = ("encoder-decoder", "decoder-only", "encoder-only")
Encoded = dict[str, list[int] | int | float]
CUE = "\nanswer:"
"""What stands between text and answer in a decoder-only model; never truncated."""

IGNORED = -100
"""The label of positions without a loss."""

BATCH = 1000
"""Texts given to the tokenizer at once."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: it would walk all the lists made so far, again and again.

    They hold integers and no cycles, so there is nothing for it to find.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@_uncollected()
def encode(
    examples: Sequence[Example],
    task: Task,
    tokenizer: Any,
    family: Family,
    *,
    max_source_length: int = 256,
    max_target_length: int = 16,
    max_positions: int | None = None,
    prompt_length: int = 0,
) -> list[Encoded]:
    """Training rows: ``input_ids`` and ``labels``, unpadded.

    Args:
        examples: what to encode.
        task: its kind decides the labels.
        tokenizer: a transformers tokenizer.
        family: of the base model.
        max_source_length: limit of the text's tokens, special tokens and the cue included, the
            soft prompt not. Longer texts lose their end.
        max_target_length: limit of the answer's tokens, the end token included.
        max_positions: how many positions the base has; None where it has no limit (T5).
        prompt_length: positions the soft prompt takes.

    Raises:
        ConfigError: the lengths do not fit the base, a generation task for an encoder-only base,
            or a label word longer than ``max_target_length``.
    """
    check_fits(task, family, max_source_length, max_target_length, max_positions, prompt_length)
    sources = _sources(examples, tokenizer, family, max_source_length)
    if family == "encoder-only":
        labels = [_number(example, task) for example in examples]
        return [{"input_ids": s, "labels": n} for s, n in zip(sources, labels, strict=True)]
    targets = [e.target for e in examples]
    answers = _answers(targets, task, tokenizer, family, max_target_length)
    if family == "encoder-decoder":
        return [{"input_ids": s, "labels": a} for s, a in zip(sources, answers, strict=True)]
    return [
        {"input_ids": s + a, "labels": [IGNORED] * len(s) + a}
        for s, a in zip(sources, answers, strict=True)
    ]


@_uncollected()
def encode_prompts_only(
    examples: Sequence[Example],
    task: Task,
    tokenizer: Any,
    family: Family,
    *,
    max_source_length: int = 256,
    max_target_length: int = 16,
    max_positions: int | None = None,
    prompt_length: int = 0,
) -> list[Encoded]:
    """What a model is given to predict from: ``input_ids`` alone, without the answer.

    Arguments and errors are those of ``encode``; ``max_target_length`` is the room that
    generation needs.
    """
    check_fits(task, family, max_source_length, max_target_length, max_positions, prompt_length)
    return [{"input_ids": s} for s in _sources(examples, tokenizer, family, max_source_length)]


def label_word_ids(task: Task, tokenizer: Any, family: Family) -> list[list[int]]:
    """Token ids of each label's answer, the end token included, in label order.

    Raises:
        ConfigError: the task has no label words, or the family does not write answers.
        DataError: a label word that becomes no token or an unknown one, or two that become the
            same.
    """
    if family == "encoder-only" or not task.labels:
        raise ConfigError(
            f"Task {task.name!r} ({task.kind}) on a {family} base has no label words to write",
            "label words are for classification on encoder-decoder and decoder-only bases",
        )
    ids = _answers(task.labels, task, tokenizer, family, None)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for word, answer in zip(task.labels, ids, strict=True):
        content = [i for i in answer if i not in special]
        unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in content
        if not content or unknown:
            raise DataError(
                f"The label word {word!r} of task {task.name!r} becomes "
                f"{'an unknown token' if unknown else 'no token'} with this tokenizer",
                "choose label words the tokenizer can write",
            )
    for index, answer in enumerate(ids):
        if answer in ids[:index]:
            other = task.labels[ids.index(answer)]
            raise DataError(
                f"The label words {other!r} and {task.labels[index]!r} of task {task.name!r} "
                "become the same tokens",
                "choose label words that differ to this tokenizer",
            )
    return ids


def fingerprint(tokenizer: Any) -> str:
    """The sha256 of what a tokenizer maps to which id: its vocabulary and special tokens.

    The padding token is left out: users set it freely, and no trained tensor depends on it.
    """
    names = ("bos", "eos", "unk", "sep", "cls", "mask")
    special = {name: getattr(tokenizer, f"{name}_token", None) for name in names}
    vocabulary = sorted((str(token), int(i)) for token, i in tokenizer.get_vocab().items())
    padding = getattr(tokenizer, "pad_token", None)
    if padding is not None and padding not in special.values():
        vocabulary = [(token, i) for token, i in vocabulary if token != padding]
    content = json.dumps({"vocabulary": vocabulary, "special": special}, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Collator:
    """Pads encoded rows into a batch of tensors.

    Args:
        tokenizer: gives the padding id (the end token's where it has none: padded positions are
            masked, so the id does not matter).
        family: of the base model.
        pad_to_multiple_of: round the length up to a multiple.
        side: where the padding of ``input_ids`` goes; "left" for decoder-only generation.
    """

    tokenizer: Any
    family: Family
    pad_to_multiple_of: int | None = None
    side: Literal["right", "left"] = "right"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad ``rows``.

        Returns:
            ``input_ids`` and ``attention_mask`` [B, S]; ``labels`` where the rows have them:
            [B] (long or float32) for encoder-only, else long, padded with -100, [B, S] aligned
            with ``input_ids`` (decoder-only) or [B, T] (encoder-decoder).

        Raises:
            ConfigError: a key other than input_ids and labels.
        """
        import torch

        unknown = set().union(*rows) - {"input_ids", "labels"}
        if unknown:
            raise ConfigError(
                f"The rows hold {sorted(unknown)[0]!r}", "allowed: input_ids, labels (see encode)"
            )
        padding = self.tokenizer.pad_token_id
        if padding is None:
            padding = self.tokenizer.eos_token_id or 0
        inputs = [row["input_ids"] for row in rows]
        batch = {
            "input_ids": torch.tensor(self._pad(inputs, padding, self.side)),
            "attention_mask": torch.tensor(self._pad([[1] * len(i) for i in inputs], 0, self.side)),
        }
        if "labels" in rows[0]:
            labels = [row["labels"] for row in rows]
            if isinstance(labels[0], list):
                side = self.side if self.family == "decoder-only" else "right"
                batch["labels"] = torch.tensor(self._pad(labels, IGNORED, side))
            else:
                kind = torch.float32 if isinstance(labels[0], float) else torch.long
                batch["labels"] = torch.tensor(labels, dtype=kind)
        return batch

    def _pad(
        self, rows: Sequence[list[int]], value: int, side: Literal["right", "left"]
    ) -> list[list[int]]:
        length = max(len(row) for row in rows)
        multiple = self.pad_to_multiple_of or 1
        length = -(-length // multiple) * multiple
        fills = [[value] * (length - len(row)) for row in rows]
        if side == "left":
            return [fill + row for fill, row in zip(fills, rows, strict=True)]
        return [row + fill for fill, row in zip(fills, rows, strict=True)]


def check_fits(
    task: Task, family: Family, source: int, target: int, positions: int | None, prompt: int
) -> None:
    """Whether a family can do a task at these lengths; arguments and errors are `encode`'s."""
    if family not in FAMILIES:
        raise ConfigError(f"family is {family!r}", f"allowed: {', '.join(FAMILIES)}")
    if family == "encoder-only" and task.kind == "generation":
        raise ConfigError(
            f"Task {task.name!r} asks for free text, and an encoder-only base writes none",
            "use an encoder-decoder or decoder-only base",
        )
    if source < 4 or target < 2:
        raise ConfigError(
            f"max_source_length {source} or max_target_length {target} leaves no room for text",
            "give at least 4 and 2",
        )
    if positions is None:
        return
    # Only in a decoder-only model does the answer share the positions of the text.
    room = target if family == "decoder-only" else 0
    if source + prompt + room > positions:
        answer = f" + {room} for the answer" if room else ""
        raise ConfigError(
            f"max_source_length {source} + a prompt of {prompt}{answer} is "
            f"{source + prompt + room} positions, and the base has {positions}",
            f"set max_source_length to at most {positions - prompt - room}",
        )


def _sources(
    examples: Sequence[Example], tokenizer: Any, family: Family, limit: int
) -> list[list[int]]:
    texts = [example.text for example in examples]
    if not texts:
        return []
    if family != "decoder-only":
        return _ids(tokenizer, texts, truncation=True, max_length=limit)
    start, cue = _start(tokenizer), _ids(tokenizer, [CUE], add_special_tokens=False)[0]
    room = limit - len(start) - len(cue)
    if room < 1:
        raise ConfigError(
            f"max_source_length {limit} leaves no room for text beside {CUE!r}",
            f"give more than {limit - room}",
        )
    # The cue and the text are tokenised apart, so that truncation cannot reach the cue.
    bodies = _ids(tokenizer, texts, add_special_tokens=False)
    return [[*start, *body[:room], *cue] for body in bodies]


def _answers(
    targets: Sequence[str], task: Task, tokenizer: Any, family: Family, limit: int | None
) -> list[list[int]]:
    if not targets:
        return []
    words = sorted(set(targets))
    if family == "encoder-decoder":
        encoded = [list(ids) for ids in tokenizer(text_target=words)["input_ids"]]
        end = encoded[0][-1:]
    else:
        if tokenizer.eos_token_id is None:
            raise ConfigError("The tokenizer has no end token", "set tokenizer.eos_token")
        end = [tokenizer.eos_token_id]
        encoded = _ids(tokenizer, [f" {word}" for word in words], add_special_tokens=False)
        encoded = [ids + end for ids in encoded]
    if limit is not None:
        for word, ids in zip(words, encoded, strict=True):
            if len(ids) > limit and task.kind != "generation":
                raise ConfigError(
                    f"The answer {word!r} takes {len(ids)} tokens, and max_target_length is "
                    f"{limit}",
                    f"set max_target_length to at least {len(ids)}",
                )
        encoded = [i if len(i) <= limit else i[: limit - 1] + end for i in encoded]
    by_word = dict(zip(words, encoded, strict=True))
    return [list(by_word[target]) for target in targets]


def _start(tokenizer: Any) -> list[int]:
    """The start token, for tokenizers that put one before every text (Llama), else nothing."""
    empty = list(tokenizer("")["input_ids"])
    starts = tokenizer.bos_token_id is not None and empty[:1] == [tokenizer.bos_token_id]
    return empty[:1] if starts else []


def _ids(tokenizer: Any, texts: list[str], **options: Any) -> list[list[int]]:
    found: list[list[int]] = []
    # In batches: of every text the tokenizer also keeps offsets and token strings while it works.
    for start in range(0, len(texts), BATCH):
        encoded = tokenizer(
            texts[start : start + BATCH],
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about texts that are cut to fit right after
            **options,
        )
        found.extend(encoded["input_ids"])
    return found


def _number(example: Example, task: Task) -> int | float:
    if example.label is None:
        raise DataError(f"The example {example.id} of task {task.name!r} has no label")
    return float(example.label) if task.kind == "regression" else int(example.label)
