"""The report of a grid: `pemt bench table` as a page, with its plot, its costs and what failed."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from pemt.analysis.report.page import picture_file, render
from pemt.bench.asked import read_asked, shots_title
from pemt.bench.cell import CELL, ERROR
from pemt.bench.comparison import Row, compared
from pemt.bench.cost import costs
from pemt.bench.difference import differences
from pemt.bench.results import Results, read_results, title_of
from pemt.bench.table import NONE, Table, cost_table, difference_table, score_table
from pemt.errors import ConfigError, UnknownNameError
from pemt.methods import METHODS
from pemt.writing import write_named


def write_grid_report(
    folder: Path, path: Path, *, base: str | None = None, against: str | None = None,
    latest: bool = False,
) -> Path:  # fmt: skip
    """Write the page of a grid, finished or not.

    Args:
        folder: what `pemt bench run` wrote.
        path: of the file.
        base: show this one, where the folder has cells of several.
        against: the method of the differences; by default the first that is shown.
        latest: of cells that differ in their settings alone, take the newest.

    Raises:
        DataError: no cells, or damaged ones.
        ConfigError: cells of several bases, no cell of `against`, or a file that cannot be written.
        UnknownNameError: `against` names no method.
    """
    results = read_results(folder, base=base, latest=latest)
    against = against or results.methods[0]
    if against not in results.methods:
        if against not in METHODS:
            raise UnknownNameError("method", against, METHODS)
        raise ConfigError(
            f"{folder} has no finished cell of {against!r}", f"has: {', '.join(results.methods)}"
        )
    rows: dict[int | None, list[Row]] = {shots: compared(results, shots) for shots in results.shots}
    sections = []
    for shots, at in rows.items():
        tables = [_without_empty(score_table(results, at), len(results.methods))]
        if len(results.methods) > 1:
            tables.append(difference_table(differences(results, shots, against)))
        sections.append(
            {"title": shots_title(shots), "means": _means(results, at), "tables": tables}
        )
    wide, narrow = _plots(results, [row for at in rows.values() for row in at])
    page = render(
        "grid.html.j2", folder=folder.resolve().name, base=results.base, header=results.header,
        unfinished=any("missing:" in line for line in results.header),
        cells=len(results.cells), tasks=results.tasks, methods=results.methods,
        sections=sections, costs=cost_table(costs(results)), failures=_failures(folder),
        wide=wide, narrow=narrow, versions=results.cells[-1].versions, against=title_of(against),
    )  # fmt: skip
    write_named(path, page)
    return path


def _without_empty(table: Table, methods: int) -> Table:
    """The table without the methods that have no cell here: a phone has no room for dashes.

    Args:
        table: whose last columns are methods.
        methods: how many.
    """
    kept = [
        i for i in range(len(table.columns))
        if i < len(table.columns) - methods or any(row[i].text != NONE for row in table.rows)
    ]  # fmt: skip
    left = len(table.columns) - len(kept)
    said = f"{left} methods without a cell here are left out." if left else ""
    return replace(
        table, columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
        remarks=(*table.remarks, said) if said else table.remarks,
    )  # fmt: skip


def _means(results: Results, rows: list[Row]) -> dict[str, Any] | None:
    """Methods by their mean over targets, best first, with the length of a bar."""
    last = rows[-1]
    entries = [(title_of(m), last.entries[m]) for m in results.methods if m in last.entries]
    entries = [(title, e) for title, e in entries if e.mean == e.mean]
    if len(entries) < 2:
        return None
    entries.sort(key=lambda entry: -entry[1].mean)
    return {
        "of": last.task or f"mean over {len(rows) - 1} targets",
        "bars": [(title, str(e), max(0.0, min(1.0, e.mean))) for title, e in entries],
    }


def _plots(results: Results, rows: list[Row]) -> tuple[str | None, str | None]:
    """The plot for a wide page, and for a phone."""
    import matplotlib as mpl

    from pemt.bench.figure import plot

    with (
        tempfile.TemporaryDirectory(prefix="pemt-report-") as place,
        mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "pemt"}),
    ):
        wide = plot(results, rows, Path(place) / "wide.svg")
        narrow = plot(results, rows, Path(place) / "narrow.svg", across=1)
        return picture_file(wide), picture_file(narrow)


def _failures(folder: Path) -> list[tuple[str, list[str]]]:
    """Messages of failed cells, each with the cells it befell; none of those that the grid had
    with other settings, which nothing tries again.
    """
    now = set(read_asked(folder).folders.values())
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((folder / "cells").glob(f"*/{ERROR}")):
        if (path.parent / CELL).exists() or (now and path.parent.name not in now):
            continue
        try:
            message = str(json.loads(path.read_text(encoding="utf-8")).get("message"))
        except (OSError, ValueError, AttributeError):
            message = f"{ERROR} cannot be read"
        found[message].append(path.parent.name.rpartition("-")[0])
    return sorted(found.items(), key=lambda entry: -len(entry[1]))
