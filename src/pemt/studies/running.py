"""Running a study: its order of sources where it needs one, its cells, then what they say."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pemt.bench.output import OutputFolder
from pemt.bench.plan import Job, draw_name, make_plan
from pemt.bench.progress import Progress, Tally
from pemt.bench.running import GridRun
from pemt.errors import ConfigError, DataError
from pemt.studies.file import Question
from pemt.studies.findings import RANKINGS, Findings
from pemt.studies.study import Study, sources_of

if TYPE_CHECKING:
    from pemt.bases import Base
    from pemt.tasks import FewShot

STUDY = "study.json"


class StudyRun:
    """One run of a study; finished cells and rankings are not made again.

    Args:
        question: what is asked.
        output: folder of the results; the question's own by default.
        data_dir: local mirror of datasets; the grid's own by default.
        workers: cells at a time.
        retries: further attempts after a worker died.
        progress: how to show it; nothing by default.
        base: loaded already.

    Attributes:
        folder: of the results.
        tally: what became of the cells.
    """

    def __init__(
        self, question: Question, *, output: str | Path | None = None,
        data_dir: str | Path | None = None,
        workers: int = 1, retries: int = 1, progress: Progress | None = None,
        base: Base | None = None,
    ) -> None:  # fmt: skip
        self.folder = OutputFolder(output or question.output)
        self.tally = Tally(total=0)
        self._question, self._data_dir = question, data_dir
        self._workers, self._retries = workers, retries
        self._progress = progress or Progress(quiet=True)
        self._base = base

    def go(self) -> Findings:
        """Make what is missing.

        Raises:
            ConfigError: a study that its file cannot mean.
            DataError: no cell could be made.
        """
        question = self._question
        study, grid = question.kind.build(question.grid, question.options, self._rank)
        run = GridRun(
            grid, output=self.folder.root, data_dir=self._data_dir, workers=self._workers,
            retries=self._retries, progress=self._progress, base=self._base,
        )  # fmt: skip
        self.tally, self._base = run.tally, None
        keep(study, self.folder)
        run.go()
        for line in run.tally.lines():
            self._progress.say(line)
        return Findings.of(study, self.folder)

    def _rank(self) -> Mapping[str, Sequence[str]]:
        """The sources of every draw, the best first; each is ranked once and kept."""
        from pemt.bases import load_base

        grid = self._question.grid
        base = self._base = self._base or load_base(grid.base, precision=grid.precision)
        plan = make_plan(
            grid, base, data_dir=self._data_dir,
            on_task=lambda name: self._progress.say(f"Reading {name}"),
        )  # fmt: skip
        found = {}
        for job in plan.jobs:
            draw = draw_name(job.task.name, job.shots, job.data_seed)
            rows = plan.rows.get(job.rows)
            # a draw with too few rows gets no ranking, and its cells say why they cannot be made
            found[draw] = sources_of(grid) if rows is None else self._ranked(base, job, rows, draw)
        return found

    def _ranked(self, base: Base, job: Job, rows: FewShot, draw: str) -> list[str]:
        from filelock import FileLock

        from pemt.experts import ExpertLibrary
        from pemt.training.choosing import picked, ranked
        from pemt.training.record import write_json

        place = self.folder.root / RANKINGS / f"{draw}-{job.key}.json"
        locks = self.folder.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"ranking-{draw}-{job.key}.lock"):
            if not place.is_file():
                self._progress.say(f"Ranking {len(job.experts)} sources on {draw}")
                library = ExpertLibrary(self._question.grid.libraries["experts"])
                began = time.perf_counter()
                ranking = ranked(
                    base, job.task, picked(base, library, list(job.experts)), rows.train,
                    max_source_length=job.settings.max_source_length,
                )  # fmt: skip
                if ranking.refused:
                    name, why = next(iter(ranking.refused.items()))
                    raise ConfigError(
                        f"The source {name!r} cannot be ranked on {draw}: {why}",
                        "leave it out of experts",
                    )
                seconds = time.perf_counter() - began
                write_json(place, {"draw": draw, "seconds": seconds, "ranking": ranking.to_dict()})
            given = json.loads(place.read_text(encoding="utf-8"))
        return [rank["name"] for rank in given["ranking"]["ranks"]]


def keep(study: Study, folder: OutputFolder) -> None:
    """Write down what the folder studies, so that it can be read before it is finished."""
    from pemt.training.record import write_json

    place = folder.root / STUDY
    try:
        kept = json.loads(place.read_text("utf-8"))["study"]
    except (OSError, ValueError, KeyError, TypeError):
        kept = None
    if kept != _plain(study):
        write_json(place, {"study": study.to_dict()})


def found_so_far(folder: OutputFolder, kind: str) -> Findings:
    """What the cells of an earlier run say, finished or not.

    Raises:
        DataError: the folder holds no study of this kind, or no finished cell.
    """
    place = folder.root / STUDY
    try:
        study = Study.from_dict(json.loads(place.read_text(encoding="utf-8"))["study"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder.root} holds no study", "run it without --draw-only first"
        ) from error
    if study.kind != kind:
        raise DataError(f"{folder.root} holds a study of {study.kind}, not of {kind}")
    return Findings.of(study, folder)


def _plain(study: Study) -> object:
    return json.loads(json.dumps(study.to_dict()))
