from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pemt.errors import ConfigError
from pemt.nn import (
    ExpertBank,
    ForwardContext,
    LoraBranch,
    MixtureLayer,
    PromptGate,
    Slot,
    TargetAdapter,
    combine_loss,
)
from tests import reference
from tests.nn import draws

START, PROMPT = 1, 2
WEIGHT = 0.3


def build(mix: str, *, dtype=torch.float32, adapter=True, gate_input="hidden", averaging="example"):
    torch.manual_seed(3)
    experts = draws.experts(mix)
    down = nn.Linear(draws.HIDDEN, draws.WIDTH).requires_grad_(False)
    gate = PromptGate(
        draws.HIDDEN if gate_input == "hidden" else draws.WIDTH, len(experts), tau=0.7
    )
    nn.init.normal_(gate.weight, std=0.5)
    serial = TargetAdapter(draws.WIDTH, reduction=4) if adapter else None
    if serial is not None:
        for parameter in serial.parameters():
            nn.init.normal_(parameter, std=0.3)
    layer = MixtureLayer(
        down.to(dtype), ExpertBank(experts, dtype=dtype), gate, serial, Slot(), index=0,
        stack="encoder", gate_input=gate_input, averaging=averaging,
    )  # fmt: skip
    return layer, experts


def naive(layer, experts, x, u, weights=None, averaging="example"):
    """The layer's output and loss, expert by expert."""
    gates = reference.gate(u, layer.gate.weight, layer.gate.tau)
    f = x @ layer.down.weight.float().T + layer.down.bias.float()
    y = f + reference.mixture(experts, x, gates)
    if layer.adapter is not None:
        a = layer.adapter
        y = reference.target_adapter(y, a.down.weight, a.down.bias, a.up.weight, a.up.bias)
    return y, gates, reference.sparsity(experts, x, y, gates, weights, averaging=averaging)


def context(weights=None, **changes) -> ForwardContext:
    return ForwardContext(
        prompt_start=START, prompt_length=PROMPT, sparsity=True,
        token_weights={"encoder": weights}, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("averaging", ["example", "batch"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("mix", ["l4", "l4 l2 l4", "g3 l2 g3 l2 r3"])
def test_output_loss_and_gradients_equal_the_loop(mix, adapter, padded, averaging):
    layer, experts = build(mix, adapter=adapter, averaging=averaging)
    x, _, _ = draws.inputs(3, 6, len(experts))
    weights = draws.weights(3, 6) if padded else None
    layer.slot.active = state = context(weights)
    ours = layer(x)
    pull = torch.randn_like(ours)
    loss = combine_loss((ours * pull).sum(), WEIGHT, state)

    u = x[:, START : START + PROMPT].mean(1)
    theirs, gates, sparsity = naive(layer, experts, x, u, weights, averaging)
    wanted = (theirs * pull).sum() + WEIGHT * sparsity

    assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    assert_close(state.gates[0], gates)
    assert_close(state.losses.values[0], sparsity.detach(), atol=1e-5, rtol=1e-5)
    assert_close(loss, wanted, atol=1e-4, rtol=1e-5)
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]
    for a, b in zip(
        torch.autograd.grad(loss, trained), torch.autograd.grad(wanted, trained), strict=True
    ):
        assert_close(a, b, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("gate_input", ["summary", "task"])
@pytest.mark.parametrize("rows", [1, 3])
def test_gates_from_a_summary_work_at_length_one(gate_input, rows):
    layer, experts = build("l4 l2", gate_input=gate_input)
    x, u, _ = draws.inputs(rows, 1, 2)
    u = u[:, 0]
    field = "summary" if gate_input == "summary" else "task_summary"
    layer.slot.active = context(**{field: u})
    assert_close(layer(x), naive(layer, experts, x, u)[0], atol=2e-5, rtol=1e-5)


def test_bfloat16_stays_near_the_float32_loop():
    layer, experts = build("l4 g2 l3", dtype=torch.bfloat16)
    x, _, _ = draws.inputs(3, 6, 3)
    layer.slot.active = state = context(draws.weights(3, 6))
    half = x.bfloat16()
    y = layer(half)
    u = half.float()[:, START : START + PROMPT].mean(1)
    theirs, gates, sparsity = naive(layer, experts, half.float(), u, draws.weights(3, 6))
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), theirs, atol=8e-2, rtol=5e-2)
    assert_close(state.gates[0], gates, atol=1e-3, rtol=1e-3)
    assert_close(state.losses.values[0], sparsity.detach(), atol=1e-2, rtol=1e-2)
    combine_loss(y.float().sum(), WEIGHT, state).backward()
    assert all(
        p.grad.isfinite().all() and p.grad.dtype == torch.float32
        for p in layer.parameters()
        if p.requires_grad
    )


def test_with_an_empty_slot_the_down_projection_answers_alone():
    layer, _ = build("l4 l2")
    x, _, _ = draws.inputs(2, 5, 2)
    assert torch.equal(layer(x), layer.down(x))


def test_decoding_reuses_the_gates_for_every_step_and_beam():
    layer, experts = build("l4 l2 l3")
    x, _, _ = draws.inputs(2, 6, 3)
    state = ForwardContext(prompt_start=START, prompt_length=PROMPT, reuse_gates=True)
    layer.slot.active = state
    layer(x)
    first = state.gates[0].clone()
    later = torch.randn(4, 1, draws.HIDDEN)  # one new token, two beams a row
    y = layer(later)
    assert torch.equal(state.gates[0], first)
    u = x[:, START : START + PROMPT].mean(1)[[0, 0, 1, 1]]
    assert_close(y, naive(layer, experts, later, u)[0], atol=2e-5, rtol=1e-5)


def test_given_gates_replace_the_computed_ones():
    layer, experts = build("l4 l2 l3", adapter=False)
    x, _, _ = draws.inputs(2, 6, 3)
    given = torch.tensor([0.0, 1.0, 0.0])
    layer.slot.active = state = context(fixed_gates={0: given})
    wanted = layer.down(x) + reference.expert_output(experts[1], x)
    assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(state.gates[0], given.expand(2, 3))


def test_the_wrapper_shows_the_down_projections_weight():
    layer, _ = build("l4")
    assert layer.weight is layer.down.weight


COLUMNS = [[0, 2], [1], [2, 0, 3]]


def partial(columns, mix="l4 l2 l4 l3", **settings):
    """A layer whose gate has a column for each expert of `mix`, and a bank of some of them."""
    layer, experts = build(mix, **settings)
    kept = [experts[k] for k in columns]
    built = MixtureLayer(
        layer.down, ExpertBank(kept), layer.gate, layer.adapter, layer.slot, index=0,
        stack="encoder", gate_input=layer.gate_input, averaging=layer.averaging, present=columns,
    )  # fmt: skip
    return built, [e if k in columns else None for k, e in enumerate(experts)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("columns", COLUMNS)
def test_absent_experts_keep_their_column_and_add_nothing(columns, padded):
    layer, experts = partial(columns)
    x, _, _ = draws.inputs(3, 6, len(experts))
    weights = draws.weights(3, 6) if padded else None
    layer.slot.active = state = context(weights)
    ours = layer(x)
    pull = torch.randn_like(ours)
    loss = combine_loss((ours * pull).sum(), WEIGHT, state)

    gates = reference.gate(x[:, START : START + PROMPT].mean(1), layer.gate.weight, layer.gate.tau)
    y = layer.down(x) + reference.partial_mixture(experts, x, gates)
    a = layer.adapter
    theirs = reference.target_adapter(y, a.down.weight, a.down.bias, a.up.weight, a.up.bias)
    sparsity = reference.partial_sparsity(experts, x, theirs, gates, weights)
    wanted = (theirs * pull).sum() + WEIGHT * sparsity
    assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    assert_close(state.gates[0], gates)
    assert state.gates[0].shape == (3, 4)
    assert_close(state.losses.values[0], sparsity.detach(), atol=1e-5, rtol=1e-5)
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]
    for a, b in zip(
        torch.autograd.grad(loss, trained), torch.autograd.grad(wanted, trained), strict=True
    ):
        assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_gates_of_zero_for_all_who_are_here_give_a_finite_loss():
    layer, _ = partial([0])
    x, _, _ = draws.inputs(2, 6, 4)
    layer.slot.active = state = context(fixed_gates={0: torch.tensor([0.0, 1.0, 0.0, 0.0])})
    combine_loss(layer(x).sum(), WEIGHT, state).backward()
    assert state.losses.values[0] == 0
    assert x.grad.isfinite().all()


def test_a_layer_without_experts_has_its_adapter_and_makes_no_loss():
    layer, _ = build("l4")
    bare = MixtureLayer(
        layer.down, None, None, layer.adapter, layer.slot, index=0, stack="encoder",
        gate_input="hidden",
    )  # fmt: skip
    x, _, _ = draws.inputs(2, 5, 1)
    bare.slot.active = state = context()
    assert torch.equal(bare(x), layer.adapter(layer.down(x)))
    assert not state.gates
    assert not state.losses.values


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_inputs_of_any_number_of_dimensions(shape):
    layer, experts = build("l4 g2 l4", adapter=False, gate_input="summary")
    u = torch.randn(3, draws.WIDTH)
    layer.slot.active = ForwardContext(summary=u)
    x = torch.randn(3, *shape, draws.HIDDEN)
    gates = reference.gate(u, layer.gate.weight, layer.gate.tau)
    flat = x.reshape(3, -1, draws.HIDDEN)
    wanted = layer.down(flat) + reference.mixture(experts, flat, gates)
    assert_close(layer(x), wanted.reshape(*x.shape[:-1], draws.WIDTH), atol=2e-5, rtol=1e-5)


def test_gates_cannot_be_found_in_a_flattened_batch():
    layer, _ = build("l4 l2")
    layer.slot.active = context()
    with pytest.raises(ConfigError, match=r"got \(6, 24\)"):
        layer(torch.randn(6, draws.HIDDEN))


def test_the_wrapper_shows_what_modeling_code_may_read():
    layer, _ = build("l4")
    assert layer.bias is layer.down.bias
    assert (layer.in_features, layer.out_features) == (draws.HIDDEN, draws.WIDTH)


def test_a_target_adapter_that_is_a_lora_stands_beside_the_map():
    layer, experts = build("l4 l2", adapter=False)
    layer.adapter = LoraBranch(draws.HIDDEN, draws.WIDTH, 3, 6.0)
    nn.init.normal_(layer.adapter.B)
    x, _, _ = draws.inputs(3, 6, 2)
    layer.slot.active = state = context(draws.weights(3, 6))
    y = layer(x)
    u = x[:, START : START + PROMPT].mean(1)
    bare, _, _ = naive(build("l4 l2", adapter=False)[0], experts, x, u)
    wanted = bare + reference.expert_output(layer.adapter.tensors(), x)
    assert_close(y, wanted, atol=2e-5, rtol=1e-5)
    loss = reference.sparsity(experts, x, wanted, state.gates[0], draws.weights(3, 6))
    assert_close(state.losses.values[0], loss.detach(), atol=1e-5, rtol=1e-5)
    combine_loss(y.square().sum(), WEIGHT, state).backward()
    assert layer.adapter.A.grad.abs().sum() > 0
