"""A study as Markdown, CSV, JSON and a picture, beside its cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pemt.bench.asked import shots_title
from pemt.bench.difference import Difference
from pemt.bench.output import OutputFolder
from pemt.bench.summary import Summary, points
from pemt.bench.table import NONE, Entry, Table
from pemt.bench.writing import markdown
from pemt.studies.findings import SCORE, Findings
from pemt.studies.kinds import KINDS
from pemt.studies.measures import MEASURES
from pemt.studies.study import Point
from pemt.writing import without_nan, write_named

FIELDS = (
    "study", "shots", "arm", "title", "line", "x", "task", "measure", "n", "mean", "deviation",
    "against", "difference", "t_low", "t_high", "bootstrap_low", "bootstrap_high", "wins", "ties",
    "losses",
)  # fmt: skip
"""One line per setting, target (or "mean") and measure; scores and differences in points."""


def write_findings(findings: Findings, folder: OutputFolder) -> dict[str, Path]:
    """Write study.md, study.csv, study.json and study.png; the words, for the screen, are `text`.

    Returns:
        What each is: "table", "csv", "json", "plot" -> file.
    """
    from pemt.studies.figure import plot
    from pemt.training.record import write_json

    root = folder.root
    made = {
        "table": root / "study.md", "csv": root / "study.csv", "json": root / "study.json",
        "plot": root / "study.png",
    }  # fmt: skip
    write_named(made["table"], text(findings))
    write_named(made["csv"], sheet(findings))
    write_json(made["json"], everything(findings, folder))
    plot(findings, made["plot"])
    return made


def text(findings: Findings) -> str:
    """The question, what is missing, the reading and the tables, as Markdown."""
    kind = KINDS[findings.study.kind]
    parts = [f"## {kind.question}"]
    parts += [f"**{line}**" for line in findings.header]
    for shots in findings.shots:
        parts.append(" ".join(kind.reading(findings, shots)))
    tables = [t for shots in findings.shots for t in (scores(findings, shots),
              *against(findings, shots), measures(findings, shots))]  # fmt: skip
    return "\n\n".join(parts) + "\n\n" + markdown(tables)


def scores(findings: Findings, shots: int | None) -> Table:
    """Settings down, targets across."""
    body = []
    for p in findings.study.points:
        here = [findings.over(SCORE, p.arm, shots, task) for task in findings.tasks]
        here.append(findings.over(SCORE, p.arm, shots))
        n = max((s.n for s in here if s is not None), default=0)
        entries = [
            Entry(NONE if s is None else f"{s}{f' (n={s.n})' if s.n != n else ''}") for s in here
        ]
        body.append((Entry(p.title), *entries, Entry(str(n))))
    titles = [f"{t} ({_metric(findings, t)})" for t in findings.tasks]
    return Table(
        title=f"Scores, {shots_title(shots)}", columns=("setting", *titles, "mean", "n"), words=1,
        rows=tuple(body),
        remarks=("Points, mean ± sample standard deviation over n draws of labels.",),
    )  # fmt: skip


def against(findings: Findings, shots: int | None) -> list[Table]:
    """Paired differences of the mean over targets; none where nothing can be paired."""
    study = findings.study
    body = []
    for p in study.points:
        student = findings.against(p.arm, shots, "t")
        if student is None or student.summary is None:
            continue
        resampled = findings.against(p.arm, shots, "bootstrap")
        body.append(
            (
                Entry(p.title), Entry(student.summary.shown("+")), Entry(str(student.summary.n)),
                Entry(_ends(student)), Entry(_ends(resampled)),
                *(Entry(str(n)) for n in (student.wins, student.ties, student.losses)),
            )
        )  # fmt: skip
    if not body:
        return []
    return [
        Table(
            title=f"Minus {study.point(study.reference).title}, {shots_title(shots)}",
            columns=("setting", "difference", "n", "95 % (t)", "95 % (bootstrap)", "won", "level",
                     "lost"),
            words=1, rows=tuple(body),
            remarks=(
                "Mean over targets of the paired difference, n draws; won, level and lost count "
                "pairs of a target and a draw. The bootstrap's interval is too narrow with so few "
                "draws; the reading takes Student's.",
            ),
        )
    ]  # fmt: skip


def measures(findings: Findings, shots: int | None) -> Table:
    """What is looked at beside the score, means over targets and draws."""
    names = KINDS[findings.study.kind].measures
    body = [
        (Entry(p.title), *(Entry(_number(n, findings.mean(n, p.arm, shots))) for n in names))
        for p in findings.study.points
    ]
    return Table(
        title=f"Gates and costs, {shots_title(shots)}",
        columns=("setting", *(MEASURES[n].title for n in names)), words=1, rows=tuple(body),
        remarks=("Means over targets and draws.",),
    )  # fmt: skip


def sheet(findings: Findings) -> str:
    """Long CSV, the columns of `FIELDS`."""
    study = findings.study
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for line in aggregates(findings):
        paired = line.pop("against_reference", {})
        point: Point = study.point(line["arm"])
        writer.writerow(
            {
                "study": study.kind, **line, "title": point.title, "line": "+".join(point.lines),
                "x": "" if point.x is None else f"{point.x:g}",
                "shots": "full" if line["shots"] is None else line["shots"],
                **{k: v for k, v in paired.items() if k in FIELDS},
            }
        )  # fmt: skip
    return out.getvalue()


def aggregates(findings: Findings) -> list[dict[str, Any]]:
    """Every mean, and with the score's its paired difference to the reference."""
    found = []
    for shots in findings.shots:
        kinds = {
            "t": findings.differences(shots, "t"),
            "bootstrap": findings.differences(shots, "bootstrap"),
        }
        for p in findings.study.points:
            for name in (SCORE, *KINDS[findings.study.kind].measures):
                for task in (*findings.tasks, None):
                    s = findings.over(name, p.arm, shots, task)
                    if s is None:
                        continue
                    line = {"shots": shots, "arm": p.arm, "task": task or "mean", "measure": name,
                            **_told(s, 100 if name == SCORE else 1)}  # fmt: skip
                    if name == SCORE:
                        line["against_reference"] = _paired(kinds, p.arm, task)
                    found.append(line)
    return found


def everything(findings: Findings, folder: OutputFolder) -> dict[str, Any]:
    """All of it, for whoever computes further: aggregates, and every cell's numbers."""
    kind = KINDS[findings.study.kind]
    described = folder.description() or {}
    shown: dict[str, Any] = without_nan({
        "study": findings.study.to_dict(), "question": kind.question, "header": findings.header,
        "reading": {
            "full" if s is None else str(s): " ".join(kind.reading(findings, s))
            for s in findings.shots
        },
        "grid": described.get("grid"), "versions": described.get("versions"),
        "aggregates": aggregates(findings),
        "cells": [
            {
                "cell": c.name, "arm": c.arm, "task": c.task, "shots": c.shots,
                "data_seed": c.data_seed, "metric": c.score,
                "metrics": c.metrics,
                "gates": c.gates, "gates_by_layer": c.gates_by_layer,
                "gate_spread": c.gate_spread, "train_seconds": c.train_seconds,
                "seconds": c.seconds, "peak_memory": c.peak_memory, "trained": c.trained,
                "total": c.total,
                "measures": {
                    name: findings.values(name, c.arm, c.shots, c.task).get(c.data_seed)
                    for name in kind.measures
                },
            }
            for c in findings.results.cells
        ],
    })  # fmt: skip
    return shown


def _paired(kinds: dict[str, list[Difference]], arm: str, task: str | None) -> dict[str, Any]:
    paired: dict[str, Any] = {}
    for kind, differences in kinds.items():
        for d in differences:
            if d.method == arm and d.task == task and d.summary is not None:
                paired |= {
                    "against": d.against, "difference": without_nan(100 * d.summary.mean),
                    "wins": d.wins, "ties": d.ties, "losses": d.losses,
                }  # fmt: skip
                if d.interval is not None:
                    low, high = d.interval
                    paired |= {f"{kind}_low": 100 * low, f"{kind}_high": 100 * high}
    return paired


def _told(s: Summary, factor: float) -> dict[str, Any]:
    return {"n": s.n, "mean": without_nan(factor * s.mean),
            "deviation": without_nan(factor * s.deviation) if s.n > 1 else None}  # fmt: skip


def _ends(found: Difference | None) -> str:
    if found is None or found.interval is None:
        return NONE
    low, high = (points(end, "+") for end in found.interval)
    return f"[{low}, {high}]"


def _number(name: str, value: float | None) -> str:
    return NONE if value is None else f"{value:,.{MEASURES[name].digits}f}"


def _metric(findings: Findings, task: str) -> str:
    there = {c.score for c in findings.results.cells if c.task == task}
    return next(iter(there), NONE).replace("_", " ")


def shown(findings: Findings) -> Sequence[str]:
    """What the screen gets: the header and the reading."""
    kind = KINDS[findings.study.kind]
    return [*findings.header, *(" ".join(kind.reading(findings, s)) for s in findings.shots)]
