"""Who makes the cells: this process, or worker processes that may die without taking more along.

A worker that is killed costs the cell it was making; the next cell gets a new worker.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, Literal, Protocol

from pemt.bench.cell import Cell
from pemt.bench.output import OutputFolder
from pemt.bench.plan import Job
from pemt.bench.workplace import Made, Workplace, run_cell
from pemt.errors import PemtError
from pemt.tasks import FewShot

Work = Callable[[Workplace, Job, FewShot], Made]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a job.

    Attributes:
        job: which.
        attempt: from 1.
        became: "done"; "found" finished by another run; "held" by another run; "failed"; "died"
            with its worker.
        cell: of "done" and "found".
        message: of "failed" and "died".
        traceback: of "failed".
        again: whether another attempt may go better.
    """

    job: Job
    attempt: int
    became: Literal["done", "found", "held", "failed", "died"]
    cell: Cell | None = None
    message: str = ""
    traceback: str = ""
    again: bool = False


class Crew(Protocol):
    """Makes cells, some at a time."""

    size: int

    def free(self) -> bool:
        """Whether another job can be started."""

    def busy(self) -> list[Job]:
        """Jobs whose report has not been given yet."""

    def start(self, job: Job, rows: FewShot, attempt: int) -> None:
        """Begin a job."""

    def wait(self) -> list[Report]:
        """Wait for news; there may be none after a while."""

    def stop(self) -> None:
        """End now, whatever is going on."""


def failure(job: Job, attempt: int, error: Exception) -> Report:
    """The report of an error; one of ours would come again however often it is tried."""
    message = f"{error}" if isinstance(error, PemtError) else f"{type(error).__name__}: {error}"
    return Report(
        job=job, attempt=attempt, became="failed", message=message,
        traceback="".join(traceback.format_exception(error)),
        again=not isinstance(error, PemtError),
    )  # fmt: skip


def make(
    place: Workplace, folder: OutputFolder, work: Work, job: Job, rows: FewShot, attempt: int
) -> Report:
    """Claim a cell, make it and write it, or write down why not."""
    with folder.claim(job.name) as mine:
        if not mine:
            return Report(job=job, attempt=attempt, became="held")
        try:
            if folder.finished(job.name):
                cell = folder.read(job)
                return Report(job=job, attempt=attempt, became="found", cell=cell)
            cell, predictions = work(place, job, rows)
            folder.keep(cell, predictions)
        except Exception as error:
            report = failure(job, attempt, error)
            if report.again:
                place.forget_base()
            folder.fail(job, report.message, report.traceback, attempt)
            return report
    return Report(job=job, attempt=attempt, became="done", cell=cell)


class Alone:
    """This process makes the cells, one after the other.

    Args:
        place: with the base.
        folder: of the results.
        work: makes one cell.
    """

    size = 1

    def __init__(self, place: Workplace, folder: OutputFolder, work: Work = run_cell) -> None:
        import torch

        self._place, self._folder, self._work = place, folder, work
        self._waiting: tuple[Job, FewShot, int] | None = None
        self._threads_before = torch.get_num_threads()
        if place.threads is not None:
            torch.set_num_threads(place.threads)

    def free(self) -> bool:
        """Whether nothing is waiting to be made."""
        return self._waiting is None

    def busy(self) -> list[Job]:
        """The job that is waiting or being made."""
        return [] if self._waiting is None else [self._waiting[0]]

    def start(self, job: Job, rows: FewShot, attempt: int) -> None:
        """Take a job; `wait` makes it."""
        self._waiting = (job, rows, attempt)

    def wait(self) -> list[Report]:
        """Make the cell."""
        if self._waiting is None:
            return []
        job, rows, attempt = self._waiting
        report = make(self._place, self._folder, self._work, job, rows, attempt)
        self._waiting = None
        return [report]

    def stop(self) -> None:
        """Nothing is left running; the process has its own number of threads back."""
        import torch

        torch.set_num_threads(self._threads_before)


class Workers:
    """Processes on this machine, each with its own base and its share of the cores.

    Args:
        size: how many.
        place: what each starts from, without a loaded base.
        folder: of the results.
        work: makes one cell; importable, because processes are spawned.
    """

    def __init__(
        self, size: int, place: Workplace, folder: OutputFolder, work: Work = run_cell
    ) -> None:
        self.size = size
        self._args = (place, folder.root, work)
        self._threads = place.threads or 1
        self._idle: list[_Worker] = []
        self._at_work: list[_Worker] = []
        self._free_numbers = list(range(size))[::-1]

    def free(self) -> bool:
        """Whether a worker has nothing to do."""
        return len(self._at_work) < self.size

    def busy(self) -> list[Job]:
        """The jobs of the workers at work."""
        return [w.task[0] for w in self._at_work if w.task]

    def start(self, job: Job, rows: FewShot, attempt: int) -> None:
        """Hand a job to an idle worker, or to a new one."""
        if not self._idle:
            number = self._free_numbers.pop()
            self._idle.append(_Worker(number, self._threads, self._args))
        worker = self._idle.pop()
        self._at_work.append(worker)
        worker.give(job, rows, attempt)

    def wait(self) -> list[Report]:
        """Wait up to a second for workers that are done or dead."""
        news = connection.wait([w.pipe for w in self._at_work], timeout=1)
        reports = []
        for worker in [w for w in self._at_work if w.pipe in news]:
            self._at_work.remove(worker)
            report = worker.take()
            reports.append(report)
            if report.became == "died":
                self._free_numbers.append(worker.number)
            else:
                self._idle.append(worker)
        return reports

    def stop(self) -> None:
        """End every worker; what it was making is lost, and nothing of it stays."""
        for worker in (*self._idle, *self._at_work):
            worker.end()
        self._idle, self._at_work = [], []


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, number: int, threads: int, args: tuple[Workplace, Path, Work]) -> None:
        self.number = number
        self.task: tuple[Job, int] | None = None
        context = get_context("spawn")  # a fork would copy threads' locks in whatever state
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *args), daemon=True)
        with _environment(_environment_of(number, threads)):
            self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    def give(self, job: Job, rows: FewShot, attempt: int) -> None:
        self.task = (job, attempt)
        with contextlib.suppress(OSError):  # dead already: `take` says so
            self.pipe.send((job, rows, attempt))

    def take(self) -> Report:
        assert self.task is not None
        job, attempt = self.task
        self.task = None
        try:
            report: Report = self.pipe.recv()
            return report
        except (EOFError, OSError):
            self.end()
            return Report(
                job=job, attempt=attempt, became="died", again=True, message=self._death()
            )

    def _death(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            why = " (the system does this when memory runs out)" if name == "SIGKILL" else ""
            return f"The worker was ended by {name}{why}"
        return f"The worker ended with exit status {code}"

    def end(self) -> None:
        self.pipe.close()
        if self._process.is_alive():
            self._process.join(0.2)  # an idle one ends when its pipe does; a dead one is reaped
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Any, place: Workplace, root: Path, work: Work) -> None:
    """A worker's life: make cells until the pipe ends, as it does when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # temporary files are removed
    folder = OutputFolder(root)
    frozen = False
    while True:
        try:
            job, rows, attempt = pipe.recv()
        except (EOFError, OSError):
            return
        report = make(place, folder, work, job, rows, attempt)
        if not frozen:  # base and imports stay: looking through them takes a second per collection
            gc.freeze()
            frozen = True
        try:
            pipe.send(report)
        except OSError:
            return


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _environment_of(number: int, threads: int) -> dict[str, str]:
    """A worker's share of the cores, and one of the GPUs."""
    import torch

    found = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    seen = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    devices = seen or [str(i) for i in range(torch.cuda.device_count())]
    if len(devices) > 1:
        found["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return found


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """The environment a process is started with; libraries read it when they are imported."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
