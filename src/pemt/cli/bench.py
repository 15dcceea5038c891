"""`pemt bench run`, `pemt bench status` and `pemt bench methods`."""

from __future__ import annotations

import collections
import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pemt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pemt.bench.grid import Grid


def run(
    grid: Path,
    *,
    workers: int | None = None,
    output: Path | None = None,
    data_dir: Path | None = None,
    cluster: str | None = None,
    retries: int = 1,
    only_tasks: str | None = None,
    only_methods: str | None = None,
    cell_cpus: int | None = None,
    cell_gpus: float | None = None,
    json: bool = False,
) -> int:
    """Run a grid of task x method x shots x data seed; finished cells are not run again.

    Every cell is a folder with its configuration, metrics, predictions, parameters, seconds and
    peak memory. Learning rates are picked on validation rows. Stopped or killed, the same command
    goes on; cells that failed are tried again. Several runs of the same file may share the work.
    Exits with 1 where cells failed.

    Example: pemt bench run recipes/bench/offline.yaml --workers 2

    Args:
        grid: the grid's YAML file; docs/how-to/compare-methods.md says what it holds.
        workers: cells at a time, each in a process of its own (default 1, in this process; on a
            cluster as many as there is room for).
        output: folder of the results (default: the file's output, else runs/NAME).
        data_dir: local mirror of datasets (default: the file's data_dir, else PEMT_DATA_DIR).
        cluster: address of a Ray cluster, auto for the one this machine is part of, or local;
            needs pip install 'pemt[cluster]'.
        retries: further attempts where a worker died or an unexpected error came up.
        only_tasks: of the grid's tasks these, separated by commas.
        only_methods: of the grid's methods these, separated by commas.
        cell_cpus: cores for each cell (default: this machine's, shared by the workers; one on a
            cluster).
        cell_gpus: on a cluster: of a GPU for each cell (default: one where there is any).
        json: print the summary as JSON on stdout, and plain lines of progress on stderr.
    """
    from pemt.bench.grid import Grid
    from pemt.bench.progress import Progress
    from pemt.bench.running import GridRun

    wanted = Grid.from_file(grid)
    place = output or default_output(wanted, grid)
    progress = Progress(plain=json)
    task = GridRun(
        wanted, output=place, data_dir=data_dir, workers=workers, cluster=cluster, retries=retries,
        only_tasks=_words(only_tasks), only_methods=_words(only_methods), progress=progress,
        cell_cpus=cell_cpus, cell_gpus=cell_gpus,
    )  # fmt: skip
    try:
        task.go()
    except KeyboardInterrupt:
        for line in task.tally.lines():
            progress.say(line)
        raise
    if json:
        print(json_format.dumps({"output": str(place), **task.tally.to_dict()}))
    else:
        print("\n".join(task.tally.lines()))
        print(f"Everything is in {place}.")
    if task.tally.failed and not json:
        print("Run the same command again to try the failed cells again.")
    return 1 if task.tally.failed else 0


def status(place: Path, *, json: bool = False) -> int:
    """Show how far a grid is: cells finished, failed and remaining for every method and task.

    Reads the results' folder alone; no base and no rows.

    Args:
        place: the folder of the results, or the grid's YAML file.
        json: print one JSON object on stdout instead of a table.
    """
    from pemt.bench.output import GRID, OutputFolder

    note, grid = None, None
    if not place.is_dir():
        from pemt.bench.grid import Grid

        grid = Grid.from_file(place)
        place = default_output(grid, place)
    folder = OutputFolder(place)
    described = folder.description()
    if described is None and grid is None:
        raise DataError(f"{place} holds no {GRID}", "give the output folder of `pemt bench run`")
    if grid is not None:
        shown = json_format.loads(json_format.dumps(grid.to_dict(), default=str))
        if described is None or described["grid"] != shown:
            note = f"This grid has not been run in {place} yet."
            described = {"grid": shown, "cells": {}, "refused": []}
    assert described is not None
    report = _state(folder, described)
    if json:
        print(json_format.dumps({"output": str(place), **report}))
        return 0
    if note:
        print(note)
    _print(report)
    return 0


def methods(*, json: bool = False) -> int:
    """List the methods a grid can name: title, paper, where each is defined, what it needs.

    Args:
        json: print a JSON object on stdout instead of a table.
    """
    from pemt.methods import METHODS

    if json:
        print(
            json_format.dumps(
                {
                    name: {
                        "title": m.title, "paper": m.paper, "families": list(m.families),
                        "kinds": list(m.kinds), "library": m.library, "elsewhere": m.elsewhere,
                        "learning_rates": m.learning_rates if m.trains else None,
                    }
                    for name, m in METHODS.items()
                }
            )
        )  # fmt: skip
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("method", "title", "paper", "families", "kinds", "library"):
        table.add_column(column, no_wrap=column == "method")
    for name, m in METHODS.items():
        families = "all" if len(m.families) == 3 else ", ".join(m.families)
        kinds = "all" if len(m.kinds) == 3 else ", ".join(m.kinds)
        library = "-" if m.library == "none" else m.library
        table.add_row(name, m.title, m.paper, families, kinds, library)
    Console().print(table)
    return 0


def default_output(grid: Grid, file: Path) -> Path:
    """Where a grid's results go unless a flag says otherwise."""
    return Path(grid.output or Path("runs") / file.stem)


def _words(listed: str | None) -> list[str]:
    words = [] if listed is None else [word.strip() for word in listed.split(",")]
    if not all(words):
        raise ConfigError(f"{listed!r} names nothing between two commas", "write a,b")
    return words


def _state(folder: Any, described: dict[str, Any]) -> dict[str, Any]:
    """Counts by method and task, the failures, and what is not defined."""
    from pemt.bench.cell import arm_of, method_of

    grid, names = described["grid"], described["cells"]
    refused = collections.defaultdict(list)
    for r in described["refused"]:
        refused[r["reason"]].append((r["task"], r["method"]))
    undefined = {pair for pairs in refused.values() for pair in pairs}
    counts: dict[str, dict[str, dict[str, int] | None]] = {}
    failed: dict[str, list[str]] = collections.defaultdict(list)
    variants = [v["name"] for v in grid.get("variants", [])] or [""]
    arms = [arm_of(m["name"], v) for m in grid["methods"] for v in variants]
    for arm in arms:
        counts[arm] = {}
        for task in [t["name"] for t in grid["tasks"]]:
            if (task, method_of(arm)) in undefined:
                counts[arm][task] = None
                continue
            here = {"finished": 0, "failed": 0, "remaining": 0}
            for shots in ["full" if k is None else k for k in grid["shots"]]:
                for seed in grid["data_seeds"]:
                    name = names.get(f"{task}-{shots}-{seed}-{arm}")
                    error = folder.failed(name) if name else None
                    if name and folder.finished(name):
                        here["finished"] += 1
                    elif error is not None:
                        here["failed"] += 1
                        failed[str(error.get("message"))].append(name)
                    else:
                        here["remaining"] += 1
            counts[arm][task] = here
    every = [c for row in counts.values() for c in row.values() if c is not None]
    return {
        **{state: sum(c[state] for c in every) for state in ("finished", "failed", "remaining")},
        "cells": counts, "failures": dict(failed),
        "refused": [{"reason": reason, "cells": pairs} for reason, pairs in refused.items()],
    }  # fmt: skip


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from pemt.bench.progress import Tally, refusal_lines

    cells = report["cells"]
    table = Table(title="finished of all cells")
    table.add_column("method", no_wrap=True)
    for task in next(iter(cells.values())):
        table.add_column(task, justify="right")
    for method, row in cells.items():
        shown = []
        for count in row.values():
            if count is None:
                shown.append("-")
                continue
            failed = f", {count['failed']} failed" if count["failed"] else ""
            shown.append(f"{count['finished']}/{sum(count.values())}{failed}")
        table.add_row(method, *shown)
    Console().print(table)
    print(
        f"{report['finished']} finished, {report['failed']} failed, {report['remaining']} remain."
    )
    tally = Tally(total=0)
    tally.failed = {name: m for m, names in report["failures"].items() for name in names}
    for line in tally.lines()[1:]:
        print(line)
    pairs = {r["reason"]: [tuple(pair) for pair in r["cells"]] for r in report["refused"]}
    print("\n".join(refusal_lines(pairs)), end="\n" if pairs else "")
