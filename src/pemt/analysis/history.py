"""Gates over a run's steps: what `pemt.training.watching` wrote at each evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pemt.errors import DataError

HISTORY = "gates.jsonl"
"""In a run's folder, one line for each evaluation."""


@dataclass(frozen=True, kw_only=True)
class StackGates:
    """One stack at one evaluation.

    Attributes:
        gates: expert -> mean over the stack's layers and the validation rows.
        effective: exp of the entropy of `gates`.
        example_effective: exp of the mean over layers and rows of a row's entropy.
    """

    gates: dict[str, float]
    effective: float
    example_effective: float


@dataclass(frozen=True, kw_only=True)
class GateStep:
    """One evaluation.

    Attributes:
        step: optimiser steps done.
        rows: validation rows that were answered.
        stacks: "encoder", "decoder" or both.
    """

    step: int
    rows: int
    stacks: dict[str, StackGates]


@dataclass(frozen=True, kw_only=True)
class GateHistory:
    """All evaluations of one run, by step.

    Attributes:
        steps: ascending.
        kept: the step whose parameters the run kept; None where it is not known.
        notes: what a reader must know.
    """

    steps: tuple[GateStep, ...]
    kept: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def stack_names(self) -> tuple[str, ...]:
        """The stacks there are."""
        return tuple(dict.fromkeys(name for s in self.steps for name in s.stacks))

    @property
    def experts(self) -> tuple[str, ...]:
        """Gate columns, in order."""
        return tuple(self.steps[0].stacks[self.stack_names[0]].gates) if self.steps else ()

    def line(self, stack: str, expert: str) -> list[float]:
        """One expert's mean gate at each step."""
        return [s.stacks[stack].gates[expert] for s in self.steps]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "steps": [as_line(step) for step in self.steps], "kept": self.kept,
            "notes": list(self.notes),
        }  # fmt: skip


def as_line(step: GateStep) -> dict[str, Any]:
    """One evaluation in plain values; what is not finite is null."""
    return {
        "step": step.step, "rows": step.rows,
        "stacks": {
            name: {
                "gates": {k: _number(v) for k, v in own.gates.items()},
                "effective": _number(own.effective),
                "example_effective": _number(own.example_effective),
            }
            for name, own in step.stacks.items()
        },
    }  # fmt: skip


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def read_history(path: Path, *, kept: int | None = None) -> GateHistory:
    """The evaluations in a file; those whose gates were no numbers are left out and counted.

    Args:
        path: of `HISTORY`.
        kept: the step whose parameters the run kept.

    Raises:
        DataError: a line that is no evaluation, or one of other experts or stacks.
    """
    steps: dict[int, GateStep] = {}
    broken = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            given = json.loads(line)
            stacks = {name: StackGates(**own) for name, own in given["stacks"].items()}
            step = GateStep(step=int(given["step"]), rows=int(given["rows"]), stacks=stacks)
            names = [(name, *own.gates) for name, own in stacks.items()]
            values = [
                v for s in stacks.values()
                for v in (*s.gates.values(), s.effective, s.example_effective)
            ]  # fmt: skip
            finite = all(v is not None and math.isfinite(v) for v in values) and bool(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}:{number} is no evaluation ({error!r})", "remove the file, or adapt again"
            ) from None
        if not finite:
            broken.append(step.step)
            continue
        known = next(iter(steps.values()), step)
        if names != [(name, *own.gates) for name, own in known.stacks.items()]:
            raise DataError(
                f"{path}:{number} has other experts than the lines before", "adapt again"
            )
        steps[step.step] = step
    notes = []
    if broken:
        listed = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        notes.append(f"The gates were no numbers at {len(broken)} evaluations (step {listed}).")
    return GateHistory(steps=tuple(steps[s] for s in sorted(steps)), kept=kept, notes=tuple(notes))
