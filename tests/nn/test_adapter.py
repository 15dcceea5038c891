from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pemt.errors import ConfigError, UnknownNameError
from pemt.nn import TargetAdapter
from tests import reference


def weights(adapter: TargetAdapter):
    return adapter.down.weight, adapter.down.bias, adapter.up.weight, adapter.up.bias


@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 3, 32)])
def test_equals_the_loop_over_tokens_and_so_do_gradients(shape):
    adapter = TargetAdapter(32, reduction=4)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    f = torch.randn(shape, requires_grad=True)
    ours, theirs = adapter(f), reference.target_adapter(f, *weights(adapter))
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    pull, wanted = torch.randn(shape), (f, *weights(adapter))
    for a, b in zip(
        torch.autograd.grad((ours * pull).sum(), wanted),
        torch.autograd.grad((theirs * pull).sum(), wanted),
        strict=True,
    ):
        assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_keeps_float32_weights_under_a_bfloat16_input():
    adapter = TargetAdapter(32)
    f = torch.randn(2, 3, 32)
    y = adapter(f.bfloat16())
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), adapter(f), atol=3e-2, rtol=3e-2)
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in adapter.parameters())


def test_starts_small():
    torch.manual_seed(0)
    adapter = TargetAdapter(512)
    assert adapter.down.weight.shape == (32, 512)
    for linear in (adapter.down, adapter.up):
        assert abs(linear.weight.std() - 0.01) < 5e-4
        assert not linear.bias.any()


@pytest.mark.parametrize("reduction", [0, 33])
def test_reduction_that_does_not_fit(reduction):
    with pytest.raises(ConfigError, match=f"reduction {reduction}"):
        TargetAdapter(32, reduction=reduction)


def test_an_unknown_activation_names_a_close_one():
    with pytest.raises(UnknownNameError, match=r"activation 'gelu_nwe'. Did you mean: gelu_new"):
        TargetAdapter(32, activation="gelu_nwe")
