"""Answers of a base that trains nothing: zero-shot and in-context (Brown et al. 2020, 2005.14165).

Words go before the text, as fixed embeddings `[P, D]` in the place of a prompt:

zero-shot    what the task is                                 | the text, "\\nanswer:"
in-context   what the task is, (text, answer), (text, answer) | the text, "\\nanswer:"

A tokenizer's chat template, where there is one, frames them (`pemt.methods.frame`); what it puts
between a user's words and the assistant's also follows the text, `[Q, D]`.

Contextual calibration (Zhao et al. 2021, 2102.09690) divides the probabilities of the label words
by those of inputs without content, `log p(y|x) - log mean_c p(y|c)`; it is used where it did better
on the validation rows.

The words are the same for every text, so their keys and values are computed once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from pemt.backbones import max_positions
from pemt.errors import ConfigError, DataError
from pemt.methods.frame import Frame, frame_of, start_of
from pemt.methods.method import Setting
from pemt.model import AdaptedModel
from pemt.nn import ForwardContext
from pemt.tasks import Example
from pemt.tasks.encoding import IGNORED, Collator, encode, encode_prompts_only, label_word_ids
from pemt.tasks.metrics import compute
from pemt.training.evaluating import SOURCE_LENGTH, lengths, predict
from pemt.training.settings import TrainSettings
from pemt.training.sourcing import some

CONTEXT = 1024
"""Tokens before the text at most."""
CHOOSING = 256
"""Validation rows that decide on calibration at most."""
AT_ONCE = 8192
"""Positions that run at once: the words' keys and values are held once per text."""
EMPTY = ("N/A", "", "[MASK]")
"""Inputs without content, those of the paper."""


class InstructedModel(AdaptedModel):
    """A base that reads some words before every text; nothing trains.

    Args:
        setting: its base is used as it is.
        words: token ids before the text.
        closing: token ids after the text.
    """

    words: Tensor
    closing: Tensor
    prior: Tensor | None = None
    """Log-probabilities of the label words for inputs without content, `[C]`, if they count."""

    def __init__(self, setting: Setting, words: Sequence[int], closing: Sequence[int] = ()) -> None:
        base = setting.base
        super().__init__(base.model, backbone=base.backbone)
        for name, ids in (("words", words), ("closing", closing)):
            tokens = torch.tensor(list(ids), dtype=torch.long, device=base.model.device)
            self.register_buffer(name, tokens, persistent=False)
        self._start = start_of(base.tokenizer)
        self._labels: list[list[int]] | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    def prompt(self) -> Tensor:
        """The words' embeddings, `[P, D]`."""
        embedded: Tensor = self.base.get_input_embeddings()(self.words)
        return embedded.detach()

    def prompt_rows(self) -> int:
        """The positions that the words take, those after the text too."""
        return len(self.words) + len(self.closing)

    def _prompted(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        context: ForwardContext,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self._disabled:
            return super()._prompted(input_ids, attention_mask, context, labels)
        rows = len(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        # the words began with the start tokens: the text must not begin with them again
        for token in self._start:
            mask = mask * (input_ids != token)
        mask = torch.cat([mask, mask.new_ones(rows, len(self.closing))], 1)
        return super()._prompted(
            torch.cat([input_ids, self.closing.expand(rows, -1)], 1), mask, context
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **given: Any,
    ) -> Any:
        """As in `AdaptedModel`, without labels: nothing trains.

        Raises:
            ConfigError: labels, outside `disable()`.
        """
        if labels is not None and not self._disabled:
            raise ConfigError(
                "Labels for a method that trains nothing", "score_answers gives likelihoods"
            )
        return super().forward(input_ids, attention_mask, labels, **given)

    def _generate_uncached(
        self, input_ids: Tensor, embedded: Tensor, mask: Tensor, settings: dict[str, Any]
    ) -> Any:
        closing = self.closing.expand(len(input_ids), -1)
        return super()._generate_uncached(
            torch.cat([input_ids, closing], 1), embedded, mask, settings
        )

    # -- the words run once --------------------------------------------------------------------

    @contextmanager
    def _answering(self) -> Iterator[ForwardContext]:
        with super()._answering() as context:
            if self._disabled or not self._reusable():
                yield context
                return
            self._keep()
            body: nn.Module = self.base.base_model
            hook = body.register_forward_pre_hook(self._reuse, with_kwargs=True)
            try:
                yield context
            finally:
                hook.remove()

    def _reusable(self) -> bool:
        """Whether every layer attends to all that came before, so that a cache holds all of it."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        layers = DynamicCache(config=self.base.config).layers
        return all(type(layer) is DynamicLayer for layer in layers)

    def _reuse(
        self, _module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the first pass over `[words, text]`: the words' columns go, their cache comes."""
        from transformers import DynamicCache

        embedded, cache = given.get("inputs_embeds"), given.get("past_key_values")
        if embedded is None or not given.get("use_cache"):
            return None
        if cache is None:
            cache = DynamicCache(config=self.base.config)
        if cache.get_seq_length():
            return None
        count = len(self.words)
        for layer, (keys, values) in enumerate(self._kept):
            rows = (len(embedded), -1, -1, -1)
            cache.update(keys.expand(rows), values.expand(rows), layer)
        shorter = {"inputs_embeds": embedded[:, count:], "past_key_values": cache}
        for name in ("position_ids", "cache_position"):
            if given.get(name) is not None:
                shorter[name] = given[name][..., count:]
        return args, {**given, **shorter}

    def _keep(self) -> None:
        """Keys and values of the words in every layer, `[1, heads, P, width]` each."""
        prompt, kept = self.prompt(), self._kept
        if kept and (kept[0][0].device, kept[0][0].dtype) == (prompt.device, prompt.dtype):
            return
        with torch.no_grad():
            cache = self.base.base_model(inputs_embeds=prompt[None], use_cache=True).past_key_values
        self._kept = [(layer.keys, layer.values) for layer in cache.layers]

    # -- answers -------------------------------------------------------------------------------

    def score_answers(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        answers: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]],
    ) -> Tensor:
        """As in `AdaptedModel`, a few texts at a time."""
        count = self._at_once(input_ids)
        own = bool(answers) and bool(answers[0]) and isinstance(answers[0][0], Sequence)
        if len(input_ids) <= count or (own and len(answers) != len(input_ids)):
            return super().score_answers(input_ids, attention_mask, answers)
        scores = []
        for start in range(0, len(input_ids), count):
            rows = slice(start, start + count)
            mask = None if attention_mask is None else attention_mask[rows]
            scores.append(
                super().score_answers(input_ids[rows], mask, answers[rows] if own else answers)
            )
        return torch.cat(scores)

    def _at_once(self, input_ids: Tensor) -> int:
        return max(1, AT_ONCE // (len(self.words) + input_ids.shape[1]))

    def label_scores(
        self, input_ids: Tensor, attention_mask: Tensor | None, answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """Log-probabilities of the label words, `[B, C]`, float32, calibrated where that helps."""
        scores = self.score_answers(input_ids, attention_mask, answers).log_softmax(-1)
        if self.prior is None or self._disabled or [list(a) for a in answers] != self._labels:
            return scores
        return (scores - self.prior.to(scores.device)).log_softmax(-1)


def zero_shot(setting: Setting) -> InstructedModel:
    """The task's description before every text.

    Args:
        setting: the validation rows decide on calibration; the training rows are not used.
    """
    frame = frame_of(setting.base.tokenizer, setting.task)
    return _ready(setting, frame.opening, frame.reply)


def in_context(setting: Setting, *, context: int = CONTEXT) -> InstructedModel:
    """The task's description and answered training rows before every text.

    Rows in turn up to the first that there is no room for, equally many of each class, in an order
    drawn by `init_seed`.

    Args:
        setting: the validation rows decide on calibration.
        context: tokens before the text at most; fewer where the base has no room for so many.

    Raises:
        DataError: no training rows.
        ConfigError: not one row fits.
    """
    if not setting.train:
        raise DataError(
            f"No training rows of task {setting.task.name!r} to show", "give at least one"
        )
    frame = frame_of(setting.base.tokenizer, setting.task)
    room = min(context, _room(setting)) - len(frame.opening) - len(frame.reply)
    shown = [_demonstration(setting, frame, e) for e in _in_turn(setting)]
    fitting = 0
    while fitting < len(shown) and sum(map(len, shown[: fitting + 1])) <= room:
        fitting += 1
    if not fitting:
        raise ConfigError(
            f"The first answered row of task {setting.task.name!r} takes {len(shown[0])} tokens, "
            f"and there is room for {room} beside the description and the text",
            "set max_source_length lower, or take zero-shot",
        )
    rounds = max(1, setting.task.num_labels if setting.task.kind == "classification" else 1)
    if fitting < len(shown) and fitting > rounds:
        fitting -= fitting % rounds  # a class more often shown is a class more often answered
    chosen = shown[:fitting]
    random.Random(setting.init_seed).shuffle(chosen)
    setting.notes.update(demonstrations=fitting, of=len(shown))
    words = [*frame.opening, *(token for one in chosen for token in one)]
    return _ready(setting, words, frame.reply)


def _room(setting: Setting) -> int:
    """Positions that the base has beside the longest text and its answer."""
    limit = max_positions(setting.base.model.config, setting.base.backbone)
    if limit is None:
        return CONTEXT
    text = setting.max_source_length or min(SOURCE_LENGTH, limit // 2)
    return limit - text - TrainSettings().max_target_length


def _in_turn(setting: Setting) -> list[Example]:
    """Training rows, the classes taking turns; which row of a class comes when is drawn."""
    draw = random.Random(setting.init_seed)
    groups: dict[Any, list[Example]] = {}
    for example in draw.sample(list(setting.train), len(setting.train)):
        classified = setting.task.kind == "classification"
        groups.setdefault(example.label if classified else None, []).append(example)
    turns = max(map(len, groups.values()))
    ordered = [groups[key] for key in sorted(groups, key=str)]
    return [group[i] for i in range(turns) for group in ordered if i < len(group)]


def _demonstration(setting: Setting, frame: Frame, example: Example) -> list[int]:
    """A text with its cue, and its answer, as training renders them but for the end token."""
    tokenizer, family = setting.base.tokenizer, setting.base.backbone.family
    row = encode(
        [example], setting.task, tokenizer, family,
        max_source_length=setting.max_source_length or SOURCE_LENGTH,
        max_target_length=TrainSettings().max_target_length,
    )[0]  # fmt: skip
    ids, labels = (cast("list[int]", row[name]) for name in ("input_ids", "labels"))
    begins, answered = len(start_of(tokenizer)), labels.count(IGNORED)
    return [*ids[begins:answered], *frame.reply, *ids[answered:-1], *frame.turn]


def _ready(setting: Setting, words: Sequence[int], closing: Sequence[int] = ()) -> InstructedModel:
    """The model, calibrated where the validation rows say that it helps."""
    model = InstructedModel(setting, words, closing)
    setting.notes.update(words=len(words) + len(closing), chat=bool(closing))
    with model.attaching():
        if setting.task.kind == "classification" and not setting.task.option_columns:
            setting.notes["calibration"] = _calibrate(model, setting)
    return model


def _calibrate(model: InstructedModel, setting: Setting) -> dict[str, Any]:
    """Decide on calibration; how both did on the validation rows."""
    task, tokenizer = setting.task, setting.base.tokenizer
    rows = some(setting.validation, CHOOSING, setting.init_seed)
    if not rows:
        return {"used": False, "why": "no validation rows"}
    wanted = TrainSettings(max_source_length=setting.max_source_length)
    empty = [
        Example(str(i), task.template.format_map(dict.fromkeys(task.columns, text)), None, "")
        for i, text in enumerate(EMPTY)
    ]
    encoded = encode_prompts_only(empty, task, tokenizer, model.family, **lengths(model, wanted))
    batch = Collator(tokenizer, model.family, side="left")(encoded)
    ids, mask = (batch[k].to(model.device) for k in ("input_ids", "attention_mask"))
    answers = label_word_ids(task, tokenizer, model.family)
    prior = model.label_scores(ids, mask, answers).exp().mean(0).log()  # [C]
    plain = predict(model, task, tokenizer, rows, wanted).log_probabilities
    assert plain is not None
    truth = [int(e.label) for e in rows if e.label is not None]
    groups = [e.group for e in rows]

    def measured(logs: Tensor) -> tuple[float, float]:
        answered = logs.argmax(-1).tolist()
        score = compute(task, answered, truth, groups if any(groups) else None)
        loss = -logs[torch.arange(len(truth)), torch.tensor(truth)].mean()
        return score[task.metrics[0]], -float(loss)

    before, after = measured(plain), measured((plain - prior.cpu()).log_softmax(-1))
    if after > before:
        model.prior, model._labels = prior, answers
    return {
        "used": after > before, "measured_on": f"{len(rows)} validation rows",
        task.metrics[0]: {"plain": before[0], "calibrated": after[0]},
        "loss": {"plain": -before[1], "calibrated": -after[1]},
    }  # fmt: skip
