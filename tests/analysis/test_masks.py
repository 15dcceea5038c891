"""Scores under masks: one evaluation after the other, and intervals by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt.analysis import masks as module
from pemt.analysis.masks import MaskReport, mask_scores, plan_of
from pemt.errors import ConfigError, DataError, UnknownNameError
from pemt.guide import NONE
from pemt.training.evaluating import evaluate
from tests import tiny
from tests.guide.test_guided import guided


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return tiny.task(tmp_path_factory.mktemp("task"), count=48)


@pytest.fixture(scope="module")
def rows(task):
    return tiny.splits(task).test


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 60)


def build(name="bert"):
    base = tiny.loaded(name)
    return base, tiny.stir(tiny.pemt(base.model), size=0.5)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_every_score_is_that_of_its_own_evaluation(task, rows, name):
    base, model = build(name)
    settings = tiny.settings()
    report = mask_scores(model, task, base.tokenizer, rows, settings)
    kinds = [(s.kind, s.expert) for s in report.scores]
    assert kinds == [
        ("all", None), *(("without", n) for n in "abc"), *(("only", n) for n in "abc"),
        ("none", None),
    ]  # fmt: skip
    plain, said = evaluate(model, task, base.tokenizer, rows, settings)
    assert report.scores[0].value == plain["accuracy"]
    assert report.scores[0].loss == plain["loss"]
    kept = {"without": lambda n: set("abc") - {n}, "only": lambda n: {n}, "none": lambda n: set()}
    for score in report.scores[1:]:
        with model.keeping(kept[score.kind](score.expert)):
            metrics, made = evaluate(model, task, base.tokenizer, rows, settings)
        assert score.value == metrics["accuracy"]
        assert score.loss == metrics["loss"]
        assert score.difference == pytest.approx(metrics["accuracy"] - plain["accuracy"])
        assert score.gain == pytest.approx(metrics["accuracy"] - report.of("none").value)
        assert score.changed == sum(a != b for a, b in zip(made.texts, said.texts, strict=True))
    assert report.gains() == {n: report.of("only", n).gain for n in "abc"}
    assert any(s.changed for s in report.scores)


def test_intervals_are_of_paired_resamples(task, rows):
    """The same rows are drawn for both scores: an explicit loop over rows gives the same ends."""
    base, model = build()
    report = mask_scores(model, task, base.tokenizer, rows, tiny.settings())
    truth = [row.label for row in rows]

    def right(kept):
        with model.keeping(kept):
            values = evaluate(model, task, base.tokenizer, rows, tiny.settings())[1].values
        return [float(a == b) for a, b in zip(values, truth, strict=True)]

    every, alone, nothing = right("abc"), right("a"), right("")
    draw = np.random.default_rng(0)
    against_all, against_none = [], []
    for _ in range(60):
        drawn = draw.integers(0, len(rows), len(rows)).tolist()
        against_all.append(sum(alone[i] - every[i] for i in drawn) / len(rows))
        against_none.append(sum(alone[i] - nothing[i] for i in drawn) / len(rows))
    found = report.of("only", "a")
    assert found.interval == pytest.approx(np.quantile(against_all, [0.025, 0.975]))
    assert found.gain_interval == pytest.approx(np.quantile(against_none, [0.025, 0.975]))
    assert report.of("all").interval == (0, 0)


def test_a_guided_model_can_lose_its_choice_of_none(task, rows):
    base = tiny.loaded("bert")
    model = guided(base.model, {"a": 0.4, "b": 0.2, NONE: 0.4}).eval()
    report = mask_scores(model, task, base.tokenizer, rows, tiny.settings())
    assert [s.expert for s in report.scores if s.kind == "without"] == ["a", "b", NONE]
    assert [s.expert for s in report.scores if s.kind == "only"] == ["a", "b"]
    assert any("choose no expert" in note for note in report.notes)


def test_one_expert_and_a_choice_of_experts(task, rows):
    base = tiny.loaded("bert")
    model = tiny.stir(tiny.pemt(base.model, [tiny.expert(base.model, "a")]))
    report = mask_scores(model, task, base.tokenizer, rows, tiny.settings())
    assert report.of("without", "a").value == report.of("none").value
    assert report.of("only", "a").value == report.of("all").value
    assert any("one expert" in note for note in report.notes)
    model.detach()
    three = tiny.pemt(base.model)
    some = mask_scores(three, task, base.tokenizer, rows, tiny.settings(), experts=["b"])
    assert [s.title for s in some.scores] == ["all experts", "without b", "only b", "no expert"]
    with pytest.raises(UnknownNameError, match="Did you mean"):
        mask_scores(three, task, base.tokenizer, rows, experts=["bb"])


def test_other_kinds_of_tasks(tmp_path):
    for kind, name in [("regression", "bert"), ("generation", "t5")]:
        task = tiny.task(tmp_path, kind, kind=kind)
        base, model = build(name)
        if kind == "regression":
            model.detach()
            model = tiny.stir(scored(base))
        report = mask_scores(model, task, base.tokenizer, tiny.splits(task).test, tiny.settings())
        assert report.metric == task.metrics[0]
        assert (report.scores[0].loss is None) == (kind == "generation")


def scored(base):
    """A model with one output."""
    from pemt.model import PemtConfig, PemtModel

    experts = [tiny.expert(base.model, n, seed=i) for i, n in enumerate("ab", 1)]
    return PemtModel(
        base.model, experts, PemtConfig(reduction=4), prompt=tiny.prompt(), outputs=1
    ).eval()


def test_a_metric_without_a_value_has_no_interval():
    values = np.array([np.nan] * 10 + [0.5] * 50)
    assert module._interval(values) is None
    assert module._interval(np.array([np.nan] + [0.5] * 59)) == (0.5, 0.5)


def test_nothing_to_mask(task, rows):
    base, model = build()
    with pytest.raises(DataError, match="No examples"):
        mask_scores(model, task, base.tokenizer, [])
    with pytest.raises(ConfigError, match="No experts to mask"):
        mask_scores(model, task, base.tokenizer, rows, experts=[])
    model.detach()
    with pytest.raises(ConfigError, match="has no gates"):
        mask_scores(tiny.pemt(base.model, mixture=False), task, base.tokenizer, rows)


def test_a_report_outlives_json(task, rows):
    base, model = build()
    report = mask_scores(model, task, base.tokenizer, rows, tiny.settings(), notes=["kept"])
    assert MaskReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    with pytest.raises(DataError, match="No mask report"):
        MaskReport.from_dict({"scores": [{}]})
    with pytest.raises(UnknownNameError):
        report.of("only", "zz")


def test_the_plan_of_masks():
    plan = plan_of(["a", "b", NONE], ["b", NONE])
    assert plan == [
        ("all", None, {"a", "b", NONE}), ("without", "b", {"a", NONE}),
        ("without", NONE, {"a", "b"}), ("only", "b", {"b"}), ("none", None, set()),
    ]  # fmt: skip
