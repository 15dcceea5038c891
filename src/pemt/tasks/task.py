"""What a task is: how its rows read, what the answers are, how it is scored.

A task is one YAML file, in ``registry/`` or the user's own (``Task.from_file``).
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from pemt.errors import ConfigError, DataError, UnknownNameError
from pemt.tasks.sources import Group, RowSource, SplitRule, build, mapping, parse_rows, strings

Kind = Literal["classification", "regression", "generation"]
KINDS = ("classification", "regression", "generation")
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "macro_f1", "balanced_accuracy", "matthews"),
    "regression": ("pearson", "spearman"),
    "generation": ("exact_match", "token_f1"),
}
"""The metrics each kind of task may name; the first a task names is its main one."""

_REGISTRY = Path(__file__).parent / "registry"


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
        label_column: the column that holds the answer.
        labels: the label words in integer order (classification).
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
        problem = _problem(self)
        if problem:
            raise ConfigError(f"Task {self.name!r}: {problem[0]}", problem[1])

    @classmethod
    def named(cls, name: str) -> Task:
        """The task of this name from the registry.

        Raises:
            UnknownNameError: no such task, with a suggestion.
        """
        if name not in task_names():
            fix = "or give a YAML file of your own (Task.from_file)"
            raise UnknownNameError("task", name, task_names(), fix)
        return cls.from_file(_REGISTRY / f"{name}.yaml")

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
        keys = dict(mapping(raw, where))
        keys.setdefault("name", path.stem)
        keys.setdefault("version", 1)
        keys["labels"] = strings(keys.get("labels", ()), f"{where}: labels")
        keys["metrics"] = strings(
            keys.get("metrics", METRICS.get(str(keys.get("kind")), ("",))[:1]), f"{where}: metrics"
        )
        keys["rows"] = parse_rows(keys.get("rows", {}), where, path.parent)
        keys["split"] = build(SplitRule, keys.get("split", {}), f"{where}: split")
        if keys.get("group") is not None:
            keys["group"] = build(Group, keys["group"], f"{where}: group")
        if "label_values" in keys:
            values = mapping(keys["label_values"], f"{where}: label_values")
            keys["label_values"] = {key: _index(values[key], where) for key in values}
        if "label_bins" in keys:
            bins = mapping(keys["label_bins"], f"{where}: label_bins")
            keys["label_bins"] = {word: _interval(bins[word], where) for word in bins}
        if keys.get("score_range") is not None:
            keys["score_range"] = _interval(keys["score_range"], where)
        return build(cls, keys, where)

    @property
    def num_labels(self) -> int:
        """How many outputs a classifier needs: the labels, 1 for regression, 0 for generation."""
        return {"classification": len(self.labels), "regression": 1}.get(self.kind, 0)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns the template reads, in order."""
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.template) if name)

    def render(self, row: Mapping[str, Any]) -> str:
        """The source text of a row.

        Raises:
            DataError: a column the template reads is missing.
        """
        missing = [name for name in self.columns if name not in row]
        if missing:
            raise DataError(
                f"Task {self.name!r} reads the column {missing[0]!r}, and the row has "
                f"{', '.join(sorted(map(str, row)))}",
                "rename the column, or change the task's template",
            )
        return self.template.format_map(row)

    def label_of(self, row: Mapping[str, Any], where: str = "") -> int | float | str:
        """The answer of a row: label index, score, or text.

        Args:
            row: a raw row.
            where: file and line, for the message.

        Raises:
            DataError: the value is missing or outside the label set.
        """
        at = f"{where}: " if where else ""
        value = row.get(self.label_column)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise DataError(
                f"{at}no value in the label column {self.label_column!r}",
                "label the row or take it out",
            )
        if self.kind == "generation":
            return str(value)
        if self.kind == "regression":
            return self._score(value, at)
        index = self._bin_of(self._score(value, at)) if self.label_bins else self._index_of(value)
        if index is None:
            allowed = ", ".join(f"{i} or {word!r}" for i, word in enumerate(self.labels))
            if self.label_values:
                allowed = ", ".join(repr(key) for key in self.label_values)
            if self.label_bins:
                allowed = ", ".join(f"{a:g} to {b:g}" for a, b in self.label_bins.values())
            raise DataError(f"{at}label {value!r} is outside the label set", f"allowed: {allowed}")
        return index

    def leaves_out(self, row: Mapping[str, Any], where: str = "") -> bool:
        """Whether the task's own definition excludes a row.

        True for the raw labels in ``rows.drop_labels``, for a score between the ``label_bins``,
        and for unlabelled rows of a source that says it mixes them in.

        Raises:
            DataError: with ``label_bins``, a value that is no number.
        """
        value = row.get(self.label_column)
        if value is None:
            return self.rows.wheel is not None and self.rows.wheel.drop_unlabelled
        if str(value) in self.rows.drop_labels:
            return True
        at = f"{where}: " if where else ""
        return bool(self.label_bins) and self._bin_of(self._score(value, at)) is None

    def answer(self, label: int | float | str) -> str:
        """The target text of an answer: the label word, the snapped score ("3.8"), the text."""
        if self.kind == "classification":
            return self.labels[int(label)]
        if self.kind == "regression":
            decimals = max(1, -math.floor(math.log10(self.score_step) + 1e-9))
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

    def _index_of(self, value: object) -> int | None:
        text = str(value).strip()
        if self.label_values:
            return self.label_values.get(text)
        if text in self.labels:
            return self.labels.index(text)
        if isinstance(value, float) and value.is_integer():
            text = str(int(value))
        if isinstance(value, bool):
            text = str(int(value))
        return int(text) if text.isdecimal() and int(text) < len(self.labels) else None


@cache
def task_names() -> tuple[str, ...]:
    """The names in the registry, sorted."""
    return tuple(sorted(path.stem for path in _REGISTRY.glob("*.yaml")))


def _problem(task: Task) -> tuple[str, str] | None:
    """What contradicts itself in a task, and the remedy."""
    if not task.metrics:
        return "no metric", "name at least one"
    if not task.description.strip():
        return "no description", "one sentence: Given INPUT, the task is to GOAL."
    if task.kind == "classification" and len(task.labels) < 2:
        return f"{len(task.labels)} labels", "a classification task needs at least two label words"
    if task.kind != "classification" and task.labels:
        return f"labels with kind {task.kind!r}", "leave labels out"
    if len(set(task.labels)) != len(task.labels):
        return f"a label word twice in {task.labels}", "label words must differ"
    if "f1" in task.metrics and len(task.labels) != 2:
        return "metric f1 with more than two labels", "use macro_f1"
    if any(not 0 <= index < len(task.labels) for index in task.label_values.values()):
        return "label_values point outside labels", f"use 0 to {len(task.labels) - 1}"
    if task.label_bins and set(task.label_bins) != set(task.labels):
        return "label_bins do not name each label once", f"labels: {', '.join(task.labels)}"
    if task.score_step <= 0:
        return f"score_step {task.score_step}", "give a number above 0"
    try:
        parts = list(string.Formatter().parse(task.template))
    except ValueError as error:
        return f"template {task.template!r}: {error}", "write column names in braces"
    names = [name for _, name, spec, conversion in parts if name is not None]
    if not names or any(not name.isidentifier() for name in names) or any(p[2] for p in parts):
        # Attribute and index access would let a template read more than the row's columns.
        return f"template {task.template!r}", "write plain column names in braces: {text}"
    return None


def _interval(raw: object, where: str) -> tuple[float, float]:
    if isinstance(raw, (list, tuple)) and len(raw) == 2:
        low, high = raw
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low <= high:
            return float(low), float(high)
    raise ConfigError(f"{where}: {raw!r} is not an interval", "give [low, high]")


def _index(raw: object, where: str) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    raise ConfigError(f"{where}: label_values: {raw!r} is not an index", "give 0, 1, ...")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
