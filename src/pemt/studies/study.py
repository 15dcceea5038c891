"""A study: what is varied, what that is held against, and what is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pemt.bench.grid import Grid
from pemt.errors import ConfigError, DataError
from pemt.experts import ExpertLibrary
from pemt.tasks import task_names

if TYPE_CHECKING:
    from pemt.bench.located import Located
    from pemt.studies.findings import Findings

Rank = Callable[[], Mapping[str, Sequence[str]]]
"""Draw ("rte-16-0") -> the sources, the best first; takes a pass per source and draw."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of what is varied.

    Attributes:
        arm: what its cells are called: a method, or a method in a variant.
        title: in tables and plots.
        x: its place on the axis; None where settings have no order.
        lines: which lines of the plot it is on; one without a name by default.
    """

    arm: str
    title: str
    x: float | None = None
    lines: tuple[str, ...] = ("",)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is looked at; enough to read a folder of cells.

    Attributes:
        kind: a name of `pemt.studies.kinds.KINDS`.
        points: in their order.
        reference: the arm that the others are held against.
    """

    kind: str
    points: tuple[Point, ...]
    reference: str

    def __post_init__(self) -> None:
        arms = [p.arm for p in self.points]
        assert self.reference in arms
        assert len(set(arms)) == len(arms)

    def point(self, arm: str) -> Point:
        """The point of an arm."""
        return next(p for p in self.points if p.arm == arm)

    @property
    def lines(self) -> tuple[str, ...]:
        """Names of the plot's lines, in order."""
        return tuple(dict.fromkeys(line for p in self.points for line in p.lines))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Study:
        """From `to_dict`.

        Raises:
            DataError: it is none.
        """
        try:
            points = tuple(Point(**{**p, "lines": tuple(p["lines"])}) for p in given["points"])
            return cls(kind=given["kind"], points=points, reference=given["reference"])
        except (KeyError, TypeError, AssertionError) as error:
            raise DataError(f"This describes no study ({error})", "run the study again") from error


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of the questions.

    Attributes:
        name: of its command.
        question: that it answers.
        axis: what x is; "" where settings have no order.
        measures: of `pemt.studies.measures.MEASURES`, what is looked at beside the score.
        keys: of its file, beside a grid's, with how each is read.
        build: from a grid without variants, the values of `keys` and a ranking of the sources: the
            study and its grid.
        reading: what the cells of one number of shots say, in sentences.
        logarithmic: the axis.
    """

    name: str
    question: str
    axis: str
    measures: tuple[str, ...]
    keys: Mapping[str, Callable[[Located], Any]]
    build: Callable[[Grid, Mapping[str, Any], Rank], tuple[Study, Grid]] = field(repr=False)
    reading: Callable[[Findings, int | None], list[str]] = field(repr=False)
    logarithmic: bool = False


def sources_of(grid: Grid) -> list[str]:
    """Names of the experts that a study's grid mixes.

    Raises:
        ConfigError: they are to be picked anew for each draw.
    """
    asked = grid.experts_of("experts")
    if isinstance(asked, str):
        raise ConfigError(
            f"experts: {asked}, in a study", "name the sources, or leave experts out to take all"
        )
    return list(asked) if asked is not None else ExpertLibrary(grid.libraries["experts"]).names()


def refuse_known_targets(grid: Grid) -> None:
    """A target that one of the experts was trained on says nothing about transfer.

    Raises:
        ConfigError: there is one.
        UnknownNameError: no expert of that name.
    """
    library = ExpertLibrary(grid.libraries["experts"])
    names = sources_of(grid)
    for target in grid.targets:
        task = target.task.name
        plain = task.rpartition("-")[0]  # of a task with other label words
        for name in names:
            source = library.info(name).task
            if source == task or (plain in task_names() and source == plain):
                others = ", ".join(n for n in names if n != name) or "another library"
                raise ConfigError(
                    f"{task!r} is a target, and the source {name!r} was trained on {source!r}",
                    f"take the target out, or the source: experts: [{others}]",
                )
