"""What stands behind a score: its interval, each class, who was taken for whom, what was invalid.

The interval is of the test rows alone: how far the main metric would move on other rows of the
same kind. It says nothing of another draw of labels or another initialisation, which in few-shot
training move a score more; runs with several seeds show that.
"""

from __future__ import annotations

import collections
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np
from scipy import stats

from pemt.errors import ConfigError
from pemt.tasks.metrics import (
    MEANS,
    IntArray,
    Prediction,
    Reference,
    chosen_labels,
    compute,
    resampled,
)
from pemt.tasks.task import Task

LEVEL = 0.95
RESAMPLES = 1000
"""1,000 fix the ends of a 95 % interval to a fraction of its width; 40,000 rows take a second."""

SMALL = 200
"""Up to so many units the interval is BCa: better on few rows, and quadratic in their number."""

_DRAWN_AT_ONCE = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval of a metric.

    Attributes:
        low: its lower end.
        high: its upper end.
        level: how sure, 0.95.
        method: "bca" or "percentile" bootstrap; "exact" (Clopper and Pearson) where every row is
            right or every row is wrong, which a bootstrap would give no width.
        unit: what was resampled: rows, or whole questions.
        units: how many of them there are.
    """

    low: float
    high: float
    level: float
    method: Literal["bca", "percentile", "exact"]
    unit: Literal["row", "question"]
    units: int

    @property
    def width(self) -> float:
        """From end to end."""
        return self.high - self.low


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """How one class fared. An invalid answer is a miss of its row's class and of no other."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What stands behind the main metric.

    Attributes:
        metric: the task's main metric.
        value: of it.
        interval: of it; None where the rows do not say (one row, or a metric that no resample
            changes).
        n: rows.
        invalid: answers that were none of the task's.
        invalid_texts: the commonest of them (at most three), with how often each came.
        per_class: label word -> its scores (classification), else None.
        confusion: `[C][C + 1]` counts, truth by answer, the last column invalid answers
            (classification), else None.
    """

    metric: str
    value: float
    interval: Interval | None
    n: int
    invalid: int
    invalid_texts: tuple[tuple[str, int], ...]
    per_class: dict[str, ClassScores] | None
    confusion: list[list[int]] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def main_interval(self) -> dict[str, Any] | None:
        """The interval with the name of its metric, as expert and model cards read it."""
        if self.interval is None:
            return None
        ends = {"low": self.interval.low, "high": self.interval.high}
        return {"metric": self.metric, **ends, "level": self.interval.level}

    def lines(self) -> list[str]:
        """The interval and the invalid answers as sentences."""
        if self.interval is None:
            said = [f"No interval of {self.metric}: no resample of {self.n} rows changes it."]
        else:
            found, sure = self.interval, f"{100 * self.interval.level:g} % interval"
            said = [
                f"{self.metric} {self.value:.3f}, {sure} {found.low:.3f} to {found.high:.3f}: "
                f"{found.width:.3f} wide on {found.units} test {found.unit}s."
            ]
        commonest = ", ".join(f"{_short(text)!r} ({count})" for text, count in self.invalid_texts)
        said.append(
            f"{self.invalid} of {self.n} answers were invalid"
            + (f"; the commonest: {commonest}." if commonest else ".")
        )
        return said


def report(
    task: Task,
    predictions: Sequence[Prediction],
    references: Sequence[Reference],
    texts: Sequence[str],
    questions: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Report:
    """Report on predictions.

    Args:
        task: its first metric is the main one.
        predictions: [N] as in ``metrics.compute``; None is an invalid one.
        references: [N] as there.
        texts: [N] what was answered, as text.
        questions: [N] as there; whole questions are resampled.
        seed: of the bootstrap.

    Raises:
        DataError: as ``metrics.compute``.
    """
    main = task.metrics[0]
    wrong = collections.Counter(
        text for text, said in zip(texts, predictions, strict=True) if said is None
    )
    confusion = None
    if task.kind == "classification":
        confusion = confusion_matrix(task, predictions, references)
    return Report(
        metric=main,
        value=compute(task, predictions, references, questions)[main],
        interval=interval(task, main, predictions, references, questions, seed=seed),
        n=len(references),
        invalid=wrong.total(),
        invalid_texts=tuple(wrong.most_common(3)),
        per_class=None if confusion is None else _per_class(task, confusion),
        confusion=None if confusion is None else confusion.tolist(),
    )


@dataclass(frozen=True, kw_only=True)
class ConstantAnswer:
    """The best that one answer to every row scores: what a model must pass to have learnt anything.

    Attributes:
        label: the answer whose main metric is highest; of equals the commonest label.
        metrics: of it, as the task names them.
    """

    label: str
    metrics: dict[str, float]


def constant_answer(
    task: Task, references: Sequence[Reference], questions: Sequence[str] | None = None
) -> ConstantAnswer | None:
    """Score one answer to every row, for each label; None without labels, or where rows have one.

    Args:
        task: its first metric is the main one.
        references: [N] label numbers.
        questions: [N] as in ``metrics.compute``.
    """
    if task.kind != "classification":
        return None
    counts = collections.Counter(int(cast("int", r)) for r in references)
    if len(counts) < 2:
        return None
    scored = {
        label: compute(task, [label] * len(references), references, questions)
        for label, _ in counts.most_common(20)  # no rarer one scores more
    }
    label = max(scored, key=lambda chosen: scored[chosen][task.metrics[0]])
    return ConstantAnswer(label=task.labels[label], metrics=scored[label])


def interval(
    task: Task,
    metric: str,
    predictions: Sequence[Prediction],
    references: Sequence[Reference],
    questions: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Bootstrap interval of a metric over test rows, or over whole questions where there are any.

    Args:
        task: decides how rows are scored.
        metric: one of its kind's.
        predictions: [N] as in ``metrics.compute``.
        references: [N] as there.
        questions: [N] as there.
        level: between 0 and 1.
        resamples: how many.
        seed: equal seeds give equal intervals.

    Returns:
        The interval; None where there is a single row, or no resample changes the metric and no
        exact interval is known.

    Raises:
        ConfigError: a level outside 0 to 1.
        DataError: as ``metrics.compute``.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level={level}", "give a number between 0 and 1, such as 0.95")
    units, statistic = resampled(task, metric, predictions, references, questions)
    by_question = questions is not None and task.kind != "regression"
    unit: Literal["row", "question"] = "question" if by_question else "row"

    def found(
        low: float, high: float, method: Literal["bca", "percentile", "exact"]
    ) -> Interval | None:
        if not np.isfinite([low, high]).all() or low == high:
            return None
        return Interval(
            low=float(low), high=float(high), level=level, method=method, unit=unit, units=units
        )

    value = statistic(np.arange(units))
    if metric in MEANS and value in (0.0, 1.0):
        exact = stats.binomtest(int(value) * units, units).proportion_ci(level, method="exact")
        return found(exact.low, exact.high, "exact")
    if units < 2:
        return None

    def of_sample(drawn: IntArray) -> float:
        return statistic(drawn.astype(np.int64))

    made = None
    methods: tuple[Literal["bca", "percentile"], ...] = ("bca", "percentile")
    for method in methods if units <= SMALL else methods[1:]:
        with warnings.catch_warnings():
            # a degenerate BCa gives no number, which is looked at here
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            bounds = stats.bootstrap(
                (np.arange(units),), of_sample, vectorized=False, n_resamples=resamples,
                batch=max(1, _DRAWN_AT_ONCE // units), confidence_level=level,
                method={"bca": "BCa"}.get(method, method),
                random_state=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        made = found(bounds.low, bounds.high, method)
        if made is not None:
            break
    return made


def confusion_matrix(
    task: Task, predictions: Sequence[Prediction], references: Sequence[Reference]
) -> IntArray:
    """[C, C + 1] counts: truth by answer, the last column invalid answers."""
    table = np.zeros((task.num_labels, task.num_labels + 1), dtype=np.int64)
    truth = np.array([int(cast("int", r)) for r in references])
    np.add.at(table, (truth, chosen_labels(task, predictions)), 1)
    return table


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _per_class(task: Task, confusion: IntArray) -> dict[str, ClassScores]:
    right = confusion.diagonal()
    answered, there = confusion[:, :-1].sum(0), confusion.sum(1)
    return {
        word: ClassScores(
            precision=float(right[i] / answered[i]) if answered[i] else 0.0,
            recall=float(right[i] / there[i]) if there[i] else 0.0,
            f1=float(2 * right[i] / (answered[i] + there[i])) if answered[i] + there[i] else 0.0,
            support=int(there[i]),
        )
        for i, word in enumerate(task.labels)
    }
