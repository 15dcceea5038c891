"""One cell of a grid: one method on one task with one draw of labels, and its folder on disk.

OUTPUT/grid.json                        the grid as it was run, with versions
OUTPUT/cells/TASK-SHOTS-SEED-METHOD-KEY/     METHOD@VARIANT in a grid with variants
    cell.json                           everything below
    predictions.json                    id, target and answer of every test row
    error.json                          instead of the two above, after a failure
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pemt.errors import DataError

CELL, PREDICTIONS, ERROR = "cell.json", "predictions.json", "error.json"
AT = "@"


def arm_of(method: str, variant: str) -> str:
    """What tables compare: a method, or a method in a variant ("pemt@short")."""
    return f"{method}{AT}{variant}" if variant else method


def method_of(arm: str) -> str:
    """The method of an arm."""
    return arm.partition(AT)[0]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one cell gave.

    Attributes:
        key: hash of everything that decides the result; the last part of the folder's name.
        base: name of the base.
        task: name of the target task.
        method: a name of `pemt.methods.METHODS`.
        variant: of the grid; "" where it has none.
        shots: labels per class; None for the full split.
        data_seed: of the draw; initialisation and order use the same number.
        score: name of the metric that tables show for this task.
        metrics: on the test rows, "n" among them.
        validation: of the task's first metric at the kept step; None without training.
        learning_rate: chosen on validation; None where nothing trains by gradient.
        tried: validation score by learning rate, each written as "0.001".
        trained: parameters that trained.
        total: parameters of the base and what was added.
        seconds: building, training and evaluating.
        train_seconds: of the training steps alone, over all learning rates tried.
        peak_memory: bytes of resident memory (CUDA: allocated) at the cell's worst, base included;
            None where the system does not say.
        gates: mean gate per expert over layers, by name; None for methods without gates.
        gates_by_layer: the same `[layers][K]`, in the order of `gates`.
        gate_spread: how far gates are spread over experts, as `pemt.analysis.gates.spread` says.
        notes: of the method, such as the expert it chose.
        config: the effective settings, options, experts and few-shot manifest.
        versions: of the libraries.
    """

    key: str
    base: str
    task: str
    method: str
    variant: str = ""
    shots: int | None
    data_seed: int
    score: str
    metrics: dict[str, float]
    validation: float | None
    learning_rate: float | None
    tried: dict[str, float] = field(default_factory=dict)
    trained: int
    total: int
    seconds: float
    train_seconds: float
    peak_memory: int | None = None
    gates: dict[str, float] | None = None
    gates_by_layer: list[list[float]] | None = None
    gate_spread: dict[str, float] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The score that tables show, between 0 and 1 (correlations: -1 and 1)."""
        return self.metrics[self.score]

    @property
    def own_sources(self) -> list[str]:
        """Those of its experts that were trained on its target task; nothing is few-shot then."""
        found = self.notes.get("own_sources", [])
        return [str(name) for name in found] if isinstance(found, list) else []

    @property
    def arm(self) -> str:
        """What it is compared as: its method, in its variant."""
        return arm_of(self.method, self.variant)

    @property
    def name(self) -> str:
        """Of its folder."""
        shots = "full" if self.shots is None else self.shots
        return f"{self.task}-{shots}-{self.data_seed}-{self.arm}-{self.key}"


def read_cell(folder: Path) -> Cell:
    """The finished cell in a folder.

    Raises:
        DataError: its file is missing, no JSON, or holds other fields.
    """
    path = folder / CELL
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Cell)}
        return Cell(**{k: v for k, v in given.items() if k in known})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no finished cell ({error})", "remove its folder and run the grid again"
        ) from error


def read_cells(output: Path) -> Iterator[Cell]:
    """Every finished cell of a grid's output folder, in the order of names.

    Raises:
        DataError: no such folder, or a damaged cell.
    """
    folder = output / "cells"
    if not folder.is_dir():
        raise DataError(f"{output} holds no cells", "give the output folder of `pemt bench run`")
    for path in sorted(folder.iterdir()):
        # a hidden folder is one that is being written, or that a killed run left
        if not path.name.startswith(".") and (path / CELL).is_file():
            yield read_cell(path)
