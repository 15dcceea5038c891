"""How many sources, and does it matter which come first?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from pemt.bench.cell import arm_of
from pemt.bench.grid import Grid
from pemt.bench.summary import points
from pemt.bench.variant import GridVariant
from pemt.errors import ConfigError, UnknownNameError
from pemt.studies.diminishing import enough
from pemt.studies.findings import Findings
from pemt.studies.study import Kind, Point, Rank, Study, sources_of
from pemt.studies.words import extremes, gain, level, opening, verdict

if TYPE_CHECKING:
    from pemt.bench.located import Located

ORDERS = ("ranked", "reverse", "random")
COUNTS = (1, 2, 3, 5, 8, 12)


def build(grid: Grid, options: Mapping[str, Any], rank: Rank) -> tuple[Study, Grid]:
    """The first 1, 2, .. of the sources in each order, and all of them.

    Raises:
        ConfigError: fewer than two sources, or more asked for than there are.
        UnknownNameError: no such order.
    """
    sources = sources_of(grid)
    if len(sources) < 2:
        raise ConfigError(
            f"A study of the number of sources with {len(sources)}: {', '.join(sources) or 'none'}",
            "it takes two or more; train others with pemt train-source",
        )
    orders: Sequence[str] = options.get("orders") or ORDERS
    for order in orders:
        if order not in ORDERS:
            raise UnknownNameError("order", order, ORDERS)
    counts = options.get("counts") or [n for n in COUNTS if n < len(sources)]
    for count in counts:
        if not 1 <= count <= len(sources):
            raise ConfigError(f"counts: {count} of {len(sources)} sources",
                              f"give 1 to {len(sources)}")  # fmt: skip
    if len(set(counts)) != len(counts) or len(set(orders)) != len(orders):
        raise ConfigError(f"counts: {list(counts)}, orders: {list(orders)}", "name each once")
    (method,) = (m.name for m in grid.chosen)
    ranked = rank()
    variants, made = [], []
    for order in orders:
        by_draw = {draw: ordered(order, names, draw) for draw, names in ranked.items()}
        for count in sorted(set(counts) - {len(sources)}):
            name = f"{order}-{count}"
            first = {draw: names[:count] for draw, names in by_draw.items()}
            variants.append(GridVariant(name=name, experts=first))
            title = f"{count} {'source' if count == 1 else 'sources'}, {order}"
            made.append(
                Point(arm=arm_of(method, name), title=title, x=float(count), lines=(order,))
            )
    everything = Point(
        arm=arm_of(method, "all"), title=f"all {len(sources)} sources", x=float(len(sources)),
        lines=tuple(orders),
    )  # fmt: skip
    # in the library's order, which is the same at every draw
    variants.append(GridVariant(name="all", experts=sources))
    study = Study(kind="sources", points=(*made, everything), reference=everything.arm)
    return study, replace(grid, variants=variants)


def ordered(order: str, ranked: Sequence[str], draw: str) -> list[str]:
    """The sources of a draw in an order; "random" is another one at every draw."""
    if order == "random":
        seed = int.from_bytes(hashlib.sha256(draw.encode()).digest()[:8], "big")
        names = sorted(ranked)
        shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
        return [names[i] for i in shuffled]
    return list(ranked) if order == "ranked" else list(reversed(ranked))


def reading(findings: Findings, shots: int | None) -> list[str]:
    """Where returns diminish in each order, and what that costs."""
    study = findings.study
    said = [opening(findings, shots)]
    last = study.point(study.reference)
    said.append(f"With {last.title}: {level(findings, last.arm, shots)}.")
    for line in study.lines:
        there = [p for p in study.points if line in p.lines]
        arms = [p.arm for p in there if findings.results.methods.count(p.arm)]
        blocks, scores = findings.blocks(arms, shots) if len(arms) > 1 else ([], {})
        numbers = {int(study.point(a).x or 0): v for a, v in scores.items()}
        rule = enough(numbers) if blocks else None
        if rule is None:
            said.append(f"In {line} order too little is there to say where returns diminish.")
            continue
        here = next(p for p in there if p.x == rule.count)
        said.append(
            f"In {line} order the highest mean is at {rule.best}, and {rule.count} "
            f"{'is' if rule.count == 1 else 'are'} enough ({level(findings, here.arm, shots)}): "
            f"the smallest number no more than one standard error ({points(rule.error)} points, "
            f"{rule.blocks} target-draw pairs) below the best."
        )
    said += [extremes(findings, shots), verdict(findings, shots), _orders_apart(findings, shots),
             _cost(findings, shots)]  # fmt: skip
    return [sentence for sentence in said if sentence]


def _orders_apart(findings: Findings, shots: int | None) -> str:
    """What the ranking is worth: ranked minus random order at equal numbers."""
    at = {(p.lines, p.x): p.arm for p in findings.study.points}
    parts = []
    for (lines, x), arm in at.items():
        other = at.get((("random",), x))
        if lines != ("ranked",) or other is None or x is None:
            continue
        found = findings.against(arm, shots, to=other)
        if found is not None:
            parts.append(f"{x:g}: {gain(found)}")
    return f"Ranked minus random order, by number of sources: {'; '.join(parts)}." if parts else ""


def _cost(findings: Findings, shots: int | None) -> str:
    study = findings.study
    line = study.lines[0]
    there = [p for p in study.points if line in p.lines]
    few, many = there[0], there[-1]
    parts = []
    for measure, unit in (
        ("train_seconds", "s of training"), ("seconds", "s in all"),
        ("parameters", "million parameters"), ("peak_memory", "MiB at the peak"),
    ):  # fmt: skip
        a, b = (findings.mean(measure, p.arm, shots) for p in (few, many))
        if a is not None and b is not None:
            digits = 0 if measure == "peak_memory" else 1
            parts.append(f"{a:.{digits}f} to {b:.{digits}f} {unit}")
    if not parts:
        return ""
    said = f"From {few.title} to {many.title}: {', '.join(parts)}."
    if findings.ranking_seconds:
        said += (
            f" Ranking the sources, once per draw and not counted there, took "
            f"{median(findings.ranking_seconds):.0f} s (median)."
        )
    return said


def _counts(given: Located) -> list[int]:
    return [item.of(int, "counts") for item in given.items()]


def _orders(given: Located) -> list[str]:
    return [item.of(str, "orders") for item in given.items()]


KIND = Kind(
    name="sources",
    question="How do score, time and memory change with the number of sources?",
    axis="number of sources", logarithmic=True,
    measures=("train_seconds", "seconds", "parameters", "peak_memory", "effective_experts", "top"),
    keys={"counts": _counts, "orders": _orders}, build=build, reading=reading,
)  # fmt: skip
