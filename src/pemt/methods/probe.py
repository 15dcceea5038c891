"""Linear probe: logistic (or ridge) regression on the frozen base's mean hidden state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pemt.errors import ConfigError, DataError
from pemt.guide.evidence import losses_of
from pemt.guide.probes import (
    FittedProbe,
    fit_probe,
    folds_of,
    held_out,
    log_probabilities,
    truth_of,
)
from pemt.guide.views import Array, features_of
from pemt.methods.method import Setting
from pemt.model import AdaptedModel

STRENGTHS = (0.01, 0.1, 1.0, 10.0)


def best_probe(setting: Setting, train: Array, validation: Array) -> tuple[FittedProbe, float]:
    """Fit at several strengths and keep the one with the lowest loss on validation.

    Without validation rows the loss is that of held-out training rows, cross-validated.

    Returns:
        The probe and its loss.

    Raises:
        DataError: training rows of one class.
    """
    labels = {e.label for e in setting.train}
    if len(labels) < 2:
        raise DataError(
            f"The training rows of task {setting.task.name!r} are all answered "
            f"{setting.task.answer(labels.pop() or 0)!r}",
            "a regression needs rows of at least two answers",
        )
    classes = setting.task.num_labels if setting.task.kind == "classification" else None
    truth, wanted = truth_of(setting.train), truth_of(setting.validation)
    found: list[tuple[float, FittedProbe]] = []
    for strength in STRENGTHS:
        probe = fit_probe(train, truth, strength, classes)
        if len(wanted):
            said, against = probe.scores(validation), wanted
            said = said if classes is None else log_probabilities(said)
        else:
            said = held_out(train, truth, folds_of(setting.task, setting.train), strength, classes)
            against = truth
        squares = classes is None
        loss = ((said[:, 0] - against) ** 2) if squares else losses_of(said, against, classes)
        found.append((float(loss.mean()), probe))
    loss_, best = min(found, key=lambda pair: pair[0])
    return best, loss_


class ProbeModel(AdaptedModel):
    """The frozen base with a fitted linear map on its features; nothing else trains."""

    probe: FittedProbe

    @classmethod
    def build(cls, setting: Setting) -> ProbeModel:
        """Fit on the training rows; the strength is chosen on validation.

        Raises:
            ConfigError: scores on a base that writes its answers.
            DataError: training rows of one class.
        """
        require_labels_for_probes(setting, "A probe")
        model = setting.bare(cls)
        with model.attaching():
            model.probe, _ = best_probe(
                setting,
                features_of(model, setting, setting.train),
                features_of(model, setting, setting.validation),
            )
        if model.head is not None:
            model._fill_head()
        return model

    def _fill_head(self) -> None:
        """The same map on features as they are, not standardised: what `forward` gives."""
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


def require_labels_for_probes(setting: Setting, what: str) -> None:
    """Refuse what a base that writes its answers has no labels for a probe for.

    Scores have no head to go into there; where each row has options of its own, a label is but a
    place among them, and its words say what a probe would not see.

    Raises:
        ConfigError: such a task on such a base.
    """
    if setting.task.option_columns and setting.outputs is None:
        raise ConfigError(
            f"{what} tells labels apart, and each row of {setting.task.name!r} has options of its "
            "own",
            "take pemt, guided or lora, which read the options, or an encoder-only base",
        )
    if setting.task.kind == "regression" and setting.outputs is None:
        raise ConfigError(
            f"{what} answers {setting.task.name!r} with scores, and a "
            f"{setting.base.backbone.family} base writes its answers",
            "take pemt, guided or lora, or an encoder-only base",
        )
