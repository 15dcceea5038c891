"""What a task is: how its rows read, what the answers are, how it is scored.

A task is one YAML file, in ``registry/`` or the user's own (``Task.from_file``).
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from pemt.errors import ConfigError, DataError, UnknownNameError
from pemt.tasks.definition import KINDS, METRICS, problem_of, task_keys
from pemt.tasks.shaping import Mark, check_cleaners, shape
from pemt.tasks.sources import Group, RowSource, SplitRule, build, value_at

Kind = Literal["classification", "regression", "generation"]
_REGISTRY = Path(__file__).parent / "registry"
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task, frozen and checked.

    Args:
        name: what it is called everywhere.
        version: raised whenever rows, format or labels change, so that results stay comparable.
        description: one sentence, "Given INPUT, the task is to GOAL.", with input and output
            format; its tokens initialise the task's prompt.
        kind: "classification", "regression" or "generation".
        template: the source text, ``str.format`` with column names in braces.
        label_column: the column that holds the answer; dots lead into a mapping
            ("answers.text"). A list holds every accepted answer (generation), the first is learnt.
        labels: the label words in integer order (classification).
        option_columns: columns with the row's own label words, in the order of ``labels``, for a
            task whose words differ per row: ``labels`` are then the raw values, and the answer
            text is the option's.
        label_variants: other label words for the same labels, each under a name: the task
            "paws-named" is "paws" with the words under "named".
        clean: column -> a name of ``shaping.CLEANERS``, applied before rendering.
        marks: spans that are wrapped in signs before rendering.
        label_values: raw value (as text) -> index into ``labels``, where the raw values are
            neither the integers nor the words.
        label_bins: label word -> [low, high], for a task made from a number: a row belongs to the
            label whose closed interval holds its value, and to none outside all (left out).
        score_range: lowest and highest answer (regression).
        score_step: written answers are snapped to multiples of this (regression).
        metrics: the first is the main one.
        rows: where the rows are.
        split: how they become train, validation and test.
        group: which rows must stay on one side of a random split.
        licence: terms of the data, as commonly stated.
        citation: whom to cite.
        notes: what a user should know: choices, deviations, overlaps.

    Raises:
        ConfigError: settings that contradict each other.
        UnknownNameError: an unknown kind or metric.
    """

    name: str
    version: int
    description: str
    kind: Kind
    template: str
    label_column: str
    metrics: tuple[str, ...]
    rows: RowSource
    labels: tuple[str, ...] = ()
    label_values: Mapping[str, int] = field(default_factory=dict)
    label_bins: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    score_range: tuple[float, float] | None = None
    score_step: float = 0.2
    option_columns: tuple[str, ...] = ()
    label_variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    clean: Mapping[str, str] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    split: SplitRule = field(default_factory=SplitRule)
    group: Group | None = None
    licence: str = ""
    citation: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("kind", self.kind, KINDS)
        known = METRICS[self.kind]
        for metric in self.metrics:
            if metric not in known:
                raise UnknownNameError(f"{self.kind} metric", metric, known)
        check_cleaners(self.clean)
        problem = problem_of(self)
        if problem:
            raise ConfigError(f"Task {self.name!r}: {problem[0]}", problem[1])

    @classmethod
    def named(cls, name: str) -> Task:
        """The task of this name from the registry; "NAME-VARIANT" has other label words.

        Raises:
            UnknownNameError: no such task or variant, with a suggestion.
        """
        if name in task_names():
            return cls.from_file(_REGISTRY / f"{name}.yaml")
        plain, _, variant = name.rpartition("-")
        if plain in task_names():
            return cls.named(plain).variant(variant)
        fix = "or give a YAML file of your own (Task.from_file)"
        raise UnknownNameError("task", name, task_names(), fix)

    @classmethod
    def from_file(cls, path: str | Path) -> Task:
        """A task from a YAML file; paths in it are relative to the file's folder.

        Raises:
            ConfigError: not readable, not YAML, a missing key or a contradiction.
            UnknownNameError: an unknown key, kind, metric, format or split rule.
        """
        path = Path(path)
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The task file {path} cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"The task file {path} is not YAML: {error}") from error
        where = str(path)
        keys = task_keys(raw, where, path.parent)
        try:
            return build(cls, keys, where)
        except ConfigError as error:
            if where in error.what:
                raise
            raise ConfigError(f"{where}: {error.what}", error.fix) from None

    @property
    def num_labels(self) -> int:
        """How many outputs a classifier needs: the labels, 1 for regression, 0 for generation."""
        return {"classification": len(self.labels), "regression": 1}.get(self.kind, 0)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns the template reads, each once, in order."""
        parts = string.Formatter().parse(self.template)
        return tuple(dict.fromkeys(name for _, name, _, _ in parts if name))

    def variant(self, name: str) -> Task:
        """The same task with the label words that ``label_variants`` has under a name.

        Raises:
            UnknownNameError: no such variant.
        """
        if name not in self.label_variants:
            raise UnknownNameError(f"variant of {self.name!r}", name, self.label_variants)
        words = self.label_variants[name]
        values = {str(i): i for i in range(len(words))}
        values |= {word: i for i, word in enumerate(self.labels)} | dict(self.label_values)
        description = self.description
        for old, new in zip(self.labels, words, strict=True):
            whole_word = rf"(?<!\w){re.escape(old)}(?!\w)"
            description = re.sub(whole_word, new.replace("\\", r"\\"), description)
        return replace(
            self, name=f"{self.name}-{name}", labels=words, label_values=values,
            label_variants={}, description=description,
        )  # fmt: skip

    def render(self, row: Mapping[str, Any], where: str = "") -> str:
        """The source text of a row, its columns cleaned, marked and joined first.

        Args:
            row: a raw row.
            where: file and line, for the message.

        Raises:
            DataError: a column the template reads is missing, or a mark has no place.
        """
        missing = [name for name in self.columns if name not in row]
        if missing:
            raise DataError(
                f"Task {self.name!r} reads the column {missing[0]!r}, and the row has "
                f"{', '.join(sorted(map(str, row)))}",
                "rename the column, or change the task's template",
            )
        return self.template.format_map(shape(row, self.clean, self.marks, where))

    def options_of(self, row: Mapping[str, Any], where: str = "") -> tuple[str, ...]:
        """The row's own label words, in label order; empty for a task whose words are fixed.

        Raises:
            DataError: an option is missing or blank, or two read the same.
        """
        at = f"{where}: " if where else ""
        options = tuple(str(row.get(c) or "").strip() for c in self.option_columns)
        for column, option in zip(self.option_columns, options, strict=True):
            if not option:
                raise DataError(f"{at}no option in the column {column!r}", "fill it")
        if len(set(options)) != len(options):
            raise DataError(f"{at}two options read the same: {options}", "options must differ")
        return options

    def accepted_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Every accepted answer of a generation task's row, each once; empty for other kinds."""
        if self.kind != "generation":
            return ()
        value = value_at(row, self.label_column)
        given = value if isinstance(value, (list, tuple)) else [value]
        return tuple(dict.fromkeys(str(v).strip() for v in given if str(v).strip()))

    def label_of(self, row: Mapping[str, Any], where: str = "") -> int | float | str:
        """The answer of a row: label index, score, or text.

        Args:
            row: a raw row.
            where: file and line, for the message.

        Raises:
            DataError: the value is missing or outside the label set.
        """
        at = f"{where}: " if where else ""
        value = value_at(row, self.label_column)
        blank = isinstance(value, (str, list, tuple)) and not str(_first(value)).strip()
        if value is None or blank:
            raise DataError(
                f"{at}no value in the label column {self.label_column!r}",
                "label the row or take it out",
            )
        if self.kind == "generation":
            return str(_first(value)).strip()
        if self.kind == "regression":
            return self._score(value, at)
        index = self._bin_of(self._score(value, at)) if self.label_bins else self._index_of(value)
        if index is None:
            fix = f"allowed: {self._allowed()}"
            known = [*(self.label_values or self.labels)]
            alike = [word for word in known if word.casefold() == str(value).strip().casefold()]
            if alike:
                fix = f"{alike[0]!r} differs from it in case only: write both the same; {fix}"
            raise DataError(f"{at}label {value!r} is outside the label set", fix)
        return index

    def leaves_out(self, row: Mapping[str, Any], where: str = "") -> bool:
        """Whether the task's own definition excludes a row.

        True for the raw labels in ``rows.drop_labels``, for a score between the ``label_bins``,
        and for unlabelled rows of a source that says it mixes them in.

        Raises:
            DataError: with ``label_bins``, a value that is no number.
        """
        value = value_at(row, self.label_column)
        if value is None:
            return self.rows.wheel is not None and self.rows.wheel.drop_unlabelled
        if str(value) in self.rows.drop_labels:
            return True
        at = f"{where}: " if where else ""
        return bool(self.label_bins) and self._bin_of(self._score(value, at)) is None

    def answer(self, label: int | float | str, options: tuple[str, ...] = ()) -> str:
        """The target text of an answer: the label word, the snapped score ("3.8"), the text.

        Args:
            label: what ``label_of`` gave.
            options: the row's own label words, where the task has such.
        """
        if self.kind == "classification":
            return (options or self.labels)[int(label)]
        if self.kind == "regression":
            # as many as the step has: 0.2 one, 0.25 two
            decimals = max(1, -int(Decimal(f"{self.score_step:.12g}").as_tuple().exponent))
            return f"{round(float(label) / self.score_step) * self.score_step:.{decimals}f}"
        return str(label)

    def to_dict(self) -> dict[str, Any]:
        """Every field, with plain values that JSON can hold."""
        return cast("dict[str, Any]", _plain(asdict(self)))

    def _bin_of(self, score: float) -> int | None:
        for word, (low, high) in self.label_bins.items():
            if low <= score <= high:
                return self.labels.index(word)
        return None

    def _score(self, value: object, at: str) -> float:
        try:
            score = float(cast("float", value))
        except (TypeError, ValueError):
            score = math.nan
        low, high = self.score_range or (-math.inf, math.inf)
        if not math.isfinite(score) or not low <= score <= high:
            allowed = f"from {low:g} to {high:g}" if self.score_range else "any finite number"
            raise DataError(f"{at}{value!r} is not a score of task {self.name!r}", allowed)
        return score

    def _allowed(self) -> str:
        if self.label_bins:
            return ", ".join(f"{a:g} to {b:g}" for a, b in self.label_bins.values())
        ways = [repr(key) for key in self.label_values]
        indexed = not any(map(_is_integer, self.labels))
        ways = ways or [f"{i} or {w!r}" if indexed else repr(w) for i, w in enumerate(self.labels)]
        return ", ".join(ways[:_SHOWN]) + (f", ... ({len(ways)})" if len(ways) > _SHOWN else "")

    def _index_of(self, value: object) -> int | None:
        text, number = str(value).strip(), integer_text(value)
        if self.label_values:
            return self.label_values.get(text, self.label_values.get(number))
        for word in (text, number):
            if word in self.labels:
                return self.labels.index(word)
        # Beside words that are numbers, a number is a word, never an index.
        if any(map(_is_integer, self.labels)) or not number.isdecimal():
            return None
        return int(number) if int(number) < len(self.labels) else None


@cache
def task_names() -> tuple[str, ...]:
    """The names in the registry, sorted."""
    return tuple(sorted(path.stem for path in _REGISTRY.glob("*.yaml")))


def integer_text(value: object) -> str:
    """A value as text, whole numbers without their point.

    Spreadsheets and data frames make floats of a label column with a gap: "1.0" and 1.0 are "1".
    """
    text = str(value).strip()
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    whole = isinstance(value, str) and "." in text and re.fullmatch(r"-?\d+\.0+", text)
    return text.partition(".")[0] if whole else text


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"-?\d+", text) is not None


def _first(value: object) -> object:
    """The first of several answers ("" of none); any other value itself."""
    if isinstance(value, (list, tuple)):
        return value[0] if value else ""
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
