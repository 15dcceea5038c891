"""A study's folder with chosen scores and gates, as a run would leave it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pemt.bench.cell import CELL
from pemt.bench.output import OutputFolder
from pemt.studies.running import keep
from pemt.studies.study import Point, Study
from tests.bench.cells import cell as plain


def cell(arm, seed, value, *, task="rte", gates=None, **other):
    method, _, variant = arm.partition("@")
    layers = gates or [[0.5, 0.5]]
    return plain(
        method, seed, value, task=task, variant=variant, gates_by_layer=layers,
        gates=dict(zip("ab", layers[0], strict=True)),
        gate_spread={"entropy": 0.6, "effective_experts": 1.8, "top": max(layers[0])}, **other,
    )  # fmt: skip


def sparsity(weights=(0.0, 0.1, 3.0)) -> Study:
    points = tuple(
        Point(arm=f"pemt@{w:g}", title=f"weight {w:g}", x=w) for w in weights
    )  # fmt: skip
    return Study(kind="sparsity", points=points, reference="pemt@0.1")


def write(output: Path, study: Study, cells, *, tasks=("rte", "cb"), seeds=3) -> OutputFolder:
    """The folder: `cells` are finished, the others of the grid are not."""
    arms = [p.arm.partition("@") for p in study.points]
    names = {}
    for task in tasks:
        for seed in range(seeds):
            for p in study.points:
                names[f"{task}-16-{seed}-{p.arm}"] = f"{task}-16-{seed}-{p.arm}-k1"
    grid = {
        "tasks": [{"name": t} for t in tasks], "shots": [16], "data_seeds": list(range(seeds)),
        "methods": [{"name": m} for m in dict.fromkeys(m for m, _, _ in arms)],
        **({"variants": [{"name": v} for _, _, v in arms]} if arms[0][2] else {}),
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    (output / "grid.json").write_text(
        json.dumps({"grid": grid, "cells": names, "refused": [], "versions": {}})
    )
    for c in cells:
        (output / "cells" / c.name).mkdir(parents=True)
        (output / "cells" / c.name / CELL).write_text(json.dumps(asdict(c)))
    folder = OutputFolder(output)
    keep(study, folder)
    return folder


def whole():
    """Two targets, three weights, three draws: weight 3 loses 10, 20 and 30 points on each."""
    sharp = [[0.9, 0.1]]
    return [
        c
        for task, level in (("rte", 0.7), ("cb", 0.6))
        for seed in range(3)
        for c in (
            cell("pemt@0", seed, level, task=task),
            cell("pemt@0.1", seed, level, task=task),
            cell("pemt@3", seed, level - 0.1 * (seed + 1), task=task, gates=sharp),
        )
    ]
