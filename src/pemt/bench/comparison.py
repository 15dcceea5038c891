"""Methods side by side: the mean of each on each target, and over the targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pemt.bench.asked import shots_title
from pemt.bench.cell import method_of
from pemt.bench.results import Results, title_of
from pemt.bench.summary import Summary, summarise
from pemt.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class Row:
    """One target, or the mean over targets, with every method's summary.

    Attributes:
        shots: labels per class; None for the full split.
        task: the target; None for the mean over them.
        metric: what is summarised ("" for a mean over targets of several metrics).
        test_rows: smallest and largest number of test rows; None where cells do not say.
        entries: by method; a method without a value here is not in it.
        best: the methods with the highest mean as shown, to a tenth of a point; none where only
            one has a value.
        notes: method -> what a reader must know about its entry; "" -> about the row.
    """

    shots: int | None
    task: str | None
    metric: str
    test_rows: tuple[int, int] | None
    entries: dict[str, Summary]
    best: frozenset[str]
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """The largest number of data seeds behind an entry."""
        return max((s.n for s in self.entries.values()), default=0)


def compared(results: Results, shots: int | None) -> list[Row]:
    """A row per target, and the mean over them where there are two or more.

    Args:
        results: the cells.
        shots: one of `results.shots`.
    """
    rows = [_row(results, task, shots) for task in results.tasks_at(shots)]
    return [*rows, mean_row(results, rows)] if len(rows) > 1 else rows


def best_single_task(results: Results, shots: int | None) -> str | None:
    """The method without source tasks whose mean over all targets is the highest.

    It is chosen on the test scores that it is then shown with, so its own mean is optimistic.
    None where no such method has a mean over all targets.
    """
    last = compared(results, shots)[-1]
    means = {
        method: summary.mean
        for method, summary in last.entries.items()
        if method_of(method) in METHODS
        and not METHODS[method_of(method)].transfers
        and not math.isnan(summary.mean)
    }
    return max(means, key=lambda m: means[m]) if means else None


def _row(results: Results, task: str, shots: int | None) -> Row:
    entries, notes, sizes = {}, {}, set()
    for method in results.methods:
        cells = results.of(task, method, shots)
        if not cells:
            continue
        scores = results.scores(task, method, shots)
        entries[method] = summarise(list(scores.values()))
        undefined = [str(seed) for seed, score in scores.items() if math.isnan(score)]
        if undefined:
            notes[method] = (
                f"{title_of(method)} on {task}, {shots_title(shots)}: the score of data seed "
                f"{', '.join(undefined)} is no number, so its mean is none."
            )
        _add_note(notes, method, _own_sources(results, task, method, shots))
        sizes |= {int(c.metrics["n"]) for c in cells.values() if "n" in c.metrics}
    seeds = {tuple(results.of(task, method, shots)) for method in entries}
    where = f"{task}, {shots_title(shots)}: "
    if len(seeds) > 1:
        notes[""] = where + "the methods have different data seeds; differences use common ones."
    if len(sizes) > 1:
        told = f"cells have from {min(sizes)} to {max(sizes)} test rows, so not all are the same."
        notes[""] = f"{notes['']} The {told}" if "" in notes else where + told
    return Row(
        shots=shots, task=task, metric=results.metric(task), entries=entries, notes=notes,
        test_rows=(min(sizes), max(sizes)) if sizes else None, best=_best(entries),
    )  # fmt: skip


def mean_row(results: Results, rows: Sequence[Row]) -> Row:
    """Over all targets, for the methods that have every one of them.

    The mean is of the targets' means. Its deviation is that of the mean over targets of each data
    seed, which exists only where all targets have the same seeds.
    """
    shots = rows[0].shots
    entries, notes = {}, {}
    for method in results.methods:
        lacking = [str(r.task) for r in rows if method not in r.entries]
        if len(lacking) == len(rows):
            continue
        if lacking:
            notes[method] = (
                f"{title_of(method)}, {shots_title(shots)}: no mean, because it has no cell of "
                f"{', '.join(lacking)}."
            )
            continue
        scores = [results.scores(str(r.task), method, shots) for r in rows]
        if all(s.keys() == scores[0].keys() for s in scores):
            entries[method] = summarise([fmean(s[seed] for s in scores) for seed in scores[0]])
        else:
            mean = fmean(r.entries[method].mean for r in rows)
            entries[method] = Summary(mean, math.nan, min(len(s) for s in scores))
            notes[method] = (
                f"{title_of(method)}, {shots_title(shots)}: the targets have different data seeds; "
                "the mean is of their means, and has no deviation."
            )
        undefined = [str(r.task) for r in rows if math.isnan(r.entries[method].mean)]
        if undefined:
            notes[method] = (
                f"{title_of(method)}, {shots_title(shots)}: no mean, because a score of "
                f"{', '.join(undefined)} is no number."
            )
        for row in rows:
            _add_note(notes, method, _own_sources(results, str(row.task), method, shots))
    metrics = {r.metric for r in rows}
    return Row(
        shots=shots, task=None, metric=metrics.pop() if len(metrics) == 1 else "", test_rows=None,
        entries=entries, best=_best(entries), notes=notes,
    )  # fmt: skip


def _own_sources(results: Results, task: str, method: str, shots: int | None) -> str:
    """A sentence about the experts that had learnt the target task itself; "" without any."""
    cells = results.of(task, method, shots).values()
    own = list(dict.fromkeys(name for cell in cells for name in cell.own_sources))
    if not own:
        return ""
    where = f"{title_of(method)} on {task}, {shots_title(shots)}"
    return f"{where}: {', '.join(own)} {'were' if own[1:] else 'was'} trained on this task itself."


def _add_note(notes: dict[str, str], method: str, said: str) -> None:
    if said:
        notes[method] = f"{notes[method]} {said}" if method in notes else said


def _best(entries: dict[str, Summary]) -> frozenset[str]:
    means = {m: round(100 * s.mean, 1) for m, s in entries.items() if not math.isnan(s.mean)}
    if len(means) < 2:
        return frozenset()
    highest = max(means.values())
    return frozenset(m for m, mean in means.items() if mean == highest)
