"""What is each part of PEMT worth?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pemt.bench.grid import Grid, GridMethod
from pemt.bench.results import title_of
from pemt.errors import ConfigError
from pemt.studies.findings import Findings
from pemt.studies.study import Kind, Point, Rank, Study, sources_of
from pemt.studies.words import gain, level, opening, verdict

if TYPE_CHECKING:
    from pemt.bench.located import Located

PARTS = (
    "pemt-no-mixture", "pemt-no-prompt", "pemt-no-description", "pemt-no-tsl", "pemt-no-adapter",
    "pemt-frozen-norms", "pemt-task-gates",
)  # fmt: skip


def build(grid: Grid, options: Mapping[str, Any], _: Rank) -> tuple[Study, Grid]:
    """The grid's method, and the same with one part taken out or exchanged, or other methods.

    Raises:
        ConfigError: nothing to hold against the method.
        UnknownNameError: no such method.
    """
    sources_of(grid)
    (whole,) = (m.name for m in grid.chosen)
    names = [whole, *(n for n in options.get("methods") or PARTS if n != whole)]
    if len(names) < 2:
        raise ConfigError(f"methods: {whole}, and no other", "name one at least")
    made = tuple(Point(arm=name, title=title_of(name)) for name in names)
    grid = replace(grid, methods=[GridMethod(name=name) for name in names])
    return Study(kind="ablation", points=made, reference=whole), grid


def reading(findings: Findings, shots: int | None) -> list[str]:
    """What taking each part out costs, the dearest first."""
    study = findings.study
    said = [opening(findings, shots)]
    said.append(f"{study.point(study.reference).title}: {level(findings, study.reference, shots)}.")
    found = [
        (d.summary.mean, p.title, d)
        for p in study.points
        if (d := findings.against(p.arm, shots)) is not None and d.summary is not None
        and not math.isnan(d.summary.mean)
    ]  # fmt: skip
    found.sort(key=lambda entry: entry[:2])
    if found:
        _, title, worst = found[0]
        said.append(f"Lowest beside it: {title}, {gain(worst)}.")
    if len(found) > 1:
        _, title, best = found[-1]
        said.append(f"Highest: {title}, {gain(best)}.")
    said.append(verdict(findings, shots))
    return [sentence for sentence in said if sentence]


def _methods(given: Located) -> list[str]:
    return [item.of(str, "methods") for item in given.items()]


KIND = Kind(
    name="ablation", question="What is each part of PEMT worth?", axis="",
    measures=("effective_experts", "top", "trained", "train_seconds", "seconds", "peak_memory"),
    keys={"methods": _methods}, build=build, reading=reading,
)  # fmt: skip
