"""The folder of a grid's results, which several runs may fill at once; see `cell` for its layout.

A run holds a cell's lock (a file in OUTPUT/.locks) while it makes the cell. The system frees the
lock of a process that ends, however it ends, so nothing has to be cleared up by hand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pemt.bench.cell import CELL, ERROR, PREDICTIONS, Cell, read_cell
from pemt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pemt.bench.grid import Grid
    from pemt.bench.identity import BaseIdentity
    from pemt.bench.plan import Job, Plan
    from pemt.bench.workplace import Predictions

GRID = "grid.json"


class OutputFolder:
    """Finished and failed cells on disk, and who is at work on which.

    Args:
        root: the folder; made when something is written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"The output {self.root} is a file", "give a folder")

    def place(self, name: str) -> Path:
        """The folder of a cell."""
        return self.root / "cells" / name

    def finished(self, name: str) -> bool:
        """Whether a cell is there."""
        return (self.place(name) / CELL).is_file()

    def failed(self, name: str) -> dict[str, Any] | None:
        """What is written of a cell's failure; None where none is."""
        try:
            found = json.loads((self.place(name) / ERROR).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def failed_at(self, name: str) -> float | None:
        """When that was written, seconds since 1970."""
        try:
            return (self.place(name) / ERROR).stat().st_mtime
        except OSError:
            return None

    def read(self, job: Job) -> Cell:
        """A finished cell, with the score that the grid asks for now.

        Raises:
            DataError: it is damaged.
        """
        from pemt.training.record import write_json

        cell = read_cell(self.place(job.name))
        if cell.score != job.score:  # it decides what tables show and nothing else
            cell = replace(cell, score=job.score)
            write_json(self.place(job.name) / CELL, asdict(cell))
        return cell

    def check_base(self, base: BaseIdentity, names: Iterable[str]) -> None:
        """Refuse finished cells that have the keys of this base and were made on another one.

        Raises:
            ConfigError: there is one.
            DataError: one is damaged.
        """
        made = {n: base.differs(read_cell(self.place(n))) for n in names if self.finished(n)}
        other = {name: parts for name, parts in made.items() if parts}
        if other:
            name, parts = next(iter(other.items()))
            more = f" (and {len(other) - 1} more such cells)" if len(other) > 1 else ""
            raise ConfigError(
                f"The finished cell {name} in {self.root} was made on a base with another "
                f"{' and another '.join(parts)} than {base.asked!r} has now{more}",
                "give another output folder, or remove the cells of the other base",
            )

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process may make the cell now; nobody else can, inside."""
        from filelock import FileLock, Timeout

        (self.root / ".locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".locks" / f"{name}.lock", thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            self._sweep(name)
            yield True
        finally:
            lock.release()

    def keep(self, cell: Cell, predictions: Predictions) -> None:
        """Write a finished cell; its folder is there whole or not at all. Claim it first."""
        from pemt.training.record import write_json

        fresh = self.place(f".{cell.name}.tmp")
        target = self.place(cell.name)
        try:
            fresh.mkdir(parents=True)
            write_json(fresh / PREDICTIONS, predictions)
            write_json(fresh / CELL, asdict(cell))
            if target.exists():  # holds an earlier failure and nothing else
                shutil.rmtree(target)
            fresh.replace(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def fail(self, job: Job, message: str, traceback: str, attempt: int) -> None:
        """Write down why a cell failed, where the disk has room for it. Claim it first."""
        from datetime import datetime, timezone

        from pemt.training.record import write_json

        with suppress(OSError):  # the run still tells it, and goes on with the other cells
            write_json(
                self.place(job.name) / ERROR,
                {
                    "task": job.task.name, "method": job.method, "variant": job.variant,
                    "shots": job.shots, "data_seed": job.data_seed, "message": message,
                    "traceback": traceback, "attempt": attempt,
                    "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                },
            )  # fmt: skip

    def _sweep(self, name: str) -> None:
        """Remove what a killed process left of a cell."""
        left = self.place(f".{name}.tmp")
        if left.exists():
            shutil.rmtree(left)

    def sweep(self, names: list[str]) -> None:
        """Remove what killed processes left of these cells, but for those that others make."""
        for name in names:
            with self.claim(name):
                pass

    def describe(self, grid: Grid, plan: Plan, record: dict[str, Any]) -> None:
        """Write grid.json: the grid, versions, and which folder belongs to which cell.

        Cells that this run leaves out keep the folders they had under the same grid.

        Raises:
            ConfigError: nothing can be written here.
            DataError: the file that is there is no grid's.
        """
        from filelock import FileLock

        from pemt.training.record import write_json

        try:
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The output {self.root} cannot be written ({error.strerror})",
                "give another folder",
            ) from error
        with FileLock(self.root / ".locks" / f"{GRID}.lock"):
            before = self.description() or {}
            shown = json.loads(json.dumps(grid.to_dict(), default=str))
            same = before.get("grid") == shown
            refused = [
                {"task": task, "method": method, "reason": reason}
                for (task, method), reason in plan.refused.items()
            ]
            if same:
                seen = {*plan.refused, *((job.task.name, job.method) for job in plan.jobs)}
                refused += [
                    r for r in before.get("refused", []) if (r["task"], r["method"]) not in seen
                ]
            write_json(
                self.root / GRID,
                {
                    "grid": shown, "refused": refused,
                    "cells": {
                        **(before.get("cells", {}) if same else {}),
                        **{job.point: job.name for job in plan.jobs},
                    },
                    "versions": record,
                },
            )  # fmt: skip

    def description(self) -> dict[str, Any] | None:
        """What grid.json says; None where there is none.

        Raises:
            DataError: it is no grid's.
        """
        path = self.root / GRID
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}", "remove it and run the grid again") \
                from error  # fmt: skip
        if not isinstance(found, dict) or "grid" not in found:
            raise DataError(f"{path} describes no grid", "remove it and run the grid again")
        return found
