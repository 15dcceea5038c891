"""Cells on a Ray cluster: rows and experts travel there, results come back, this process writes.

Nothing has to be shared between the machines but the base's name. Ray keeps its worker processes,
so each loads the base once; a worker, or a whole machine, that dies costs the cells it was making.
"""

from __future__ import annotations

import json
import os
import socket
import warnings
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from pemt.bench.cell import Cell
from pemt.bench.crew import Report, Work, cores, failure
from pemt.bench.output import OutputFolder
from pemt.bench.plan import Job
from pemt.bench.workplace import Workplace, run_cell
from pemt.errors import ConfigError
from pemt.experts import ExpertLibrary
from pemt.tasks import FewShot

# one per worker process: base and experts stay loaded between cells
_here: dict[str, Workplace] = {}


def _make(place: Workplace, experts: list[Any], work: Work, job: Job, rows: FewShot) -> bytes:
    """Make a cell in a worker process; the answer is JSON.

    Args:
        place: without base and experts.
        experts: one reference to the job's library, or none; inside a list Ray leaves it alone, so
            that a worker fetches a library once.
        work: makes one cell.
        job: what.
        rows: of its draw.
    """
    import ray

    kept = _here.setdefault(repr((place.identity, place.record)), place)
    try:
        loaded = kept.experts.get(job.library, {})
        there = {name: expert.info.content_hash for name, expert in loaded.items()}
        if experts and not job.experts.items() <= there.items():  # none yet, or an earlier run's
            kept.experts[job.library] = ray.get(experts[0])
        cell, predictions = work(kept, job, rows)
    except Exception as error:
        found = failure(job, 0, error)
        if found.again:
            kept.forget_base()
        answer: dict[str, Any] = {
            "message": found.message, "traceback": found.traceback, "again": found.again,
        }  # fmt: skip
    else:
        answer = {"cell": asdict(cell), "predictions": predictions}
    return json.dumps(answer, default=str).encode()


class Cluster:
    """Makes cells on a Ray cluster.

    Args:
        address: of the cluster ("auto" finds the one this machine is part of), or "local" to start
            one on this machine.
        size: cells at a time; None takes as many as the cluster has room for.
        place: what each worker process starts from.
        folder: of the results, written by this process alone.
        work: makes one cell.
        experts: library -> names of the experts to send.
        cpus: cores for each cell.
        gpus: of a GPU for each cell; by default a whole one where the cluster has any.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, or one on this
            machine has no room for a cell. Another may grow: there a warning says so.
    """

    def __init__(
        self, address: str, size: int | None, place: Workplace, folder: OutputFolder,
        work: Work = run_cell, *, experts: dict[str, list[str]], cpus: int = 1,
        gpus: float | None = None,
    ) -> None:  # fmt: skip
        self._ray = ray = _ray()
        self._folder = folder
        self._started = not ray.is_initialized()
        if self._started:
            self._connect(address, (size or max(1, cores() // cpus)) * cpus)
        found = ray.cluster_resources()
        gpus = (1.0 if found.get("GPU") else 0.0) if gpus is None else gpus
        room = found.get("CPU", 1) / cpus
        room = min(room, found.get("GPU", 0) / gpus) if gpus else room
        if room < 1:
            takes = f"{cpus} core" + "s" * (cpus != 1) + (f" and {gpus:g} of a GPU" if gpus else "")
            there = f"{found.get('CPU', 0):g} cores and {found.get('GPU', 0):g} GPUs"
            no_room = f"The Ray cluster has no room for a cell of {takes}: it has {there}"
            if address == "local":
                ray.shutdown()
                raise ConfigError(no_room, "lower --cell-cpus and --cell-gpus")
            warnings.warn(f"{no_room}. Cells wait until machines join it.", stacklevel=2)
        self.size = max(1, int(room)) if size is None else size
        place = replace(place, threads=cpus, loaded=None, experts={})
        self._work = ray.put(work)
        self._place = ray.put(place)
        self._experts = {
            kind: ray.put({n: ExpertLibrary(where).load(n) for n in experts.get(kind, [])})
            for kind, where in place.libraries.items()
        }
        # the grid counts attempts itself, in the same way wherever it runs
        self._make = ray.remote(_make).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self._running: dict[Any, tuple[Job, int, ExitStack]] = {}
        self._known: list[Report] = []

    def _connect(self, address: str, cpus: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        where: dict[str, Any] = {"address": address}
        if address == "local":
            where |= {"num_cpus": cpus, "include_dashboard": False}
        try:
            _knock(address)
            self._ray.init(log_to_driver=False, logging_level="ERROR", **where)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"No Ray cluster answers at {address!r}: {error}",
                "give the address that `ray start --head` printed, or local",
            ) from error

    def free(self) -> bool:
        """Whether there is room for another cell."""
        return len(self._running) < self.size

    def busy(self) -> list[Job]:
        """Jobs sent away, and those whose report waits here."""
        return [j for j, _, _ in self._running.values()] + [r.job for r in self._known]

    def start(self, job: Job, rows: FewShot, attempt: int) -> None:
        """Claim a cell and send it away; the claim is kept until the answer is written."""
        claim = ExitStack()
        mine = claim.enter_context(self._folder.claim(job.name))
        if mine and not self._folder.finished(job.name):
            experts = [self._experts[job.library]] if job.library in self._experts else []
            sent = self._make.remote(self._place, experts, self._work, job, rows)
            self._running[sent] = (job, attempt, claim)
            return
        cell = self._folder.read(job) if mine else None
        claim.close()
        became: Any = "found" if mine else "held"
        self._known.append(Report(job=job, attempt=attempt, became=became, cell=cell))

    def wait(self) -> list[Report]:
        """Wait up to a second for answers."""
        reports, self._known = self._known, []
        if self._running:
            ready, _ = self._ray.wait(list(self._running), timeout=0 if reports else 1)
            reports += [self._take(sent) for sent in ready]
        return reports

    def _take(self, sent: Any) -> Report:
        job, attempt, claim = self._running.pop(sent)
        with claim:
            try:
                answer = json.loads(self._ray.get(sent))
            except self._ray.exceptions.RayTaskError as error:  # not even our code was reached
                report = failure(job, attempt, error)
            except self._ray.exceptions.RayError as error:  # the worker or its machine is gone
                said = str(error).strip().partition("\n")[0]
                return Report(
                    job=job, attempt=attempt, became="died", again=True,
                    message=f"The worker died: {said}",
                )  # fmt: skip
            else:
                if "cell" in answer:
                    cell = Cell(**answer["cell"])
                    self._folder.keep(cell, answer["predictions"])
                    return Report(job=job, attempt=attempt, became="done", cell=cell)
                report = Report(job=job, attempt=attempt, became="failed", **answer)
            self._folder.fail(job, report.message, report.traceback, attempt)
            return report

    def stop(self) -> None:
        """Cancel what is running, and leave the cluster; one started here is ended."""
        for sent, (_, _, claim) in self._running.items():
            self._ray.cancel(sent, force=True)
            claim.close()
        self._running = {}
        if self._started:
            self._ray.shutdown()


def _knock(address: str) -> None:
    """Whether anything listens at host:port: Ray itself would wait for minutes.

    Raises:
        OSError: nothing does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed", "pip install 'pemt[cluster]', or leave --cluster out"
        ) from error
    return ray
