"""How long a grid still takes, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pemt.bench.cell import Cell
from pemt.bench.progress import Tally, duration


def cell(method, seconds):
    return Cell(
        key="k", base="b", task="t", method=method, shots=4, data_seed=0, score="accuracy",
        metrics={"accuracy": 0.5}, validation=None, learning_rate=None, trained=1, total=2,
        seconds=seconds, train_seconds=0.0,
    )  # fmt: skip


def test_time_left():
    """Every remaining cell takes its arm's mean, one of no known arm all arms' mean."""
    jobs = [SimpleNamespace(name=f"{m}{i}", arm=m) for m in ("a", "b", "c") for i in range(3)]
    tally = Tally(total=9, workers=2, left={j.name: j for j in jobs})
    assert tally.estimate() is None
    tally.add(jobs[0], cell("a", 10), found=False)
    tally.add(jobs[1], cell("a", 20), found=True)
    tally.add(jobs[3], cell("b", 5), found=False)
    # one a (15 s), two b (5 s), three c (10 s), two at a time
    assert tally.estimate() == pytest.approx((15 + 2 * 5 + 3 * 10) / 2)
    tally.fail(jobs[2], "no")
    assert tally.estimate() == pytest.approx((2 * 5 + 3 * 10) / 2)
    assert (tally.finished, tally.found, tally.done) == (3, 1, 2)
    assert [duration(s) for s in (40, 600, 7200, 200000)] == ["40 s", "10 min", "2.0 h", "2.3 days"]


def test_workers_without_a_cell_save_no_time():
    jobs = [SimpleNamespace(name=f"a{i}", arm="a") for i in range(2)]
    tally = Tally(total=2, workers=8, left={j.name: j for j in jobs})
    tally.add(jobs[0], cell("a", 3600), found=False)
    assert tally.estimate() == pytest.approx(3600)
