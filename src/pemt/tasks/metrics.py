"""Scores of predictions, and the way from generated text back to an answer.

All metrics are fractions (accuracy 0.93, not 93); correlations lie in [-1, 1]. An invalid
prediction (None: text that is no label and no score) counts as wrong, never as missing.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from pemt.errors import DataError, UnknownNameError
from pemt.tasks.definition import METRICS
from pemt.tasks.task import Task

Prediction = int | float | str | None
Reference = int | float | str | Sequence[str]

Array = NDArray[np.float64]


def compute(
    task: Task, predictions: Sequence[Prediction], references: Sequence[Reference]
) -> dict[str, float]:
    """Every metric the task names.

    Args:
        task: names the metrics; the first is its main one.
        predictions: [N] label indices, scores or texts; None is an invalid prediction.
        references: [N] label indices, scores or texts (a list of texts: the best counts).

    Returns:
        metric -> value. ``f1`` is of label 1. An invalid prediction becomes the other label (two
        labels), a label that does not exist (more), or the end of the score range farther from
        the truth (regression). Metrics undefined for constant predictions are 0.0.

    Raises:
        DataError: lengths differ, or there is nothing to score.
        UnknownNameError: a metric that this kind of task does not have.
    """
    if len(predictions) != len(references) or not references:
        raise DataError(
            f"{len(predictions)} predictions for {len(references)} references",
            "give one prediction for each of at least one reference",
        )
    for name in task.metrics:
        if name not in METRICS[task.kind]:
            raise UnknownNameError(f"{task.kind} metric", name, METRICS[task.kind])
    if task.kind == "generation":
        return {name: _best_of(_GENERATION[name], predictions, references) for name in task.metrics}
    if task.kind == "regression":
        truth = np.array([float(r) for r in references if not isinstance(r, Sequence)])
        scores = _scores(task, predictions, truth)
        return {name: _REGRESSION[name](scores, truth) for name in task.metrics}
    labels = np.array([int(r) for r in references if not isinstance(r, Sequence)])
    wrong = 1 - labels if task.num_labels == 2 else np.full_like(labels, task.num_labels)
    valid = [isinstance(p, (int, float)) and 0 <= p < task.num_labels for p in predictions]
    chosen = np.array(
        [
            int(p) if ok and isinstance(p, (int, float)) else other
            for p, ok, other in zip(predictions, valid, wrong.tolist(), strict=True)
        ]
    )
    return {name: _CLASSIFICATION[name](chosen, labels, task.num_labels) for name in task.metrics}


def parse_answer(task: Task, text: str) -> int | float | None:
    """The label index or score that a generated text states; None where it states none.

    The whole text must be the label word (spacing, case and a final full stop aside) or a number
    within the task's score range. A generation task has no such answer: the text is it.
    """
    answer = " ".join(text.split()).removesuffix(".")
    if task.kind == "classification":
        words = [" ".join(word.split()).lower() for word in task.labels]
        exact = [i for i, word in enumerate(task.labels) if word == answer]
        return exact[0] if exact else _only(words, answer.lower())
    if task.kind == "regression" and re.fullmatch(r"[-+]?\d+(\.\d+)?", answer):
        low, high = task.score_range or (-np.inf, np.inf)
        return float(answer) if low <= float(answer) <= high else None
    return None


def _only(words: Sequence[str], answer: str) -> int | None:
    return words.index(answer) if words.count(answer) == 1 else None


def _scores(task: Task, predictions: Sequence[Prediction], truth: Array) -> Array:
    low, high = task.score_range or (float(truth.min()), float(truth.max()))
    return np.array(
        [
            float(p)
            if isinstance(p, (int, float)) and np.isfinite(p)
            else (low if abs(t - low) > abs(t - high) else high)
            for p, t in zip(predictions, truth.tolist(), strict=True)
        ]
    )


def _recalls(chosen: Array, labels: Array) -> list[float]:
    return [float(np.mean(chosen[labels == label] == label)) for label in np.unique(labels)]


def _macro_f1(chosen: Array, labels: Array, count: int) -> float:
    # Over every label of the task: one that is neither there nor predicted would score 0 for
    # nothing, so it is left out.
    seen = [i for i in range(count) if (chosen == i).any() or (labels == i).any()]
    return float(sk.f1_score(labels, chosen, labels=seen, average="macro", zero_division=0.0))


def _constant(*arrays: Array) -> bool:
    return any(len(array) < 2 or bool(np.all(array == array[0])) for array in arrays)


_CLASSIFICATION: dict[str, Callable[[Array, Array, int], float]] = {
    "accuracy": lambda chosen, labels, _: float(np.mean(chosen == labels)),
    "f1": lambda chosen, labels, _: float(
        sk.f1_score(labels, chosen, labels=[1], average="macro", zero_division=0.0)
    ),
    "macro_f1": _macro_f1,
    "balanced_accuracy": lambda chosen, labels, _: float(np.mean(_recalls(chosen, labels))),
    "matthews": lambda chosen, labels, _: (
        0.0 if _constant(chosen, labels) else float(sk.matthews_corrcoef(labels, chosen))
    ),
}

_REGRESSION: dict[str, Callable[[Array, Array], float]] = {
    "pearson": lambda scores, truth: (
        0.0 if _constant(scores, truth) else float(stats.pearsonr(scores, truth).statistic)
    ),
    "spearman": lambda scores, truth: (
        0.0 if _constant(scores, truth) else float(stats.spearmanr(scores, truth).statistic)
    ),
}


def _normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))


def _exact_match(prediction: str, reference: str) -> float:
    return float(_normalise(prediction) == _normalise(reference))


def _token_f1(prediction: str, reference: str) -> float:
    ours, theirs = _normalise(prediction).split(), _normalise(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


_GENERATION: dict[str, Callable[[str, str], float]] = {
    "exact_match": _exact_match,
    "token_f1": _token_f1,
}


def _best_of(
    score: Callable[[str, str], float],
    predictions: Sequence[Prediction],
    references: Sequence[Reference],
) -> float:
    values = []
    for prediction, reference in zip(predictions, references, strict=True):
        accepted = [reference] if isinstance(reference, (str, int, float)) else list(reference)
        best = max((score(str(prediction), str(text)) for text in accepted), default=0.0)
        values.append(0.0 if prediction is None else best)
    return float(np.mean(values))
