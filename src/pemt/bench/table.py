"""What is printed: tables of text, made from comparisons, differences, costs and the literature.

Scores are in points (100 x the metric), mean ± sample standard deviation over data seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pemt.bench.asked import shots_title
from pemt.bench.comparison import Row
from pemt.bench.cost import Cost
from pemt.bench.difference import Difference
from pemt.bench.interval import MIN_SEEDS, TITLES, Interval
from pemt.bench.published import MARK, METRIC, PUBLISHED, published_scores
from pemt.bench.results import Results, title_of
from pemt.bench.summary import points

NONE = "-"


@dataclass(frozen=True)
class Entry:
    """One field: its text, whether it is the best of its row, the number of its note."""

    text: str
    best: bool = False
    note: int | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as people read it.

    Attributes:
        title: above it.
        columns: their heads.
        words: how many columns, from the left, hold words; the others are numbers.
        rows: of as many entries as there are columns.
        notes: below it; the entries' notes are numbers into them, from 1.
        remarks: below those, about the table as a whole.
    """

    title: str
    columns: tuple[str, ...]
    words: int
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def score_table(results: Results, rows: Sequence[Row]) -> Table:
    """Targets down, methods across; the best of each row is marked.

    Args:
        results: whose methods are the columns.
        rows: of one number of shots, as `compared` gives them.
    """
    notes: list[str] = []
    body = []
    for row in rows:
        row_note = _numbered(row.notes.get(""), notes)
        fields = [
            Entry(row.task or "mean", note=row_note),
            Entry(row.metric or NONE),
            Entry(_span(row.test_rows)),
            Entry(str(row.seeds)),
        ]
        for method in results.methods:
            note = _numbered(row.notes.get(method), notes)
            summary = row.entries.get(method)
            if summary is None:
                fields.append(Entry(NONE, note=note))
                continue
            few = f" (n={summary.n})" if summary.n != row.seeds else ""
            fields.append(Entry(f"{summary}{few}", method in row.best, note))
        body.append(tuple(fields))
    return Table(
        title=f"{results.base}, {shots_title(rows[0].shots)}",
        columns=("target", "metric", "test rows", "n", *map(title_of, results.methods)),
        words=2, rows=tuple(body), notes=tuple(notes),
        remarks=(
            "Points, mean ± sample standard deviation over n data seeds.",
        ),
    )  # fmt: skip


def difference_table(
    found: Sequence[Difference], *, chosen: bool = False, tie: float = 0.0, kind: Interval = "t"
) -> Table:
    """A row per method and target; methods in their order, each with its mean over targets last.

    Args:
        found: of one number of shots, against one method.
        chosen: the other method was chosen on these test scores.
        tie: the margin, a fraction.
        kind: of the intervals.
    """
    notes: list[str] = []
    body = []
    for d in found:
        span = NONE
        if d.interval is not None:
            span = f"[{points(d.interval[0], '+')}, {points(d.interval[1], '+')}]"
        one = d.summary is None or d.summary.n < 2 or math.isnan(d.summary.deviation)
        body.append((
            Entry(title_of(d.method)), Entry(d.task or "mean", note=_numbered(d.note, notes)),
            Entry(points(d.summary.mean, "+") if d.summary else NONE),
            Entry(NONE if one or d.summary is None else f"{100 * d.summary.deviation:.1f}"),
            Entry(str(d.summary.n if d.summary else 0)), Entry(span),
            Entry(str(d.wins)), Entry(str(d.ties)), Entry(str(d.losses)),
        ))  # fmt: skip
    against = title_of(found[0].against)
    varied = "draws of labels"
    if found[0].shots is None:
        varied = "initialisation and order, all seeds having the same rows"
    remarks = [
        f"Method minus {against}, in points, over the data seeds both have; wins are the method's"
        + (f", ties are within {_margin(tie)}." if tie else "."),
        f"The interval ({TITLES[kind]}) is for the mean over {varied}; it is given from "
        f"{MIN_SEEDS} seeds on, says nothing about other test rows, and is not corrected for how "
        "many are read.",
    ]
    if kind == "bootstrap":
        remarks.append(
            "Percentiles over few seeds are too narrow: at n=5 they hold the mean in about 84 %."
        )
    if chosen:
        remarks.append(
            f"{against} is the single-task method with the best mean over targets, chosen on these "
            "test scores: that is optimistic for it."
        )
    return Table(
        title=f"Differences to {against}, {shots_title(found[0].shots)}",
        columns=("method", "target", "difference", "deviation", "n", f"95 % ({TITLES[kind]})",
                 "wins", "ties", "losses"),
        words=2, rows=tuple(body), notes=tuple(notes), remarks=tuple(remarks),
    )  # fmt: skip


def cost_table(found: Sequence[Cost]) -> Table:
    """A row per method."""
    body = [
        (
            Entry(title_of(c.method)), Entry(_span(c.trained)), Entry(f"{100 * c.share:.2f}"),
            Entry(f"{c.train_seconds:.1f}"), Entry(f"{c.seconds:.1f}"),
            Entry(NONE if c.peak_memory is None else f"{c.peak_memory / 2**20:,.0f}"),
            Entry(str(c.n)),
        )
        for c in found
    ]  # fmt: skip
    return Table(
        title="Costs",
        columns=("method", "trained parameters", "% of all", "training s (median)",
                 "whole s (median)", "peak memory MiB", "cells"),
        words=1, rows=tuple(body),
        remarks=("Training counts every learning rate tried; memory holds the base too.",),
    )  # fmt: skip


def published_table(results: Results, rows: Sequence[Row]) -> Table | None:
    """The literature's numbers, with ours below them for the methods that both have.

    Args:
        results: the cells.
        rows: of every number of shots, as `compared` gives them.

    Returns:
        None where no target of ours is in the literature's tables.
    """
    shared = [t for t in results.tasks if t in METRIC]
    tasks = [t for t in shared if METRIC[t] == results.metric(t)]
    if not shared:
        return None
    body = []
    for (title, method), scores in published_scores().items():
        if any(t in scores for t in tasks):
            body.append(_line(title, MARK, [scores.get(t) for t in tasks]))
        for shots in results.shots:
            ours = {
                row.task: row.entries[method]
                for row in rows
                if row.shots == shots and method is not None and method in row.entries
            }
            if any(t in ours for t in tasks):
                values = [100 * ours[t].mean if t in ours else None for t in tasks]
                body.append(_line(title, f"ours, {results.base}, {shots_title(shots)}", values))
    remarks = []
    if any(line[-1].text == NONE for line in body):
        remarks.append("A dash in the mean: not every target of this table is there.")
    remarks.append(f"Source: {'; '.join(sorted({p.source for p in PUBLISHED}))}.")
    remarks += [
        f"{t} is left out: the published number is {METRIC[t]}, ours {results.metric(t)}."
        for t in shared
        if t not in tasks
    ]
    return Table(
        title=f"Beside the literature ({MARK})",
        columns=("method", "where", *(f"{t} ({METRIC[t]})" for t in tasks), "mean"),
        words=2, rows=tuple(body), remarks=tuple(remarks),
    )  # fmt: skip


def _line(title: str, where: str, values: Sequence[float | None]) -> tuple[Entry, ...]:
    there = [v for v in values if v is not None]
    mean = NONE if len(there) < len(values) else f"{fmean(there):.1f}"
    shown = [NONE if v is None else f"{v:.1f}" for v in values]
    return tuple(Entry(text) for text in (title, where, *shown, mean))


def _numbered(note: str | None, notes: list[str]) -> int | None:
    """The number of a note, which is added if it is new."""
    if not note:
        return None
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _margin(tie: float) -> str:
    """In points, as exact as it was given; at least one decimal, as scores have."""
    text = f"{100 * tie:.10g}"
    return points(tie) if float(points(tie)) == float(text) else text


def _span(ends: tuple[int, int] | None) -> str:
    if ends is None:
        return NONE
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,}-{ends[1]:,}"
