"""What the frozen base with one expert, or with none, makes of rows: the views evidence rests on.

features   mean final hidden state of the text, `[N, D]`
answers    log-probabilities of the expert's own label words, `[N, A]`: of its head on an
           encoder-only base, of the words themselves elsewhere; a score `[N, 1]` for an expert that
           was trained on scores
named      the same, read as the target's labels where the words agree, `[N, C]`
words      log-probabilities of the target's label words, on bases that write, `[N, C]`; no expert
           has these too: what the base says by itself
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pemt.backbones import Family, max_positions
from pemt.errors import DataError, PemtError
from pemt.experts import Expert
from pemt.methods.method import Setting
from pemt.model import AdaptedModel, PemtModel
from pemt.tasks import Example, Task
from pemt.tasks.encoding import Collator, encode_prompts_only, label_word_ids
from pemt.training.evaluating import evaluating, lengths, longest_first, side_of
from pemt.training.memory import heap
from pemt.training.settings import TrainSettings
from pemt.training.sourcing import start_prompt

Array = npt.NDArray[np.float64]
View = Literal["features", "answers", "named", "words"]
VIEWS: tuple[View, ...] = ("features", "answers", "named", "words")


@contextmanager
def alone(setting: Setting, expert: Expert | None) -> Iterator[AdaptedModel]:
    """The frozen base with one expert at weight one and its own prompt, nothing else added.

    Args:
        setting: base, task and options.
        expert: None: the base as it is.
    """
    if expert is None:
        model: AdaptedModel = setting.bare(AdaptedModel)
    else:
        base = setting.base
        prompt = expert.prompt
        if not len(prompt):
            prompt = start_prompt(base, setting.task, "description")
        plain = replace(
            setting.config, prompt_fusion="none", target_adapter=False, train_norms=False,
            sparsity_weight=0.0, gate="example", mixture=True, guide="none",
        )  # fmt: skip
        model = PemtModel(
            base.model, [expert], plain, prompt=prompt, outputs=setting.outputs,
            backbone=base.backbone,
        )  # fmt: skip
    try:
        yield model
    finally:
        model.detach()


class Viewer:
    """How to look at tokens through one expert, or through none.

    Args:
        expert: None: the base as it is.
        task: the target task, for the names of its labels.
        tokenizer: the base's.
        family: the base's.
    """

    def __init__(self, expert: Expert | None, task: Task, tokenizer: Any, family: Family) -> None:
        self.called = "The base" if expert is None else f"Expert {expert.name!r}"
        self.weight: Array | None = None
        self.bias: Array | None = None
        self.source: list[list[int]] = []  # tokens of the expert's label words
        self.target: list[list[int]] = []  # tokens of the target's
        self.columns: list[list[int]] | None = None
        if family != "encoder-only" and not task.option_columns:
            self.target = _word_ids(task, task.labels, tokenizer, family)
        if expert is None:
            return
        if family == "encoder-only":
            if {"weight", "bias"} <= expert.head.keys():
                self.weight = expert.head["weight"].double().numpy()
                self.bias = expert.head["bias"].double().numpy()
        else:
            self.source = _word_ids(task, expert.info.label_words, tokenizer, family)
            if sorted(self.source) == sorted(self.target):
                self.target = []  # the same words: the answers say it all
        answers = len(self.source if self.weight is None else self.weight)
        if answers > 1 and answers == len(expert.info.label_words):
            self.columns = matched(expert.info.label_words, task.labels)

    def look(
        self, model: AdaptedModel, ids: torch.Tensor, mask: torch.Tensor,
        wanted: Collection[View] = VIEWS,
    ) -> dict[View, Array]:  # fmt: skip
        """The views of a batch through a model on which this expert is alone.

        Args:
            model: the frozen base with the expert at weight one and its own prompt.
            ids: `[B, S]`.
            mask: `[B, S]`.
            wanted: leave out the others where that saves a pass.

        Raises:
            DataError: values that are not finite, from a broken expert.
        """
        with np.errstate(invalid="ignore"):  # it is an error here, with the expert's name
            made = self._seen(model, ids, mask, wanted)
        if not all(np.isfinite(values).all() for values in made.values()):
            raise DataError(
                f"{self.called} gives values that are not finite on these rows",
                "verify it (pemt experts verify), or leave it out",
            )
        return made

    def _seen(
        self, model: AdaptedModel, ids: torch.Tensor, mask: torch.Tensor, wanted: Collection[View]
    ) -> dict[View, Array]:
        made: dict[View, Array] = {}
        scores = features = None
        if (self.source or self.target) and set(wanted) - {"features"}:
            words = [*self.source, *self.target]  # one pass over the text for all of them
            said, features = model.score_and_read(ids, mask, words)
            scores = said.double().cpu().numpy()
        if "features" in wanted or self.weight is not None:
            features = model.features(ids, mask) if features is None else features
            made["features"] = features.double().cpu().numpy()
        if scores is not None and self.target:
            made["words"] = log_softmax(scores[:, len(self.source) :])
        logits: Array | None = None
        if self.weight is not None and self.bias is not None:
            logits = made["features"] @ self.weight.T + self.bias
        elif scores is not None and self.source:
            logits = scores[:, : len(self.source)]
        if logits is not None:
            made["answers"] = logits if logits.shape[1] == 1 else log_softmax(logits)
            if self.columns is not None:
                made["named"] = renamed(made["answers"], self.columns)
        return made


def views_of(
    model: AdaptedModel, setting: Setting, expert: Expert | None, examples: Sequence[Example],
    wanted: Collection[View] = VIEWS,
) -> dict[View, Array]:  # fmt: skip
    """The views of these examples through a model that `alone` gave.

    Each example's text runs once.

    Raises:
        DataError: values that are not finite, from a broken expert.
    """
    tokenizer, family = setting.base.tokenizer, model.family
    viewer = Viewer(expert, setting.task, tokenizer, family)
    settings = TrainSettings()
    encoded = encode_prompts_only(
        examples, setting.task, tokenizer, family,
        **fitted_lengths(model, setting, settings.max_target_length),
    )  # fmt: skip
    collate: Any = Collator(tokenizer, family, side=side_of(family))
    order = longest_first(encoded)
    parts: dict[View, list[Array]] = {}
    with evaluating(model):
        for start in range(0, len(order), settings.eval_batch_size):
            heap.settle()
            batch = collate([encoded[i] for i in order[start : start + settings.eval_batch_size]])
            ids, mask = (batch[k].to(model.device) for k in ("input_ids", "attention_mask"))
            for view, values in viewer.look(model, ids, mask, wanted).items():
                parts.setdefault(view, []).append(values)
    back = np.argsort(order)
    return {view: np.concatenate(values)[back] for view, values in parts.items()}


def fitted_lengths(model: AdaptedModel, setting: Setting, answer: int) -> dict[str, Any]:
    """The length arguments of `pemt.tasks.encoding` for a text, and an answer behind it.

    Training may leave an answer less room, and the prompt may be an expert's, longer than the one
    that trains: a text that is trained on must not be too long to be looked at. So the answer gives
    way first, then the text.

    Args:
        model: of `alone`, or any other.
        setting: with the length of the text asked for.
        answer: most tokens of an answer.

    Raises:
        ConfigError: the prompt leaves the text less than 8 positions.
    """
    source = setting.max_source_length
    limit = max_positions(model.base.config, model.backbone)
    if source is not None and limit is not None:
        room = limit - model.prompt_rows()
        if model.family == "decoder-only":
            answer = max(2, min(answer, room - source))
            room -= answer
        source = max(1, min(source, room))
    return lengths(model, TrainSettings(max_source_length=source, max_target_length=answer))


def features_of(
    model: AdaptedModel, setting: Setting, examples: Sequence[Example], expert: Expert | None = None
) -> Array:
    """Mean final hidden state of every example, `[N, D]`.

    Args:
        model: of `alone`, or any other.
        setting: base, task and options.
        examples: none are no rows.
        expert: the one that is on the model alone, for what an error says.

    Raises:
        DataError: values that are not finite.
    """
    if not examples:
        return np.zeros((0, model.width))
    only: tuple[View, ...] = ("features",)
    return views_of(model, setting, expert, examples, only)["features"]


def _word_ids(task: Task, words: Sequence[str], tokenizer: Any, family: Family) -> list[list[int]]:
    """Tokens of label words; none for fewer than two, or where they cannot differ."""
    if len(words) < 2:
        return []
    worded = replace(
        task, kind="classification", labels=tuple(words), label_values={}, label_bins={},
        label_variants={}, option_columns=(), metrics=("accuracy",),
    )  # fmt: skip
    try:
        return label_word_ids(worded, tokenizer, family)
    except PemtError:  # such as two words that become the same token
        return []


def log_softmax(logits: Array) -> Array:
    """`[N, C]` logits as log-probabilities."""
    shifted = logits - logits.max(1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def matched(source: Sequence[str], target: Sequence[str]) -> list[list[int]] | None:
    """Which of an expert's label words stand for each of the target's labels.

    Words agree when they are equal but for case, spaces and underscores. One target label may be
    left over: it then stands for all the source's words that no other label has ("not_entailment"
    for "neutral" and "contradiction").

    Returns:
        For each target label the numbers of the source's words, or None where they do not agree.
    """
    plain = [_plain(word) for word in source]
    if len(source) < 2 or len(target) < 2 or len(set(plain)) < len(plain):
        return None
    columns = [[plain.index(_plain(w))] if _plain(w) in plain else [] for w in target]
    open_ = [i for i, own in enumerate(columns) if not own]
    rest = sorted(set(range(len(source))) - {i for own in columns for i in own})
    if len(open_) > 1 or len(open_) == len(target) or (open_ and not rest):
        return None
    for i in open_:
        columns[i] = rest
    return columns


def _plain(word: str) -> str:
    return "".join(word.casefold().replace("_", " ").split())


def renamed(logs: Array, columns: Sequence[Sequence[int]]) -> Array:
    """Log-probabilities over source words `[N, A]` as those over target labels `[N, C]`."""
    sums = [np.logaddexp.reduce(logs[:, list(own)], axis=1) for own in columns]
    return log_softmax(np.stack(sums, axis=1))
