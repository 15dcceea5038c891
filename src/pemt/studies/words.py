"""How numbers are put into a reading."""

from __future__ import annotations

from collections.abc import Sequence

from pemt.bench.asked import shots_title
from pemt.bench.cell import method_of
from pemt.bench.difference import Difference
from pemt.bench.summary import points
from pemt.studies.findings import SCORE, Findings


def opening(findings: Findings, shots: int | None) -> str:
    """How much there is: targets, draws, cells."""
    cells = [c for c in findings.results.cells if c.shots == shots]
    draws = len({c.data_seed for c in cells})
    defined = sum(
        (task, method_of(p.arm)) not in findings.asked.refused
        for task in findings.tasks for p in findings.study.points
    )  # fmt: skip
    counts = defined * len(findings.asked.data_seeds)
    return (
        f"{shots_title(shots).capitalize()}, {findings.results.base}, mean over "
        f"{listed(findings.tasks)} and {draws} draw{'s' * (draws != 1)} of labels "
        f"({len(cells)} of {counts} cells)."
    )


def level(findings: Findings, arm: str, shots: int | None) -> str:
    """The mean score of an arm: "63.3 ± 4.1 (n=3)"."""
    found = findings.over(SCORE, arm, shots)
    return "not known yet" if found is None else f"{found} (n={found.n})"


def gain(found: Difference | None) -> str:
    """ "+1.2 [-0.3, +2.7]", with wins, ties and losses."""
    if found is None or found.summary is None:
        return "not known yet"
    text = points(found.summary.mean, "+")
    if found.interval is not None:
        low, high = (points(end, "+") for end in found.interval)
        text += f" [{low}, {high}]"
    return f"{text}, {found.wins} won, {found.ties} level, {found.losses} lost"


def decided(found: Difference | None) -> int:
    """1 or -1 where the interval leaves out 0, else 0."""
    if found is None or found.interval is None:
        return 0
    low, high = found.interval
    return 1 if low > 0 else -1 if high < 0 else 0


def verdict(findings: Findings, shots: int | None) -> str:
    """Which arms differ from the reference by more than their intervals, and how many were read."""
    study = findings.study
    others = [p for p in study.points if p.arm != study.reference]
    found = {p.title: findings.against(p.arm, shots) for p in others}
    known = {title: d for title, d in found.items() if d is not None and d.interval is not None}
    reference = study.point(study.reference).title
    if not known:
        return f"No difference to {reference} has an interval yet (three draws of all targets)."
    parts = [f"{title} {gain(d)}" for title, d in known.items() if decided(d)]
    said = (
        f"Paired differences to {reference} whose 95 % interval (Student t over draws) leaves out "
        f"0: {'; '.join(parts)}."
        if parts
        else f"No paired difference to {reference} has a 95 % interval (Student t over draws) that "
        "leaves out 0."
    )
    one = len(known) == 1
    return said + (
        f" {len(known)} interval{'s were' if not one else ' was'} read; where nothing differs, one "
        "in twenty leaves out 0 all the same."
    )


def extremes(findings: Findings, shots: int | None) -> str:
    """The highest and the lowest mean score."""
    means = {
        p.title: found
        for p in findings.study.points
        if (found := findings.over(SCORE, p.arm, shots)) is not None and found.mean == found.mean
    }
    if len(means) < 2:
        return ""
    high = max(means, key=lambda t: means[t].mean)
    low = min(means, key=lambda t: means[t].mean)
    return f"Highest mean: {high}, {means[high]}; lowest: {low}, {means[low]}."


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
