"""Means, spreads, paired differences, and how long a grid still takes, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from pemt.bench.cell import Cell
from pemt.bench.progress import Tally, duration
from pemt.bench.summary import Summary, paired, summarise


def cell(method, seed, accuracy, task="t", seconds=0.0):
    return Cell(
        key="k", base="b", task=task, method=method, shots=4, data_seed=seed, score="accuracy",
        metrics={"accuracy": accuracy}, validation=None, learning_rate=None, trained=1, total=2,
        seconds=seconds, train_seconds=0.0,
    )  # fmt: skip


def test_mean_and_spread():
    summary = summarise([0.5, 0.7, 0.9])
    assert summary.mean == pytest.approx(0.7)
    assert summary.deviation == pytest.approx(0.2)  # sample deviation: divided by n - 1
    assert summary.n == 3
    assert str(summary) == "70.0 ± 20.0"
    assert summarise([0.25]) == Summary(0.25, 0.0, 1)


def test_paired_differences():
    """Only seeds that both methods have, and only this task."""
    cells = [
        cell("pemt", 0, 0.8), cell("pemt", 1, 0.6), cell("pemt", 2, 0.9),
        cell("lora", 1, 0.7), cell("lora", 0, 0.5), cell("lora", 0, 0.0, task="other"),
    ]  # fmt: skip
    difference = paired(cells, "t", "accuracy", "pemt", "lora")
    assert difference.n == 2
    assert difference.mean == pytest.approx((0.3 - 0.1) / 2)
    assert difference.deviation == pytest.approx(math.sqrt(2 * 0.2**2))


def test_time_left():
    """Every remaining cell takes its method's mean, one of no known method all methods' mean."""
    jobs = [SimpleNamespace(name=f"{m}{i}", method=m) for m in ("a", "b", "c") for i in range(3)]
    tally = Tally(total=9, workers=2, left={j.name: j for j in jobs})
    assert tally.estimate() is None
    tally.add(jobs[0], cell("a", 0, 0.5, seconds=10), found=False)
    tally.add(jobs[1], cell("a", 1, 0.5, seconds=20), found=True)
    tally.add(jobs[3], cell("b", 0, 0.5, seconds=5), found=False)
    # one a (15 s), two b (5 s), three c (10 s), two at a time
    assert tally.estimate() == pytest.approx((15 + 2 * 5 + 3 * 10) / 2)
    tally.fail(jobs[2], "no")
    assert tally.estimate() == pytest.approx((2 * 5 + 3 * 10) / 2)
    assert (tally.finished, tally.found, tally.done) == (3, 1, 2)
    assert [duration(s) for s in (40, 600, 7200, 200000)] == ["40 s", "10 min", "2.0 h", "2.3 days"]
