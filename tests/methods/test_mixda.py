"""MixDA: gates over frozen experts and the base, a task adapter behind them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close

from pemt.methods import METHODS
from pemt.methods.mixda import MixDaLayer, TokenGate
from pemt.nn import ExpertBank, ForwardContext, Slot, TargetAdapter
from tests import adapters, reference, tiny
from tests.methods.mixing import CLOSE, given, logits, promptless, single
from tests.nn import draws

FAMILIES = pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)


def build(folder, name, **changes):
    return METHODS["mixda"].build(given(folder, name, **changes)).eval()


def layers(model):
    return [m for m in model.modules() if isinstance(m, MixDaLayer)]


def force(model, column):
    """Every gate on one column, every task adapter without effect."""
    for layer in layers(model):
        last = layer.gate.mlp[-1]
        last.weight.data.zero_()
        last.bias.data.zero_()
        last.bias.data[column] = 1e4
        layer.adapter.up.weight.data.zero_()
        layer.adapter.up.bias.data.zero_()


@pytest.mark.parametrize("shape", draws.SHAPES)
@pytest.mark.parametrize("kinds", ["l4", "l4 l2 l4", "l4 g4 l4 r4"])
def test_the_layer_is_the_formula(kinds, shape):
    """A softmax over K experts and the base, of an MLP of three hidden layers, token by token."""
    torch.manual_seed(3)
    experts = draws.experts(kinds)
    slot = Slot()
    slot.active = ForwardContext()
    down = torch.nn.Linear(draws.HIDDEN, draws.WIDTH)
    gate = TokenGate(draws.HIDDEN, 5, len(experts))
    adapter = TargetAdapter(draws.WIDTH, reduction=4)
    layer = MixDaLayer(down, ExpertBank(experts), gate, adapter, slot)
    tiny.stir(layer, size=0.3).eval()
    x = draws.inputs(*shape, 1)[0]
    linears = [m for m in gate.mlp if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linears] == [5, 5, 5, len(experts) + 1]
    hidden = x
    for linear in linears[:-1]:
        hidden = F.linear(hidden, linear.weight, linear.bias).clamp_min(0)
    g = F.linear(hidden, linears[-1].weight, linears[-1].bias).softmax(-1)
    f = down(x)
    h = g[..., -1:] * f
    for k, expert in enumerate(experts):
        h = h + g[..., k : k + 1] * (f + reference.expert_output(expert, x))
    V, U = adapter.down, adapter.up
    wanted = h + reference.gelu_new(h @ V.weight.T + V.bias) @ U.weight.T + U.bias
    assert_close(layer(x), wanted, **CLOSE)
    dropped = layer.train()(x)
    assert not torch.equal(dropped, wanted), "the gate has dropout"


@FAMILIES
@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_gate_on_one_expert_is_that_expert(tmp_path, name, chosen):
    model = build(tmp_path, name)
    force(model, chosen)
    if model.head is not None:
        tiny.stir(model.head)
    wanted = single(name, promptless(tiny.base(name))[chosen], model.outputs, model.head)
    assert_close(logits(model), wanted, **CLOSE)


@FAMILIES
def test_a_gate_on_the_base_is_the_base(tmp_path, name):
    model = build(tmp_path, name)
    force(model, -1)
    if model.head is not None:
        tiny.stir(model.head)
    zero = tiny.expert(tiny.base(name), "zero", zero=True, prompt=0)
    assert_close(logits(model), single(name, zero, model.outputs, model.head), **CLOSE)


@FAMILIES
def test_gates_task_adapters_and_the_head_train_alone(tmp_path, name):
    model = tiny.stir(build(tmp_path, name))
    names = set(model.trained_state())
    head = {n for n in names if n.startswith("head.")}
    gates = {n for n in names if ".gate.mlp." in n}
    task = {n for n in names if ".adapter." in n}
    assert names == head | gates | task
    assert len(gates) == 8 * len(model.sites)
    assert len(task) == 4 * len(model.sites)
    assert model.prompt() is None
    ids, mask = tiny.batch()
    model(ids, mask, tiny.labels_for(model.family, ids, mask, classes=2)).loss.backward()
    assert all(g.abs().max() > 0 for g in tiny.gradients(model).values())


@FAMILIES
def test_padding_changes_nothing(tmp_path, name):
    model = tiny.stir(build(tmp_path, name))
    ids, mask = tiny.batch()
    moved = tiny.move_padding(ids, mask)
    answers = [[5, 1], [7, 9, 1]]
    with torch.no_grad():
        wanted, got = (model.label_scores(*given, answers) for given in ((ids, mask), moved))
    assert_close(got, wanted, **CLOSE)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_cached_and_uncached_generation_agree(tmp_path, name):
    model = tiny.stir(build(tmp_path, name))
    ids, mask = tiny.batch()
    settings = {"max_new_tokens": 5, "do_sample": False}
    cached, plain = (model.generate(ids, mask, use_cache=c, **settings) for c in (True, False))
    assert torch.equal(cached, plain)


@FAMILIES
def test_experts_beside_other_maps_have_gates_there(tmp_path, name):
    """Only down projections have a task adapter, and only places with experts a gate."""
    model = build(tmp_path, name, experts=adapters.pair)
    covered = {layer.module for e in model.experts for layer in e.layers}
    made = layers(model)
    assert sum(layer.gate is not None for layer in made) == len(covered)
    assert sum(layer.adapter is not None for layer in made) == sum(s.is_down for s in model.sites)
    attention = METHODS["mixda"].build(
        given(tmp_path, name, experts=lambda m: adapters.pair(m)[:1])
    )
    alone = [m for m in layers(attention) if m.adapter is not None]
    assert all(m.gate is None for m in alone)
    assert alone
