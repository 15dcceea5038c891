"""The rows of an adapted model's task, where they can be had, and what the model scores on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pemt.errors import PemtError
from pemt.model import AdaptedModel, PemtModel
from pemt.tasks import Example, load_splits
from pemt.training.deploying import Deployed
from pemt.training.evaluating import evaluate
from pemt.training.gates import gates_of, gates_of_rows
from pemt.training.sourcing import some

GATE_ROWS = 256


@dataclass(frozen=True)
class AtHand:
    """Rows of the task.

    Attributes:
        train: at most `GATE_ROWS`, for gates: their labels are not looked at.
        test: for scores.
        missing: why there are none; empty where there are.
    """

    train: list[Example]
    test: list[Example]
    missing: str = ""

    def gates(self, deployed: Deployed, model: PemtModel) -> Tensor | None:
        """Mean gates over the training rows, `[layers, K]`; None without rows."""
        found = gates_of(model, deployed.task, deployed.base, self.train, deployed.settings)
        return None if found is None else found[0]

    def every_gate(self, deployed: Deployed, model: PemtModel) -> Tensor:
        """Gates of each training row, `[B, L, K]`."""
        asked = gates_of_rows(model, deployed.task, deployed.base, self.train, deployed.settings)
        return torch.cat([g.transpose(0, 1).cpu() for g in asked])

    def scores(self, deployed: Deployed, model: AdaptedModel) -> dict[str, float] | None:
        """Metrics on the test rows; None without rows."""
        if not self.test:
            return None
        tokenizer = deployed.base.tokenizer
        return evaluate(model, deployed.task, tokenizer, self.test, deployed.settings)[0]


def recorded_gates(place: Path, model: PemtModel) -> Tensor | None:
    """Mean gates by layer as the run wrote them beside its model, `[L, K]`; None without."""
    path = place.parent / "results.json"
    if not path.is_file() or not model.gated_sites():
        return None
    try:
        by_layer = json.loads(path.read_text(encoding="utf-8"))["gates"]["by_layer"]
        rows = [[by_layer[site.label][name] for name in model.gate_names]
                for site in model.gated_sites()]  # fmt: skip
        return torch.tensor(rows)
    except (ValueError, KeyError, TypeError, RuntimeError):
        return None


def at_hand(deployed: Deployed, *, rows: int | None, data_dir: str | Path | None = None) -> AtHand:
    """The task's rows, or why they cannot be had: what follows does not need them.

    Args:
        deployed: whose task.
        rows: at most this many test rows, drawn by seed 0; 0: do not look for rows.
        data_dir: local mirror of datasets.
    """
    if rows == 0:
        return AtHand([], [], "not asked for")
    try:
        splits = load_splits(deployed.task, data_dir=data_dir)
    except PemtError as error:
        return AtHand([], [], error.what)
    return AtHand(some(splits.train, GATE_ROWS, 0), some(splits.test, rows, 0))
