"""`pemt bench table`: what a grid found, as tables and a plot."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Literal


def table(
    sources: list[str],
    *,
    tasks: str | None = None,
    methods: str | None = None,
    shots: str | None = None,
    base: str | None = None,
    against: str | None = None,
    tie: float = 0.0,
    interval: Literal["t", "bootstrap"] = "t",
    costs: bool = False,
    published: bool = False,
    latest: bool = False,
    format: Literal["markdown", "csv", "latex"] = "markdown",
    output: Path | None = None,
    cells: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Show every method's mean, deviation and number of seeds, and paired differences.

    The differences are over the data seeds that two methods share, with a 95 % interval, and wins,
    ties and losses. A mean over targets is given only to methods that have all of them. With one
    method alone there are no differences.

    Example: pemt bench table runs/grid --against best-single-task --plot runs/grid.png
    Example: pemt bench table benchmarks/results/guided-confirm-cells.csv --against ensemble

    Args:
        sources: folders that `pemt bench run` wrote, or files that --cells wrote, one after the
            other; the cells of all of them stand in one table. Those of NAME=FOLDER stand beside
            the others as a variant, METHOD@NAME.
        tasks: show these, as "rte,cb".
        methods: show these, as "pemt,lora".
        shots: show these, as "4,16" or "full".
        base: show this one, where the folder has cells of several.
        against: the method of the differences (default: the first shown), or best-single-task:
            the one without source tasks that has the best mean over targets.
        tie: differences up to this many points are ties.
        interval: t (Student's), or bootstrap (percentiles over data seeds; too narrow below 20).
        costs: add trained parameters, time and memory.
        published: add the literature's numbers (T5-base, full data, not run here).
        latest: of cells that differ in their settings alone, take the newest.
        format: csv is long, one line per entry of every table.
        output: write to this file (default: print).
        cells: write one CSV line per cell to this file.
        plot: write a plot to this .png, .pdf or .svg file.
    """
    from pemt.bench.comparison import best_single_task, compared
    from pemt.bench.cost import costs as costs_of
    from pemt.bench.difference import Difference, differences
    from pemt.bench.recorded import cells_csv
    from pemt.bench.results import read_results
    from pemt.bench.sheet import aggregates_csv
    from pemt.bench.table import cost_table, difference_table, published_table, score_table
    from pemt.bench.writing import latex, markdown
    from pemt.errors import ConfigError, UnknownNameError
    from pemt.methods import METHODS
    from pemt.writing import write_named

    paths, named = _named(sources)
    results = read_results(
        *paths, named=named, tasks=_words(tasks), methods=_words(methods), shots=_shots(shots),
        base=base, latest=latest,
    )  # fmt: skip
    if not tie >= 0:
        raise ConfigError(f"tie={tie:g}", "give points, 0 or more")
    chosen = against == "best-single-task"
    if against is not None and not chosen and against not in results.methods:
        if against in METHODS:
            there = ", ".join(results.methods)
            raise ConfigError(f"there is no finished cell of {against!r}", f"has: {there}")
        raise UnknownNameError("method", against, {*METHODS, *results.methods, "best-single-task"})
    if len(results.methods) == 1 and against is not None:
        raise ConfigError(
            f"there are cells of {results.methods[0]!r} alone, so there are no differences",
            "run a second method, or leave --against out",
        )

    header, tables, rows, found = list(results.header), [], [], list[Difference]()
    for number in results.shots:
        at = compared(results, number)
        rows += at
        tables.append(score_table(results, at))
        rival = best_single_task(results, number) if chosen else against or results.methods[0]
        if rival is None:
            header.append(
                f"No single-task method has cells of every target at "
                f"{'full data' if number is None else f'{number} shots'}: no differences there."
            )
        elif len(results.methods) > 1:
            some = differences(results, number, rival, tie=tie / 100, kind=interval)
            found += some
            tables.append(
                difference_table(some, chosen=chosen, tie=tie / 100, kind=interval)
            )  # fmt: skip
    spent = costs_of(results) if costs else []
    if costs:
        tables.append(cost_table(spent))
    beside = published_table(results, rows) if published else None
    if beside is not None:
        tables.append(beside)
    elif published:
        header.append("No target here is in the literature's tables (METHOD.md).")

    if format == "csv":
        text = aggregates_csv(
            results, rows, found=found, kind=interval, chosen=chosen, spent=spent,
            published=published,
        )  # fmt: skip
        for line in header:  # a CSV file has no place for it
            print(line, file=sys.stderr)
    else:
        text = (latex if format == "latex" else markdown)(tables, header)
    if cells is not None:
        write_named(cells, cells_csv(results.cells))
    if plot is not None:
        from pemt.bench.figure import plot as draw

        draw(results, rows, plot)
    if output is not None:
        write_named(output, text)
    else:
        print(text, end="")
    return 0


def _named(sources: list[str]) -> tuple[list[Path], dict[str, Path]]:
    """The sources without a name, and those with one: "NAME=FOLDER".

    Raises:
        ConfigError: a name or a folder twice, or a name that no file can have.
    """
    from pemt.errors import ConfigError

    paths, named = list[Path](), dict[str, Path]()
    for source in sources:
        name, equals, path = source.partition("=")
        if not equals or Path(source).exists():  # a folder may have = in its name
            paths.append(Path(source))
        elif not re.fullmatch(r"[\w.-]+", name) or name in named or not path:
            raise ConfigError(
                f"source {source!r}", "give NAME=FOLDER, each name once, of letters, digits, . _ -"
            )
        else:
            named[name] = Path(path)
    twice = [p for p, n in Counter([*dict.fromkeys(paths), *named.values()]).items() if n > 1]
    if twice:
        raise ConfigError(f"source {str(twice[0])!r} has two names", "give each folder once")
    return paths, named


def _words(listed: str | None) -> list[str] | None:
    """Words from "a, b"."""
    if listed is None:
        return None
    return [word.strip() for word in listed.split(",") if word.strip()]


def _shots(listed: str | None) -> list[int | None] | None:
    """Numbers from "4, full".

    Raises:
        ConfigError: a word that is neither.
    """
    from pemt.errors import ConfigError

    words = _words(listed)
    if words is None:
        return None
    for word in words:
        if word != "full" and not word.isdecimal():
            raise ConfigError(f"shots={word!r}", 'give numbers and "full", as "4,16,full"')
    return [None if word == "full" else int(word) for word in words]
