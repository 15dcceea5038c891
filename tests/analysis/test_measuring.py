"""Gates of examples: against explicit loops, and where they say nothing."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from pemt.analysis.gates import GateReport, effective
from pemt.analysis.measuring import measure_gates
from pemt.errors import ConfigError, DataError
from pemt.guide import NONE
from pemt.tasks.encoding import Collator, encode_prompts_only
from pemt.training.evaluating import lengths, side_of
from tests import adapters, tiny
from tests.guide.test_guided import guided


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return tiny.task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def rows(task):
    return tiny.splits(task).test


def build(name="bert", **settings):
    base = tiny.loaded(name)
    return base, tiny.stir(tiny.pemt(base.model, **settings))


def one_by_one(base, model, task, rows):
    """Gates of every example, each in a batch of its own: `[N, L, K]`."""
    collate = Collator(base.tokenizer, model.family, side=side_of(model.family))
    found = []
    for row in rows:
        encoded = encode_prompts_only(
            [row], task, base.tokenizer, model.family, **lengths(model, tiny.settings())
        )
        batch = collate(encoded)
        found.append(model.gates(batch["input_ids"], batch["attention_mask"])[:, 0])
    return torch.stack(found).double().numpy()


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_everything_equals_loops_over_single_examples(task, rows, name):
    base, model = build(name)
    report = measure_gates(model, task, base.tokenizer, rows, tiny.settings())
    gates = one_by_one(base, model, task, rows)
    n = len(rows)
    assert report.rows == n
    close = {"rtol": 0, "atol": 1e-5}
    np.testing.assert_allclose(report.mean, gates.mean(0), **close)
    for layer in range(gates.shape[1]):
        entropies = []
        for example in range(n):
            entropies.append(-sum(g * math.log(g) for g in gates[example, layer] if g > 0))
        assert report.example_effective[layer] == pytest.approx(math.exp(sum(entropies) / n), 1e-4)
        for k in range(gates.shape[2]):
            values = gates[:, layer, k]
            deviation = math.sqrt(sum((v - values.mean()) ** 2 for v in values) / (n - 1))
            assert report.deviation[layer, k] == pytest.approx(deviation, abs=1e-5)
    for number, word in enumerate(task.labels):
        own = [i for i, row in enumerate(rows) if row.label == number]
        assert report.class_rows[word] == len(own)
        np.testing.assert_allclose(report.classes[word], gates[own].mean(0), **close)
    for stack in report.stack_names:
        layers = [i for i, s in enumerate(report.stacks) if s == stack]
        each = gates[:, layers].mean(1)
        np.testing.assert_allclose(report.examples.by_stack[stack], each, **close)
        np.testing.assert_allclose(report.of_stack(stack), each.mean(0), **close)
        np.testing.assert_allclose(report.spread[stack], each.std(0, ddof=1), **close)


def test_an_encoder_decoder_has_two_stacks_and_others_one(task, rows):
    for name, stacks in [
        ("t5", ("encoder", "decoder")), ("bert", ("encoder",)), ("llama", ("decoder",)),
    ]:  # fmt: skip
        base, model = build(name)
        assert measure_gates(model, task, base.tokenizer, rows[:3]).stack_names == stacks


def test_the_share_between_classes(task, rows):
    """All of it where each class has its own gates, none of it where they are alike."""
    base, model = build()
    report = measure_gates(model, task, base.tokenizer, rows, tiny.settings())
    assert 0 <= report.class_share["encoder"] < 1
    from pemt.analysis.measuring import _between

    by_class = np.array([[0.9, 0.1] if r.label else [0.2, 0.8] for r in rows])
    assert _between(by_class, [task.labels[r.label] for r in rows]) == pytest.approx(1)
    assert _between(np.tile([[0.4, 0.6]], (len(rows), 1)), ["a"] * len(rows)) == 0


def test_where_nothing_of_the_text_arrives_it_is_said(task, rows):
    for name, settings, words in [
        ("llama", {}, "decoder-only"), ("bert", {"gate": "task"}, "prompt alone"),
        ("bert", {"gate": "uniform"}, "uniform by construction"),
    ]:  # fmt: skip
        base, model = build(name, **settings)
        report = measure_gates(model, task, base.tokenizer, rows, tiny.settings())
        assert any(words in note for note in report.notes)
        assert report.deviation.max() < 1e-6
        assert report.class_share == dict.fromkeys(report.stack_names, 0.0)
        assert report.effective == pytest.approx(report.example_effective, rel=1e-5)


def test_one_expert_one_row_and_regression(task, rows, tmp_path):
    base = tiny.loaded("bert")
    model = tiny.pemt(base.model, [tiny.expert(base.model, "a")])
    report = measure_gates(model, task, base.tokenizer, rows[:1], tiny.settings())
    assert (report.mean == 1).all()
    assert (report.deviation == 0).all()
    assert report.overall_effective == pytest.approx(1)
    assert any("one expert" in note for note in report.notes)
    scores = tiny.task(tmp_path, kind="regression")
    found = measure_gates(model, scores, base.tokenizer, tiny.splits(scores).test)
    assert found.classes == {}
    assert found.class_share == {}


def test_no_expert_as_a_choice_is_not_an_absent_one(task, rows):
    base = tiny.loaded("bert")
    weights = {"a": 0.5, "b": 0.2, NONE: 0.3}
    model = guided(base.model, weights)
    report = measure_gates(model, task, base.tokenizer, rows, tiny.settings())
    assert report.experts[-1] == NONE
    assert not [note for note in report.notes if "absent" in note]


def test_absent_experts_are_mentioned(task, rows):
    base = tiny.loaded("bert")
    model = tiny.pemt(base.model, adapters.pair(base.model))
    report = measure_gates(model, task, base.tokenizer, rows[:2])
    assert any("absent" in note for note in report.notes)
    assert len(report.layers) == len(model.gated_sites())


def test_gates_that_are_no_numbers_are_refused(task, rows):
    base, model = build()
    model.mixtures[1].gate.weight.data[:] = float("nan")
    with pytest.raises(DataError, match="gates of encoder 1 are not finite"):
        measure_gates(model, task, base.tokenizer, rows)


def test_nothing_to_measure(task, rows):
    base, model = build()
    with pytest.raises(DataError, match="No examples"):
        measure_gates(model, task, base.tokenizer, [])
    model.detach()
    bare = tiny.pemt(base.model, mixture=False)
    with pytest.raises(ConfigError, match="has no gates"):
        measure_gates(bare, task, base.tokenizer, rows)


# -- the report ----------------------------------------------------------------------------------


def test_effective_numbers_by_hand():
    gates = np.array([[1.0, 0.0], [0.5, 0.5], [0.75, 0.25]])
    assert effective(gates) == pytest.approx([1, 2, 4 / 3**0.75])


def test_a_report_outlives_json(task, rows):
    base, model = build("t5")
    report = measure_gates(model, task, base.tokenizer, rows, notes=["kept"])
    again = GateReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.to_dict() == report.to_dict()
    assert again.notes[0] == "kept"
    assert again.examples is None
    overall = report.to_dict()["overall"]
    assert overall["mean"]["a"] == pytest.approx(report.mean[:, 0].mean())
    assert set(overall["by_stack"]) == {"encoder", "decoder"}


def test_what_is_no_report():
    with pytest.raises(DataError, match="No gate report"):
        GateReport.from_dict({"experts": ["a"]})
    for results in ({}, {"gates": None}, {"gates": {"by_layer": {}}},
                    {"gates": {"by_layer": {"encoder 0": {"a": "x"}}}}):  # fmt: skip
        with pytest.raises(DataError, match="No gates"):
            GateReport.from_results(results)
    with pytest.raises(DataError, match="encoder 1 are not finite"):
        GateReport.from_results(
            {"gates": {"by_layer": {"encoder 0": {"a": 1.0}, "encoder 1": {"a": float("nan")}}}}
        )
    with pytest.raises(DataError, match="shape"):
        GateReport(experts=("a",), layers=(), stacks=(), mean=np.zeros((0, 1)))


def test_from_results_holds_the_recorded_means():
    by_layer = {"encoder 0": {"a": 0.25, "b": 0.75}, "decoder 0": {"a": 0.5, "b": 0.5}}
    report = GateReport.from_results({"gates": {"by_layer": by_layer}})
    assert report.stacks == ("encoder", "decoder")
    assert report.overall.tolist() == [0.375, 0.625]
    assert dataclasses.replace(report).deviation is None
