"""Cells with chosen scores, and the folder that a grid would leave."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pemt.bench.cell import CELL, Cell


def cell(method, seed, value, *, task="rte", shots=16, score="accuracy", n=100, key="k1", **other):
    return Cell(
        key=key, base=other.pop("base", "tiny"), task=task, method=method, shots=shots,
        data_seed=seed, score=score, metrics={score: value, "n": n, "loss": 0.5},
        validation=0.5, learning_rate=1e-3,
        **{"trained": 10, "total": 1000, "seconds": 3.0, "train_seconds": 2.0, **other},
    )  # fmt: skip


def row(method, values, **other):
    """One cell per value, data seeds from 0."""
    return [cell(method, seed, value, **other) for seed, value in enumerate(values)]


def write(output: Path, made, grid=None, **more) -> Path:
    for c in made:
        folder = output / "cells" / c.name
        folder.mkdir(parents=True)
        (folder / CELL).write_text(json.dumps(asdict(c)))
    if grid is not None:
        (output / "grid.json").write_text(json.dumps({"grid": grid, "versions": {}, **more}))
    return output


def study():
    """Two targets, three methods, three seeds; means by hand in the tests."""
    return [
        *row("pemt", [0.70, 0.80, 0.90]), *row("lora", [0.60, 0.80, 0.70]),
        *row("single", [0.50, 0.60, 0.70]),
        *row("pemt", [0.40, 0.50, 0.60], task="cb", n=28),
        *row("lora", [0.50, 0.55, 0.60], task="cb", n=28),
        *row("single", [0.30, 0.30, 0.30], task="cb", n=28),
    ]  # fmt: skip
