"""What a grid was asked to run, as its folder tells it, and what of that is not there yet."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from pemt.bench.cell import CELL, ERROR, Cell, arm_of, method_of
from pemt.errors import DataError

GRID = "grid.json"
LISTED = 12
"""How many of a long list are shown; a grid that has just begun misses hundreds."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A grid as `grid.json` tells it; everything is empty where the folder does not.

    Attributes:
        tasks: their names, in the grid's order.
        methods: their names.
        variants: their names; one without a name where the grid has none.
        shots: labels per class; None for the full split.
        data_seeds: of the draws.
        refused: (task, method) -> why the method is not defined there.
        folders: TASK-SHOTS-SEED-METHOD (or METHOD@VARIANT) -> name of the folder that the grid's
            settings give it.
    """

    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("",)
    shots: tuple[int | None, ...] = ()
    data_seeds: tuple[int, ...] = ()
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[str, ...]:
        """Every method in every variant."""
        return tuple(arm_of(m, v) for m, v in product(self.methods, self.variants))

    def chosen(
        self,
        tasks: Sequence[str] | None,
        methods: Sequence[str] | None,
        shots: Sequence[int | None] | None,
    ) -> Asked:
        """What of it remains after a reader's choice; None keeps all."""
        return replace(
            self,
            tasks=tuple(t for t in self.tasks if not tasks or t in tasks),
            methods=tuple(m for m in self.methods if not methods or m in methods),
            shots=tuple(s for s in self.shots if not shots or s in shots),
        )

    def header(self, cells: Sequence[Cell], own: Sequence[Cell], output: Path) -> tuple[str, ...]:
        """What a reader of a table must know about the grid, a sentence each.

        Args:
            cells: of the table.
            own: those of them that stand in this grid's folder.
            output: that folder.
        """
        lines = (self.missing(cells, output), self.undefined(), self.stale(own))
        return tuple(line for line in lines if line)

    def undefined(self) -> str | None:
        """The methods that were not run because they are not defined somewhere, and why."""
        where: dict[tuple[str, str], list[str]] = defaultdict(list)
        for (task, method), reason in self.refused.items():
            if task in self.tasks and method in self.methods:
                where[method, reason].append(task)
        lines = [f"{m} on {', '.join(tasks)} ({reason})" for (m, reason), tasks in where.items()]
        return f"Not run, as not defined: {cut(lines)}." if lines else None

    def stale(self, cells: Iterable[Cell]) -> str | None:
        """The cells of an earlier grid in this folder, which may not compare with the others."""
        other = [cell.name for cell in cells if self.folders.get(_point(cell)) != cell.name]
        if not (self.folders and other):
            return None
        what = "Cells that the last grid does not have with its settings"
        return f"{what} ({len(other)}): {cut(other)}."

    def missing(self, cells: Iterable[Cell], output: Path) -> str | None:
        """ "37 of 60 cells; missing: ...", or None where nothing is or nobody knows."""
        asked = list(product(self.tasks, self.arms, self.shots, self.data_seeds))
        there = {(c.task, c.arm, c.shots, c.data_seed) for c in cells}
        asked = [p for p in asked if (p[0], method_of(p[1])) not in self.refused]
        places = [place for place in asked if place not in there]
        if not places:
            return None
        failed = set()
        for path in (output / "cells").glob(f"*/{ERROR}"):
            point, _, _ = (name := path.parent.name).rpartition("-")
            if not (path.parent / CELL).exists() and self.folders.get(point, name) == name:
                failed.add(point)
        seeds: dict[tuple[str, str, int | None], list[str]] = defaultdict(list)
        for task, method, shots, seed in places:
            name = f"{task}-{'full' if shots is None else shots}-{seed}-{method}"
            seeds[task, method, shots].append(f"{seed} (failed)" if name in failed else str(seed))
        alike: dict[tuple[str, int | None, str], list[str]] = defaultdict(list)
        for (task, method, shots), runs in seeds.items():
            alike[method, shots, ", ".join(runs)].append(task)
        lines = [
            f"{method} on {', '.join(tasks)} ({shots_title(shots)}, data seeds {runs})"
            for (method, shots, runs), tasks in alike.items()
        ]
        return f"{len(asked) - len(places)} of {len(asked)} cells; missing: {cut(lines)}."


def read_asked(output: Path) -> Asked:
    """From `grid.json`; nothing where there is none, or where it says less than four sides.

    Raises:
        DataError: the file is no JSON.
    """
    path = output / GRID
    if not path.is_file():
        return Asked()
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error})", "remove it: the table is made without it"
        ) from error
    grid = given.get("grid") if isinstance(given, dict) else None
    sides = [
        grid.get(side) if isinstance(grid, dict) else None
        for side in ("tasks", "methods", "shots", "data_seeds")
    ]
    if not all(isinstance(side, list) for side in sides):
        return Asked()
    tasks, methods, shots, seeds = sides
    variants = grid.get("variants") if isinstance(grid, dict) else None
    refused = given.get("refused")
    folders = given.get("cells")
    return Asked(
        tasks=_names(tasks), methods=_names(methods),
        variants=_names(variants) if isinstance(variants, list) and variants else ("",),
        shots=tuple(None if s == "full" else s for s in shots or ()), data_seeds=tuple(seeds or ()),
        refused={
            (str(r.get("task")), str(r.get("method"))): str(r.get("reason"))
            for r in (refused if isinstance(refused, list) else ()) if isinstance(r, dict)
        },
        folders=folders if isinstance(folders, dict) else {},
    )  # fmt: skip


def shots_title(shots: int | None) -> str:
    """ "16 shots", "full data"."""
    return "full data" if shots is None else f"{shots} shot" + "s" * (shots != 1)


def cut(lines: Sequence[str]) -> str:
    """The first of them in one sentence, and how many more there are."""
    more = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return "; ".join(lines[:LISTED]) + more


def _point(cell: Cell) -> str:
    return cell.name.rpartition("-")[0]


def _names(side: Any) -> tuple[str, ...]:
    """Of entries that are names, or mappings with a name and options."""
    return tuple(str(e.get("name")) if isinstance(e, dict) else str(e) for e in side)
