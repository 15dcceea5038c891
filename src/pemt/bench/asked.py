"""What a grid was asked to run, as its folder tells it, and what of that is not there yet."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pemt.bench.cell import CELL, ERROR, Cell
from pemt.errors import DataError

GRID = "grid.json"
LISTED = 12
"""How many of a long list are shown; a grid that has just begun misses hundreds."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The four sides of a grid; each is empty where the folder does not tell it."""

    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    shots: tuple[int | None, ...] = ()
    data_seeds: tuple[int, ...] = ()

    def chosen(
        self,
        tasks: Sequence[str] | None,
        methods: Sequence[str] | None,
        shots: Sequence[int | None] | None,
    ) -> Asked:
        """What of it remains after a reader's choice; None keeps all."""
        return Asked(
            tasks=tuple(t for t in self.tasks if not tasks or t in tasks),
            methods=tuple(m for m in self.methods if not methods or m in methods),
            shots=tuple(s for s in self.shots if not shots or s in shots),
            data_seeds=self.data_seeds,
        )

    def missing(self, cells: Iterable[Cell], output: Path) -> str | None:
        """ "37 of 60 cells; missing: ...", or None where nothing is or nobody knows."""
        asked = list(product(self.tasks, self.methods, self.shots, self.data_seeds))
        there = {(c.task, c.method, c.shots, c.data_seed) for c in cells}
        places = [place for place in asked if place not in there]
        if not places:
            return None
        failed = {
            path.parent.name.rpartition("-")[0]
            for path in (output / "cells").glob(f"*/{ERROR}")
            if not (path.parent / CELL).exists()
        }
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
        more = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
        done = len(asked) - len(places)
        return f"{done} of {len(asked)} cells; missing: {'; '.join(lines[:LISTED])}{more}."


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
    return Asked(
        tasks=_names(tasks), methods=_names(methods),
        shots=tuple(None if s == "full" else s for s in shots or ()), data_seeds=tuple(seeds or ()),
    )  # fmt: skip


def shots_title(shots: int | None) -> str:
    """ "16 shots", "full data"."""
    return "full data" if shots is None else f"{shots} shot" + "s" * (shots != 1)


def _names(side: Any) -> tuple[str, ...]:
    """Of entries that are names, or mappings with a name and options."""
    return tuple(str(e.get("name")) if isinstance(e, dict) else str(e) for e in side)
