"""Means, deviations and paired differences by hand."""

from __future__ import annotations

import math

import pytest

from pemt.bench.summary import Summary, paired, points, summarise
from pemt.errors import DataError
from tests.bench.cells import cell, row


def test_mean_and_spread_by_hand():
    summary = summarise([0.5, 0.7, 0.9])
    assert summary.mean == pytest.approx(0.7)
    assert summary.deviation == pytest.approx(0.2)  # sample deviation: divided by n - 1
    assert summary.n == 3
    assert str(summary) == "70.0 ± 20.0"
    assert summary.shown("+") == "+70.0 ± 20.0"


def test_one_value_shows_no_spread():
    assert summarise([0.25]) == Summary(0.25, 0.0, 1)
    assert str(summarise([0.25])) == "25.0"


def test_a_score_that_is_no_number_is_not_averaged_away():
    summary = summarise([0.5, math.nan, 0.7])
    assert math.isnan(summary.mean)
    assert summary.n == 3
    assert str(summary) == "nan"
    assert summary.shown("+") == "nan"


def test_nothing_has_no_mean():
    with pytest.raises(DataError, match="no values"):
        summarise([])


@pytest.mark.parametrize(
    ("fraction", "text"), [(-0.0004, "0.0"), (0.0, "0.0"), (0.012, "+1.2"), (-0.012, "-1.2")]
)
def test_zero_has_no_sign(fraction, text):
    assert points(fraction, "+") == text


def test_paired_differences_by_hand():
    """Only draws that both methods have, only this task; a seed of other shots is not the same."""
    cells = [
        cell("pemt", 0, 0.8), cell("pemt", 1, 0.6), cell("pemt", 2, 0.9),
        cell("lora", 1, 0.7), cell("lora", 0, 0.5), cell("lora", 0, 0.0, task="cb"),
        cell("lora", 2, 0.1, shots=4),
    ]  # fmt: skip
    difference = paired(cells, "rte", "accuracy", "pemt", "lora")
    assert difference.n == 2
    assert difference.mean == pytest.approx((0.3 - 0.1) / 2)
    assert difference.deviation == pytest.approx(math.sqrt(2 * 0.2**2))


def test_methods_without_a_common_draw_have_no_difference():
    with pytest.raises(DataError, match=r"'pemt' and 'lora' have no draw of 'rte' in common"):
        paired(row("pemt", [0.5]) + row("lora", [0.5], shots=4), "rte", "accuracy", "pemt", "lora")


def test_paired_differences_do_not_mix_variants():
    cells = [
        cell("pemt", 0, 0.9, variant="short"), cell("pemt", 0, 0.1, variant="long"),
        cell("lora", 0, 0.5, variant="long"), cell("lora", 0, 0.8, variant="short"),
    ]  # fmt: skip
    assert paired(cells, "rte", "accuracy", "pemt@short", "lora@short").mean == pytest.approx(0.1)
    with pytest.raises(DataError, match="no draw"):
        paired(cells, "rte", "accuracy", "pemt", "lora")
