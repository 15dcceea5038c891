"""Held-out scores that may be set side by side: of this run, and of the best single expert.

Both come from rows that a run has looked at anyway: validation or cross-validation, and the
guide's evidence. No test row is used, because the next thing to try is chosen by them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pemt.tasks.metrics import compute

if TYPE_CHECKING:
    from pemt.guide import Evidence
    from pemt.tasks import Task
    from pemt.training.fitting import Fit
    from pemt.training.selecting import Selection

_CORRELATIONS = ("matthews", "pearson", "spearman")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One score on rows that were not trained on.

    Attributes:
        name: of the method or expert.
        metric: what the value is.
        value: the score.
        error: its standard error.
        how: where it comes from, for people.
    """

    name: str
    metric: str
    value: float
    error: float
    how: str


def standard_error(metric: str, value: float, rows: int) -> float:
    """Of a score over so many rows: binomial (one right and one wrong row added, so that 1.0 of few
    rows is not sure), or that of a correlation.
    """
    if metric in _CORRELATIONS:
        return (1 - min(1.0, value * value)) / math.sqrt(max(rows - 1, 1)) + 1 / max(rows, 1)
    share = (min(max(value, 0.0), 1.0) * rows + 1) / (rows + 2)
    return math.sqrt(share * (1 - share) / (rows + 2))


def of_run(
    task: Task, method: str, fit: Fit | None, rows: int, selection: Selection | None
) -> HeldOut | None:
    """What the run itself reached on held-out rows; None where nothing was held out.

    Args:
        task: its first metric is the main one.
        method: the one used.
        fit: how training went.
        rows: of validation.
        selection: of validation="cv".
    """
    metric = task.metrics[0]
    if selection is not None:
        best = selection.best
        error = best.error if math.isfinite(best.error) else 1.0
        how = f"the answers of {best.folds} held-out folds together"
        return HeldOut(name=method, metric=metric, value=best.score, error=error, how=how)
    if fit is None or fit.best is None or not rows:
        return None
    return HeldOut(
        name=method, metric=metric, value=fit.best, how=f"{rows} validation rows",
        error=standard_error(metric, fit.best, rows),
    )  # fmt: skip


def best_single(
    task: Task, evidence: Evidence | None, selection: Selection | None
) -> HeldOut | None:
    """The best single expert: that of a cross-validated `single`, else the evidence's.

    The best of several on the same rows is lucky as well as good; the standard error does not hold
    that, so a small lead of it means nothing.

    Args:
        task: its first metric decides.
        evidence: of a guide.
        selection: of validation="cv".

    Returns:
        None where nobody judged an expert, or the answers are texts.
    """
    metric = task.metrics[0]
    for choice in () if selection is None else selection.choices:
        if choice.method == "single":
            error = choice.error if math.isfinite(choice.error) else 1.0
            how = f"the answers of {choice.folds} held-out folds together"
            return HeldOut(
                name="single", metric=metric, value=choice.score, error=error, how=how
            )  # fmt: skip
    if evidence is None or evidence.kind == "generation" or metric.startswith("question_"):
        return None
    scores = {name: _score(task, evidence, name) for name in evidence.experts}
    if not scores:
        return None
    name = max(scores, key=lambda n: scores[n])
    return HeldOut(
        name=name, metric=metric, value=scores[name],
        error=standard_error(metric, scores[name], evidence.rows),
        how=f"alone, no training, held out on {evidence.rows} training rows",
    )  # fmt: skip


def _score(task: Task, evidence: Evidence, expert: str) -> float:
    """Main metric of an expert's held-out answers, the mean of its views."""
    views = [c.said for c in evidence.of(expert) if c.said is not None]
    if task.kind == "regression":
        answers: list[float | int] = np.mean([v[:, 0] for v in views], axis=0).tolist()
        return compute(task, answers, evidence.truth.tolist())[task.metrics[0]]
    answers = np.mean([np.exp(v) for v in views], axis=0).argmax(-1).tolist()
    return compute(task, answers, evidence.truth.astype(int).tolist())[task.metrics[0]]
