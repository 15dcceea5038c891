"""What does the Task Sparsity Loss do to the gates, and to the score?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pemt.bench.cell import arm_of
from pemt.bench.grid import Grid
from pemt.bench.variant import GridVariant
from pemt.errors import ConfigError
from pemt.model.config import PemtConfig
from pemt.studies.findings import Findings
from pemt.studies.study import Kind, Point, Rank, Study, sources_of
from pemt.studies.words import extremes, level, listed, opening, verdict

if TYPE_CHECKING:
    from pemt.bench.located import Located

WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)


def build(grid: Grid, options: Mapping[str, Any], _: Rank) -> tuple[Study, Grid]:
    """A variant per weight; they are held against the paper's, 0.1, or else the first.

    Raises:
        ConfigError: fewer than two sources or weights, a weight twice, below 0 or not finite.
    """
    sources = sources_of(grid)
    if len(sources) < 2:
        raise ConfigError("The gates of one source have nothing to choose", "take two or more")
    weights: Sequence[float] = options.get("weights") or WEIGHTS
    if not all(0 <= weight < math.inf for weight in weights):
        raise ConfigError(f"weights: {list(weights)}", "give numbers of 0 or more")
    # as they are named: to six digits
    if len(weights) < 2 or len({f"{weight:g}" for weight in weights}) != len(weights):
        raise ConfigError(f"weights: {list(weights)}", "give two or more, and each once")
    (method,) = (m.name for m in grid.chosen)
    variants, made = [], []
    for weight in sorted(weights):
        name = f"{weight:g}".replace("+", "")  # 1e+07; a name has no such sign
        variants.append(GridVariant(name=name, pemt={"sparsity_weight": weight}))
        made.append(Point(arm=arm_of(method, name), title=f"weight {name}", x=weight))
    usual = arm_of(method, f"{PemtConfig().sparsity_weight:g}")
    reference = usual if usual in [p.arm for p in made] else made[0].arm
    study = Study(kind="sparsity", points=tuple(made), reference=reference)
    return study, replace(grid, variants=variants)


def reading(findings: Findings, shots: int | None) -> list[str]:
    """Score and gates from the smallest weight to the largest."""
    study = findings.study
    usual = study.point(study.reference)
    told = list(dict.fromkeys([study.points[0], usual, study.points[-1]]))
    said = [opening(findings, shots)]
    said.append(
        "Mean score: "
        + ", ".join(f"{level(findings, p.arm, shots)} at {p.title}" for p in told)
        + "."
    )
    parts = []
    for measure, title in (
        ("effective_experts", "effective experts"), ("top", "the largest gate"),
        ("moved", f"the gates' distance from those at {usual.title}"),
    ):  # fmt: skip
        values = [findings.mean(measure, p.arm, shots) for p in told]
        if None not in values:
            parts.append(f"{title} {', '.join(f'{v:.2f}' for v in values)}")
    if parts:
        said.append(
            f"At {listed([p.title for p in told])}: {'; '.join(parts)} (of "
            f"{_experts(findings)} experts; one example's gates in one layer, then the mean)."
        )
    said += [extremes(findings, shots), verdict(findings, shots)]
    return [sentence for sentence in said if sentence]


def _experts(findings: Findings) -> int:
    return max((len(c.gates) for c in findings.results.cells if c.gates), default=0)


def _weights(given: Located) -> list[float]:
    return [float(item.of(float, "weights")) for item in given.items()]


KIND = Kind(
    name="sparsity",
    question="What does the weight of the Task Sparsity Loss do to the gates and to the score?",
    axis="weight of the Task Sparsity Loss",
    measures=("effective_experts", "entropy", "top", "moved"),
    keys={"weights": _weights}, build=build, reading=reading,
)  # fmt: skip
