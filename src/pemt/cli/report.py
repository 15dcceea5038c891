"""`pemt report`: one HTML file about a run or a grid."""

from __future__ import annotations

from pathlib import Path


def report(
    folder: Path,
    *,
    output: Path | None = None,
    base: str | None = None,
    against: str | None = None,
    latest: bool = False,
) -> int:
    """Write everything worth reading about a run or a grid as one HTML file.

    Reads the folder alone: no base, no rows, no Hub. The file holds its pictures, asks the network
    for nothing and reads well on a phone. Of a run: task, data, scores with their interval,
    confusions, learning curves, gates, diagnosis, the surest wrong answers, settings and the
    command to repeat it. Of a grid, finished or not: its tables, paired differences, plot, costs,
    failures.

    Example: pemt report runs/product_reviews-pemt-16-0

    Args:
        folder: what `pemt adapt` or `pemt bench run` wrote.
        output: file to write (default: report.html in the folder).
        base: of a grid with cells of several bases: show this one.
        against: of a grid: the method of the differences (default: the first shown).
        latest: of a grid: of cells that differ in their settings alone, take the newest.
    """
    from pemt.analysis.report import read_run, write_grid_report, write_run_report
    from pemt.errors import ConfigError

    path = output or folder / "report.html"
    if path.is_dir():
        raise ConfigError(f"{path} is a folder", "give a file, such as report.html")
    if (folder / "cells").is_dir() or (folder / "grid.json").is_file():
        write_grid_report(folder, path, base=base, against=against, latest=latest)
    else:
        for flag, given in (("--base", base), ("--against", against), ("--latest", latest)):
            if given:
                raise ConfigError(f"{flag} goes with a grid, and {folder} is none", "leave it out")
        write_run_report(read_run(folder), path)
    print(f"The report is in {path}.")
    return 0
