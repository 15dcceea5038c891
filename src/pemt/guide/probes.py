"""Small regressions on a view: fitted on few rows, judged on rows they have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pemt.errors import DataError
from pemt.guide.views import Array, View
from pemt.tasks import Example, Task
from pemt.tasks.splits import units_of

Rows = npt.NDArray[np.int64]
Fold = tuple[Rows, Rows]

STRENGTHS: dict[View, float] = {
    "features": 0.03, "answers": 0.3, "named": 1.0, "words": 0.3,
}  # fmt: skip
"""Inverse regularisation by view: many features need a strong pull, few answers a weak one."""
FOLDS, REPEATS = 8, 2
FLOOR = 1e-6
"""Least probability of a class: a class that a fold does not hold must not cost infinity."""


@dataclass(frozen=True, kw_only=True)
class FittedProbe:
    """A regression on standardised values: `(x - mean) / scale @ weight.T + bias`.

    Attributes:
        mean: `[d]`.
        scale: one deviation for all directions, so that small directions stay small.
        weight: `[C, d]`; `[1, d]` for scores.
        bias: `[C]`; `[1]` for scores.
    """

    mean: Array
    scale: float
    weight: Array
    bias: Array

    def scores(self, values: Array) -> Array:
        """`[N, d]` -> `[N, C]` logits, or `[N, 1]` scores."""
        result: Array = ((values - self.mean) / self.scale) @ self.weight.T + self.bias
        return result


def fit_probe(values: Array, truth: Array, strength: float, classes: int | None) -> FittedProbe:
    """Logistic regression, or ridge regression for scores (`classes` None).

    Classes that `truth` does not hold get a logit of -30. With rows of one class alone the probe
    gives that class: there is nothing to tell apart.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    mean = values.mean(0)
    scale = float((values - mean).std()) or 1.0
    x = (values - mean) / scale
    if classes is None:
        ridge = Ridge(alpha=1 / strength).fit(x, truth)
        weight, bias = ridge.coef_[None], np.array([ridge.intercept_])
        return FittedProbe(mean=mean, scale=scale, weight=weight, bias=bias)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -30.0)
    seen = np.unique(truth).astype(int)
    if len(seen) == 1:
        bias[seen] = 0.0
        return FittedProbe(mean=mean, scale=scale, weight=weight, bias=bias)
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(x, truth)
    if len(seen) == 2:  # of two classes the first has logit 0
        weight[seen[1]], bias[seen[1]], bias[seen[0]] = fitted.coef_[0], fitted.intercept_[0], 0.0
    else:
        weight[seen], bias[seen] = fitted.coef_, fitted.intercept_
    return FittedProbe(mean=mean, scale=scale, weight=weight, bias=bias)


def log_probabilities(logits: Array) -> Array:
    """`[N, C]` logits as log-probabilities, none below `FLOOR`."""
    shifted = logits - logits.max(1, keepdims=True)
    p = np.exp(shifted)
    p = np.maximum(p / p.sum(1, keepdims=True), FLOOR)
    result: Array = np.log(p / p.sum(1, keepdims=True))
    return result


def folds_of(
    task: Task, rows: Sequence[Example], *, count: int = FOLDS, repeats: int = REPEATS
) -> list[Fold]:
    """(training, held-out) row numbers, repeated; the same for every expert, so losses compare.

    Every row is held out once in each repeat. Rows of one group, or of one text (spacing and case
    aside), are on one side. A class of one row, or of one group, is held out where no other row of
    it was fitted: `held_out` says what it gets there.

    Args:
        task: its labels keep their shares in every fold, as far as they can.
        rows: to divide.
        count: folds, at most; the groups are the limit, of labels those of the rarest.
        repeats: of the whole division.

    Raises:
        DataError: fewer than two rows, or rows of one answer alone.
    """
    from sklearn.model_selection import (
        RepeatedKFold,
        RepeatedStratifiedKFold,
        StratifiedGroupKFold,
    )

    groups = units_of(rows, by_text=True)
    if len(groups) == 1:  # nothing else to learn from: by rows, though they know one another
        groups = [[i] for i in range(len(rows))]

    def of(chosen: Rows) -> Rows:
        return np.sort(np.concatenate([groups[g] for g in chosen]))

    if task.kind != "classification":
        if len(rows) < 2:
            raise DataError(
                f"{len(rows)} labelled rows to judge experts on", "give at least two rows"
            )
        plain = RepeatedKFold(n_splits=min(count, len(groups)), n_repeats=repeats, random_state=0)
        return [(of(a), of(b)) for a, b in plain.split(np.zeros(len(groups)))]
    truth = truth_of(rows)
    sizes = np.bincount(truth.astype(int), minlength=task.num_labels)
    if (sizes > 0).sum() < 2:
        counts = ", ".join(f"{word}: {n}" for word, n in zip(task.labels, sizes, strict=True))
        raise DataError(
            f"Too few labelled rows to judge experts on ({counts})",
            "give rows of at least two labels",
        )
    number = np.empty(len(rows), dtype=int)
    for g, members in enumerate(groups):
        number[members] = g
    rarest = min(len(np.unique(number[truth == label])) for label in np.unique(truth))
    if rarest >= 2 and len(groups) == len(rows):
        split = RepeatedStratifiedKFold(
            n_splits=min(count, rarest), n_repeats=repeats, random_state=0
        )
        return list(split.split(truth, truth))
    if rarest >= 2:
        grouped = [
            StratifiedGroupKFold(n_splits=min(count, rarest), shuffle=True, random_state=seed)
            for seed in range(repeats)
        ]
        return [fold for split in grouped for fold in split.split(truth, truth, number)]
    # a class of one group cannot be in both parts: folds that keep the others balanced as they can
    count = max(2, min(count, len(groups) // 2))
    kinds = truth[[members[0] for members in groups]]
    generator = np.random.default_rng(0)
    made: list[Fold] = []
    for _ in range(repeats):
        shuffled = generator.permutation(len(groups))
        by_class = shuffled[np.argsort(kinds[shuffled], kind="stable")]
        part = np.empty(len(groups), dtype=int)
        part[by_class] = np.arange(len(groups)) % count
        made += [
            (of(np.flatnonzero(part != f)), of(np.flatnonzero(part == f))) for f in range(count)
        ]
    return made


def truth_of(rows: Sequence[Example]) -> Array:
    """The labels or scores of rows, `[N]`."""
    return np.array([float(e.label if e.label is not None else np.nan) for e in rows])


def held_out(
    values: Array, truth: Array, folds: Sequence[Fold], strength: float, classes: int | None
) -> Array:
    """What probes say of rows they were not fitted on, over the repeats.

    A class of `truth` that none of the n fitted rows of a fold has gets 1 / (n + C) there, the rule
    of succession. No fit can foretell it: the floor would count that against every expert that
    needs a fit, and for those that answer without one.

    Returns:
        Log-probabilities `[N, C]` (of the mean probability), or mean scores `[N, 1]`.
    """
    total: Any = np.zeros((len(truth), classes or 1))
    seen = np.zeros(len(truth))
    for inside, outside in folds:
        probe = fit_probe(values[inside], truth[inside], strength, classes)
        said = probe.scores(values[outside])
        if classes is not None:
            said = np.exp(log_probabilities(said))
            absent = np.setdiff1d(truth, truth[inside]).astype(int)
            if len(absent):
                share = 1 / (len(inside) + classes)
                said[:, absent] = 0.0
                said *= (1 - len(absent) * share) / said.sum(1, keepdims=True)
                said[:, absent] = share
        total[outside] += said
        seen[outside] += 1
    mean: Array = total / seen[:, None]
    return mean if classes is None else np.log(mean)
