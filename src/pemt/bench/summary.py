"""One number over several draws of labels: its mean, spread and count."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pemt.bench.cell import Cell
from pemt.errors import DataError


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and number of values (fractions, as metrics are).

    One value has no spread: its deviation is 0 and is not shown.
    """

    mean: float
    deviation: float
    n: int

    def __str__(self) -> str:
        return self.shown()

    def shown(self, sign: str = "") -> str:
        """In points: "63.3 ± 4.1", or "63.3" of one value; `sign="+"` also marks gains."""
        text = points(self.mean, sign)
        if self.n < 2 or math.isnan(self.deviation):
            return text
        return f"{text} ± {100 * self.deviation:.1f}"


def points(fraction: float, sign: str = "") -> str:
    """A fraction in points, one decimal: "63.3", "nan"; zero has no sign."""
    text = f"{100 * fraction:{sign}.1f}"
    return text.lstrip("+-") if math.isnan(fraction) or float(text) == 0 else text


def summarise(values: Sequence[float]) -> Summary:
    """Mean and spread of one number over seeds; one nan makes the mean nan.

    Raises:
        DataError: there are no values.
    """
    if not values:
        raise DataError("there are no values to summarise", "run at least one data seed")
    if any(math.isnan(v) for v in values):
        return Summary(math.nan, math.nan, len(values))
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Summary(statistics.fmean(values), deviation, len(values))


def paired(cells: Iterable[Cell], task: str, metric: str, method: str, other: str) -> Summary:
    """Difference `method - other` in a metric of a task, over the draws that both were given.

    In a grid with variants each is a method in one of them ("pemt@short").

    Raises:
        DataError: the two share no draw.
    """
    cells = list(cells)

    def by_draw(name: str) -> dict[tuple[int, int], float]:
        return {
            (-1 if c.shots is None else c.shots, c.data_seed): c.metrics[metric]
            for c in cells
            if (c.task, c.arm) == (task, name)
        }

    a, b = by_draw(method), by_draw(other)
    common = sorted(a.keys() & b.keys())
    if not common:
        raise DataError(
            f"{method!r} and {other!r} have no draw of {task!r} in common",
            "run both with the same shots and data seeds",
        )
    return summarise([a[draw] - b[draw] for draw in common])
