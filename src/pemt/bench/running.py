"""Running a grid: every cell once, whoever makes it, and a summary of what became of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pemt.bench.cell import Cell
from pemt.bench.crew import Alone, Crew, Report, Work, Workers, cores
from pemt.bench.grid import Grid
from pemt.bench.output import OutputFolder
from pemt.bench.plan import Job, Plan, make_plan
from pemt.bench.progress import Progress, Tally
from pemt.bench.workplace import Workplace, record_of, run_cell
from pemt.errors import ConfigError

if TYPE_CHECKING:
    from pemt.bases import Base
    from pemt.training.result import AdaptResult

POLL_SECONDS = 1.0


class GridRun:
    """One run of a grid over a folder of results.

    Cells that are there are not made again. Several runs may share a folder, also from several
    machines: each takes the cells that nobody else is making, and ends when all are there.

    Args:
        grid: what to run.
        output: folder of the results; the grid's own by default.
        data_dir: local mirror of datasets; the grid's own by default.
        workers: cells at a time, each in a process of its own; 1 stays in this process. On a
            cluster None takes what there is room for.
        cluster: address of a Ray cluster, or "local"; None runs on this machine without Ray.
        retries: further attempts after a worker died or an unexpected error; errors of ours, such
            as too few rows, would come again and are not tried again.
        only_tasks: these alone.
        only_methods: these alone.
        base: the grid's base, loaded already; for a run in this process.
        on_result: is shown every result made in this process, its model still on the base.
        progress: how to show it; nothing by default.
        cell_cpus: cores for each cell; by default this machine's, shared by the workers (one on a
            cluster).
        cell_gpus: on a cluster: of a GPU for each cell.
        work: makes one cell.

    Attributes:
        folder: of the results.
        plan: once `go` has made it.
        tally: what became of the cells.

    Raises:
        ConfigError: no output folder, or options that do not go together.
    """

    def __init__(
        self, grid: Grid, *, output: str | Path | None = None, data_dir: str | Path | None = None,
        workers: int | None = None, cluster: str | None = None, retries: int = 1,
        only_tasks: Collection[str] = (), only_methods: Collection[str] = (),
        base: Base | None = None, on_result: Callable[[Job, AdaptResult], None] | None = None,
        progress: Progress | None = None, cell_cpus: int | None = None,
        cell_gpus: float | None = None, work: Work = run_cell,
    ) -> None:  # fmt: skip
        place = output or grid.output
        if place is None:
            raise ConfigError("The grid has no output folder", "write output: FOLDER, or give one")
        for name, value, least in (
            ("workers", workers, 1), ("retries", retries, 0), ("cell_cpus", cell_cpus, 1),
            ("cell_gpus", cell_gpus, 0),
        ):  # fmt: skip
            if value is not None and not value >= least:
                raise ConfigError(f"{name}={value}", f"give at least {least}")
        if cluster is None:
            workers = workers or 1
        if on_result is not None and (cluster is not None or workers != 1):
            raise ConfigError("on_result sees results of this process", "run with workers=1")
        self.grid = grid
        self.folder = OutputFolder(place)
        self.tally = Tally(total=0)
        self.plan: Plan | None = None
        self._data_dir = data_dir or grid.data_dir
        self._only = {"only_tasks": only_tasks, "only_methods": only_methods}
        self._retries, self._workers, self._cluster = retries, workers, cluster
        self._cell_cpus, self._cell_gpus = cell_cpus, cell_gpus
        self._base, self._work = base, work
        if on_result is not None:
            self._work = partial(run_cell, seen=on_result)
        self._progress = progress or Progress(quiet=True)

    def go(self) -> list[Cell]:
        """Make what is missing.

        Returns:
            The finished cells, in the grid's order.

        Raises:
            ConfigError: a library that is missing, or Ray is; an output that cannot be written, or
                that has cells of this grid finished on another base.
            PemtError: a base or expert that cannot be loaded.
        """
        import torch

        from pemt.bases import load_base
        from pemt.training.memory import give_back_memory

        with self._progress:
            base = self._base or load_base(self.grid.base, precision=self.grid.precision)
            plan = self.plan = make_plan(
                self.grid, base, data_dir=self._data_dir, **self._only,
                on_task=lambda name: self._progress.say(f"Reading {name}"),
            )  # fmt: skip
            self.folder.check_base(plan.base, [job.name for job in plan.jobs])
            record = record_of()
            place = Workplace(identity=plan.base, libraries=plan.libraries, record=record)
            if self._workers == 1 and self._cluster is None:
                place.loaded = base
            else:
                del base  # workers load their own
                self._base = None
                give_back_memory()
                if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                    torch.cuda.empty_cache()
            self.folder.describe(self.grid, plan, record)
            cells, todo = self._begin(plan)
            if todo:
                crew = self._crew(place, plan)
                self.tally.workers = crew.size
                try:
                    self._loop(crew, plan, todo, cells)
                finally:
                    at_work = [job.name for job in crew.busy()]
                    crew.stop()
                    self.folder.sweep(at_work)
        return [cells[job.name] for job in plan.jobs if job.name in cells]

    def _begin(self, plan: Plan) -> tuple[dict[str, Cell], list[Job]]:
        """What is there already, and what is to be made."""
        tally = self.tally
        tally.total = len(plan.jobs)
        for task, names in plan.own_sources.items():
            self._progress.say(
                f"Trained on {task} itself: {', '.join(names)}. Cells of {task} that take it "
                "measure what all those labels do; tables say so. `experts: [...]` leaves it out."
            )
        for pair, reason in plan.refused.items():
            tally.refused.setdefault(reason, []).append(pair)
        tally.left = {job.name: job for job in plan.jobs}
        cells: dict[str, Cell] = {}
        todo = []
        for job in plan.jobs:
            if self.folder.finished(job.name):
                cells[job.name] = self.folder.read(job)
                tally.add(job, cells[job.name], found=True)
            elif job.problem is not None:
                with self.folder.claim(job.name) as mine:
                    if mine:
                        self.folder.fail(job, job.problem, "", 1)
                if job.problem not in tally.failed.values():
                    self._progress.say(f"{job.point} cannot be run: {job.problem}")
                tally.fail(job, job.problem)
            else:
                todo.append(job)
        self._progress.show(tally)
        return cells, todo

    def _crew(self, place: Workplace, plan: Plan) -> Crew:
        if self._cluster is not None:
            from pemt.bench.cluster import Cluster

            cpus = self._cell_cpus
            if cpus is None:
                local = self._cluster == "local" and self._workers is not None
                cpus = max(1, cores() // (self._workers or 1)) if local else 1
            return Cluster(
                self._cluster, self._workers, place, self.folder, self._work,
                experts=plan.experts(), cpus=cpus, gpus=self._cell_gpus,
            )  # fmt: skip
        if self._workers == 1:
            place.threads = self._cell_cpus
            return Alone(place, self.folder, self._work)
        workers = self._workers or 1
        place.threads = self._cell_cpus or max(1, cores() // workers)
        return Workers(workers, place, self.folder, self._work)

    def _loop(self, crew: Crew, plan: Plan, todo: list[Job], cells: dict[str, Cell]) -> None:
        began = time.time()
        pending = deque((job, 1) for job in todo)
        held: list[tuple[Job, int]] = []
        while pending or held or crew.busy():
            while pending and crew.free():
                job, attempt = pending.popleft()
                if self.folder.finished(job.name):
                    report = Report(
                        job=job, attempt=attempt, became="found", cell=self.folder.read(job)
                    )
                    self._take(report, cells, again=False)
                    continue
                crew.start(job, plan.rows[job.rows], attempt)
            for report in crew.wait():
                if report.became == "held":
                    held.append((report.job, report.attempt))
                    continue
                again = report.again and report.attempt <= self._retries
                self._take(report, cells, again=again)
                if again:
                    pending.appendleft((report.job, report.attempt + 1))
            if held and not pending and not crew.busy():
                time.sleep(POLL_SECONDS)
                free = [one for one in held if self._free(one[0])]
                held = [one for one in held if one not in free]
                pending.extend(one for one in free if not self._failed_elsewhere(one[0], began))

    def _take(self, report: Report, cells: dict[str, Cell], *, again: bool) -> None:
        job, tally = report.job, self.tally
        if report.cell is not None:
            if report.became == "found" and self.plan is not None:
                self.folder.check_base(self.plan.base, [job.name])
            cells[job.name] = report.cell
            tally.add(job, report.cell, found=report.became == "found")
            elsewhere = ", by another run" if report.became == "found" else ""
            value = f"{report.cell.score} {report.cell.value:.3f}"
            self._progress.show(
                tally, f"{job.point}: {value} ({report.cell.seconds:.0f} s){elsewhere}"
            )
            return
        if report.became == "died":  # a dead worker could not write it down
            with self.folder.claim(job.name) as mine:
                if mine and not self.folder.finished(job.name):
                    self.folder.fail(job, report.message, "", report.attempt)
        if not again:
            tally.fail(job, report.message)
        first = report.message.partition("\n")[0]
        self._progress.show(
            tally, f"{job.point} failed{', to be tried again' if again else ''}: {first}"
        )

    def _free(self, job: Job) -> bool:
        """Whether no other run is making a cell any more, finished or not."""
        if self.folder.finished(job.name):
            return True
        with self.folder.claim(job.name) as mine:
            return mine

    def _failed_elsewhere(self, job: Job, began: float) -> bool:
        """Whether another run failed at a cell since this one began: once is enough."""
        at, error = self.folder.failed_at(job.name), self.folder.failed(job.name)
        if error is None or at is None or at < began or self.folder.finished(job.name):
            return False
        self.tally.fail(job, str(error.get("message")))
        self._progress.show(self.tally, f"{job.point} failed in another run")
        return True
