"""What one method gains on another, on the same draws of the same tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pemt.bench.asked import shots_title
from pemt.bench.interval import Interval, interval
from pemt.bench.results import Results, title_of
from pemt.bench.summary import Summary, summarise
from pemt.errors import ConfigError

_ROUNDING = 1e-9  # 0.03 - 0.02 lies within a margin of 0.01


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`method - against`, over the data seeds that both have.

    Attributes:
        shots: labels per class; None for the full split.
        task: the target; None for the mean over targets.
        method: the one that gains or loses.
        against: the one it is compared with.
        summary: mean, deviation and number of the seeds' differences; None where there are none.
            Over targets a seed's difference is its mean over all of them, and only the seeds that
            every target has count.
        interval: 95 %, of the mean; None with fewer than three seeds.
        wins: (target, seed) pairs where the method is ahead by more than the margin.
        ties: pairs within the margin.
        losses: pairs where it is behind.
        note: why something is not given.
    """

    shots: int | None
    task: str | None
    method: str
    against: str
    summary: Summary | None
    interval: tuple[float, float] | None
    wins: int
    ties: int
    losses: int
    note: str = ""


def differences(
    results: Results,
    shots: int | None,
    against: str,
    *,
    tie: float = 0.0,
    kind: Interval = "t",
) -> list[Difference]:
    """Every other method against one: each target, then the mean over them.

    Args:
        results: the cells.
        shots: one of `results.shots`.
        against: a method with cells.
        tie: differences up to this (a fraction) are ties.
        kind: of interval.

    Raises:
        ConfigError: no other method has cells, or a negative margin.
    """
    if not tie >= 0:
        raise ConfigError(f"tie={tie}", "give a margin of at least 0")
    if results.methods == (against,):
        raise ConfigError(
            f"there are cells of {against!r} alone, so there is nothing to take differences from",
            "run a second method, or leave out the differences",
        )
    tasks = results.tasks_at(shots)
    found = []
    for method in results.methods:
        if method == against:
            continue
        gains = {task: _gains(results, task, shots, method, against) for task in tasks}
        found += [
            _difference(ds, [ds], shots, task, method, against, tie, kind)
            for task, ds in ((task, list(gain.values())) for task, gain in gains.items())
        ]
        if len(tasks) > 1:
            seeds = sorted(set.intersection(*(set(g) for g in gains.values())))
            means = [fmean(g[seed] for g in gains.values()) for seed in seeds]
            pairs = [list(g.values()) for g in gains.values()]
            found.append(_difference(means, pairs, shots, None, method, against, tie, kind))
    return found


def _gains(
    results: Results, task: str, shots: int | None, method: str, against: str
) -> dict[int, float]:
    a, b = results.scores(task, method, shots), results.scores(task, against, shots)
    return {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}


def _difference(
    values: list[float],
    pairs: Sequence[list[float]],
    shots: int | None,
    task: str | None,
    method: str,
    against: str,
    tie: float,
    kind: Interval,
) -> Difference:
    decided = [d for gains in pairs for d in gains if not math.isnan(d)]
    undecided = sum(map(len, pairs)) - len(decided)
    place = f"{title_of(method)} on {task or 'the mean'}, {shots_title(shots)}: "
    note = ""
    if not values and task is None and not all(pairs):
        note = place + "not every target has a data seed that both methods ran."
    elif not values:
        seeds = "data seed that every target has" if task is None else "common data seed"
        note = place + f"no {seeds}."
    elif undecided:
        note = place + f"pairs in no count, for a score that is no number: {undecided}."
    return Difference(
        shots=shots, task=task, method=method, against=against,
        summary=summarise(values) if values else None, interval=interval(values, kind),
        wins=sum(d > tie + _ROUNDING for d in decided),
        ties=sum(abs(d) <= tie + _ROUNDING for d in decided),
        losses=sum(d < -tie - _ROUNDING for d in decided), note=note,
    )  # fmt: skip
