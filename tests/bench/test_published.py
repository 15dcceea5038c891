"""The literature's numbers: typed in right, and kept apart from ours."""

from __future__ import annotations

from statistics import fmean

import pytest

from pemt.bench.comparison import compared
from pemt.bench.published import MARK, METRIC, PUBLISHED, SUITES, published_scores
from pemt.bench.results import Results
from pemt.bench.table import published_table
from pemt.methods import METHODS
from pemt.tasks import Task
from tests.bench.cells import row


@pytest.mark.parametrize("p", PUBLISHED, ids=lambda p: f"{p.suite}-{p.title}")
def test_the_scores_give_the_printed_mean(p):
    """Rounding alone lets a mean of rounded scores differ from the printed one by 0.1."""
    assert len(p.scores) == len(SUITES[p.suite])
    assert fmean(p.scores) == pytest.approx(p.mean, abs=0.1 + 1e-9)
    assert p.source
    assert p.method is None or p.method in METHODS


def test_every_row_is_there_once():
    assert len({(p.suite, p.title) for p in PUBLISHED}) == len(PUBLISHED) == 8 + 8 + 3 + 3
    assert published_scores()["LoRA", "lora"] == {
        "mnli": 86.3, "qqp": 89.0, "qnli": 93.2, "sst2": 94.3, "stsb": 90.0, "mrpc": 90.1,
        "rte": 75.5, "cola": 63.3, "multirc": 72.6, "boolq": 81.3, "wic": 68.3, "wsc": 67.3,
        "cb": 92.9,
    }  # fmt: skip


def test_tasks_and_metrics_are_ours():
    for task, metric in METRIC.items():
        assert Task.named(task).metrics[0] == metric


def table_of(cells):
    results = Results(cells=tuple(cells))
    return published_table(results, [r for s in results.shots for r in compared(results, s)])


def test_a_separate_block_marked_as_such():
    cells = [*row("lora", [0.5, 0.7]), *row("lora", [0.8], task="nq", score="token_f1")]
    cells += [*row("pemt", [0.9], task="film_reviews"), *row("lora", [0.9], shots=4)]
    table = table_of(cells)
    assert MARK in table.title
    lines = {(r[0].text, r[1].text): [e.text for e in r[2:]] for r in table.rows}
    assert table.columns == ("method", "where", "nq (token_f1)", "rte (accuracy)", "mean")
    assert lines["adapter", MARK] == ["74.2", "71.9", f"{(74.2 + 71.9) / 2:.1f}"]
    assert lines["LoRA", MARK] == ["-", "75.5", "-"]
    assert lines["LoRA", "ours, tiny, 16 shots"] == ["80.0", "60.0", "70.0"]
    assert lines["LoRA", "ours, tiny, 4 shots"] == ["-", "90.0", "-"]
    assert any("METHOD.md" in remark for remark in table.remarks)


def test_another_metric_is_not_put_beside():
    table = table_of([*row("lora", [0.5], task="cola"), *row("lora", [0.5])])
    assert table.columns == ("method", "where", "rte (accuracy)", "mean")
    assert "cola is left out: the published number is matthews, ours accuracy." in table.remarks


def test_nothing_to_put_beside():
    assert table_of(row("lora", [0.5], task="film_reviews")) is None
    only = table_of(row("lora", [0.5], task="cola"))
    assert only.rows == ()
