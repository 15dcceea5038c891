"""Scalar products and norms in rank space, and their gradients."""

from __future__ import annotations

import pytest
import torch

from pemt.nn.moments import moments


def given(tokens=5, n=3, rank=4, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    p, z = (torch.randn(tokens, n, rank, generator=draw) for _ in range(2))
    b = torch.randn(n, rank, 7, generator=draw)
    cross = torch.randn(n, rank, generator=draw)
    p, z = (t.to(dtype).requires_grad_() for t in (p, z))
    return p, z, b @ b.transpose(1, 2), cross


def plain(p, z, gram, cross):
    """Every token and expert by itself, back through autograd."""
    p, z = p.float(), z.float()
    products, squares = torch.zeros(z.shape[:2]), torch.zeros(z.shape[:2])
    for t in range(len(z)):
        for k in range(z.shape[1]):
            products[t, k] = p[t, k] @ z[t, k]
            squares[t, k] = z[t, k] @ gram[k] @ z[t, k]
            if cross is not None:
                squares[t, k] += 2 * cross[k] @ z[t, k]
    return products, squares


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_loop(bias, dtype):
    made = []
    for way in (moments, plain):
        p, z, gram, cross = given(dtype=dtype)
        products, squares = way(p, z, gram, cross if bias else None)
        (products.sin().sum() + (squares + 1).log().sum()).backward()
        made.append((products, squares, p.grad, z.grad))
    near = {} if dtype is torch.float32 else {"atol": 0.1, "rtol": 0.02}
    for ours, theirs in zip(*made, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **near)


def test_only_what_is_asked_for_gets_a_gradient():
    p, z, gram, cross = given()
    products, _ = moments(p.detach(), z, gram.requires_grad_(), cross)
    products.sum().backward()
    torch.testing.assert_close(z.grad, p.detach())
    assert gram.grad is None
