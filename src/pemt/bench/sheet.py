"""Comparisons as CSV, for whoever computes further."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from pemt.bench.comparison import Row
from pemt.bench.cost import Cost
from pemt.bench.difference import Difference
from pemt.bench.interval import TITLES, Interval
from pemt.bench.published import METRIC, PUBLISHED
from pemt.bench.results import Results, title_of

CHOSEN = "the other method was chosen on these test scores"

CSV_FIELDS = (
    "table", "base", "shots", "task", "metric", "test_rows", "method", "title", "against", "n",
    "mean", "deviation", "best", "interval", "low", "high", "wins", "ties", "losses", "trained",
    "train_seconds", "seconds", "peak_memory", "note",
)  # fmt: skip
"""One line per aggregate; `table` is scores, differences, costs or published. Numbers in points,
empty where a table has no such field; the mean over targets is the task "mean"."""


def aggregates_csv(
    results: Results,
    rows: Sequence[Row],
    *,
    found: Sequence[Difference] = (),
    kind: Interval = "t",
    chosen: bool = False,
    spent: Sequence[Cost] = (),
    published: bool = False,
) -> str:
    """Long format, the columns of `CSV_FIELDS`: one line per entry of every table.

    Args:
        results: the cells.
        rows: of every number of shots.
        found: differences.
        kind: of their intervals.
        chosen: the other method was chosen on these test scores; the lines say so.
        spent: costs.
        published: with the literature's numbers of our targets.
    """
    lines: list[dict[str, Any]] = []
    for row in rows:
        where = {
            "table": "scores", "shots": _shots(row.shots), "task": row.task or "mean",
            "metric": row.metric, "test_rows": "" if row.test_rows is None
            else "-".join(map(str, sorted(set(row.test_rows)))),
        }  # fmt: skip
        for method in results.methods:
            note = " ".join(row.notes[k] for k in ("", method) if k in row.notes)
            entry: dict[str, Any] = {"n": 0}
            if method in row.entries:
                s = row.entries[method]
                entry = {
                    "n": s.n, "mean": _number(s.mean),
                    "deviation": _number(s.deviation) if s.n > 1 else "",
                    "best": int(method in row.best),
                }  # fmt: skip
            lines.append({**where, "method": method, **entry, "note": note})
    for d in found:
        lines.append({
            "table": "differences", "shots": _shots(d.shots), "task": d.task or "mean",
            "metric": results.metric(d.task) if d.task else "", "method": d.method,
            "against": d.against, "n": d.summary.n if d.summary else 0,
            "mean": _number(d.summary.mean) if d.summary else "",
            "deviation": _number(d.summary.deviation) if d.summary and d.summary.n > 1 else "",
            "interval": TITLES[kind] if d.interval else "",
            "low": _number(d.interval[0]) if d.interval else "",
            "high": _number(d.interval[1]) if d.interval else "",
            "wins": d.wins, "ties": d.ties, "losses": d.losses,
            "note": f"{d.note} {CHOSEN if chosen else ''}".strip(),
        })  # fmt: skip
    for c in spent:
        lines.append({
            "table": "costs", "method": c.method, "n": c.n, "train_seconds": c.train_seconds,
            "trained": "-".join(map(str, sorted(set(c.trained)))), "seconds": c.seconds,
            "peak_memory": "" if c.peak_memory is None else c.peak_memory,
        })  # fmt: skip
    for line in lines:
        line |= {"base": results.base, "title": title_of(line["method"])}
    for p in PUBLISHED if published else ():
        lines += [
            {
                "table": "published", "base": "t5-base", "shots": "full", "task": task,
                "metric": METRIC[task], "method": p.method or "", "title": p.title,
                "mean": score, "note": p.source,
            }
            for task, score in p.by_task.items()
            if task in results.tasks and METRIC[task] == results.metric(task)
        ]  # fmt: skip
    return _csv(CSV_FIELDS, lines)


def _csv(fields: Sequence[str], lines: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _number(fraction: float) -> float | str:
    """In points; exact to a millionth, so that 0.7 is 70 and not 70.00000000000001."""
    return "nan" if math.isnan(fraction) else round(100 * fraction, 6)


def _shots(shots: int | None) -> str:
    return "full" if shots is None else str(shots)
