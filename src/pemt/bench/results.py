"""Cells as a table needs them: one per place, of one base, with what is missing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pemt.bench.asked import LISTED, cut, read_asked, shots_title
from pemt.bench.cell import AT, Cell
from pemt.bench.found import Found, find, within
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
        order: of the tasks, where the grid or the reader tells it.
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
    *sources: str | Path,
    named: Mapping[str, str | Path] | None = None,
    base: str | None = None,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    shots: Sequence[int | None] | None = None,
    latest: bool = False,
) -> Results:
    """The finished cells of grids, checked to be comparable.

    Args:
        sources: folders that `pemt bench run` wrote, or files of cells that `pemt bench table
            --cells` wrote. A cell that several of them hold counts once.
        named: further ones, whose cells stand beside the others as a variant of this name: "lora"
            of the source "more" is "lora@more", and "lora@short" is "lora@more-short".
        base: keep the cells of this base.
        tasks: keep these; where no grid tells their order, in this one.
        methods: keep these.
        shots: keep these; None is the full split.
        latest: of cells that differ in their settings alone, keep the newest and say so.

    Raises:
        DataError: no cells, a damaged one, two for one place, two scores for one task, or two
            bases of one name.
        ConfigError: no source, cells of several bases, or nothing left after the choices.
        UnknownNameError: a method or task that nothing knows.
    """
    given = {Path(source): "" for source in sources}
    given |= {Path(source): name for name, source in (named or {}).items()}
    if not given:
        raise ConfigError("nothing to make a table of", "name a folder of `pemt bench run`")
    found = [f for source, name in given.items() for f in find(source, name)]
    said = " and ".join(map(str, given))
    asked = {source: read_asked(source) for source in given}
    known_tasks = tuple(dict.fromkeys(t for a in asked.values() for t in a.tasks))
    choices: list[tuple[str, Sequence[Any] | None, Iterable[str]]] = [
        ("base", base and [base], ()), ("task", tasks, known_tasks),
        ("method", methods, METHODS), ("shots", shots, ()),
    ]  # fmt: skip
    for kind, names, known in choices:
        _check(kind, names, [getattr(f.cell, kind) for f in found], known, said)
    for kind, names, _ in choices:
        if names:
            found = [f for f in found if getattr(f.cell, kind) in names]
    if not found:
        raise ConfigError(
            f"no cell in {said} has all of what was chosen",
            "choose fewer of base, tasks, methods and shots",
        )
    bases = sorted({f.cell.base for f in found})
    if len(bases) > 1:
        raise ConfigError(
            f"{said} has cells of {len(bases)} bases: {', '.join(bases)}",
            f"scores of two bases are not compared in one table; choose one: --base {bases[0]}",
        )
    found, replaced = _one_each(found, latest=latest)
    _check_bases(found)
    _check_scores(found)
    cells = tuple(f.cell for f in found)
    header: list[str] = []
    for source, grid in asked.items():
        own = [f.run for f in found if f.source == source]
        there = own if given[source] else cells
        header += grid.chosen(tasks, methods, shots).header(there, own, source)
    return Results(
        cells=cells, order=known_tasks or tuple(tasks or ()),
        variants=tuple(
            dict.fromkeys(within(given[s], v) for s, a in asked.items() for v in a.variants)
        ),
        header=(*header, *replaced, *_unlike_rows(cells)),
    )  # fmt: skip


def _check(
    kind: str, names: Sequence[Any] | None, present: list[Any], known: Iterable[str], said: str
) -> None:
    for name in names or ():
        if name in present:
            continue
        if kind == "shots" or name in known:
            there = ", ".join(dict.fromkeys("full" if p is None else str(p) for p in present))
            shown = "full" if name is None else repr(name)
            raise ConfigError(f"{said} has no finished cell of {kind} {shown}", f"has: {there}")
        raise UnknownNameError(kind, name, {*present, *known})


def _one_each(found: list[Found], *, latest: bool) -> tuple[list[Found], tuple[str, ...]]:
    """At most one cell per place: two that differ in their key were run with other settings."""
    places: dict[Place, list[Found]] = defaultdict(list)
    for f in found:
        here = places[f.cell.task, f.cell.arm, f.cell.shots, f.cell.data_seed]
        # the same cell from two sources: recorded, and still in its folder
        if not any(_same(f.cell, other.cell) for other in here):
            here.append(f)
    doubled = {place: here for place, here in places.items() if len(here) > 1}
    if not latest and doubled:
        task, method, shots, seed = next(iter(doubled))
        where = " and ".join(f.where for f in next(iter(doubled.values())))
        more = f" (and {len(doubled) - 1} more such pairs)" if len(doubled) > 1 else ""
        raise DataError(
            f"two settings for {method} on {task}, {shots_title(shots)}, data seed {seed}: "
            f"{where}{more}",
            "remove the one you do not mean, or take the newer of each with --latest",
        )
    kept, left = [], []
    for here in places.values():
        *older, newest = sorted(here, key=lambda f: (f.changed, f.cell.name))
        kept.append(newest)
        left += [f.cell.name for f in older]
    if not left:
        return kept, ()
    shown = ", ".join(left[:LISTED]) + (", ..." if len(left) > LISTED else "")
    return kept, (f"Older cells with other settings, left out ({len(left)}): {shown}.",)


def _unlike_rows(cells: Iterable[Cell]) -> tuple[str, ...]:
    """The draws whose cells were not all made from the same rows; cells may not tell theirs."""
    draws: dict[tuple[str, int | None, int], dict[str, list[str]]] = {}
    for cell in cells:
        rows = cell.config.get("rows")
        digest = rows.get("digest") if isinstance(rows, dict) else None
        if isinstance(digest, str):
            made = draws.setdefault((cell.task, cell.shots, cell.data_seed), {})
            made.setdefault(digest, []).append(cell.arm)
    unlike = [
        f"{task} ({shots_title(shots)}, data seed {seed}): {' | '.join(map(', '.join, arms))}"
        for (task, shots, seed), arms in ((draw, by.values()) for draw, by in draws.items())
        if len(arms) > 1
    ]
    if not unlike:
        return ()
    what = "Made from different rows, so that their differences compare rows too"
    return (f"{what} ({len(unlike)}): {cut(unlike)}.",)


def _same(a: Cell, b: Cell) -> bool:
    """One cell: the same key, and the same score, as a key does not tell two runs apart."""
    return a.name == b.name and str(_score(a)) == str(_score(b))


def _score(cell: Cell) -> Any:
    """What stands there, number or not."""
    return cell.metrics.get(cell.score) if isinstance(cell.metrics, dict) else None


def _check_bases(found: list[Found]) -> None:
    """Bases of one name have the same weights; cells may not tell theirs."""
    first: dict[str, Found] = {}
    for f in found:
        base = f.cell.config.get("base")
        weights = base.get("weights") if isinstance(base, dict) else None
        if not isinstance(weights, str):
            continue
        first.setdefault(weights, f)
        if len(first) > 1:
            where = " and ".join(other.where for other in first.values())
            raise DataError(
                f"two bases are called {f.cell.base}: {where} were made on other weights",
                "scores of two bases are not compared in one table; make one of each base's cells",
            )


def _check_scores(found: list[Found]) -> None:
    """Every cell of a task shows the same metric, and has it."""
    first: dict[str, Found] = {}
    for f in found:
        cell = f.cell
        value = _score(cell)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DataError(
                f"{f.where} has no number for its score {cell.score!r} ({value!r})",
                "remove it and run the grid again",
            )
        other = first.setdefault(cell.task, f)
        if other.cell.score != cell.score:
            raise DataError(
                f"two scores for {cell.task}: {other.cell.score} in {other.where} and "
                f"{cell.score} in {f.where}",
                "remove the cells of one of them and run the grid again",
            )
