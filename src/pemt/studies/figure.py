"""A study as a picture: scores of the mean and of each target, then what was looked at beside.

Settings with an order are lines, others are dots. Bars are standard deviations over draws.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pemt.bench.asked import shots_title
from pemt.bench.figure import MARKERS, PALETTE
from pemt.studies.findings import SCORE, Findings
from pemt.studies.kinds import KINDS
from pemt.studies.measures import MEASURES
from pemt.studies.study import Study

DRAWN = {
    "sources": ("train_seconds", "seconds", "peak_memory", "effective_experts"),
    "sparsity": ("effective_experts", "top", "entropy", "moved"),
    "prompt": ("moved", "from_uniform", "effective_experts"),
    "ablation": ("effective_experts", "train_seconds"),
}
"""Of a study's measures, those with a panel."""

Span = tuple[float, float, float]
"""Mean, and the ends of its bar."""

PAIRED = "paired"
"""The panel of differences to the reference, with the intervals that the reading takes."""


def plot(findings: Findings, path: Path) -> Path:
    """One block of panels for each number of shots: the mean, the targets, then the measures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    study, kind = findings.study, KINDS[findings.study.kind]
    ordered = bool(kind.axis)
    panels = [(shots, *panel) for shots in findings.shots for panel in _panels(findings)]
    across = 4
    down = math.ceil(len(panels) / across)
    height = 2.6 if ordered else 0.9 + 0.26 * len(study.points)
    plain = {"text.parse_math": False}  # a dollar sign in a name is a dollar sign
    with plt.rc_context({"font.size": 9, "axes.titlesize": 10, **plain}):
        figure, axes = plt.subplots(
            down, across, figsize=(11.5 if ordered else 12.5, height * down + 0.7),
            layout="constrained", squeeze=False, sharey=not ordered,
        )  # fmt: skip
        for at, panel in zip(axes.flat, panels, strict=False):
            _draw(at, findings, *panel)
        for at in axes.flat[len(panels) :]:
            at.set_visible(False)
        if len(study.lines) > 1:
            handles, labels = axes.flat[0].get_legend_handles_labels()
            figure.legend(
                handles, labels, loc="outside lower center", ncols=len(labels), frameon=False
            )
        which = "" if len(findings.shots) > 1 else f", {shots_title(findings.shots[0])}"
        figure.suptitle(
            f"{kind.question}\n{findings.results.base}{which}: mean ± standard deviation over "
            f"n={_draws(findings)} draws"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        plt.close(figure)
    return path


def _panels(findings: Findings) -> list[tuple[str, str | None]]:
    """What is drawn, and of which target; None is their mean."""
    kind = KINDS[findings.study.kind]
    found: list[tuple[str, str | None]] = [] if kind.axis else [(PAIRED, None)]
    found.append((SCORE, None))
    if len(findings.tasks) > 1:
        found += [(SCORE, task) for task in findings.tasks]
    return found + [(measure, None) for measure in DRAWN[kind.name]]


def _draw(at: Any, findings: Findings, shots: int | None, measure: str, task: str | None) -> None:
    study, kind = findings.study, KINDS[findings.study.kind]
    factor = 100.0 if measure in (SCORE, PAIRED) else 1.0
    spans: dict[str, Span] = {}
    for p in study.points:
        if measure == PAIRED:
            found = findings.against(p.arm, shots)
            summary = None if found is None else found.summary
            ends = None if found is None else found.interval
        else:
            summary, ends = findings.over(measure, p.arm, shots, task), None
        if summary is None or math.isnan(summary.mean):
            continue
        low, high = ends or (summary.mean - summary.deviation, summary.mean + summary.deviation)
        spans[p.arm] = (factor * summary.mean, factor * low, factor * high)
    title = MEASURES[measure].title if measure in MEASURES else task or "mean over targets"
    if measure == SCORE and task is None and len(findings.tasks) == 1:
        title = findings.tasks[0]
    if measure == PAIRED:
        title = f"minus {study.point(study.reference).title}, 95 % (t)"
    if len(findings.shots) > 1:
        title += f", {shots_title(shots)}"
    at.set_title(title, fontweight="bold" if factor > 1 and task is None else None)
    unit = {SCORE: "score (points)", PAIRED: "difference (points)"}.get(measure, "")
    if kind.axis:
        _lines(at, findings, spans)
        at.set_xlabel(kind.axis)
        at.set_ylabel(unit)
    else:
        _dots(at, study, spans, 0.0 if measure == PAIRED else None)
        at.set_xlabel(unit)
    at.grid(color="#e4e4e4", linewidth=0.6)
    at.set_axisbelow(True)
    at.spines[["top", "right"]].set_visible(False)


def _draws(findings: Findings) -> str:
    """ "3", or "2-3" where the draws of some settings are fewer."""
    counted = [
        findings.over(SCORE, p.arm, shots, task)
        for p in findings.study.points for shots in findings.shots for task in findings.tasks
    ]  # fmt: skip
    n = sorted({s.n for s in counted if s is not None})
    return "-".join(map(str, dict.fromkeys((n[0], n[-1]))))


def _places(findings: Findings) -> dict[float, float]:
    """x -> its place: by logarithm, or one step after the other where the axis begins at 0."""
    values = sorted({p.x for p in findings.study.points if p.x is not None})
    if KINDS[findings.study.kind].logarithmic:
        return {x: math.log2(x) for x in values}
    return {x: float(i) for i, x in enumerate(values)}


def _lines(at: Any, findings: Findings, spans: dict[str, Span]) -> None:
    places = _places(findings)
    lines = findings.study.lines
    width = 0.12 * (max(places.values()) - min(places.values()) or 1.0) / max(1, len(places) - 1)
    for i, line in enumerate(lines):
        aside = width * (i - (len(lines) - 1) / 2)  # so that bars of equal lines are all seen
        there = [
            (places[p.x], *spans[p.arm])
            for p in findings.study.points
            if line in p.lines and p.x is not None and p.arm in spans
        ]
        at.errorbar(
            [x + aside for x, *_ in there], [mean for _, mean, _, _ in there],
            yerr=[[m - low for _, m, low, _ in there], [high - m for _, m, _, high in there]],
            label=line or None, color=PALETTE[i], marker=MARKERS[i], markersize=4, linewidth=1.4,
            elinewidth=0.8, capsize=2,
        )  # fmt: skip
    at.set_xticks(list(places.values()), [f"{x:g}" for x in places])


def _dots(at: Any, study: Study, spans: dict[str, Span], line: float | None) -> None:
    """A dot per setting, the first on top; a line at a value, or through the reference's dot."""
    from matplotlib.ticker import MaxNLocator

    for i, p in enumerate(study.points):
        if p.arm not in spans:
            continue
        mean, low, high = spans[p.arm]
        mine = p.arm == study.reference
        at.errorbar(
            [mean], [-i], xerr=[[mean - low], [high - mean]], markersize=5, linewidth=1.2,
            capsize=2, color=PALETTE[0 if mine else 1], marker="o" if mine else "s",
        )  # fmt: skip
        line = mean if mine else line
    if line is not None:
        at.axvline(line, color=PALETTE[0], linewidth=0.8, linestyle=":")
    at.xaxis.set_major_locator(MaxNLocator(5))
    at.set_yticks([-i for i in range(len(study.points))], [p.title for p in study.points])
    at.set_ylim(-len(study.points) + 0.4, 0.6)
