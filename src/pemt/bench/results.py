"""The cells of one grid as a table needs them: one per place, of one base, with what is missing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pemt.bench.asked import LISTED, read_asked, shots_title
from pemt.bench.cell import AT, CELL, Cell, read_cells
from pemt.errors import ConfigError, DataError, UnknownNameError
from pemt.methods import METHODS

Place = tuple[str, str, int | None, int]
"""Task, arm, shots, data seed."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Finished cells, at most one for each task, arm, shots and data seed.

    An arm is a method, or in a grid with variants a method in one of them ("pemt@short").

    Attributes:
        cells: in the order of names.
        order: of the tasks, where the grid tells it.
        variants: in the grid's order.
        header: what a reader must know first: how much of the grid is there, what was left out.
    """

    cells: tuple[Cell, ...]
    order: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    header: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """Name of the one base."""
        return self.cells[0].base

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """As the grid lists them, then by name."""
        found = {c.task for c in self.cells}
        return tuple(dict.fromkeys([t for t in self.order if t in found] + sorted(found)))

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Arms in the order of `pemt.methods.METHODS` and the variants; unknown names come last."""
        methods, variants = [*METHODS], ["", *self.variants]

        def place(arm: str) -> tuple[int, int, str]:
            method, _, variant = arm.partition(AT)
            first = methods.index(method) if method in methods else len(methods)
            return first, variants.index(variant) if variant in variants else len(variants), arm

        return tuple(sorted({c.arm for c in self.cells}, key=place))

    @cached_property
    def shots(self) -> tuple[int | None, ...]:
        """Ascending, the full split last."""
        return tuple(sorted({c.shots for c in self.cells}, key=lambda s: (s is None, s or 0)))

    @cached_property
    def _by_row(self) -> dict[tuple[str, str, int | None], dict[int, Cell]]:
        rows: dict[tuple[str, str, int | None], dict[int, Cell]] = defaultdict(dict)
        for cell in sorted(self.cells, key=lambda c: c.data_seed):
            rows[cell.task, cell.arm, cell.shots][cell.data_seed] = cell
        return dict(rows)

    def of(self, task: str, method: str, shots: int | None) -> dict[int, Cell]:
        """The cells of one entry by data seed; empty where none is finished."""
        return self._by_row.get((task, method, shots), {})

    def scores(self, task: str, method: str, shots: int | None) -> dict[int, float]:
        """Their scores by data seed; what is not finite is nan."""
        return {seed: value_of(cell) for seed, cell in self.of(task, method, shots).items()}

    def tasks_at(self, shots: int | None) -> tuple[str, ...]:
        """The tasks with any cell at these shots."""
        found = {c.task for c in self.cells if c.shots == shots}
        return tuple(t for t in self.tasks if t in found)

    def metric(self, task: str) -> str:
        """The metric shown for a task."""
        return next(c.score for c in self.cells if c.task == task)


def value_of(cell: Cell) -> float:
    """The score; infinities count as nan, because no mean of them says anything."""
    return cell.value if math.isfinite(cell.value) else math.nan


def title_of(method: str) -> str:
    """What tables call a method, or an arm."""
    name, _, variant = method.partition(AT)
    title = METHODS[name].title if name in METHODS else name
    return f"{title}, {variant}" if variant else title


def read_results(
    output: Path,
    *,
    base: str | None = None,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    shots: Sequence[int | None] | None = None,
    latest: bool = False,
) -> Results:
    """The finished cells of a grid's output folder, checked to be comparable.

    Args:
        output: what `pemt bench run` wrote.
        base: keep the cells of this base.
        tasks: keep these.
        methods: keep these.
        shots: keep these; None is the full split.
        latest: of cells that differ in their settings alone, keep the newest and say so.

    Raises:
        DataError: no cells, a damaged one, two for one place, or two scores for one task.
        ConfigError: cells of several bases, or nothing left after the choices.
        UnknownNameError: a method or task that nothing knows.
    """
    cells = list(read_cells(output))
    if not cells:
        raise DataError(f"{output} has no finished cell", "run `pemt bench run` to the end of one")
    _check_folders(cells, output)
    asked = read_asked(output)
    choices: list[tuple[str, Sequence[Any] | None, list[Any], Iterable[str]]] = [
        ("base", base and [base], [c.base for c in cells], ()),
        ("task", tasks, [c.task for c in cells], asked.tasks),
        ("method", methods, [c.method for c in cells], METHODS),
        ("shots", shots, [c.shots for c in cells], ()),
    ]
    for kind, names, present, known in choices:
        _check(kind, names, present, known, output)
        if names:
            cells = [c for c in cells if getattr(c, kind) in names]
    if not cells:
        raise ConfigError(
            f"no cell in {output} has all of what was chosen",
            "choose fewer of base, tasks, methods and shots",
        )
    bases = sorted({c.base for c in cells})
    if len(bases) > 1:
        raise ConfigError(
            f"{output} has cells of {len(bases)} bases: {', '.join(bases)}",
            f"scores of two bases are not compared in one table; choose one: --base {bases[0]}",
        )
    cells, replaced = _one_each(cells, output, latest=latest)
    _check_scores(cells, output)
    header = asked.chosen(tasks, methods, shots).header(cells, output)
    return Results(
        cells=tuple(cells), order=asked.tasks, variants=asked.variants,
        header=(*header, *replaced),
    )  # fmt: skip


def _check(
    kind: str, names: Sequence[Any] | None, present: list[Any], known: Iterable[str], output: Path
) -> None:
    for name in names or ():
        if name in present:
            continue
        if kind == "shots" or name in known:
            there = ", ".join(dict.fromkeys("full" if p is None else str(p) for p in present))
            shown = "full" if name is None else repr(name)
            raise ConfigError(f"{output} has no finished cell of {kind} {shown}", f"has: {there}")
        raise UnknownNameError(kind, name, {*present, *known})


def _check_folders(cells: list[Cell], output: Path) -> None:
    """A copied or renamed folder would count twice, or be named wrongly in messages."""
    seen: set[str] = set()
    for cell in cells:
        if cell.name in seen or not (output / "cells" / cell.name / CELL).is_file():
            raise DataError(
                f"a folder in {output / 'cells'} holds the cell {cell.name} under another name",
                "give it its name back, or remove it if it is a copy",
            )
        seen.add(cell.name)


def _one_each(
    cells: list[Cell], output: Path, *, latest: bool
) -> tuple[list[Cell], tuple[str, ...]]:
    """At most one cell per place: two that differ in their key were run with other settings."""
    places: dict[Place, list[Cell]] = defaultdict(list)
    for cell in cells:
        places[cell.task, cell.arm, cell.shots, cell.data_seed].append(cell)
    doubled = {place: found for place, found in places.items() if len(found) > 1}
    if not doubled:
        return cells, ()
    if not latest:
        task, method, shots, seed = next(iter(doubled))
        folders = " and ".join(str(output / "cells" / c.name) for c in next(iter(doubled.values())))
        more = f" (and {len(doubled) - 1} more such pairs)" if len(doubled) > 1 else ""
        raise DataError(
            f"two settings for {method} on {task}, {shots_title(shots)}, data seed {seed}: "
            f"{folders}{more}",
            "remove the folder you do not mean, or take the newer of each with --latest",
        )
    kept, left = [], []
    for place, found in places.items():
        # the file's time: a cell does not say when it was run
        found.sort(key=lambda c: ((output / "cells" / c.name / CELL).stat().st_mtime_ns, c.name))
        kept.append(found[-1])
        if place in doubled:
            left += [c.name for c in found[:-1]]
    shown = ", ".join(left[:LISTED]) + (", ..." if len(left) > LISTED else "")
    return kept, (f"Older cells with other settings, left out ({len(left)}): {shown}.",)


def _check_scores(cells: list[Cell], output: Path) -> None:
    """Every cell of a task shows the same metric, and has it."""
    first: dict[str, Cell] = {}
    for cell in cells:
        folder = output / "cells" / cell.name
        value = cell.metrics.get(cell.score) if isinstance(cell.metrics, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DataError(
                f"{folder / CELL} has no number for its score {cell.score!r} ({value!r})",
                "remove its folder and run the grid again",
            )
        other = first.setdefault(cell.task, cell)
        if other.score != cell.score:
            raise DataError(
                f"two scores for {cell.task}: {other.score} in {output / 'cells' / other.name} and "
                f"{cell.score} in {folder}",
                "remove the cells of one of them and run the grid again",
            )
