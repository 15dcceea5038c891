"""From a task to its examples: find the rows, check them, render them.

Places are tried in the order files, local mirror, pinned wheel, Hub; the first that the task has
is used, and an error there is an error, never a silent move to the next.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pemt import assets
from pemt.errors import DataError
from pemt.tasks.files import Refuse, Row, at, raise_first, read_file
from pemt.tasks.hub import read_hub
from pemt.tasks.sources import value_at
from pemt.tasks.task import Task
from pemt.tasks.wheels import read_wheel


@dataclass(frozen=True, slots=True)
class Example:
    """One rendered row.

    Args:
        id: stable name within the task, "<split>:<the row's idx or id, else its number>".
        text: the source text.
        label: label index (classification), score (regression), None (generation).
        target: the answer as text: label word, snapped score, answer.
        group: rows with an equal group stay on one side of a split, and are one question to metrics
            by question; "" is no group.
        accepted: every accepted answer of a generation task, the target first; empty for others.
        options: the row's own label words, where they differ per row; the target is one of them.
    """

    id: str
    text: str
    label: int | float | None
    target: str
    group: str = ""
    accepted: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where a task's rows come from on this machine.

    Args:
        kind: which of the places.
        where: folder, wheel or repository, for people.
        at_hand: whether reading needs no network.
        paths: split -> file, for files and the mirror.
    """

    kind: Literal["files", "mirror", "wheel", "hub"]
    where: str
    at_hand: bool
    paths: Mapping[str, Path]


def default_data_dir() -> Path | None:
    """The local mirror that ``PEMT_DATA_DIR`` names, None where it is unset."""
    configured = os.environ.get("PEMT_DATA_DIR", "").strip()
    return Path(configured).expanduser() if configured else None


def locate(task: Task, *, data_dir: str | Path | None = None) -> Origin:
    """Where ``load_examples`` will read, without reading.

    Args:
        task: the task.
        data_dir: a local mirror, ``<folder>/<split>.jsonl.gz``; default ``PEMT_DATA_DIR``.

    Raises:
        DataError: nowhere to read from, no such mirror, or a mirror folder that lacks a split.
    """
    if task.rows.files:
        folders = sorted({str(path.parent) for path in task.rows.files.values()})
        return Origin("files", ", ".join(folders), True, dict(task.rows.files))
    mirror = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    if mirror is not None:
        if not mirror.is_dir():
            raise DataError(
                f"The data folder {mirror} does not exist", "check --data-dir or PEMT_DATA_DIR"
            )
        for name in (task.name, *task.rows.mirror):
            if (mirror / name).is_dir():
                return _mirror(task, mirror / name)
    if task.rows.wheel is not None:
        asset = task.rows.wheel.asset
        pinned = assets.ASSETS[asset].requirement
        return Origin("wheel", pinned, assets.wheel_path(asset).is_file(), {})
    if task.rows.hub is not None:
        hub = task.rows.hub
        return Origin("hub", f"{hub.path} {hub.name or ''}".strip(), False, {})
    raise DataError(
        f"Task {task.name!r} has no rows: no files, wheel or Hub repository is given"
        + (f", and {mirror} has no folder {task.name!r}" if mirror else ""),
        "name files under rows.files in its YAML, or set PEMT_DATA_DIR to a local mirror",
    )


HELD_OUT = 1000
"""Training rows that become validation under ``hold_out_1000``."""


@dataclass(frozen=True)
class Loaded:
    """A task's rows, and what a record of a run says about where they came from.

    Args:
        examples: official split name ("train", "validation", ...; "all" where there is none) ->
            examples in the source's order.
        origin: the kind of place and which one; a Hub repository with the commit that was read.
        notes: how the rows were had, where that is not plain (``hub.HubRead.notes``).
    """

    examples: dict[str, list[Example]]
    origin: str
    notes: tuple[str, ...] = ()


def load_examples(
    task: Task, *, data_dir: str | Path | None = None, refuse: Refuse | None = None
) -> dict[str, list[Example]]:
    """Every labelled row of the official splits the task's split rule needs, rendered.

    Arguments and errors are those of ``load_rows``.

    Returns:
        Official split name -> examples. ``splits.official_splits`` makes train, validation and
        test of them.
    """
    return load_rows(task, data_dir=data_dir, refuse=refuse).examples


def load_rows(
    task: Task, *, data_dir: str | Path | None = None, refuse: Refuse | None = None
) -> Loaded:
    """``load_examples``, with where the rows came from.

    Args:
        task: the task.
        data_dir: a local mirror, ``<folder>/<split>.jsonl.gz``; default ``PEMT_DATA_DIR``.
        refuse: is told of every unusable row or file, which is then left out, so that all
            problems can be listed at once. By default the first one is raised.

    Raises:
        DataError: rows that cannot be found or used, with file and line.
        AssetError: a pinned wheel that cannot be fetched.
    """
    origin, refuse = locate(task, data_dir=data_dir), refuse or raise_first
    # a folder's name, never its path: records travel with experts and models
    place = Path(origin.where).name if origin.kind in ("files", "mirror") else origin.where
    said = f"{origin.kind} {place}"
    notes: tuple[str, ...] = ()
    raw: dict[str, list[Row]] = {}
    if origin.kind in ("files", "mirror"):
        names = {split: str(path) for split, path in origin.paths.items()}
        for split, path in origin.paths.items():
            try:
                raw[split] = read_file(path, refuse)
            except DataError as error:
                refuse(names[split], error)
    elif origin.kind == "wheel" and task.rows.wheel is not None:
        raw = read_wheel(task.rows.wheel)
        names = {split: f"{origin.where}, {split}" for split in raw}
    elif task.rows.hub is not None:
        read = read_hub(task.rows.hub, needed_splits(task), limit=_limit(task))
        raw, notes = read.rows, read.notes
        said += f" at {read.revision}" if read.revision else ""
        names = {split: f"{origin.where}, {split}" for split in raw}
    examples = {
        split: _examples(task, split, rows, names[split], refuse) for split, rows in raw.items()
    }
    return Loaded(examples, said, notes)


def _limit(task: Task) -> dict[str, int]:
    """How many rows of a huge split are worth holding: what its cap and its validation need."""
    cap = task.split.train_cap
    return {} if cap is None or task.split.rule != "hold_out_1000" else {"train": cap + HELD_OUT}


def needed_splits(task: Task) -> tuple[str, ...]:
    """The official splits the task's split rule reads."""
    return {
        "mnli": ("train", "validation", "validation_mismatched"),
        "own": ("train", "validation", "test"),
        "random": task.split.reads,
        "hold_out_1000": ("train", task.split.evaluation),
        "auto": ("train",),
    }.get(task.split.rule, ("train", "validation"))


def _mirror(task: Task, folder: Path) -> Origin:
    paths = {}
    for split in needed_splits(task):
        found = [folder / f"{split}{end}" for end in (".jsonl.gz", ".jsonl")]
        found = [path for path in found if path.is_file()]
        if not found:
            raise DataError(
                f"The mirror folder {folder} has no {split}.jsonl.gz, which task {task.name!r} "
                f"(split rule {task.split.rule!r}) needs",
                "add the file, or take the folder out of the mirror to use the task's next source",
            )
        paths[split] = found[0]
    return Origin("mirror", str(folder), True, paths)


def check_columns(names: Sequence[str], row: Mapping[str, Any], where: str) -> None:
    """Refuse a row that lacks a column, or has bytes there; dots may lead into a mapping.

    Raises:
        DataError: with a suggestion and the columns there are.
    """
    for name in names:
        if name not in row and name.partition(".")[0] not in row:
            close = difflib.get_close_matches(name, [str(key) for key in row], n=1, cutoff=0.5)
            # quotes show a space at the end of a name, which is easily the whole difference
            shown = close and (close[0] if close[0] == close[0].strip() else repr(close[0]))
            hint = f" Did you mean: {shown}?" if shown else ""
            raise DataError(
                f"{where}: no column {name!r}.{hint}",
                f"the columns are: {', '.join(map(str, row))}; rename one, or change the task's "
                "template and label_column",
            )
        if isinstance(row.get(name), bytes):
            raise DataError(
                f"{where}: the column {name!r} holds bytes that are not UTF-8",
                "save it as text",
            )


def _examples(
    task: Task, split: str, rows: Sequence[Row], source: str, refuse: Refuse
) -> list[Example]:
    examples = []
    for (number, row), own in zip(rows, _ids(rows), strict=True):
        where = at(source, number)
        try:
            example = _example(task, row, f"{split}:{own}", where)
        except DataError as error:
            refuse(where, error)
        else:
            examples += [] if example is None else [example]
    if not examples:
        what = f"{source} has no usable rows for task {task.name!r}"
        refuse(source, DataError(what, "it must hold at least one labelled row"))
    return _distinct(examples) if task.rows.distinct else examples


def _example(task: Task, row: Mapping[str, Any], own_id: str, where: str) -> Example | None:
    """A row rendered; None where the task's definition leaves it out."""
    unlabelled_ok = task.rows.wheel is not None and task.rows.wheel.drop_unlabelled
    check_columns((*task.columns, *task.option_columns), row, where)
    check_columns(() if unlabelled_ok else (task.label_column,), row, where)
    if task.leaves_out(row, where):
        return None
    text = rendered(task, row, where)
    answer, options = task.label_of(row, where), task.options_of(row, where)
    return Example(
        id=own_id,
        text=text,
        label=None if isinstance(answer, str) else answer,
        target=task.answer(answer, options),
        group=_group(task, row, where),
        accepted=task.accepted_of(row),
        options=options,
    )


def rendered(task: Task, row: Mapping[str, Any], where: str) -> str:
    """The text of a row that has the task's columns; a missing value (None) is an empty one.

    Raises:
        DataError: nothing but blanks.
    """
    values = {name: "" if row[name] is None else row[name] for name in task.columns}
    if not any(str(value).strip() for value in values.values()):
        raise DataError(f"{where}: blank text", f"fill {', '.join(task.columns)}")
    return task.render({**row, **values}, where)


def _ids(rows: Sequence[Row]) -> list[str]:
    for key in ("idx", "id"):
        own = [row.get(key) for _, row in rows]
        if all(isinstance(v, (int, str)) for v in own) and len(set(map(str, own))) == len(own):
            return [str(value) for value in own]
    return [str(number) for number in range(len(rows))]


def _group(task: Task, row: Mapping[str, Any], where: str) -> str:
    if task.group is None:
        return ""
    value = value_at(row, task.group.column)
    if value is None or not str(value).strip():
        raise DataError(
            f"{where}: no value in the group column {task.group.column!r}",
            "fill it; a row that belongs to no other has a value of its own",
        )
    if task.group.pattern is None:
        return str(value)
    match = re.search(task.group.pattern, str(value), re.DOTALL)
    if match is None:
        raise DataError(f"{where}: {str(value)!r} does not match {task.group.pattern!r}")
    return match.group(1) if match.groups() else match.group()


def _distinct(examples: Sequence[Example]) -> list[Example]:
    """One of each text, in order; none of a text that carries two answers."""
    answers: dict[str, set[str]] = {}
    for example in examples:
        answers.setdefault(example.text, set()).add(example.target)
    first = {example.text: example for example in reversed(examples)}
    return [
        example
        for example in examples
        if first[example.text] is example and len(answers[example.text]) == 1
    ]
