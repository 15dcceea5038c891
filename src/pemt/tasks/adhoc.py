"""A task from data files and a few words, without a YAML file.

What a YAML file would say and the words do not (kind and label words) is read off the rows, where
they leave no doubt; where they do, an error says what was found and which word is missing.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pemt.errors import ConfigError, DataError, UnknownNameError
from pemt.tasks.definition import KINDS, METRICS
from pemt.tasks.files import PARQUET, SUFFIXES, at, read_file, stream_file
from pemt.tasks.rows import check_columns
from pemt.tasks.sources import RowSource, SplitRule, value_at
from pemt.tasks.task import Kind, Task, integer_text

DATA_SUFFIXES = (*SUFFIXES, PARQUET)
MOST_INTEGERS = 20
"""More distinct whole numbers than these may as well be scores, so the kind has to be said."""

MOST_LABELS = 200
"""More distinct strings than these may as well be free text, so the kind has to be said."""

_STEPS = 20


def is_data_file(path: str | Path) -> bool:
    """Whether a path's name is that of a data file (.csv, .tsv, .jsonl, .parquet, or .gz).

    Case doesn't matter, here or where files are read.
    """
    name = str(path).lower().removesuffix(".gz")
    return name.endswith(DATA_SUFFIXES)


def task_from_files(
    *,
    train: str | Path,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    text_template: str,
    label_column: str,
    description: str,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    kind: str | None = None,
    metrics: Sequence[str] | None = None,
) -> Task:
    """A task from data files: the same task as from a YAML file that says the same.

    The label words, where not given, are the values of the label column, sorted (numbers by size),
    so they don't depend on the order of the rows.

    Args:
        train: CSV, TSV, JSONL or Parquet file with a column per name in the template. Without the
            other two files, a fifth of its rows becomes the test split and a tenth validation.
        validation: rows to select on; by default a tenth of the training rows.
        test: rows to score; by default half of the validation rows.
        text_template: the source text, with column names in braces: "question: {question}".
        label_column: the column with the answers.
        description: one sentence: "Given INPUT, the task is to GOAL."; the prompt starts from it.
        name: of the task; by default the training file's name.
        labels: the label words, in the order of the integers where the column holds integers.
        kind: "classification", "regression" or "generation".
        metrics: what to report, the main one first; by default the kind's first.

    Raises:
        ConfigError: a blank description, no braces in the template, labels that contradict.
        DataError: a file that cannot be read, a missing column, or answers of which the kind is in
            doubt.
        UnknownNameError: an unknown kind or metric.
    """
    if kind is not None and kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    given = {"train": train, "validation": validation, "test": test}
    files = {split: Path(path) for split, path in given.items() if path is not None}
    answers = _Answers(label_column)
    firsts: list[tuple[str, dict[str, Any]]] = []
    for path in files.values():
        rows = read_file(path, refuse=_leave_out)
        firsts.append((at(str(path), rows[0][0]), rows[0][1]))
        check_columns((label_column,), rows[0][1], firsts[-1][0])
        for number, row in rows:
            answers.add(row, at(str(path), number))
    words, scores = tuple(labels or ()), None
    if kind is None:
        kind = "classification" if words else answers.kind()
    if kind == "classification" and not words:
        words = answers.labels()
    if kind == "regression":
        scores = answers.range()
    task = Task(
        name=name or task_name(files["train"]),
        version=1,
        description=description,
        kind=cast("Kind", kind),
        template=text_template,
        label_column=label_column,
        labels=words,
        metrics=tuple(metrics or METRICS[kind][:1]),
        score_range=scores,
        score_step=0.2 if scores is None else _step(*scores),
        rows=RowSource(files=files),
    )
    for where, row in firsts:
        check_columns(task.columns, row, where)
    return task


def task_on_file(task: Task, path: str | Path) -> Task:
    """The same task with one file as its only rows, all in the split "test".

    Rows are read as the task's own are: the labels it drops, and its groups where the file has
    their column.

    Raises:
        DataError: a task with groups, and a file that cannot be read.
    """
    group, path = task.group, Path(path)
    if group is not None:
        rows = stream_file(path, refuse=_leave_out)
        if all(value_at(row, group.column) is None for _, row in rows):
            group = None
    return replace(
        task, rows=replace(task.rows, files={"test": path}), split=SplitRule(rule="own"),
        group=group,
    )  # fmt: skip


def task_name(path: Path) -> str:
    """A name that folders and experts can have, from a file's: "My data.csv.gz" is "My_data"."""
    stem = re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE).rpartition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:64] or "task"


@dataclass
class _Answers:
    """The distinct answers of all files, with how often and where each is first found."""

    column: str
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    places: dict[str, str] = field(default_factory=dict)
    lists: str = ""

    def add(self, row: dict[str, Any], where: str) -> None:
        value = value_at(row, self.column)
        if isinstance(value, (list, tuple)):
            self.lists = self.lists or where
        # load_examples names the rows without an answer; NaN is what data frames write for none
        elif value is not None and value == value and str(value).strip():
            text = str(value).strip()
            self.counts[text] += 1
            self.places.setdefault(text, where)

    def kind(self) -> str:
        """The kind, where the answers leave no doubt."""
        total, distinct = self.counts.total(), len(self.counts)
        if self.lists:
            raise DataError(
                f"{self.lists}: a list in the label column {self.column!r}",
                "lists are accepted answers: say --kind generation",
            )
        self._refuse_none()
        if self._numbers() is not None:
            fractions = [text for text in self.counts if not _whole(text)]
            distinct = len(self._canonical())
            if not fractions and distinct <= MOST_INTEGERS:
                return "classification"
            low, high = self.range()
            odd = f", such as {fractions[0]} at {self.places[fractions[0]]}" if fractions else ""
            raise DataError(
                f"The label column {self.column!r} holds {distinct} distinct numbers in {total} "
                f"rows, from {low:g} to {high:g}{odd}: scores or classes?",
                "say --kind regression, or --kind classification, or give --labels",
            )
        if distinct > 2 and distinct > min(MOST_LABELS, total // 2):
            examples = ", ".join(repr(_short(text)) for text in list(self.counts)[:3])
            raise DataError(
                f"The label column {self.column!r} holds {distinct} distinct texts in {total} "
                f"rows ({examples}): free text or classes?",
                "say --kind generation, or --kind classification, or give --labels",
            )
        return "classification"

    def labels(self) -> tuple[str, ...]:
        """Every answer once, sorted."""
        self._refuse_none()
        counts = self._canonical()
        folded: dict[str, str] = {}
        for text in counts:
            other = folded.setdefault(text.casefold(), text)
            if other != text:
                raise DataError(
                    f"The label column {self.column!r} holds {self._told(other)} and "
                    f"{self._told(text)}, which differ in case only",
                    "write both the same",
                )
        if len(counts) == 1:
            raise DataError(
                f"The label column {self.column!r} holds nothing but {next(iter(counts))!r} "
                f"({self.counts.total()} rows)",
                "a classification task needs rows of two labels; name both with --labels if the "
                "other's rows are still to come",
            )
        if self._numbers() is not None:
            return tuple(sorted(counts, key=float))
        return tuple(sorted(counts))

    def range(self) -> tuple[float, float]:
        """The lowest and highest of the answers that are numbers."""
        numbers = [n for n in map(_number, self.counts) if n is not None]
        if not numbers:
            self._refuse_none()
            text, where = next(iter(self.places.items()))
            raise DataError(
                f"{where}: {_short(text)!r} is no number, and neither is any other value of the "
                f"label column {self.column!r}",
                "regression needs numbers: check --label-column, or say another --kind",
            )
        return min(numbers), max(numbers)

    def _told(self, text: str) -> str:
        count = self.counts[text]
        rows = f"{count} rows, first" if count > 1 else "1 row,"
        return f"{text!r} ({rows} at {self.places[text]})"

    def _numbers(self) -> list[float] | None:
        numbers = [_number(text) for text in self.counts]
        return None if None in numbers else cast("list[float]", numbers)

    def _canonical(self) -> collections.Counter[str]:
        """The counts, "1.0" and "1" taken together where every answer is a number."""
        if self._numbers() is None:
            return self.counts
        merged: collections.Counter[str] = collections.Counter()
        for text, count in self.counts.items():
            merged[integer_text(text)] += count
        return merged

    def _refuse_none(self) -> None:
        if not self.counts:
            raise DataError(
                f"The label column {self.column!r} is blank in every row",
                "label the rows, or check --label-column",
            )


def _leave_out(where: str, error: DataError) -> None:
    """Broken lines are for ``load_examples`` to raise, or for a check to list."""


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _whole(text: str) -> bool:
    return re.fullmatch(r"-?\d+", integer_text(text)) is not None


def _step(low: float, high: float) -> float:
    """1, 2 or 5 times a power of ten, at least ``_STEPS`` times between lowest and highest."""
    finest = (high - low) / _STEPS
    if finest <= 0:
        raise ConfigError(
            f"Every score is {low:g}", "regression needs scores that differ: check --label-column"
        )
    power = 10.0 ** math.floor(math.log10(finest))
    step = max(m * power for m in (1, 2, 5) if m * power <= finest * (1 + 1e-9))
    return float(f"{step:.12g}")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
