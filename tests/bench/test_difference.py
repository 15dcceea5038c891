"""Paired differences by hand."""

from __future__ import annotations

import math

import pytest

from pemt.bench.difference import differences
from pemt.bench.interval import bootstrap
from pemt.bench.results import Results
from pemt.errors import ConfigError
from tests.bench.cells import cell, row, study


def found(cells, method="pemt", against="lora", **options):
    results = Results(cells=tuple(cells))
    return {d.task: d for d in differences(results, 16, against, **options) if d.method == method}


def counts(d):
    return d.wins, d.ties, d.losses


def test_by_hand():
    by_task = found(study())
    assert list(by_task) == ["cb", "rte", None]
    # rte: 10, 0, 20; cb: -10, -5, 0; over both, seed by seed: 0, -2.5, 10
    assert by_task["rte"].summary.shown("+") == "+10.0 ± 10.0"
    assert by_task["cb"].summary.shown("+") == "-5.0 ± 5.0"
    assert by_task[None].summary.shown("+") == "+2.5 ± 6.6"
    assert [d.summary.n for d in by_task.values()] == [3, 3, 3]
    assert counts(by_task["rte"]) == (2, 1, 0)
    assert counts(by_task["cb"]) == (0, 1, 2)
    assert counts(by_task[None]) == (2, 2, 2)
    # t(2) = 4.3027 times 6.6144 / sqrt(3)
    low, high = by_task[None].interval
    assert (100 * low, 100 * high) == pytest.approx((2.5 - 16.431, 2.5 + 16.431), abs=2e-3)
    assert not any(d.note for d in by_task.values())


def test_over_targets_the_seeds_are_resampled_together():
    interval = found(study(), kind="bootstrap")[None].interval
    assert interval == pytest.approx(bootstrap([0.0, -0.025, 0.1]))


def test_the_margin_of_a_tie_is_inclusive():
    by_task = found(study(), tie=0.05)
    assert counts(by_task["cb"]) == (0, 2, 1)  # -10 | -5, 0
    assert counts(by_task[None]) == (2, 3, 1)
    # 0.03 - 0.02 is 0.009999999999999998
    close = [*row("pemt", [0.03]), *row("lora", [0.02])]
    assert counts(found(close, tie=0.01)["rte"]) == (0, 1, 0)
    assert counts(found(close)["rte"]) == (1, 0, 0)


def test_only_common_seeds_count():
    cells = [cell("pemt", s, 0.5 + s / 10) for s in (0, 1, 2)]
    cells += [cell("lora", s, 0.5) for s in (2, 3)]
    only = found(cells)["rte"]
    assert only.summary.shown("+") == "+20.0"
    assert only.summary.n == 1
    assert only.interval is None
    assert counts(only) == (1, 0, 0)


def test_over_targets_only_the_seeds_of_all_targets_count():
    cells = [c for c in study() if (c.task, c.method, c.data_seed) != ("cb", "lora", 2)]
    over = found(cells)[None]
    assert over.summary.mean == pytest.approx((0 - 0.025) / 2)
    assert over.summary.n == 2
    assert over.interval is None
    assert counts(over) == (2, 1, 2)  # every pair there is


def test_a_target_that_one_of_them_lacks():
    cells = [c for c in study() if (c.task, c.method) != ("cb", "pemt")]
    by_task = found(cells)
    assert by_task["cb"].summary is None
    assert "no common data seed" in by_task["cb"].note
    assert by_task[None].summary is None
    assert by_task[None].interval is None
    assert "not every target has a data seed that both methods ran" in by_task[None].note


def test_targets_that_share_no_seed():
    cells = [
        cell(m, s, 0.5, task=t) for t, s in (("cb", 0), ("rte", 1)) for m in ("pemt", "lora")
    ]  # fmt: skip
    assert "no data seed that every target has" in found(cells)[None].note


def test_a_score_that_is_no_number():
    cells = [*row("pemt", [0.5, math.nan, 0.7]), *row("lora", [0.4, 0.5, 0.5])]
    only = found(cells)["rte"]
    assert math.isnan(only.summary.mean)
    assert only.interval is None
    assert counts(only) == (2, 0, 0)
    assert "a score that is no number: 1" in only.note


def test_one_method_alone_has_no_differences():
    with pytest.raises(ConfigError, match="cells of 'pemt' alone"):
        found(row("pemt", [0.5]), against="pemt")


@pytest.mark.parametrize("tie", [-0.1, math.nan])
def test_a_margin_below_zero(tie):
    with pytest.raises(ConfigError, match="tie="):
        found(study(), tie=tie)
