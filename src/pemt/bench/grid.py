"""A grid: task x method (x variant) x shots x data seed, and all that its cells share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pemt.bench.located import read_located
from pemt.bench.variant import PLAIN, GridVariant
from pemt.errors import ConfigError, UnknownNameError
from pemt.methods import METHODS, Method
from pemt.methods.method import Library
from pemt.model.config import PemtConfig
from pemt.tasks import Task
from pemt.tasks.fewshot import Validation
from pemt.training.settings import LARGEST_SEED, TrainSettings

LIBRARIES: tuple[Library, ...] = ("experts", "bottleneck", "prompts", "shared-prompts")
TOGETHER: Library = "shared-prompts"
"""Whose members were tuned together: nobody takes some of them by naming experts for all."""
FIXED = {
    "learning_rate": "write learning_rates: [...] instead; one is picked on validation",
    "init_seed": "every cell uses its data seed for initialisation and order too",
    "order_seed": "every cell uses its data seed for initialisation and order too",
    "checkpoints": "a cell is run whole or not at all, so it keeps none",
    "report_to": "a cell keeps no logs; its folder holds what it gave",
}
"""Settings that a grid decides itself, and what to do instead."""


@dataclass(frozen=True, kw_only=True)
class GridTask:
    """A target task with what differs for it.

    Attributes:
        task: the task.
        validation: "shots": select on as few labels as you train on; "full": on the whole split;
            "cv": on the training labels alone, by cross-validation.
        score: the metric that tables show, any of the task's kind; the task's first by default.
        test_rows: score at most this many; the grid's by default.
        settings: fields of `TrainSettings`.
    """

    task: Task
    validation: Validation = "shots"
    score: str = ""
    test_rows: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.task.name):
            raise ConfigError(
                f"The task's name {self.task.name!r} cannot be a part of a folder's name",
                "use letters, digits, '.', '_' and '-'",
            )
        if self.validation not in get_args(Validation):
            raise UnknownNameError("validation", self.validation, get_args(Validation))
        object.__setattr__(self, "score", self.score or self.task.metrics[0])
        if self.score not in self.task.metrics:  # models are still selected on the first
            metrics = (*self.task.metrics, self.score)
            object.__setattr__(self, "task", replace(self.task, metrics=metrics))
        at_least_one("test_rows", self.test_rows)


@dataclass(frozen=True, kw_only=True)
class GridMethod:
    """A method with what differs for it.

    Attributes:
        name: in `METHODS`.
        learning_rates: to pick from on validation; the grid's, else the method's own, by default.
        settings: fields of `TrainSettings`; they go before the task's.
    """

    name: str
    learning_rates: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise UnknownNameError("method", self.name, METHODS)
        check_rates(self.learning_rates)

    @property
    def method(self) -> Method:
        """Its row of the table."""
        return METHODS[self.name]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a grid file says.

    Attributes:
        base: as `load_base` takes it.
        tasks: targets; names and `Task`s become `GridTask`s.
        methods: names become `GridMethod`s.
        precision: of the frozen base.
        libraries: kind of `Method.library` -> a library's folder or Hub address.
        experts: which of a library's, in the order of gate columns; all by default. "auto:4" takes
            the four that rank best on a cell's training rows. A mapping says it per library; a
            plain list leaves out "shared-prompts", whose members were tuned together.
        variants: every method is run in each of them; in the grid as it is by default.
        shots: labels per class, None for the full split.
        data_seeds: one draw each.
        learning_rates: for methods that give none themselves.
        settings: of training.
        pemt: PEMT's options.
        test_rows: score at most this many rows.
        data_dir: local mirror of datasets. No result depends on where it is.
        output: folder of the results.

    Raises:
        ConfigError: values that are not allowed, or that contradict each other.
        UnknownNameError: no such method, library or precision.
    """

    base: str
    tasks: Sequence[GridTask | Task | str]
    methods: Sequence[GridMethod | str]
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    libraries: dict[str, str] = field(default_factory=dict)
    experts: Sequence[str] | str | dict[str, Sequence[str] | str] | None = None
    variants: Sequence[GridVariant] = ()
    shots: Sequence[int | None] = (16,)
    data_seeds: Sequence[int] = (0, 1, 2, 3, 4)
    learning_rates: Sequence[float] = ()
    settings: TrainSettings = field(default_factory=TrainSettings)
    pemt: PemtConfig = field(default_factory=PemtConfig)
    test_rows: int | None = None
    data_dir: str | Path | None = None
    output: str | Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise UnknownNameError("precision", self.precision, ["auto", "float32", "bfloat16"])
        for kind in self.libraries:
            if kind not in LIBRARIES:
                raise UnknownNameError("library", kind, LIBRARIES)
        object.__setattr__(self, "tasks", tuple(map(as_task, self.tasks)))
        object.__setattr__(
            self, "methods",
            tuple(GridMethod(name=m) if isinstance(m, str) else m for m in self.methods),
        )  # fmt: skip
        each_once("tasks", [t.task.name for t in self.targets])
        each_once("methods", [m.name for m in self.chosen])
        each_once("shots", self.shots)
        each_once("data_seeds", self.data_seeds)
        for shots in self.shots:
            at_least_one("shots", shots)
        if min(self.data_seeds) < 0 or max(self.data_seeds) > LARGEST_SEED:
            raise ConfigError(
                f"data_seeds={list(self.data_seeds)}", f"give numbers from 0 to {LARGEST_SEED}"
            )
        at_least_one("test_rows", self.test_rows)
        check_rates(self.learning_rates)
        for m in self.chosen:
            if m.method.transfers and m.method.library not in self.libraries:
                raise ConfigError(
                    f"The method {m.name!r} needs a library of {m.method.library}",
                    f"write libraries: {{{m.method.library}: FOLDER}}, or take the method out; "
                    "`pemt train-source --help` says how to train one",
                )
        if self.variants:
            each_once("variants", [v.name for v in self.variants])
        for v in self.variants:
            if not v.name:
                raise ConfigError("A variant without a name", "give it one")
            v.configured(self.pemt)
            self.settings.changed(**v.settings)
            names = [t.task.name for t in self.targets]
            v.check(names, {m.name: m.method.changes for m in self.chosen})

    @property
    def targets(self) -> tuple[GridTask, ...]:
        """The tasks, each with its options."""
        return self.tasks  # type: ignore[return-value]

    @property
    def chosen(self) -> tuple[GridMethod, ...]:
        """The methods, each with its options."""
        return self.methods  # type: ignore[return-value]

    @property
    def varied(self) -> tuple[GridVariant, ...]:
        """The variants, or the grid as it is."""
        return tuple(self.variants) or (PLAIN,)

    @classmethod
    def from_file(cls, path: str | Path) -> Grid:
        """Read a grid from YAML. Its paths are relative to the folder the program runs in.

        Raises:
            ConfigError: no YAML, a value of another type, or values that contradict each other.
            UnknownNameError: an unknown key, task, method, metric or library, with a suggestion.
        """
        from pemt.bench.grid_file import placed, read_keys

        located = read_located(Path(path))
        keys = located.mapping([f.name for f in fields(cls)], "a grid")
        for needed in ("base", "tasks", "methods"):
            if needed not in keys:
                raise ConfigError(f"{located.where}: the grid has no {needed}", "add it")
        return placed(str(path), cls, **read_keys(keys))  # type: ignore[no-any-return]

    def experts_of(self, library: str) -> Sequence[str] | str | None:
        """Which experts of one library a method gets; None is all."""
        if isinstance(self.experts, dict):
            return self.experts.get(library)
        return None if library == TOGETHER else self.experts

    def settings_of(
        self, target: GridTask, method: GridMethod, data_seed: int, variant: GridVariant = PLAIN
    ) -> TrainSettings:
        """The settings of a cell; its learning rate is still to be picked."""
        return self.settings.changed(
            **{**target.settings, **method.settings, **variant.settings}, learning_rate=None,
            checkpoints=False, report_to="none", init_seed=data_seed, order_seed=data_seed,
        )  # fmt: skip

    def rates_of(self, method: GridMethod, family: Any) -> tuple[float, ...]:
        """The learning rates a cell picks from."""
        own = method.method.learning_rates[family]
        return tuple(method.learning_rates or self.learning_rates or [own])

    def points(self) -> Iterator[tuple[int, GridTask, int | None]]:
        """Data seed, task and shots in the order they are run.

        The seed is outermost: whenever a run ends, the seeds before it are whole comparisons.
        """
        for seed in self.data_seeds:
            for target in self.targets:
                for shots in self.shots:
                    yield seed, target, shots

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; nothing of where the data and the results are."""
        shown = {
            "base": self.base, "precision": self.precision, "libraries": dict(self.libraries),
            "experts": self.experts,
            "tasks": [
                {"name": t.task.name, "version": t.task.version, "validation": t.validation,
                 "score": t.score, "test_rows": t.test_rows, "settings": t.settings}
                for t in self.targets
            ],
            "methods": [asdict(m) for m in self.chosen], "shots": list(self.shots),
            "data_seeds": list(self.data_seeds), "learning_rates": list(self.learning_rates),
            "settings": self.settings.to_dict(), "pemt": self.pemt.to_dict(),
            "test_rows": self.test_rows,
        }  # fmt: skip
        if self.variants:
            shown["variants"] = [v.to_dict() for v in self.variants]
        return shown


def as_task(given: GridTask | Task | str) -> GridTask:
    """A target from itself, a task, a name in the registry, or a YAML file's path."""
    if isinstance(given, GridTask):
        return given
    if isinstance(given, str):
        given = Task.from_file(given) if given.endswith((".yaml", ".yml")) else Task.named(given)
    return GridTask(task=given)


def each_once(name: str, values: Sequence[Any]) -> None:
    """Refuse no values, and one that stands there twice."""
    if not values or len(set(values)) != len(values):
        raise ConfigError(f"{name}: {list(values)}", "name at least one, and each once")


def at_least_one(name: str, value: int | None) -> None:
    """Refuse a number below 1."""
    if value is not None and value < 1:
        raise ConfigError(f"{name}={value}", "give a whole number of at least 1")


def check_rates(rates: Sequence[float]) -> None:
    """Refuse learning rates that are not above 0, not finite, or stand there twice."""
    if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) != len(rates):
        raise ConfigError(f"learning_rates={list(rates)}", "give finite numbers above 0, each once")
