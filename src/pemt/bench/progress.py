"""How far a grid is: counts, an estimate of the time left, and how both are shown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from pemt.bench.cell import Cell
from pemt.bench.plan import Job


@dataclass(kw_only=True)
class Tally:
    """What became of the cells so far.

    Attributes:
        total: cells of this run.
        workers: cells made at a time.
        found: finished before, or by another run.
        done: made by this run.
        failed: job -> message.
        refused: reason -> the (task, method) pairs that are not defined for it.
        left: jobs not finished yet.
        seconds: arm -> what its finished cells took.
    """

    total: int
    workers: int = 1
    found: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    left: dict[str, Job] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        """Cells that are there."""
        return self.found + self.done

    def add(self, job: Job, cell: Cell, *, found: bool) -> None:
        """Count a finished cell."""
        self.left.pop(job.name, None)
        self.seconds.setdefault(job.arm, []).append(cell.seconds)
        self.found += found
        self.done += not found

    def fail(self, job: Job, message: str) -> None:
        """Count a cell that is given up."""
        self.left.pop(job.name, None)
        self.failed[job.name] = message

    def estimate(self) -> float | None:
        """Seconds left: every remaining cell takes the mean of its arm's, or of all finished."""
        if not self.seconds:
            return None
        means = {arm: statistics.fmean(taken) for arm, taken in self.seconds.items()}
        anyone = statistics.fmean(means.values())
        at_work = max(1, min(self.workers, len(self.left)))
        return sum(means.get(j.arm, anyone) for j in self.left.values()) / at_work

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "cells": self.total, "finished": self.finished, "made": self.done,
            "failed": [{"cell": name, "message": m} for name, m in sorted(self.failed.items())],
            "remaining": len(self.left),
            "refused": [
                {"task": task, "method": method, "reason": reason}
                for reason, pairs in self.refused.items() for task, method in pairs
            ],
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The summary that ends a run."""
        said = [
            f"{self.finished} of {self.total} cells are finished ({self.done} made by this run), "
            f"{len(self.failed)} failed, {len(self.left)} remain."
        ]
        by_message: dict[str, list[str]] = {}
        for name, message in self.failed.items():
            by_message.setdefault(message.replace("\n", " "), []).append(name)
        for message, names in by_message.items():
            said.append(f"failed: {_some(names)}: {message}")
        return said + refusal_lines(self.refused)


def refusal_lines(refused: dict[str, list[tuple[str, str]]]) -> list[str]:
    """One line for every reason, with the methods and tasks it holds for."""
    said = []
    for reason, pairs in refused.items():
        methods = ", ".join(dict.fromkeys(m for _, m in pairs))
        said.append(f"not run: {methods} on {_some(dict.fromkeys(t for t, _ in pairs))}: {reason}")
    return said


def _some(names: Iterable[str], shown: int = 6) -> str:
    listed = list(names)
    more = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {more} more" if more > 0 else "")


class Progress:
    """A live bar on a terminal, plain lines elsewhere, both on stderr.

    Args:
        plain: lines even on a terminal.
        quiet: nothing at all.
    """

    def __init__(self, *, plain: bool = False, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True, highlight=False, quiet=quiet, soft_wrap=True)
        self._bar: Any = None
        if self._console.is_terminal and not plain and not quiet:
            self._bar = Bar(
                TextColumn("cells"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.description}"), console=self._console,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False)

    def show(self, tally: Tally, text: str = "") -> None:
        """A line about a cell, and how far the grid is."""
        seconds = tally.estimate()
        left = "" if seconds is None or not tally.left else f"about {duration(seconds)} left"
        counts = f"{tally.finished + len(tally.failed)}/{tally.total}"
        if text:
            self.say(f"[{counts}] {text}{'; ' + left if left and self._bar is None else ''}")
        if self._bar is not None:
            failed = f"{len(tally.failed)} failed" if tally.failed else ""
            self._bar.update(
                self._task, total=tally.total, completed=tally.finished + len(tally.failed),
                description=", ".join(filter(None, [failed, left])),
            )  # fmt: skip


def duration(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
