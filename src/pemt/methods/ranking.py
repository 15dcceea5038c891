"""Which experts look useful for a target task, before anything is trained.

Every expert is put on the frozen base alone, with its own prompt, and the labelled rows run through
it once. What is measured is how well the answers can be told from what comes out:

- classification and regression: a linear probe on the mean hidden state, cross-validated over the
  rows; its loss per row, in nats (regression: squared error);
- generation: the loss of the answers themselves, in nats per row.

"No expert" is measured in the same way. With few rows these losses are noisy, so each difference
from "no expert" comes with its standard error over the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F  # noqa: N812

from pemt.errors import ConfigError, DataError
from pemt.experts import Expert
from pemt.methods.method import Setting
from pemt.methods.probe import features_of
from pemt.model import AdaptedModel, PemtModel
from pemt.tasks import Example
from pemt.tasks.encoding import Collator, encode
from pemt.training.evaluating import evaluating, lengths, side_of
from pemt.training.settings import TrainSettings
from pemt.training.sourcing import start_prompt

Array = npt.NDArray[Any]
STRENGTH = 0.03
"""Inverse regularisation of the probe: what the few-label prototype settled on."""
FOLDS, REPEATS = 8, 2


@dataclass(frozen=True, kw_only=True)
class Rank:
    """What is known about one expert for a target, before training.

    Attributes:
        name: of the expert.
        task: it was trained on.
        loss: mean over the rows with this expert alone; lower is better.
        gain: loss without any expert minus `loss`; above 0 the expert helps.
        gain_error: standard error of `gain` over the rows (rows are few: read it as a scale).
        description: cosine of the two descriptions in the frozen base, or None without one.
        prompt: cosine of the mean rows of the expert's prompt and the target's first prompt.
    """

    name: str
    task: str
    loss: float
    gain: float
    gain_error: float
    description: float | None
    prompt: float | None


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All experts, best first.

    Attributes:
        ranks: by loss, lowest first.
        none_loss: the loss without any expert.
        rows: how many labelled rows it rests on.
        measure: what the loss is, for people.
    """

    ranks: tuple[Rank, ...]
    none_loss: float
    rows: int
    measure: str

    def best(self, count: int) -> list[str]:
        """Names of the best `count` experts, best first.

        Raises:
            ConfigError: fewer experts than asked for, or none asked for.
        """
        if not 1 <= count <= len(self.ranks):
            raise ConfigError(
                f"The best {count} of {len(self.ranks)} experts",
                f"ask for 1 to {len(self.ranks)}",
            )
        return [rank.name for rank in self.ranks[:count]]


@contextmanager
def alone(setting: Setting, expert: Expert) -> Iterator[PemtModel]:
    """The frozen base with one expert at weight one and its own prompt, nothing else added."""
    base = setting.base
    prompt = expert.prompt
    if not len(prompt):
        prompt = start_prompt(base, setting.task, "description")
    plain = replace(
        setting.config, prompt_fusion="none", target_adapter=False, train_norms=False,
        sparsity_weight=0.0, gate="example",
    )  # fmt: skip
    model = PemtModel(
        base.model, [expert], plain, prompt=prompt,
        outputs=setting.outputs, backbone=base.backbone,
    )  # fmt: skip
    try:
        yield model
    finally:
        model.detach()


def rank_experts(setting: Setting, experts: Iterable[Expert]) -> Ranking:
    """Rank experts on the setting's training rows; each is put on and taken off in turn.

    Args:
        setting: its `experts` are not looked at.
        experts: may be a generator that loads one after the other: one is held at a time.

    Raises:
        DataError: too few rows to cross-validate.
        ConfigError: no experts.
    """
    rows = setting.train
    folds = _folds(setting)
    plain = setting.bare(AdaptedModel)
    try:
        nothing = _losses(plain, setting, folds)
        about = _about(plain, setting, setting.task.description)
        target = start_prompt(setting.base, setting.task, "description").float().mean(0)
    finally:
        plain.detach()
    ranks = []
    for expert in experts:
        similar = None
        with alone(setting, expert) as model:
            losses = _losses(model, setting, folds)
            if expert.info.description:
                with model.disable():
                    similar = _cosine(about, _about(model, setting, expert.info.description))
        gains = nothing - losses
        spread = float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else float("nan")
        ranks.append(
            Rank(
                name=expert.name, task=expert.info.task, loss=float(losses.mean()),
                gain=float(gains.mean()), gain_error=spread, description=similar,
                prompt=_cosine(target, expert.prompt.float().mean(0).to(target))
                if len(expert.prompt) else None,
            )
        )  # fmt: skip
    if not ranks:
        raise ConfigError("No experts to rank", "train or import some: pemt train-source --help")
    ranks.sort(key=lambda rank: (rank.loss, rank.name))
    measure = {
        "classification": "log-loss of a cross-validated probe, nats per row",
        "regression": "squared error of a cross-validated probe",
        "generation": "loss of the answers, nats per row",
    }[setting.task.kind]
    return Ranking(
        ranks=tuple(ranks), none_loss=float(nothing.mean()), rows=len(rows), measure=measure
    )


def _about(model: AdaptedModel, setting: Setting, description: str) -> torch.Tensor:
    """A description in the base's own space: its mean final hidden state, `[D]`."""
    text = [Example("0", description, None, "")]
    return torch.from_numpy(features_of(model, setting, text))[0]


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))


def _folds(setting: Setting) -> list[tuple[Array, Array]]:
    """(training, held-out) row numbers; the same for every expert, so that losses compare."""
    from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold

    rows, kind = setting.train, setting.task.kind
    if kind == "generation":
        if not rows:
            raise DataError("No labelled rows to rank experts on", "give at least one")
        return []
    if kind == "regression":
        count = min(FOLDS, len(rows))
        if count < 2:
            raise DataError(
                f"{len(rows)} labelled rows to rank experts on", "give at least two rows"
            )
        split = RepeatedKFold(n_splits=count, n_repeats=REPEATS, random_state=0)
        return list(split.split(np.zeros(len(rows))))
    truth = np.array([e.label for e in rows])
    sizes = {word: int((truth == i).sum()) for i, word in enumerate(setting.task.labels)}
    present = {word: size for word, size in sizes.items() if size}
    if len(present) < 2 or min(present.values()) < 2:
        counts = ", ".join(f"{word}: {size}" for word, size in sizes.items())
        raise DataError(
            f"Too few labelled rows to rank experts on ({counts})",
            "give at least two rows of at least two labels",
        )
    split = RepeatedStratifiedKFold(
        n_splits=min(FOLDS, min(present.values())), n_repeats=REPEATS, random_state=0
    )
    return list(split.split(np.zeros(len(rows)), truth))


def _losses(
    model: AdaptedModel, setting: Setting, folds: Sequence[tuple[Array, Array]]
) -> npt.NDArray[np.float64]:
    """Loss of each row, `[N]`, held out where a probe is fitted.

    Raises:
        DataError: features or losses that are not finite, from a broken expert.
    """
    if setting.task.kind == "generation":
        losses = _answer_losses(model, setting)
    else:
        features = features_of(model, setting, setting.train)
        if not np.isfinite(features).all():
            raise DataError(
                "An expert gives values that are not finite on these rows",
                "verify it (pemt experts verify), or leave it out",
            )
        losses = _probe_losses(features, setting, folds)
    if not np.isfinite(losses).all():
        raise DataError("A loss on these rows is not finite", "verify the experts, or leave it out")
    return losses


def _probe_losses(
    features: Array, setting: Setting, folds: Sequence[tuple[Array, Array]]
) -> npt.NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression, Ridge

    # one deviation for all directions: small directions stay small
    centred = features - features.mean(0)
    x = centred / (float(centred.std()) or 1.0)
    truth = np.array([e.label for e in setting.train])
    total, seen = np.zeros(len(x)), np.zeros(len(x))
    for inside, outside in folds:
        if setting.task.kind == "regression":
            ridge = Ridge(alpha=1 / STRENGTH).fit(x[inside], truth[inside])
            losses = (ridge.predict(x[outside]) - truth[outside]) ** 2
        else:
            fitted = LogisticRegression(C=STRENGTH, max_iter=1000).fit(x[inside], truth[inside])
            logs = fitted.predict_log_proba(x[outside])
            column = {label: i for i, label in enumerate(fitted.classes_.tolist())}
            losses = -np.array(
                [row[column[label]] for row, label in zip(logs, truth[outside], strict=True)]
            )
        total[outside] += losses
        seen[outside] += 1
    result: npt.NDArray[np.float64] = total / seen
    return result


@torch.no_grad()
def _answer_losses(model: AdaptedModel, setting: Setting) -> npt.NDArray[np.float64]:
    settings = TrainSettings(max_source_length=setting.max_source_length, max_target_length=64)
    tokenizer, family = setting.base.tokenizer, model.family
    encoded = encode(setting.train, setting.task, tokenizer, family, **lengths(model, settings))
    collate = Collator(tokenizer, family, side=side_of(family))
    losses = []
    with evaluating(model):
        for row in encoded:
            batch = collate([row])
            ids, mask, labels = (
                batch[k].to(model.device) for k in ("input_ids", "attention_mask", "labels")
            )
            tokens = int((labels != -100).sum())
            losses.append(float(model(ids, mask, labels).task_loss) * tokens)
    return np.array(losses)
