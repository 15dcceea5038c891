"""The rule that decides between guided, plain and no experts at all."""

from __future__ import annotations

import pytest

from pemt.guide import NONE, guide_from
from pemt.guide.guide import ROWS
from pemt.guide.rule import choice_of, is_few
from pemt.methods import METHODS
from pemt.model import AdaptedModel, PemtConfig, PemtModel
from pemt.training import adapt
from tests import tiny
from tests.guide.test_guide import experts, made

SMALL = PemtConfig(prompt_scale=0.1, reduction=4)


def test_the_rule():
    helps = guide_from(made(a=0.3, b=0.7, none=0.7))
    useless = guide_from(made(a=3.0, b=4.0, none=0.1))
    assert choice_of(helps, 24).method == "ensemble"
    assert choice_of(helps, 24, probes=False).method == "guided"
    alone = choice_of(useless, 24)
    assert useless.weights[NONE] > 0.5
    assert (alone.method, "no use for the experts" in alone.why) == ("adapter", True)
    many = choice_of(None, 5000)
    assert (many.method, "5000 labelled rows" in many.why) == ("guided-no-tsl", True)
    assert is_few(ROWS)
    assert not is_few(ROWS + 1)
    assert {c.method for c in (choice_of(helps, 24), alone, many)} <= set(METHODS)


@pytest.mark.parametrize(
    ("name", "kind", "method"),
    [
        ("bert", "classification", "ensemble"),
        ("llama", "classification", "ensemble"),
        ("bert", "regression", "ensemble"),
        ("t5", "regression", "guided"),
        ("llama", "generation", "guided"),
    ],
)
def test_by_default_the_rule_says_what_runs(name, kind, method, tmp_path):
    base, task = tiny.loaded(name), tiny.task(tmp_path, kind=kind)
    result = adapt(
        base, task, experts(base), shots=8, config=SMALL,
        settings=tiny.settings(max_steps=2), progress=False,
    )  # fmt: skip
    assert result.method == method
    assert isinstance(result.model, PemtModel)
    assert set(result.notes["guide"]["weights"]) == {"a", "b", NONE}
    assert result.verdicts()[0].endswith(f"({method})")
    result.model.detach()


def test_options_that_the_method_ignores_are_named(tmp_path):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    result = adapt(
        base, task, experts(base), shots=8, method="lora", config=PemtConfig(tau=2.0, reduction=4),
        settings=tiny.settings(max_steps=1), progress=False,
    )  # fmt: skip
    result.model.detach()
    assert result.notes["unread"] == ["tau", "reduction"]
    assert "Without effect on lora" in result.verdicts()[0]


def test_auto_leaves_experts_out_that_the_labels_find_no_use_for(tmp_path, monkeypatch):
    useless = guide_from(made(a=3.0, b=4.0, none=0.1))
    monkeypatch.setattr("pemt.training.adapting.guide_of", lambda setting: (useless, None))
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    result = adapt(
        base, task, experts(base), shots=4, method="auto", settings=tiny.settings(max_steps=2),
        progress=False,
    )  # fmt: skip
    assert result.method == "adapter"
    assert not isinstance(result.model, PemtModel)
    assert isinstance(result.model, AdaptedModel)
    assert any("no use for the experts" in line for line in result.verdicts())
    result.model.detach()


def test_auto_with_many_labels_is_guided_without_the_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("pemt.training.adapting.is_few", lambda rows: False)
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    result = adapt(
        base, task, experts(base), shots=4, method="auto",
        config=PemtConfig(prompt_scale=0.1, reduction=4, sparsity_weight=0.3),
        settings=tiny.settings(max_steps=2), progress=False,
    )  # fmt: skip
    used = result.model.pemt_config
    assert (result.method, used.guide, used.sparsity_weight) == ("guided-no-tsl", "evidence", 0)
    assert set(result.notes["guide"]["weights"]) == {"a", "b", NONE}
    assert "Task Sparsity Loss is left out" in result.verdicts()[0]
    assert result.notes["unread"] == ["sparsity_weight"]  # what was asked for was not done
    result.model.detach()


def test_the_rule_says_the_method_and_cross_validation_the_rest(tmp_path):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    result = adapt(
        base, task, experts(base), shots=4, validation="cv", cv_folds=2, config=SMALL,
        learning_rates=[1e-3, 2e-3], settings=tiny.settings(max_steps=2), progress=False,
    )  # fmt: skip
    assert result.method == "ensemble"
    tried = {(c.method, c.learning_rate) for c in result.selection.choices}
    assert tried == {("ensemble", 1e-3), ("ensemble", 2e-3)}
    assert "labelled rows are few" in result.notes["rule"]
    result.model.detach()
