from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pemt.errors import ConfigError
from pemt.nn import PromptGate, UniformGate, prompt_mean
from pemt.nn.gate import entropy, masked
from tests import reference


@pytest.mark.parametrize("count", [1, 2, 6])
def test_starts_uniform(count):
    gates = PromptGate(8, count)(torch.randn(3, 8))
    assert_close(gates, torch.full((3, count), 1 / count))


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_equals_the_loop_and_tau_divides_the_scores(tau):
    gate = PromptGate(8, 4, tau=tau)
    torch.nn.init.normal_(gate.weight)
    u = torch.randn(3, 8)
    assert_close(gate(u), reference.gate(u, gate.weight, tau))
    assert_close(gate(u).sum(-1), torch.ones(3))


def test_gates_are_float32_for_a_bfloat16_input():
    assert PromptGate(8, 2)(torch.randn(1, 8).bfloat16()).dtype == torch.float32


def test_temperature_above_zero():
    with pytest.raises(ConfigError, match="above 0"):
        PromptGate(8, 2, tau=0.0)


def test_prompt_mean_takes_the_prompt_positions_alone():
    hidden = torch.randn(2, 7, 3)
    assert_close(prompt_mean(hidden, 1, 3), (hidden[:, 1] + hidden[:, 2] + hidden[:, 3]) / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_uniform_gate_has_nothing_to_train(dtype):
    gate = UniformGate(3)
    assert torch.equal(gate(torch.randn(2, 5, 8, dtype=dtype)), torch.full((2, 3), 1 / 3))
    assert not list(gate.parameters())


@pytest.mark.parametrize("keep", [[True, False, True, True], [False, True, False, False]])
def test_a_masked_gate_is_the_softmax_over_what_stays(keep):
    gate = PromptGate(8, 4, tau=2.0)
    torch.nn.init.normal_(gate.weight)
    u = torch.randn(3, 8)
    made = masked(gate(u), torch.tensor(keep))
    assert_close(made, reference.masked_gate(u, gate.weight, keep, 2.0))
    assert_close(made.sum(-1), torch.ones(3))


def test_masks_at_their_ends():
    gates = torch.tensor([[0.0, 0.0, 1.0], [0.25, 0.25, 0.5]])
    assert masked(gates, None) is gates
    assert torch.equal(masked(gates, torch.zeros(3, dtype=torch.bool)), torch.zeros(2, 3))
    # what stays is 0 in the first row: it shares evenly
    kept = masked(gates, torch.tensor([True, True, False]))
    assert torch.equal(kept, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]))
    broken = masked(torch.tensor([[float("nan"), 0.5, 0.5]]), torch.tensor([True, True, False]))
    assert broken[0, 0].isnan()  # never made good


def test_entropy_by_hand():
    gates = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert_close(entropy(gates), torch.tensor([0.0, 0.5]).mul(2).mul(torch.tensor(2.0).log()))
