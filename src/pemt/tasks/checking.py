"""What a task's rows are like and what is wrong with them, before anything is trained.

Problems are what training refuses, every one with its file and line. Notes are what training
accepts and results suffer from: repeated texts, a test row seen in training, rare labels, long
texts.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pemt.errors import ConfigError, DataError
from pemt.tasks.encoding import Family, encode_prompts_only, label_word_ids
from pemt.tasks.rows import Example, load_examples, locate
from pemt.tasks.splits import Splits, official_splits
from pemt.tasks.task import Task

EXAMPLES = 3
MEASURED = 10_000
"""Texts measured at most, evenly spaced over all rows: quantiles need no more."""

TRUNCATED = 0.2
"""A larger share of truncated texts is noted."""

IMBALANCE = 10
"""Training rows of the largest label over those of the smallest, above which it is noted."""

_UNLIMITED = 2**30
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What measures the texts: a base's tokenizer and limits.

    Args:
        base: its name, for people.
        tokenizer: a transformers tokenizer.
        family: of the base.
        positions: how many the base has, None where there is no limit.
        max_source_length: limit of a text's tokens.
        max_target_length: limit of an answer's tokens.
    """

    base: str
    tokenizer: Any
    family: Family
    positions: int | None = None
    max_source_length: int = 256
    max_target_length: int = 16


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
class Lengths:
    """Tokens of the rendered texts for a base, special tokens included, the prompt not.

    Args:
        base: the base.
        family: of the base.
        measured: texts measured.
        quantiles: "min", "p50", "p90", "p99" and "max", by nearest rank.
        limit: the tokens of a text that this base is given beside the task's prompt.
        truncated: share of the measured texts that are longer.
        prompt: tokens of the prompt that starts from the description.
        label_tokens: label word -> its tokens.
        answers_truncated: share of the answers that are longer than the limit (generation).
    """

    base: str
    family: str
    measured: int
    quantiles: Mapping[str, int]
    limit: int
    truncated: float
    prompt: int
    label_tokens: Mapping[str, Sequence[str]]
    answers_truncated: float = 0.0


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
    task: Task, *, data_dir: Path | None = None, reader: Reader | None = None
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
        lengths = _measure(task, [e for part in raw.values() for e in part], reader, found)
    return TaskReport(
        task=task.name, kind=task.kind, source=f"{origin.kind} {place}",
        splits=reports, overlap=overlap, contradictions=len(contradictory),
        most_shots=most_shots, lengths=lengths,
        examples=[(e.id, e.text, e.target) for e in splits.train[:EXAMPLES]],
        problems=found.listed(),
        notes=[
            *_same_files(task),
            *_notes(task, reports, overlap, contradictory),
            *([] if lengths is None else _length_notes(lengths)),
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
    if task.kind != "classification":
        return len({e.text for e in train}) // 2
    texts: dict[int, set[str]] = {i: set() for i in range(len(task.labels))}
    for e in train:
        texts[int(e.label or 0)].add(e.text)
    return min(map(len, texts.values())) // 2


def _measure(
    task: Task, examples: Sequence[Example], reader: Reader, found: _Problems
) -> Lengths | None:
    tokenizer, family = reader.tokenizer, reader.family
    # As the prompt is made: the description's tokens and an end token, where there is one.
    ends = tokenizer.eos_token_id is not None or tokenizer.sep_token_id is not None
    prompt = len(tokenizer(task.description, add_special_tokens=False)["input_ids"]) + ends
    limit = reader.max_source_length
    if reader.positions is not None:
        answer = reader.max_target_length if family == "decoder-only" else 0
        limit = min(limit, reader.positions - prompt - answer)
    if limit < 8:
        found.add(
            ConfigError(
                f"The description makes a prompt of {prompt} tokens, and {reader.base} has "
                f"{reader.positions} positions for prompt and text",
                "shorten the description",
            )
        )
    label_tokens = _label_tokens(task, reader, found)
    chosen = examples[:: max(1, math.ceil(len(examples) / MEASURED))]
    try:
        encoded = encode_prompts_only(
            chosen, task, tokenizer, family, max_source_length=_UNLIMITED,
            max_target_length=reader.max_target_length,
        )  # fmt: skip
    except ConfigError as error:
        found.add(error)
        return None
    if not chosen:
        return None
    sizes = sorted(len(row["input_ids"]) for row in encoded)  # type: ignore[arg-type]
    ranks = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    too_long = 0.0
    if task.kind == "generation":
        answers = tokenizer([e.target for e in chosen], add_special_tokens=False)["input_ids"]
        too_long = sum(len(ids) >= reader.max_target_length for ids in answers) / len(answers)
    return Lengths(
        base=reader.base, family=family, measured=len(sizes),
        quantiles={k: sizes[max(0, math.ceil(q * len(sizes)) - 1)] for k, q in ranks.items()},
        limit=limit, truncated=sum(size > limit for size in sizes) / len(sizes), prompt=prompt,
        label_tokens=label_tokens, answers_truncated=too_long,
    )  # fmt: skip


def _label_tokens(task: Task, reader: Reader, found: _Problems) -> dict[str, list[str]]:
    tokenizer = reader.tokenizer
    # Words that differ per row are the rows', and an encoder-only base writes none.
    if task.labels and not task.option_columns and reader.family != "encoder-only":
        try:
            written = label_word_ids(task, tokenizer, reader.family)
        except DataError as error:
            found.add(error)
        else:
            for word, ids in zip(task.labels, written, strict=True):
                if len(ids) > reader.max_target_length:
                    found.add(
                        ConfigError(
                            f"The label word {word!r} takes {len(ids)} tokens, and an answer has "
                            f"room for {reader.max_target_length}",
                            f"shorten it, or train with max_target_length {len(ids)}",
                        )
                    )
    return {word: list(tokenizer.tokenize(word)) for word in task.labels}


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


def _length_notes(lengths: Lengths) -> list[str]:
    notes = []
    if lengths.truncated > TRUNCATED:
        notes.append(
            f"{lengths.truncated:.1%} of the texts are longer than {lengths.limit} tokens and lose "
            "their end: raise max_source_length, or put what matters first in the template."
        )
    if lengths.answers_truncated > 0 and lengths.family != "encoder-only":
        notes.append(
            f"{lengths.answers_truncated:.1%} of the answers are longer than the limit and lose "
            "their end: raise max_target_length."
        )
    return notes


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
