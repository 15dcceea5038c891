"""Scalar products and norms of experts' outputs that are never built, with a short backward pass.

For experts of equal rank R side by side, `z` their hidden values and `p = B^T y` a layer's output
seen by each of them:

    <y, e_k> = p_k . z_k          |e_k|^2 = z_k . q_k,  q_k = G_k z_k,  G_k = B_k^T B_k

Autograd would go back through every factor, with a temporary as large as z for each. The gradients
are three products: dp = d1 z, dz = d1 p + 2 d2 q; G is a constant, q is kept from the way there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, p: Tensor, z: Tensor, gram: Tensor, cross: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # in z's type, summed in float32: bfloat16's rounding of a product is that of z itself
        q = torch.bmm(z.transpose(0, 1), gram.to(z.dtype)).transpose(0, 1)  # [tokens, n, R]
        squares = (q * z).sum(-1, dtype=torch.float32)
        if cross is not None:  # of |B z + b|^2: 2 (B^T b) . z, and half of that in its gradient
            squares = squares + 2 * (z * cross).sum(-1, dtype=torch.float32)
            q = q + cross.to(z.dtype)
        ctx.save_for_backward(p, z, q)
        return (p * z).sum(-1, dtype=torch.float32), squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, products: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, None, None]:
        p, z, q = ctx.saved_tensors
        products = products.unsqueeze(-1).to(z.dtype)
        dz = (products * p).addcmul_((2 * squares).unsqueeze(-1).to(z.dtype), q)
        return products * z, dz, None, None


def moments(
    p: Tensor, z: Tensor, gram: Tensor, cross: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`p_k . z_k` and `z_k^T G_k z_k + 2 c_k . z_k` of every token and expert.

    Args:
        p: `[tokens, n, R]`.
        z: `[tokens, n, R]`, of p's type.
        gram: `[n, R, R]`, symmetric, float32; no gradient reaches it.
        cross: `[n, R]` c, float32, or None; nor this.

    Returns:
        Two `[tokens, n]`, float32.
    """
    made: tuple[Tensor, Tensor] = _Moments.apply(p, z, gram, cross)  # type: ignore[no-untyped-call]
    return made
