from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pemt.errors import ConfigError
from pemt.nn import BottleneckBranch, ExpertBank, ExpertTensors, LoraBranch
from tests import reference
from tests.nn import draws

BFLOAT16 = {"atol": 6e-2, "rtol": 6e-2}


def gradients(loss, *of):
    return torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("shape", draws.SHAPES)
@pytest.mark.parametrize("mix", draws.MIXES)
def test_mixture_equals_the_loop_over_experts(mix, shape):
    experts = draws.experts(mix)
    bank = ExpertBank(experts)
    x, _, gates = draws.inputs(*shape, len(experts))
    ours = bank.mix(bank.hidden_of(x), gates)
    theirs = reference.mixture(experts, x, gates)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    pull = torch.randn_like(ours)
    for a, b in zip(
        gradients((ours * pull).sum(), x, gates), gradients((theirs * pull).sum(), x, gates),
        strict=True,
    ):  # fmt: skip
        assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", draws.SHAPES)
@pytest.mark.parametrize("mix", draws.MIXES)
def test_gates_of_each_token_and_dots_equal_the_loop(mix, shape):
    experts = draws.experts(mix)
    bank = ExpertBank(experts)
    x, y, _ = draws.inputs(*shape, len(experts))
    gates = torch.randn(*shape, len(experts), requires_grad=True)
    outputs = reference.expert_outputs(experts, x)  # [K, B, T, D]
    z = bank.hidden_of(x)
    mixed, dots = bank.mix(z, gates), bank.dots(y, z)
    all_mixed = torch.einsum("btk,kbtd->btd", gates, outputs)
    all_dots = torch.einsum("btd,kbtd->btk", y, outputs)
    assert_close(mixed, all_mixed, atol=1e-4, rtol=1e-4)
    assert_close(dots, all_dots, atol=1e-4, rtol=1e-4)
    pull, tug = torch.randn_like(mixed), torch.randn_like(dots)
    for a, b in zip(
        gradients((mixed * pull).sum() + (dots * tug).sum(), x, y, gates),
        gradients((all_mixed * pull).sum() + (all_dots * tug).sum(), x, y, gates),
        strict=True,
    ):
        assert_close(a, b, atol=5e-4, rtol=1e-3)
    # rows flattened into one, as some bases do
    flat = bank.mix(z.flatten(0, 1), gates.flatten(0, 1))
    assert_close(flat, bank.mix(z, gates).flatten(0, 1))


@pytest.mark.parametrize("shape", draws.SHAPES)
@pytest.mark.parametrize("mix", draws.MIXES)
def test_cosines_equal_torch_cosine_similarity(mix, shape):
    experts = draws.experts(mix)
    bank = ExpertBank(experts)
    x, y, _ = draws.inputs(*shape, len(experts))
    ours = bank.cosines(y, bank.hidden_of(x))
    theirs = reference.cosines(experts, x, y)
    assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    pull = torch.randn_like(ours)
    for a, b in zip(
        gradients((ours * pull).sum(), x, y), gradients((theirs * pull).sum(), x, y), strict=True
    ):
        assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mix", draws.MIXES)
def test_bfloat16_stays_near_the_float32_loop(mix):
    experts = draws.experts(mix)
    bank = ExpertBank(experts, dtype=torch.bfloat16)
    x, y, gates = draws.inputs(3, 5, len(experts))
    half = x.bfloat16()
    z = bank.hidden_of(half)
    mixed, cosines = bank.mix(z, gates), bank.cosines(y.bfloat16(), z)
    assert (mixed.dtype, cosines.dtype) == (torch.bfloat16, torch.float32)
    assert_close(mixed.float(), reference.mixture(experts, half.float(), gates), **BFLOAT16)
    assert_close(cosines, reference.cosines(experts, half.float(), y), **BFLOAT16)


@pytest.mark.parametrize("kind", ["lora", "gelu_new"])
def test_an_expert_that_is_zero_has_cosine_zero_and_finite_gradients(kind):
    experts = [draws.expert(3, kind=kind, zero=True), draws.expert(2, seed=1)]
    bank = ExpertBank(experts)
    x, y, _ = draws.inputs(2, 4, 2)
    cosines = bank.cosines(y, bank.hidden_of(x))
    assert torch.equal(cosines[..., 0], torch.zeros(2, 4))
    assert all(g.isfinite().all() for g in gradients(cosines.sum(), x, y))


def test_a_zero_token_has_cosine_zero_and_finite_gradients():
    bank = ExpertBank(draws.experts("l4 g3"))
    x = torch.zeros(1, 2, draws.HIDDEN, requires_grad=True)
    y = torch.zeros(1, 2, draws.WIDTH, requires_grad=True)
    cosines = bank.cosines(y, bank.hidden_of(x))
    assert torch.equal(cosines, torch.zeros(1, 2, 2))
    assert all(g.isfinite().all() for g in gradients(cosines.sum(), x, y))


def test_cosine_of_an_expert_with_its_own_output_is_one():
    experts = draws.experts("l4 g3 l2")
    bank = ExpertBank(experts)
    x, _, _ = draws.inputs(2, 4, 3)
    for k, e in enumerate(experts):
        y = 7.0 * reference.expert_output(e, x)
        assert_close(bank.cosines(y, bank.hidden_of(x))[..., k], torch.ones(2, 4))


def test_a_mixture_of_copies_is_the_one_expert():
    expert = draws.expert(3, kind="gelu_new")
    bank = ExpertBank([expert] * 4)
    x, _, gates = draws.inputs(3, 5, 4)
    assert_close(
        bank.mix(bank.hidden_of(x), gates), reference.expert_output(expert, x), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("mix", ["l4 l2 l3 l4", "g3 l2 g3 l4"])
def test_permuting_experts_permutes_gates_and_cosines(mix):
    experts = draws.experts(mix)
    x, y, gates = draws.inputs(2, 3, len(experts))
    order = torch.arange(len(experts)).roll(1)
    bank, moved = ExpertBank(experts), ExpertBank([experts[k] for k in order])
    z, z_moved = bank.hidden_of(x), moved.hidden_of(x)
    assert_close(bank.mix(z, gates), moved.mix(z_moved, gates[:, order]))
    assert_close(bank.cosines(y, z)[..., order], moved.cosines(y, z_moved))


def test_the_bank_is_frozen_and_saves_nothing():
    bank = ExpertBank(draws.experts("l4 g3"))
    assert not list(bank.parameters())
    assert not bank.state_dict()


def test_the_bank_refuses_no_expert_and_other_widths():
    with pytest.raises(ConfigError, match="at least one"):
        ExpertBank([])
    narrow = ExpertTensors(A=torch.zeros(2, draws.HIDDEN - 1), B=torch.zeros(draws.WIDTH, 2))
    with pytest.raises(ConfigError, match="Expert 1"):
        ExpertBank([draws.expert(2), narrow])


def test_lora_branch_starts_without_effect_and_equals_its_tensors():
    branch = LoraBranch(draws.HIDDEN, draws.WIDTH, 4, 16.0)
    x, _, _ = draws.inputs(2, 3, 1)
    assert branch.scale == 4.0
    assert torch.equal(branch(x), torch.zeros(2, 3, draws.WIDTH))
    branch.load(draws.expert(4, seed=2))
    assert_close(branch(x), reference.expert_output(draws.expert(4, seed=2), x))
    assert_close(branch(x), reference.expert_output(branch.tensors(), x))
    assert LoraBranch(8, 8, 2, 2.0, kaiming_b=True).B.abs().sum() > 0


def test_bottleneck_branch_starts_without_effect_and_equals_its_tensors():
    branch = BottleneckBranch(draws.HIDDEN, draws.WIDTH, 4)
    x, _, _ = draws.inputs(2, 3, 1)
    assert torch.equal(branch(x), torch.zeros(2, 3, draws.WIDTH))
    wanted = draws.expert(4, kind="gelu_new", seed=2)
    branch.load(wanted)
    assert_close(branch(x), reference.expert_output(wanted, x), atol=1e-5, rtol=1e-5)
    assert_close(branch(x), reference.expert_output(branch.tensors(), x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kinds", [["lora"] * 3, ["lora", "bottleneck", "lora"]])
def test_one_expert_is_the_mixture_with_all_on_it(kinds):
    """Unequal ranks and kinds are stored in another order than they were given in."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    given = []
    for rank, kind in zip((4, 2, 4), kinds, strict=True):
        bottleneck = kind == "bottleneck"
        given.append(
            ExpertTensors(
                A=normal(rank, 6), B=normal(5, rank), scale=0.7,
                a=normal(rank) if bottleneck else None, b=normal(5) if bottleneck else None,
                activation="gelu_new" if bottleneck else None,
            )
        )  # fmt: skip
    bank = ExpertBank(given)
    x = normal(2, 3, 6)
    for k in range(3):
        gates = torch.zeros(2, 3)
        gates[:, k] = 1
        torch.testing.assert_close(bank.one(x, k), bank.mix(bank.hidden_of(x), gates))
