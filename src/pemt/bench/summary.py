"""The numbers of a table: means over draws, and differences of methods on the same draws."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pemt.bench.cell import Cell


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and number of values."""

    mean: float
    deviation: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f}"


def summarise(values: Sequence[float]) -> Summary:
    """Mean and spread of one number over seeds; one value has no spread."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Summary(statistics.fmean(values), deviation, len(values))


def paired(cells: Sequence[Cell], task: str, metric: str, method: str, other: str) -> Summary:
    """Difference of two methods on the same draws of a task."""

    def by_seed(name: str) -> dict[int, float]:
        return {c.data_seed: c.metrics[metric] for c in cells if (c.task, c.method) == (task, name)}

    a, b = by_seed(method), by_seed(other)
    return summarise([a[s] - b[s] for s in sorted(a.keys() & b.keys())])
