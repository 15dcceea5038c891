"""Gates in a report: by layer and, where a run's folder holds them, by class and step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pemt.analysis.report.curves import Points, gate_curves

EXPERTS = 24
"""Rows of a heat map: what is readable on a phone. The rest share one."""
LINES = 6
STEPS, MEASURED = "gates.jsonl", "gates/gates.json"
"""In a run's folder: gates at each evaluation, and what `pemt gates` measured."""


def finite(value: Any) -> float:
    """A number to add and sort by; 0 for what is none."""
    value = float(value)
    return value if math.isfinite(value) else 0.0


def heat(columns: dict[str, dict[str, float]], mean: dict[str, float]) -> dict[str, Any]:
    """Experts down, the largest first, columns across; the smallest share the last row.

    Colours reach from 0 to the largest gate, or to twice a uniform one: what is near uniform looks
    alike, and one of 300 experts can still be seen.

    Args:
        columns: title -> expert -> gate.
        mean: expert -> gate, in the order of the columns' experts.
    """
    order = sorted(mean, key=lambda name: -finite(mean[name]))
    shown, rest = order[:EXPERTS], order[EXPERTS:]
    rows = [(name, mean[name], [own[name] for own in columns.values()]) for name in shown]
    if rest:
        rows.append((
            f"{len(rest)} others", sum(finite(mean[name]) for name in rest),
            [sum(finite(own[name]) for name in rest) for own in columns.values()],
        ))  # fmt: skip
    largest = max((finite(v) for _, _, values in rows[:EXPERTS] for v in values), default=0.0)
    return {
        "columns": list(columns), "rows": rows, "count": len(order), "others": len(rest),
        "top": max(largest, 2 / max(1, len(order))),
    }  # fmt: skip


def by_layer(table: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of what results.json says; None without gates."""
    if not table or not table.get("by_layer"):
        return None
    made = heat(table["by_layer"], table["mean"])
    return {**made, "effective": table.get("effective_experts")}


def by_class(folder: Path) -> dict[str, Any] | None:
    """Mean over layers for each class, where `pemt gates` measured it; None elsewhere."""
    try:
        found = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
        experts, classes, rows = found["experts"], found["classes"], found["class_rows"]
        columns = {
            f"{name} ({rows[name]} rows)": {
                expert: sum(layer[k] for layer in layers) / len(layers)
                for k, expert in enumerate(experts)
            }
            for name, layers in classes.items()
        }
        return heat(columns, found["overall"]["mean"]) if len(columns) > 1 else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None  # a section that is left out; `pemt gates` itself says what is wrong with it


def over_steps(folder: Path, learning_rate: Any = None) -> tuple[str, str] | None:
    """A picture of the largest gates at each evaluation, for light and dark; None without any.

    Args:
        folder: of the run.
        learning_rate: the chosen one: where several were tried, each has a folder of its own.
    """
    if isinstance(learning_rate, float) and (folder / f"lr-{learning_rate:g}").is_dir():
        folder = folder / f"lr-{learning_rate:g}"
    stacks: dict[str, dict[str, list[tuple[float, float]]]] = {}
    try:
        for line in (folder / STEPS).read_text(encoding="utf-8").splitlines():
            given = json.loads(line)
            for stack, own in given["stacks"].items():
                for expert, value in own["gates"].items():
                    points = stacks.setdefault(stack, {}).setdefault(expert, [])
                    if value is not None:
                        points.append((float(given["step"]), float(value)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    panels: dict[str, dict[str, Points]] = {}
    for stack, lines in stacks.items():
        last = sorted(lines, key=lambda name: -(lines[name][-1][1] if lines[name] else 0.0))
        panels[stack] = {name: lines[name] for name in last[:LINES]}
    return gate_curves(panels) if any(len(p) > 1 for own in panels.values() for p in own.values()) \
        else None  # fmt: skip
