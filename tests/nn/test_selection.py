"""Top-k: the fast paths against the loop, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pemt.nn import ExpertBank, ForwardContext, MixtureLayer, combine_loss, selection
from pemt.nn.selection import BatchExperts, RowExperts, chosen_experts, top_gates
from tests import reference
from tests.nn import draws
from tests.nn.test_mixture import PROMPT, START, WEIGHT, build, context

MIXES = ["l4 l4 l4 l4", "l4 l2 l4 l3 l2", "g3 l2 g3 l2 r3"]
PATHS = {"rows apart": 0, "one bank": 99}


def cut(layer: MixtureLayer, k: int, scope: str) -> MixtureLayer:
    layer.top_k, layer.scope, layer.top_k_train = k, scope, True
    return layer


def split_rows(layer, x, seed: int = 0):
    """Gate weights under which the rows of a batch choose different experts."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.gate.weight.copy_(1.5 * torch.randn(layer.gate.weight.shape, generator=draw))
    return x


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("averaging", ["example", "batch"])
@pytest.mark.parametrize("scope", ["example", "batch"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("mix", MIXES)
def test_output_loss_and_gradients_equal_the_loop(mix, k, scope, averaging, path, monkeypatch):
    monkeypatch.setattr(selection, "APART", PATHS[path])
    layer, experts = build(mix, averaging=averaging)
    cut(layer, k, scope)
    x, _, _ = draws.inputs(3, 6, len(experts))
    split_rows(layer, x)
    weights = draws.weights(3, 6)
    layer.slot.active = state = context(weights)
    ours = layer(x)
    pull = torch.randn_like(ours)
    loss = combine_loss((ours * pull).sum(), WEIGHT, state)

    dense = reference.gate(x[:, START : START + PROMPT].mean(1), layer.gate.weight, 0.7)
    gates = reference.top_gates(dense, k, list(range(len(experts))), scope=scope)
    a = layer.adapter
    y = layer.down(x) + reference.mixture(experts, x, gates)
    theirs = reference.target_adapter(y, a.down.weight, a.down.bias, a.up.weight, a.up.bias)
    sparsity = reference.sparsity(experts, x, theirs, gates, weights, averaging=averaging)
    wanted = (theirs * pull).sum() + WEIGHT * sparsity
    assert_close(state.gates[0], gates)
    assert ((gates > 0).sum(1) == k).all()
    assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    assert_close(state.losses.values[0], sparsity.detach(), atol=1e-5, rtol=1e-5)
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]
    for mine, other in zip(
        torch.autograd.grad(loss, trained), torch.autograd.grad(wanted, trained), strict=True
    ):
        assert_close(mine, other, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("scope", ["example", "batch"])
@pytest.mark.parametrize("k", [4, 5, 99])
def test_as_many_as_there_are_is_the_dense_mixture_bit_for_bit(k, scope):
    layer, _ = build("l4 l2 l4 g3")
    x, _, _ = draws.inputs(3, 6, 4)
    split_rows(layer, x)
    layer.slot.active = first = context(draws.weights(3, 6))
    wanted = layer(x)
    layer.slot.active = second = context(draws.weights(3, 6))
    assert torch.equal(cut(layer, k, scope)(x), wanted)
    assert torch.equal(second.gates[0], first.gates[0])
    assert torch.equal(second.losses.values[0], first.losses.values[0])


@pytest.mark.parametrize("scope", ["example", "batch"])
@pytest.mark.parametrize("path", PATHS)
def test_columns_without_a_branch_keep_their_share_and_are_not_counted(path, scope, monkeypatch):
    """Experts absent here, and the choice of none: both have a gate and no branch."""
    monkeypatch.setattr(selection, "APART", PATHS[path])
    full, experts = build("l4 l4 l4 l4 l4", adapter=False)
    columns = [4, 0, 2]  # of five; in another order than that of the gate
    layer = MixtureLayer(
        full.down, ExpertBank([experts[k] for k in columns]), full.gate, None, full.slot, index=0,
        stack="encoder", gate_input="hidden", present=columns, top_k=2, scope=scope,
    ).eval()  # fmt: skip
    x, _, _ = draws.inputs(4, 6, 5)
    split_rows(layer, x, seed=3)
    weights = draws.weights(4, 6)
    layer.slot.active = state = context(weights)
    y = layer(x)
    dense = reference.gate(x[:, START : START + PROMPT].mean(1), layer.gate.weight, 0.7)
    gates = reference.top_gates(dense, 2, columns, scope=scope)
    assert_close(state.gates[0], gates)
    assert (gates[:, [1, 3]] > 0).all()
    given = [e if k in columns else None for k, e in enumerate(experts)]
    assert_close(
        y, layer.down(x) + reference.partial_mixture(given, x, gates), atol=2e-5, rtol=1e-5
    )
    sparsity = reference.partial_sparsity(given, x, y, gates, weights)
    assert_close(state.losses.values[0], sparsity.detach(), atol=1e-5, rtol=1e-5)


def test_no_gradient_reaches_the_experts_that_were_cut():
    scores = torch.randn(3, 5, requires_grad=True)
    kept, chosen = top_gates(scores, 2, None, scope="example")
    (kept * torch.randn_like(kept)).sum().backward()
    inside = torch.zeros(3, 5).scatter(-1, chosen, 1.0).bool()
    assert (scores.grad[~inside] == 0).all()
    assert (scores.grad[inside] != 0).all()
    alone = scores.detach().masked_fill(~inside, float("-inf")).softmax(-1)
    assert_close(kept.detach(), alone)  # a softmax over the scores that are left


def test_of_equal_gates_the_first_named_are_kept():
    scores = torch.zeros(2, 6)
    for scope in ("example", "batch"):
        kept, _ = top_gates(scores, 2, torch.tensor([3, 1, 5]), scope=scope)
        wanted = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2, 0.0])
        assert_close(kept, wanted.expand(2, 6))


def test_training_mixes_all_unless_it_is_asked_to_cut():
    layer, _ = build("l4 l4 l4")
    x, _, _ = draws.inputs(3, 6, 3)
    split_rows(layer, x)
    cut(layer, 1, "example").top_k_train = False
    counts = {}
    for mode in (True, False):
        layer.train(mode)
        layer.slot.active = state = context()
        layer(x)
        counts[mode] = (state.gates[0] > 0).sum(1).tolist()
    assert counts == {True: [3, 3, 3], False: [1, 1, 1]}


@pytest.mark.parametrize("path", PATHS)
def test_decoding_copies_the_chosen_weights_once(path, monkeypatch):
    monkeypatch.setattr(selection, "APART", PATHS[path])
    layer, experts = build("l4 l4 l4 l4 l4", adapter=False)
    cut(layer.eval(), 2, "example")
    x, _, _ = draws.inputs(2, 6, 5)
    split_rows(layer, x)
    state = ForwardContext(prompt_start=START, prompt_length=PROMPT, reuse_gates=True)
    layer.slot.active = state
    layer(x)
    working, gates = state.working[0], state.gates[0].detach()
    assert isinstance(working, RowExperts if path == "rows apart" else BatchExperts)
    monkeypatch.setattr("pemt.nn.mixture.chosen_experts", None)  # never asked again
    later = torch.randn(4, 1, draws.HIDDEN)  # one new token, two beams a row
    wanted = layer.down(later) + reference.mixture(experts, later, gates[[0, 0, 1, 1]])
    assert_close(layer(later), wanted, atol=2e-5, rtol=1e-5)
    assert state.working[0] is working


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("path", PATHS)
def test_inputs_of_any_number_of_dimensions(path, shape, monkeypatch):
    monkeypatch.setattr(selection, "APART", PATHS[path])
    layer, experts = build("l4 l4 l4 l4", adapter=False, gate_input="summary")
    cut(layer.eval(), 2, "example")
    u = torch.randn(3, draws.WIDTH)
    layer.slot.active = state = ForwardContext(summary=u)
    x = torch.randn(3, *shape, draws.HIDDEN)
    flat = x.reshape(3, -1, draws.HIDDEN)
    y = layer(x)
    wanted = layer.down(flat) + reference.mixture(experts, flat, state.gates[0])
    assert_close(y, wanted.reshape(*x.shape[:-1], draws.WIDTH), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("mix", [*draws.MIXES, "l4 l2 g4 l4 g4 l2 l1"])
def test_a_subset_is_a_bank_of_those_experts(mix):
    experts = draws.experts(mix)
    bank = ExpertBank(experts)
    x, y, _ = draws.inputs(2, 3, len(experts))
    for numbers in ([len(experts) - 1], list(range(0, len(experts), 2)), list(range(len(experts)))):
        part, columns = bank.subset(torch.tensor(numbers))
        assert sorted(columns.tolist()) == numbers
        fresh = ExpertBank([experts[k] for k in columns.tolist()])
        gates = torch.rand(2, len(numbers))
        assert_close(part.mix(part.hidden_of(x), gates), fresh.mix(fresh.hidden_of(x), gates))
        for ours, theirs in (
            (part.cosines(y, part.hidden_of(x)), fresh.cosines(y, fresh.hidden_of(x))),
            (part.dots(y, part.hidden_of(x)), fresh.dots(y, fresh.hidden_of(x))),
            (part.one(x, 0), fresh.one(x, 0)),
        ):
            assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("experts", [8, 64])
@pytest.mark.parametrize("scope", ["example", "batch"])
def test_work_does_not_grow_with_the_number_of_experts(experts, scope):
    """Columns that a batch of four works on, by count: four experts each at most, of rank 2."""
    bank = ExpertBank(draws.experts(" ".join(["l2"] * experts)))
    scores = torch.randn(4, experts, generator=torch.Generator().manual_seed(0))
    _, chosen = top_gates(scores, 4, None, scope=scope)
    working = chosen_experts(bank, chosen)
    z = working.hidden_of(torch.randn(4, 3, draws.HIDDEN))
    assert z.shape[-1] <= 4 * 2 * (selection.APART if scope == "example" else 1)


def test_bfloat16_stays_near_the_float32_loop(monkeypatch):
    for apart in PATHS.values():
        monkeypatch.setattr(selection, "APART", apart)
        layer, experts = build("l4 l4 l4 l4", dtype=torch.bfloat16)
        cut(layer, 2, "example")
        x = draws.inputs(3, 6, 4)[0].bfloat16()
        layer.slot.active = state = context(draws.weights(3, 6))
        y = layer(x)
        a = layer.adapter
        f = x.float() @ layer.down.weight.float().T + layer.down.bias.float()
        f = f + reference.mixture(experts, x.float(), state.gates[0])
        wanted = reference.target_adapter(f, a.down.weight, a.down.bias, a.up.weight, a.up.bias)
        assert y.dtype == torch.bfloat16
        assert_close(y.float(), wanted, atol=8e-2, rtol=5e-2)
        sparsity = reference.sparsity(
            experts, x.float(), wanted, state.gates[0], draws.weights(3, 6)
        )
        assert_close(state.losses.values[0], sparsity.detach(), atol=1e-2, rtol=1e-2)
