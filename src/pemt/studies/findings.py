"""What a study's cells say: means over targets and draws, and differences to the reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from pemt.bench.asked import Asked, read_asked
from pemt.bench.cell import Cell, read_cell
from pemt.bench.difference import Difference, differences
from pemt.bench.interval import Interval
from pemt.bench.output import OutputFolder
from pemt.bench.results import Results, value_of
from pemt.bench.summary import Summary, summarise
from pemt.errors import DataError
from pemt.studies.measures import MEASURES
from pemt.studies.study import Study

SCORE = "score"
RANKINGS = "rankings"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A study and its finished cells.

    Attributes:
        study: what was varied.
        results: the cells of the study's grid, and no others.
        asked: what the grid was asked to run.
        header: what is missing, failed or not defined, a sentence each.
        ranking_seconds: what each ranking of the sources took.
    """

    study: Study
    results: Results
    asked: Asked
    header: tuple[str, ...]
    ranking_seconds: tuple[float, ...] = ()

    @classmethod
    def of(cls, study: Study, folder: OutputFolder) -> Findings:
        """From the cells that are there.

        Raises:
            DataError: there are none, or a damaged one.
        """
        asked = read_asked(folder.root)
        names = [n for n in asked.folders.values() if folder.finished(n)]
        if not names:
            raise DataError(
                f"{folder.root} has no finished cell of this study",
                "run it without --draw-only; cells/*/error.json say what failed",
            )
        cells = tuple(read_cell(folder.place(name)) for name in names)
        results = Results(cells=cells, order=asked.tasks, variants=asked.variants)
        lines = (asked.missing(cells, folder.root), asked.undefined())
        taken = tuple(
            json.loads(path.read_text(encoding="utf-8"))["seconds"]
            for path in sorted((folder.root / RANKINGS).glob("[!.]*.json"))
        )
        return cls(
            study=study, results=results, asked=asked, header=tuple(x for x in lines if x),
            ranking_seconds=taken,
        )  # fmt: skip

    @property
    def tasks(self) -> tuple[str, ...]:
        """Targets, finished or not."""
        return self.asked.tasks

    @property
    def shots(self) -> tuple[int | None, ...]:
        """Those with cells."""
        return self.results.shots

    @cached_property
    def _cells(self) -> dict[tuple[str, str, int | None, int], Cell]:
        return {(c.arm, c.task, c.shots, c.data_seed): c for c in self.results.cells}

    def values(self, measure: str, arm: str, shots: int | None, task: str) -> dict[int, float]:
        """Data seed -> the score or a measure of an arm on a target."""
        found = {}
        for seed, cell in self.results.of(task, arm, shots).items():
            reference = self._cells.get((self.study.reference, task, shots, seed))
            value = value_of(cell) if measure == SCORE else MEASURES[measure].of(cell, reference)
            if value is not None:
                found[seed] = value
        return found

    def over(
        self, measure: str, arm: str, shots: int | None, task: str | None = None
    ) -> Summary | None:
        """Mean, deviation and number of draws on a target, or of the mean over targets.

        Over targets a draw's value is its mean over all of the study's targets, so draws that lack
        one do not count; None where none is left.
        """
        if task is not None:
            values = list(self.values(measure, arm, shots, task).values())
            return summarise(values) if values else None
        each = [self.values(measure, arm, shots, t) for t in self.tasks]
        seeds = sorted(set.intersection(*(set(v) for v in each)))
        return summarise([fmean(v[seed] for v in each) for seed in seeds]) if seeds else None

    def mean(self, measure: str, arm: str, shots: int | None) -> float | None:
        """The mean over targets and draws; None where `over` is."""
        found = self.over(measure, arm, shots)
        return None if found is None else found.mean

    def blocks(
        self, arms: Sequence[str], shots: int | None
    ) -> tuple[list[tuple[str, int]], dict[str, list[float]]]:
        """The (target, draw) pairs that all of these arms have, and their scores in this order."""
        scores: Mapping[str, dict[tuple[str, int], float]] = {
            arm: {
                (t, s): v for t in self.tasks for s, v in self.values(SCORE, arm, shots, t).items()
            }
            for arm in arms
        }
        common = sorted(set.intersection(*(set(found) for found in scores.values())))
        return common, {arm: [scores[arm][block] for block in common] for arm in arms}

    def differences(
        self, shots: int | None, kind: Interval, to: str | None = None
    ) -> list[Difference]:
        """Every other arm minus one, by default the reference, on each target and their mean."""
        arms = {c.arm for c in self.results.cells if c.shots == shots}
        if (to or self.study.reference) not in arms or len(arms) < 2:
            return []
        return differences(self.results, shots, to or self.study.reference, kind=kind)

    def against(
        self, arm: str, shots: int | None, kind: Interval = "t", to: str | None = None
    ) -> Difference | None:
        """An arm minus one, by default the reference, over all targets; None where no draw has both
        everywhere, which is so where a target has no cells yet.
        """
        if not set(self.tasks) <= set(self.results.tasks_at(shots)):
            return None
        alone = len(self.tasks) == 1
        for found in self.differences(shots, kind, to):
            over_all = found.task is None or alone
            if found.method == arm and over_all and found.summary is not None:
                return found
        return None
