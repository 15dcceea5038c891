"""Scores of predictions, and the way from generated text back to an answer.

All metrics are fractions (accuracy 0.93, not 93); correlations lie in [-1, 1]. An invalid
prediction (None: text that is no label and no score) counts as wrong, never as missing.

====================== ==========================================================================
metric                 what it is
====================== ==========================================================================
accuracy               share of rows answered right
f1                     F1 of label 1
macro_f1               mean F1 of the labels that occur or are predicted
balanced_accuracy      mean recall of the labels that occur
matthews               Matthews correlation
question_f1            F1a of MultiRC: F1 of label 1 over the answer options of all questions
question_exact_match   group EM of MultiRC: share of questions whose every option is judged right
pearson, spearman      correlation with the true scores
exact_match, token_f1  of SQuAD: of normalised texts and of their words, best accepted answer
====================== ==========================================================================
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pemt.errors import DataError, UnknownNameError
from pemt.tasks.definition import METRICS
from pemt.tasks.task import Task

Prediction = int | float | str | None
Reference = int | float | str | Sequence[str]

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
Statistic = Callable[[IntArray], float]
"""From the numbers of the units to score, each as often as it is drawn, to a metric."""

MEANS = ("accuracy", "question_exact_match", "exact_match", "token_f1")
"""The metrics that are means of values between 0 and 1."""


def compute(
    task: Task,
    predictions: Sequence[Prediction],
    references: Sequence[Reference],
    questions: Sequence[str] | None = None,
) -> dict[str, float]:
    """Every metric the task names.

    Args:
        task: names the metrics; the first is its main one.
        predictions: [N] label indices, scores or texts; None is an invalid prediction.
        references: [N] label indices, scores or texts (a list of texts: the best counts).
        questions: [N] ids of the questions that rows belong to, for ``question_exact_match``.

    Returns:
        metric -> value. An invalid prediction becomes the other label (two labels), a label that
        does not exist (more), or the end of the score range farther from the truth (regression).
        Metrics undefined for constant predictions are 0.0.

    Raises:
        DataError: lengths differ, there is nothing to score, or no questions where they are needed.
        UnknownNameError: a metric that this kind of task does not have.
    """
    scores = {}
    for name in task.metrics:
        units, statistic = resampled(task, name, predictions, references, questions)
        scores[name] = statistic(np.arange(units))
    return scores


def resampled(
    task: Task,
    metric: str,
    predictions: Sequence[Prediction],
    references: Sequence[Reference],
    questions: Sequence[str] | None = None,
) -> tuple[int, Statistic]:
    """A metric as a function of the rows it is taken over, as a bootstrap needs it.

    Rows of one question are one unit, because they were not drawn apart; without questions, and
    in regression, every row is a unit.

    Arguments and errors are those of ``compute``.

    Returns:
        How many units there are, and the function from unit numbers (repeats allowed) to the
        metric. On ``arange(units)`` it is the metric itself.
    """
    if metric not in METRICS[task.kind]:
        raise UnknownNameError(f"{task.kind} metric", metric, METRICS[task.kind])
    _check(metric, predictions, references, questions)
    if task.kind == "regression":
        truth = np.array([float(cast("float", r)) for r in references])
        scores = _scores(task, predictions, truth)
        correlation = _REGRESSION[metric]
        return len(truth), lambda drawn: correlation(scores[drawn], truth[drawn])
    unit = _unit_of_row(questions, len(references))
    if task.kind == "generation":
        return _mean_of(text_scores(metric, predictions, references), unit)
    labels = np.array([int(cast("int", r)) for r in references])
    chosen = chosen_labels(task, predictions)
    count = task.num_labels
    if count == 2:
        chosen = np.where(chosen == count, 1 - labels, chosen)
    right = np.where(chosen == labels, 1.0, 0.0)
    if metric == "accuracy":
        return _mean_of(right, unit)
    if metric == "question_exact_match":
        every = np.ones(unit.max() + 1)
        np.minimum.at(every, unit, right)
        return _mean_of(every, np.arange(len(every)))
    # Every other metric is a function of how often each (truth, answer) pair occurs, so rows
    # are counted once and a resample only adds up counts.
    table = np.zeros((unit.max() + 1, count * (count + 1)))
    np.add.at(table, (unit, labels * (count + 1) + chosen), 1.0)
    score = _CLASSIFICATION[metric]

    def of_pairs(drawn: IntArray) -> float:
        times = np.bincount(drawn, minlength=len(table)).astype(float)
        return score((times @ table).reshape(count, count + 1))

    return len(table), of_pairs


def chosen_labels(task: Task, predictions: Sequence[Prediction]) -> IntArray:
    """[N] label indices; an invalid prediction is ``num_labels``, which is no label."""
    count = task.num_labels
    return np.array(
        [int(p) if isinstance(p, (int, float)) and 0 <= p < count else count for p in predictions],
        dtype=np.int64,
    )


def text_scores(
    metric: str, predictions: Sequence[Prediction], references: Sequence[Reference]
) -> Array:
    """[N] ``exact_match`` or ``token_f1`` of each text with the accepted answer it fits best."""
    score = _GENERATION[metric]
    values = []
    for prediction, reference in zip(predictions, references, strict=True):
        accepted = [reference] if isinstance(reference, (str, int, float)) else list(reference)
        best = max((score(str(prediction), str(text)) for text in accepted), default=0.0)
        values.append(0.0 if prediction is None else best)
    return np.array(values)


def parse_answer(task: Task, text: str, options: Sequence[str] = ()) -> int | float | None:
    """The label index or score that a generated text states; None where it states none.

    The whole text must be the label word (spacing, case and a final full stop aside) or a number
    within the task's score range, or what the task writes for its ends. A generation task has no
    such answer: the text is it.

    Args:
        task: its kind and label words decide.
        text: what was generated.
        options: the row's own label words, where the task has none that all rows share.
    """
    answer = _plain(text)
    if task.kind == "classification":
        words = [_plain(word) for word in options or task.labels]
        if words.count(answer) == 1:
            return words.index(answer)
        return _only([word.lower() for word in words], answer.lower())
    if task.kind == "regression" and re.fullmatch(r"[-+]?\d+(\.\d+)?", answer):
        if task.score_range is None:
            return float(answer)
        # an end that is no multiple of the step is written as one that may lie beyond it
        low, high = task.score_range
        written = [float(task.answer(end)) for end in (low, high)]
        if min(low, *written) <= float(answer) <= max(high, *written):
            return min(max(float(answer), low), high)
    return None


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


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


def _check(
    metric: str,
    predictions: Sequence[Prediction],
    references: Sequence[Reference],
    questions: Sequence[str] | None,
) -> None:
    if len(predictions) != len(references) or not references:
        raise DataError(
            f"{len(predictions)} predictions for {len(references)} references",
            "give one prediction for each of at least one reference",
        )
    if questions is None:
        if metric == "question_exact_match":
            raise DataError(
                "question_exact_match without questions",
                "say which question each row belongs to (the task's `group`)",
            )
        return
    if len(questions) != len(references):
        raise DataError(
            f"{len(questions)} questions for {len(references)} references",
            "give the question of each reference, or none at all",
        )
    if not all(questions):
        raise DataError(
            f"Row {list(questions).index('')} belongs to no question, and other rows do",
            "give every row a question, or none",
        )


def _unit_of_row(questions: Sequence[str] | None, rows: int) -> IntArray:
    """[N] number of each row's unit: its question in order of the ids, else the row itself."""
    if questions is None:
        return np.arange(rows)
    return np.unique(np.array(questions, dtype=object), return_inverse=True)[1].reshape(-1)


def _mean_of(values: Array, unit: IntArray) -> tuple[int, Statistic]:
    """The mean over rows, as a function of the units."""
    sums, sizes = np.bincount(unit, weights=values), np.bincount(unit)
    return len(sizes), lambda drawn: float(sums[drawn].sum() / sizes[drawn].sum())


# The functions below take the confusion matrix [C, C + 1], truth by answer, the last column answers
# that are no label. They are a thousand times faster on it than scikit-learn's are on rows, which
# the resamples of an interval need; the tests hold them to scikit-learn.


def _recall(pairs: Array) -> float:
    there = pairs.sum(1)
    return float(np.mean(pairs.diagonal()[there > 0] / there[there > 0]))


def _f1s(pairs: Array) -> tuple[Array, Array]:
    """[C] F1 of each label, and how often it occurs or is answered (0: its F1 is 0 for nothing)."""
    seen = pairs[:, :-1].sum(0) + pairs.sum(1)
    return 2 * pairs.diagonal() / np.maximum(seen, 1), seen


def _f1(pairs: Array) -> float:
    return float(_f1s(pairs)[0][1])


def _macro_f1(pairs: Array) -> float:
    scores, seen = _f1s(pairs)
    return float(np.mean(scores[seen > 0]))


def _matthews(pairs: Array) -> float:
    # Gorodkin's R_K (2004), which is Matthews' correlation for two labels.
    there, answered, rows = pairs.sum(1), pairs.sum(0), pairs.sum()
    spread = (rows**2 - np.sum(there**2)) * (rows**2 - np.sum(answered**2))
    if spread == 0:
        return 0.0
    return float((pairs.trace() * rows - there @ answered[:-1]) / np.sqrt(spread))


def _constant(*arrays: NDArray[np.generic]) -> bool:
    return any(len(array) < 2 or bool(np.all(array == array[0])) for array in arrays)


_CLASSIFICATION: dict[str, Callable[[Array], float]] = {
    "f1": _f1,
    "macro_f1": _macro_f1,
    "balanced_accuracy": _recall,
    "matthews": _matthews,
    "question_f1": _f1,
}
_REGRESSION: dict[str, Callable[[Array, Array], float]] = {
    "pearson": lambda scores, truth: (
        0.0 if _constant(scores, truth) else float(stats.pearsonr(scores, truth).statistic)
    ),
    "spearman": lambda scores, truth: (
        0.0 if _constant(scores, truth) else float(stats.spearmanr(scores, truth).statistic)
    ),
}

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single spaces.

    The order matters: "a-b" becomes "ab", and only then are articles looked for. Punctuation
    outside ASCII stays, and an article next to it still goes ("the\u2013man" to "\u2013man").
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _exact_match(prediction: str, reference: str) -> float:
    return float(_normalise(prediction) == _normalise(reference))


def _token_f1(prediction: str, reference: str) -> float:
    # No shared word is 0 even where both are empty, as in the scripts of SQuAD 1.1, MRQA and
    # ReCoRD; SQuAD 2, which has empty answers, would count that as 1.
    ours, theirs = _normalise(prediction).split(), _normalise(reference).split()
    shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


_GENERATION: dict[str, Callable[[str, str], float]] = {
    "exact_match": _exact_match,
    "token_f1": _token_f1,
}
