"""Few-shot draws: k examples per label by a data seed, with a manifest of what was drawn.

Like the splits, a draw orders rows by a hash (of the seed and the text), so it is the same on
every machine and with every version of numpy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pemt.errors import ConfigError, DataError
from pemt.tasks.rows import Example
from pemt.tasks.splits import Splits
from pemt.tasks.task import Task
from pemt.writing import write_whole

Validation = Literal["shots", "full", "cv"]
"""What models are selected on: as many labels again, the whole validation split, or
cross-validation over the training rows."""


@dataclass(frozen=True)
class FewShot:
    """A draw.

    Args:
        train: the drawn training examples, in the order of training data.
        validation: what models are selected on.
        test: the whole test split.
        manifest: what was drawn, ready for JSON.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    manifest: dict[str, Any]

    def save_manifest(self, path: str | Path) -> None:
        """Write the manifest as JSON; the file is there whole or not at all."""
        shown = json.dumps(self.manifest, indent=2, ensure_ascii=False)
        write_whole(Path(path), shown + "\n")


def draw(
    splits: Splits,
    task: Task,
    *,
    shots: int,
    data_seed: int,
    validation: Validation = "shots",
) -> FewShot:
    """Draw ``shots`` training examples per label (regression and generation: in total).

    A text is drawn at most once, and never for both training and validation.

    Args:
        splits: the task's splits; only the training rows are drawn from.
        task: the task.
        shots: k, at least 1.
        data_seed: which draw.
        validation: "shots" (default) draws k per label more, from the remaining training rows, so
            that the whole budget is 2k per label; "full" uses the whole validation split, as the
            authors did; "cv" draws none: cross-validation over the training rows selects.

    Raises:
        ConfigError: ``shots`` below 1, or an unknown ``validation``.
        DataError: fewer rows than shots, naming the label.
    """
    if shots < 1:
        raise ConfigError(f"shots is {shots}", "give 1 or more")
    if validation not in ("shots", "full", "cv"):
        raise ConfigError(f"validation is {validation!r}", "allowed: 'shots', 'full', 'cv'")
    found = pools(splits.train, task, data_seed)
    train = _cut(found, task, 0, shots, "training")
    held = [] if validation == "cv" else splits.validation
    if validation == "shots":
        held = _cut(found, task, shots, shots, "validation")
    train = sorted(train, key=lambda e: _hash(task.name, "order", data_seed, e.id))
    manifest = {
        "task": task.name,
        "version": task.version,
        "shots": shots,
        "data_seed": data_seed,
        "validation": validation,
        "train_ids": [example.id for example in train],
        "validation_ids": [example.id for example in held],
        "test_rows": len(splits.test),
        "sha256": _digest([*train, *held]),
    }
    return FewShot(train, list(held), splits.test, manifest)


def pools(examples: Sequence[Example], task: Task, seed: int) -> dict[str, list[Example]]:
    """Label word (or "" for the whole) -> distinct examples in the order of the draw.

    A text that carries two labels is in one pool, whatever the seed.
    """
    by_label = task.kind == "classification"
    found: dict[str, list[Example]] = {word: [] for word in task.labels} if by_label else {"": []}
    ordered = sorted(examples, key=lambda e: (_hash(task.name, "draw", seed, e.text), e.id))
    seen: set[str] = set()
    for example in ordered:
        if example.text not in seen:
            seen.add(example.text)
            # by index: the target is no label word where a row brings its own options
            label = example.label if by_label else None
            found["" if label is None else task.labels[int(label)]].append(example)
    return found


def _cut(
    found: dict[str, list[Example]], task: Task, start: int, count: int, purpose: str
) -> list[Example]:
    drawn: list[Example] = []
    for word, pool in found.items():
        part = pool[start : start + count]
        if len(part) < count:
            rows = f"rows of the label {word!r}" if word else "rows"
            fix = "ask for fewer shots or add rows"
            if purpose == "validation":
                fix = (
                    "ask for fewer shots, use the full validation split (validation='full'), or "
                    "the training labels alone (validation='cv')"
                )
            raise DataError(
                f"Task {task.name!r} has {len(pool)} distinct training {rows}: want {count} for "
                f"{purpose}" + (f" after {start} for training" if start else ""),
                fix,
            )
        drawn += part
    return drawn


def _hash(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _digest(examples: Sequence[Example]) -> str:
    content = json.dumps([[e.id, e.text, e.target] for e in examples], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()
