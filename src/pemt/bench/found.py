"""Cells where they are: in the folder of a grid, or in a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from pemt.bench.cell import CELL, Cell, read_cells
from pemt.bench.recorded import read_recorded
from pemt.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Found:
    """A cell and where it stands.

    Attributes:
        cell: the cell, in the variant that the reader named its source by.
        run: the same in its own.
        where: its folder, or a line of a file, for messages.
        source: the folder or file that was given.
        changed: when its file was written, in nanoseconds; a cell does not say when it was run.
    """

    cell: Cell
    run: Cell
    where: str
    source: Path
    changed: int


def find(source: Path, name: str) -> list[Found]:
    """The cells of one folder or file, in its order."""
    if source.is_file():
        changed = source.stat().st_mtime_ns
        read = [(cell, f"{source}, line {line}", changed) for line, cell in read_recorded(source)]
    else:
        read = [_in_folder(cell, source) for cell in read_cells(source)]
        names = [cell.name for cell, *_ in read]
        if len(names) > len(set(names)):
            raise _misnamed(source, Counter(names).most_common(1)[0][0])
    if not read:
        raise DataError(f"{source} has no finished cell", "run `pemt bench run` to the end of one")
    return [
        Found(
            cell=replace(cell, variant=within(name, cell.variant)), run=cell, where=where,
            source=source, changed=changed,
        )
        for cell, where, changed in read
    ]  # fmt: skip


def _in_folder(cell: Cell, output: Path) -> tuple[Cell, str, int]:
    folder = output / "cells" / cell.name
    if not (folder / CELL).is_file():
        raise _misnamed(output, cell.name)
    return cell, str(folder), (folder / CELL).stat().st_mtime_ns


def _misnamed(output: Path, name: str) -> DataError:
    """A copied or renamed folder would count twice, or be named wrongly in messages."""
    return DataError(
        f"a folder in {output / 'cells'} holds the cell {name} under another name",
        "give it its name back, or remove it if it is a copy",
    )


def within(name: str, variant: str) -> str:
    """A variant of a source that the reader gave a name."""
    return "-".join(filter(None, (name, variant)))
