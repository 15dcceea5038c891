"""A study as a picture: scores of the mean and of each target, then what was looked at beside.

Settings with an order are lines, others are dots. Bars are standard deviations over draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pemt.bench.asked import shots_title
from pemt.bench.figure import MARKERS, PALETTE
from pemt.bench.summary import Summary
from pemt.studies.findings import SCORE, Findings
from pemt.studies.kinds import KINDS
from pemt.studies.measures import MEASURES
from pemt.studies.study import Point

DRAWN = {
    "sources": ("train_seconds", "seconds", "peak_memory", "effective_experts"),
    "sparsity": ("effective_experts", "top", "entropy", "moved"),
    "prompt": ("moved", "from_uniform", "effective_experts"),
    "ablation": ("effective_experts", "train_seconds"),
}
"""Of a study's measures, those with a panel."""

Shown = Callable[[Point], Summary | None]


def plot(findings: Findings, path: Path) -> Path:
    """One block of panels for each number of shots: the mean, the targets, then the measures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    study, kind = findings.study, KINDS[findings.study.kind]
    ordered = bool(kind.axis)
    panels = [
        (shots, measure, task)
        for shots in findings.shots
        for measure, task in [
            (SCORE, None), *((SCORE, t) for t in findings.tasks if len(findings.tasks) > 1),
            *((m, None) for m in DRAWN[study.kind]),
        ]
    ]  # fmt: skip
    across = 4
    down = math.ceil(len(panels) / across)
    height = 2.6 if ordered else 0.9 + 0.26 * len(study.points)
    with plt.rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure, axes = plt.subplots(
            down, across, figsize=(11.5 if ordered else 12.5, height * down + 0.7),
            layout="constrained", squeeze=False, sharey=not ordered,
        )  # fmt: skip
        for at, (shots, measure, task) in zip(axes.flat, panels, strict=False):

            def shown(p: Point, m: str = measure, s: Any = shots, t: Any = task) -> Summary | None:
                return findings.over(m, p.arm, s, t)

            scale = 100.0 if measure == SCORE else 1.0
            (_lines if ordered else _dots)(at, findings, shown, scale)
            if measure == SCORE:
                whole = "mean over targets" if len(findings.tasks) > 1 else findings.tasks[0]
                at.set_title(task or whole, fontweight=None if task else "bold")
                unit = "score (points)"
            else:
                at.set_title(MEASURES[measure].title)
                unit = ""
            if len(findings.shots) > 1:
                at.set_title(f"{at.get_title()}, {shots_title(shots)}")
            (at.set_ylabel if ordered else at.set_xlabel)(unit)
            at.grid(color="#e4e4e4", linewidth=0.6)
            at.set_axisbelow(True)
            at.spines[["top", "right"]].set_visible(False)
        for at in axes.flat[len(panels) :]:
            at.set_visible(False)
        if ordered:
            for at in axes.flat[: len(panels)]:
                at.set_xlabel(kind.axis)
            handles, labels = axes.flat[0].get_legend_handles_labels()
            if len(study.lines) > 1 and handles:
                figure.legend(
                    handles, labels, loc="outside lower center", ncols=len(labels), frameon=False
                )
        counted = [
            findings.over(SCORE, p.arm, k, t)
            for p in study.points for k in findings.shots for t in findings.tasks
        ]  # fmt: skip
        n = sorted({s.n for s in counted if s is not None})
        spread = "-".join(map(str, dict.fromkeys((n[0], n[-1])))) if n else "0"
        which = "" if len(findings.shots) > 1 else f", {shots_title(findings.shots[0])}"
        figure.suptitle(
            f"{kind.question}\n{findings.results.base}{which}: mean ± standard deviation over "
            f"n={spread} draws"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        plt.close(figure)
    return path


def _places(findings: Findings) -> dict[float, float]:
    """x -> its place: evenly apart on a scale that starts at 0, else by logarithm."""
    values = sorted({p.x for p in findings.study.points if p.x is not None})
    if KINDS[findings.study.kind].logarithmic:
        return {x: math.log2(x) for x in values}
    return {x: float(i) for i, x in enumerate(values)}


def _lines(at: Any, findings: Findings, shown: Shown, scale: float) -> None:
    places = _places(findings)
    lines = findings.study.lines
    width = 0.12 * (max(places.values()) - min(places.values()) or 1.0) / max(1, len(places) - 1)
    for i, line in enumerate(lines):
        aside = width * (i - (len(lines) - 1) / 2)
        there = [
            (places[p.x], s)
            for p in findings.study.points
            if line in p.lines and p.x is not None and (s := shown(p)) and not math.isnan(s.mean)
        ]
        at.errorbar(
            [x + aside for x, _ in there], [scale * s.mean for _, s in there],
            yerr=[scale * s.deviation for _, s in there], label=line or None,
            color=PALETTE[i], marker=MARKERS[i], markersize=4, linewidth=1.4, elinewidth=0.8,
            capsize=2,
        )  # fmt: skip
    at.set_xticks(list(places.values()), [f"{x:g}" for x in places])


def _dots(at: Any, findings: Findings, shown: Shown, scale: float) -> None:
    """A dot per setting, the first on top; a line through the reference's."""
    from matplotlib.ticker import MaxNLocator

    study = findings.study
    for i, p in enumerate(study.points):
        s = shown(p)
        if s is None or math.isnan(s.mean):
            continue
        mine = p.arm == study.reference
        at.errorbar(
            [scale * s.mean], [-i], xerr=[scale * s.deviation], markersize=5, linewidth=1.2,
            capsize=2, color=PALETTE[0 if mine else 1], marker="o" if mine else "s",
        )  # fmt: skip
        if mine:
            at.axvline(scale * s.mean, color=PALETTE[0], linewidth=0.8, linestyle=":")
    at.xaxis.set_major_locator(MaxNLocator(5))
    at.set_yticks([-i for i in range(len(study.points))], [p.title for p in study.points])
    at.set_ylim(-len(study.points) + 0.4, 0.6)
