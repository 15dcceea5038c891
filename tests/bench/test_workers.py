"""Worker processes: they die alone, share the work with other runs, and change no number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pemt.bench.grid import Grid
from pemt.bench.running import GridRun
from tests.bench import places

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_TEST_FOLDER", str(tmp_path))
    return places.furnish(tmp_path)


def started(path: Path, *more: str, work: str = "work_slowly") -> subprocess.Popen:
    """`pemt bench run` in a process of its own, with work that leaves marks."""
    program = (
        "import sys, functools, signal\n"
        # a shell starts jobs in the background with SIGINT ignored, and children inherit that
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pemt.bench import running\n"
        f"from tests.bench.places import {work} as work\n"
        "running.GridRun = functools.partial(running.GridRun, work=work)\n"
        "from pemt.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, "bench", "run", str(path), *more],
        cwd=ROOT, env={**os.environ, "PEMT_TEST_FOLDER": str(path.parent)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until(condition, process=None, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate())
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def gone(folder):
    """Wait until no process that made a cell is there any more."""
    pids = {int(line.split()[1]) for line in (folder / "made.txt").read_text().splitlines()}
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds=120)


def check_deaths(folder: Path, run: GridRun) -> None:
    """The laws of `places.die`: one cell is made again, another is given up, the rest stay whole.

    All numbers are those of a run in one process.
    """
    made = places.made(folder)
    assert made.count("one-4-0-adapter") == 2
    assert made.count("one-4-1-adapter") == 2, "one retry"
    assert len(made) == 6
    assert places.leftovers(folder / "out") == []
    (error,) = [json.loads(p.read_text()) for p in (folder / "out").glob("cells/*/error.json")]
    assert error["attempt"] == 2
    assert (error["method"], error["data_seed"]) == ("adapter", 1)
    assert "3 of 4 cells are finished" in run.tally.lines()[0]
    straight = GridRun(run.grid, output=folder / "straight", only_methods=["probe"])
    straight.go()
    straight = GridRun(replace(run.grid, data_seeds=[0]), output=folder / "straight")
    straight.go()
    assert len(places.results(folder / "out")) == 3
    assert places.results(folder / "out") == places.results(folder / "straight")


def test_a_killed_worker_costs_its_cell_alone(folder):
    run = GridRun(Grid.from_file(places.grid(folder)), workers=2, work=places.die, retries=1)
    assert len(run.go()) == 3
    check_deaths(folder, run)
    (message,) = run.tally.failed.values()
    assert message.startswith("The worker was ended by SIGKILL")


def test_two_runs_at_once_make_every_cell_once(folder):
    path = places.grid(folder, data_seeds=4)
    other = started(path, "--json")
    until(lambda: (folder / "made.txt").exists(), other)
    run = GridRun(Grid.from_file(path), work=places.work_slowly)
    assert len(run.go()) == 8
    answer = json.loads(other.communicate(timeout=300)[0])
    assert other.returncode == 0
    made = places.made(folder)
    assert len(made) == 8
    assert sorted(made) == sorted(places.cells(folder / "out"))
    assert answer["finished"] == run.tally.finished == 8
    assert answer["made"] + run.tally.done == 8
    assert answer["made"] > 0
    assert run.tally.done > 0


def test_a_killed_run_is_finished_by_the_next(folder):
    """SIGKILL to the parent: its workers end by themselves, and no lock is left behind."""
    path = places.grid(folder, data_seeds=4)
    run = started(path, "--workers", "2")
    until(lambda: len(places.cells(folder / "out")) >= 2, run)
    run.kill()
    run.communicate()
    gone(folder)
    before = set(places.cells(folder / "out"))
    again = GridRun(Grid.from_file(path), work=places.work_slowly)
    assert len(again.go()) == 8
    assert again.tally.done == 8 - len(before)
    assert places.leftovers(folder / "out") == []
    made = places.made(folder)
    assert all(made.count(name) == 1 for name in before)


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(folder):
    path = places.grid(folder, data_seeds=60)  # far from done when it is interrupted
    run = started(path, "--workers", "2")
    until(lambda: len(places.cells(folder / "out")) >= 2, run)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=300)
    assert run.returncode == 130
    assert "of 120 cells are finished" in said
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    assert places.leftovers(folder / "out") == []
    gone(folder)
    for cell in places.cells(folder / "out").values():
        assert cell["metrics"]["n"] == 32
