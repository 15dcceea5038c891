"""Cells as one CSV file: what `pemt bench table --cells` writes, and tables are made from again."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pemt.bench.cell import AT, Cell
from pemt.errors import DataError

CELL_FIELDS = (
    "key", "base", "task", "shots", "data_seed", "method", "score", "value", "test_rows",
    "validation", "learning_rate", "trained", "total", "seconds", "train_seconds", "peak_memory",
)  # fmt: skip
"""One line per cell; every metric follows as `metric:NAME`, as a fraction."""
OWN_SOURCES = "own_sources"
"""A further column where any cell's experts were trained on its target task: their names."""
METRIC = "metric:"
FULL = "full"
_MAY_BE_EMPTY = ("test_rows", "validation", "learning_rate", "peak_memory")


def cells_csv(cells: Sequence[Cell]) -> str:
    """One line per cell: the columns of `CELL_FIELDS`, `OWN_SOURCES` if needed, its metrics."""
    names = sorted({name for cell in cells for name in cell.metrics} - {"n"})
    own = (OWN_SOURCES,) if any(cell.own_sources for cell in cells) else ()
    out = io.StringIO()
    writer = csv.DictWriter(
        out, (*CELL_FIELDS, *own, *(METRIC + name for name in names)), restval="",
        lineterminator="\n",
    )  # fmt: skip
    writer.writeheader()
    writer.writerows(
        {
            **{f: getattr(c, f) for f in CELL_FIELDS if f != "test_rows"},
            "method": c.arm, "shots": FULL if c.shots is None else c.shots,
            "test_rows": c.metrics.get("n", ""),
            **{column: ",".join(c.own_sources) for column in own},
            **{METRIC + name: c.metrics.get(name, "") for name in names},
        }
        for c in cells
    )  # fmt: skip
    return out.getvalue()


def read_recorded(path: Path) -> Iterator[tuple[int, Cell]]:
    """Line and cell, in the file's order. Such a cell has no configuration, no gates, and of
    its notes `OWN_SOURCES` alone.

    Raises:
        DataError: the file cannot be read, lacks a column, or a line holds what no cell has.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            absent = [f for f in CELL_FIELDS if f not in (reader.fieldnames or ())]
            if absent:
                raise DataError(
                    f"{path} has no column {', '.join(absent)}",
                    "give a file that `pemt bench table --cells` wrote",
                )
            for given in reader:
                yield reader.line_num, _cell(given, f"{path}, line {reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read ({error})", "give a file that `pemt bench table --cells` wrote"
        ) from error


def _cell(given: dict[str | Any, str | Any], where: str) -> Cell:
    def refuse(column: str, needed: str) -> DataError:
        return DataError(f"{where}: {column}={given[column]!r}", f"{column} must be {needed}")

    def number(column: str, kind: type[int] | type[float]) -> Any:
        try:
            return kind(given[column])
        except ValueError:
            needed = "a whole number" if kind is int else "a number"
            raise refuse(column, needed) from None

    if None in given or None in given.values():
        raise DataError(f"{where} has not as many values as there are columns", "mend the line")
    for column in CELL_FIELDS:
        if not given[column] and column not in _MAY_BE_EMPTY:
            raise refuse(column, "given")
    metrics = {
        column.removeprefix(METRIC): number(column, float)
        for column in given
        if column.startswith(METRIC) and given[column]
    }
    value, score = number("value", float), given["score"]
    if score not in metrics or not _same(value, metrics[score]):
        raise refuse("value", f"the score, which is {METRIC}{score}")
    if given["test_rows"]:
        metrics["n"] = number("test_rows", float)
        if not (metrics["n"] >= 1 and metrics["n"].is_integer()):
            raise refuse("test_rows", "a whole number of at least 1")
    shots = None if given["shots"] == FULL else number("shots", int)
    if shots is not None and shots < 1:
        raise refuse("shots", f"a whole number of at least 1, or {FULL!r}")
    method, _, variant = given["method"].partition(AT)
    some = {f: number(f, float) if given[f] else None for f in ("validation", "learning_rate")}
    return Cell(
        key=given["key"], base=given["base"], task=given["task"], method=method, variant=variant,
        shots=shots, data_seed=number("data_seed", int), score=score, metrics=metrics,
        validation=some["validation"], learning_rate=some["learning_rate"],
        trained=number("trained", int), total=number("total", int),
        seconds=number("seconds", float), train_seconds=number("train_seconds", float),
        peak_memory=number("peak_memory", int) if given["peak_memory"] else None,
        notes={OWN_SOURCES: given[OWN_SOURCES].split(",")} if given.get(OWN_SOURCES) else {},
    )  # fmt: skip


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
