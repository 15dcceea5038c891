"""Linear probe: logistic (or ridge) regression on the frozen base's mean hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pemt.errors import DataError
from pemt.methods.method import Setting
from pemt.model import AdaptedModel
from pemt.tasks import Example
from pemt.tasks.encoding import Collator, encode_prompts_only
from pemt.training.evaluating import evaluating, lengths, longest_first, side_of
from pemt.training.settings import TrainSettings

Array = npt.NDArray[Any]
STRENGTHS = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class FittedProbe:
    """A regression on standardised features: `scores = (x - mean) / scale @ weight.T + bias`."""

    mean: Array
    scale: float
    weight: Array
    bias: Array
    loss: float

    def scores(self, features: Array) -> Array:
        """`[N, D]` -> `[N, C]` logits, or `[N, 1]` scores."""
        result: Array = ((features - self.mean) / self.scale) @ self.weight.T + self.bias
        return result


def features_of(model: AdaptedModel, setting: Setting, examples: Sequence[Example]) -> Array:
    """`AdaptedModel.features` of every example, `[N, D]`."""
    settings = TrainSettings(max_source_length=setting.max_source_length)
    tokenizer = setting.base.tokenizer
    encoded = encode_prompts_only(
        examples,
        setting.task,
        tokenizer,
        model.family,
        **lengths(model, settings),
    )
    collate = Collator(tokenizer, model.family, side=side_of(model.family))
    order = longest_first(encoded)
    rows: Array = np.zeros((len(encoded), model.width), dtype=np.float32)
    with evaluating(model):
        for start in range(0, len(order), settings.eval_batch_size):
            chosen = order[start : start + settings.eval_batch_size]
            batch = collate([encoded[i] for i in chosen])
            ids, mask = (batch[k].to(model.device) for k in ("input_ids", "attention_mask"))
            rows[chosen] = model.features(ids, mask).cpu().numpy()
    return rows


def best_probe(setting: Setting, train: Array, validation: Array) -> FittedProbe:
    """Fit at several strengths and keep the one with the lowest loss on validation.

    Features are standardised with one global deviation, so that small directions stay small.

    Raises:
        DataError: training rows of one class.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import log_loss

    labels = {e.label for e in setting.train}
    if len(labels) < 2:
        raise DataError(
            f"The training rows of task {setting.task.name!r} are all answered "
            f"{setting.task.answer(labels.pop() or 0)!r}",
            "a regression needs rows of at least two answers",
        )
    mean = train.mean(0)
    scale = float((train - mean).std()) or 1.0
    x, v = (train - mean) / scale, (validation - mean) / scale
    truth = np.array([e.label for e in setting.train])
    wanted = np.array([e.label for e in setting.validation])
    best: FittedProbe | None = None
    for strength in STRENGTHS:
        if setting.task.kind == "regression":
            ridge = Ridge(alpha=1 / strength).fit(x, truth)
            weight, bias = ridge.coef_[None], np.array([ridge.intercept_])
            loss = float(((ridge.predict(v) - wanted) ** 2).mean())
        else:
            fitted = LogisticRegression(C=strength, max_iter=1000).fit(x, truth)
            classes = setting.task.num_labels
            weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -30.0)
            if len(fitted.classes_) == 2 and fitted.coef_.shape[0] == 1:
                low, high = (int(c) for c in fitted.classes_)
                weight[high], bias[high], bias[low] = fitted.coef_[0], fitted.intercept_[0], 0.0
            else:
                for row, c in enumerate(fitted.classes_):
                    weight[int(c)], bias[int(c)] = fitted.coef_[row], fitted.intercept_[row]
            logits = v @ weight.T + bias
            chances = np.exp(logits - logits.max(1, keepdims=True))
            chances /= chances.sum(1, keepdims=True)
            loss = float(log_loss(wanted, chances, labels=list(range(classes))))
        if best is None or loss < best.loss:
            best = FittedProbe(mean, scale, weight, bias, loss)
    assert best is not None
    return best


class ProbeModel(AdaptedModel):
    """The frozen base with a fitted linear map on its features; nothing else trains."""

    probe: FittedProbe

    @classmethod
    def build(cls, setting: Setting) -> ProbeModel:
        """Fit on the training rows; the strength is chosen on validation."""
        model = setting.bare(cls)
        with model.attaching():
            model.probe = best_probe(
                setting,
                features_of(model, setting, setting.train),
                features_of(model, setting, setting.validation),
            )
        if model.outputs == 1:
            model._fill_head()
        return model

    def _fill_head(self) -> None:
        assert self.head is not None
        weight = self.probe.weight / self.probe.scale
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(self.probe.bias - weight @ self.probe.mean))

    @torch.no_grad()
    def label_scores(
        self, input_ids: Tensor, attention_mask: Tensor | None, answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """Log-probabilities of the classes, `[B, C]`; the answers' tokens are not used."""
        del answers
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        scores = self.probe.scores(self.features(input_ids, mask).cpu().numpy())
        return torch.from_numpy(scores).float().log_softmax(-1)

    def parameter_counts(self) -> tuple[int, int]:
        """(size of the linear map, base and map)."""
        size = self.probe.weight.size + self.probe.bias.size
        return size, sum(p.numel() for p in self.base.parameters()) + size
