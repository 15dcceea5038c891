"""Rows of means, by hand: what is averaged, what is not, what is marked."""

from __future__ import annotations

import math

import pytest

from pemt.bench.comparison import best_single_task, compared
from pemt.bench.results import Results
from tests.bench.cells import cell, row, study


def rows_of(cells, shots=16):
    return compared(Results(cells=tuple(cells)), shots)


def shown(r):
    return {method: str(summary) for method, summary in r.entries.items()}


def test_means_deviations_and_best_by_hand():
    cb, rte, mean = rows_of(study())
    assert (cb.task, rte.task, mean.task) == ("cb", "rte", None)
    assert shown(rte) == {"pemt": "80.0 ± 10.0", "lora": "70.0 ± 10.0", "single": "60.0 ± 10.0"}
    assert shown(cb) == {"pemt": "50.0 ± 10.0", "lora": "55.0 ± 5.0", "single": "30.0 ± 0.0"}
    # of the seeds' means over targets: pemt 55, 65, 75; lora 55, 67.5, 65; single 40, 45, 50
    assert shown(mean) == {"pemt": "65.0 ± 10.0", "lora": "62.5 ± 6.6", "single": "45.0 ± 5.0"}
    assert (rte.best, cb.best, mean.best) == ({"pemt"}, {"lora"}, {"pemt"})
    assert (rte.test_rows, cb.test_rows, mean.test_rows) == ((100, 100), (28, 28), None)
    assert [r.metric for r in (cb, rte, mean)] == ["accuracy"] * 3
    assert [r.seeds for r in (cb, rte, mean)] == [3, 3, 3]
    assert [r.notes for r in (cb, rte, mean)] == [{}] * 3


def test_one_target_has_no_mean_row():
    assert [r.task for r in rows_of(row("lora", [0.5]))] == ["rte"]


def test_shots_are_apart():
    cells = [*row("lora", [0.5, 0.7]), *row("lora", [0.9], shots=4)]
    assert shown(rows_of(cells)[0]) == {"lora": "60.0 ± 14.1"}
    assert shown(rows_of(cells, 4)[0]) == {"lora": "90.0"}


def test_a_mean_needs_every_target():
    cells = [c for c in study() if (c.task, c.method) != ("cb", "pemt")]
    *_, mean = rows_of(cells)
    assert set(mean.entries) == {"lora", "single"}
    assert mean.best == {"lora"}
    assert mean.notes == {"pemt": "PEMT, 16 shots: no mean, because it has no cell of cb."}


def test_a_method_at_other_shots_alone_is_silent():
    cells = [*study(), *row("spot", [0.5], shots=4), *row("spot", [0.5], shots=4, task="cb")]
    *_, mean = rows_of(cells)
    assert "spot" not in mean.entries
    assert not mean.notes


def test_different_seeds_are_said():
    cells = [c for c in study() if (c.task, c.method, c.data_seed) != ("cb", "pemt", 2)]
    cb, _, mean = rows_of(cells)
    assert cb.entries["pemt"].n == 2
    assert "the methods have different data seeds" in cb.notes[""]
    # (80 + 45) / 2: of the targets' means; no seed's mean over targets would give that
    assert str(mean.entries["pemt"]) == "62.5"
    assert mean.entries["pemt"].n == 2
    assert math.isnan(mean.entries["pemt"].deviation)
    assert "the targets have different data seeds" in mean.notes["pemt"]
    assert "lora" not in mean.notes


def test_as_many_but_other_seeds_are_said():
    cells = [cell("pemt", 0, 0.5), cell("lora", 1, 0.6)]
    assert "different data seeds" in rows_of(cells)[0].notes[""]


def test_different_test_rows_are_said():
    cells = [cell("pemt", 0, 0.5, n=100), cell("lora", 0, 0.6, n=90)]
    (only,) = rows_of(cells)
    assert only.test_rows == (90, 100)
    assert only.notes[""].startswith("rte, 16 shots: cells have from 90 to 100 test rows")


def test_a_score_that_is_no_number_is_never_hidden():
    cells = [*study(), cell("spot", 0, 0.9, task="cb"), cell("spot", 0, math.nan)]
    _, rte, mean = rows_of(cells)
    assert str(rte.entries["spot"]) == "nan"
    assert rte.best == {"pemt"}
    assert "the score of data seed 0 is no number" in rte.notes["spot"]
    assert math.isnan(mean.entries["spot"].mean)
    assert "no mean, because a score of rte is no number" in mean.notes["spot"]


def test_equal_as_shown_is_equally_best():
    cells = [*row("pemt", [0.7001]), *row("lora", [0.7003]), *row("single", [0.6])]
    assert rows_of(cells)[0].best == {"pemt", "lora"}
    assert rows_of(row("pemt", [0.7]))[0].best == frozenset()


def test_several_metrics_have_no_common_name():
    cells = [*row("lora", [0.5]), *row("lora", [0.6], task="cola", score="matthews")]
    assert [r.metric for r in rows_of(cells)] == ["matthews", "accuracy", ""]


def test_the_best_single_task_method_by_hand():
    results = Results(cells=(*study(), *row("bitfit", [0.99])))
    # BitFit leads on rte and lacks cb; PEMT and the single expert use source tasks
    assert best_single_task(results, 16) == "lora"
    assert best_single_task(Results(cells=tuple(row("pemt", [0.5]))), 16) is None


@pytest.mark.parametrize("value", [-0.3, 1.0])
def test_correlations_may_be_negative(value):
    assert shown(rows_of(row("lora", [value, value]))[0]) == {"lora": f"{100 * value:.1f} ± 0.0"}
