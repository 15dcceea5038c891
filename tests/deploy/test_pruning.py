"""Experts taken out: the rest is the old model, with the others' gates made to sum to 1."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from pemt.deploy import prune_model, pruning_of
from pemt.deploy.measuring import recorded_gates
from pemt.errors import ConfigError
from pemt.model import PemtConfig, PemtModel
from pemt.model.storage import load_model
from tests import adapters, tiny

FIRST = 0  # no layer before it that another mixture could have changed


def built(name: str, **settings) -> PemtModel:
    return tiny.stir(tiny.pemt(tiny.base(name), **settings))


def answer(model, **more):
    ids, mask = tiny.batch()
    more |= tiny.decode_inputs(model.base, len(ids))
    with torch.no_grad():
        return model(ids, mask, output_gates=True, **more)


@pytest.mark.parametrize("gate", ["example", "task"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_the_others_gates_are_the_old_ones_made_to_sum_to_one(name, gate):
    model = built(name, gate=gate)
    before = answer(model).gates[FIRST]
    smaller = prune_model(model, ["b"])
    assert smaller.expert_names == ["a", "c"]
    left = before[:, [0, 2]]
    assert_close(answer(smaller).gates[FIRST], left / left.sum(-1, keepdim=True))


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_pruning_who_has_no_gate_changes_no_answer(name):
    """The prompt stays too, also what the dropped expert gave to it."""
    model = built(name)
    with torch.no_grad():
        for layer in model.mixtures:  # a gate of e^-60
            layer.gate.weight[:, 1] = 0
            layer.gate.weight[:, [0, 2]] *= 0.01
        for layer in model.mixtures:
            layer.gate.bias = torch.nn.Parameter(torch.tensor([0.3, -60.0, -0.2]))
    wanted = answer(model).logits
    prompt = model.prompt().detach()
    biases = {n: p for n, p in model.trained_state().items() if n.endswith("gate.bias")}
    for layer in model.mixtures:
        layer.gate.bias = None
    smaller = prune_model(model, ["b"])
    for layer, bias in zip(smaller.mixtures, biases.values(), strict=True):
        layer.gate.bias = torch.nn.Parameter(bias[[0, 2]].clone())
    assert_close(answer(smaller).logits, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(smaller.prompt(), prompt)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_it_equals_the_whole_model_with_the_gates_it_should_have(name):
    """Layer by layer: the whole model is given the pruned one's gates, and 0 for who went."""
    whole = built(name, gate="task")
    smaller = prune_model(built(name, gate="task"), ["a"])
    gates = answer(smaller).gates
    fixed = {i: torch.cat([torch.zeros(1), g[0]]) for i, g in enumerate(gates)}
    wanted = answer(whole, fixed_gates=fixed).logits
    assert_close(answer(smaller).logits, wanted, atol=1e-5, rtol=1e-5)


def test_a_guide_and_none_survive():
    base = tiny.base("bert")
    experts = [tiny.expert(base, n, seed=i + 1) for i, n in enumerate("abc")]
    guide = {"a": 0.4, "b": 0.4, "c": 0.1, "none": 0.1}
    config = PemtConfig(guide="evidence", prompt_dropout=0.0, reduction=4)
    model = tiny.stir(
        PemtModel(base, experts, config, prompt=tiny.prompt(), outputs=3, guide=guide).eval()
    )
    before = answer(model).gates[FIRST]
    smaller = prune_model(model, ["b"])
    assert smaller.gate_names == ["a", "c", "none"]
    assert smaller.guide == pytest.approx({"a": 4 / 6, "c": 1 / 6, "none": 1 / 6})
    left = before[:, [0, 2, 3]]
    assert_close(answer(smaller).gates[FIRST], left / left.sum(-1, keepdim=True))


def test_maps_that_only_dropped_experts_were_beside_are_given_back(tmp_path):
    base = tiny.base("bert")
    model = tiny.stir(tiny.pemt(base, adapters.pair(base)))
    names = model.expert_names
    wide = max(model.experts, key=lambda e: len({y.module for y in e.layers})).name
    sites = len(model.sites)
    smaller = prune_model(model, [wide])
    assert smaller.expert_names == [n for n in names if n != wide]
    assert len(smaller.sites) < sites
    wanted = answer(smaller).logits
    smaller.save_pretrained(tmp_path / "model", base_name="tiny")
    again = load_model(tmp_path / "model", base=tiny.loaded("bert"))[0]
    assert torch.equal(answer(again).logits, wanted)


def test_it_is_smaller_and_its_base_comes_back(tmp_path):
    base = tiny.base("bert")
    before = tiny.snapshot(base)
    model = tiny.stir(tiny.pemt(base))
    counts = model.parameter_counts()
    smaller = prune_model(model, ["a", "c"])
    assert all(s < c for s, c in zip(smaller.parameter_counts(), counts, strict=True))
    assert tiny.snapshot(smaller.detach()) == before


def test_an_expert_goes_only_where_it_is_small_in_every_layer():
    model = built("bert")
    gates = torch.tensor([[0.90, 0.01, 0.09], [0.93, 0.05, 0.02]])
    found = pruning_of(model, gates, below=0.06)
    assert (found.kept, found.dropped) == (["a", "c"], ["b"])
    assert found.shares == pytest.approx({"a": 0.93, "b": 0.05, "c": 0.09})
    assert pruning_of(model, gates, below=0.05).dropped == []
    assert pruning_of(model, gates, below=0.1).dropped == ["b", "c"]


def test_layers_without_a_branch_do_not_count():
    base = tiny.base("bert")
    model = tiny.pemt(base, adapters.pair(base))
    gates = torch.full((len(model.gated_sites()), 2), 0.5)
    layers = [m for m in model.mixtures if m.gate is not None]
    for row, layer in enumerate(layers):  # a large gate wherever "b" has nothing to give
        here = [0, 1] if layer.present is None else layer.present.tolist()
        gates[row] = torch.tensor([0.99, 0.01]) if 1 in here else torch.tensor([0.1, 0.9])
    assert any(m.present is not None and 1 not in m.present.tolist() for m in layers)
    assert pruning_of(model, gates, below=0.05).dropped == [model.expert_names[1]]


@pytest.mark.parametrize(
    ("settings", "below", "words"),
    [
        ({}, 0.0, "below=0.0"),
        ({}, 1.0, "below=1.0"),
        ({}, 0.9, r"the most is 0\.3333"),
        ({"gate": "uniform"}, 0.1, "uniform"),
        ({"mixture": False}, 0.1, "no gates"),
    ],
)
def test_what_cannot_be_pruned_is_refused(settings, below, words):
    model = tiny.pemt(tiny.base("bert"), **settings)
    with pytest.raises(ConfigError, match=words):
        pruning_of(model, torch.full((2, 3), 1 / 3), below=below)


@pytest.mark.parametrize("names", [["z"], ["a", "b", "c"]])
def test_dropping_a_stranger_or_everyone_is_refused(names):
    model = built("bert")
    wanted = answer(model).logits
    with pytest.raises(ConfigError, match="not all, of a, b, c"):
        prune_model(model, names)
    assert torch.equal(answer(model).logits, wanted)


@pytest.mark.parametrize("value", [None, "much", [0.1]])
def test_recorded_gates_that_are_no_numbers_are_none(tmp_path, value):
    model = tiny.pemt(tiny.base("bert"))
    by_layer = {s.label: dict.fromkeys(model.gate_names, 0.5) for s in model.gated_sites()}
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"gates": {"by_layer": by_layer}}))
    found = recorded_gates(tmp_path / "model", model)
    assert torch.equal(found, torch.full((len(by_layer), 3), 0.5))
    by_layer[model.gated_sites()[0].label]["b"] = value
    results.write_text(json.dumps({"gates": {"by_layer": by_layer}}))
    assert recorded_gates(tmp_path / "model", model) is None
