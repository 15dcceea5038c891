"""Task Sparsity Loss (METHOD.md, stage 2; paper section 3.4)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Averaging = Literal["example", "batch"]


def task_sparsity(
    gates: Tensor, cosines: Tensor, weights: Tensor | None, *, averaging: Averaging = "example"
) -> Tensor:
    """`sum_k g_k (1 - mean_tokens cos(y, e_k))` of one layer.

    Args:
        gates: `[B, K]`.
        cosines: cos(y, e_k) of every token, `[B, T, K]`, float32.
        weights: `[B, T]`, 1 for tokens that count and 0 for the others; None counts all.
        averaging: "example": per example, then the mean; "batch": the released code's product of
            the batch means of gates and cosines.

    Returns:
        A scalar, float32. Examples without a token that counts contribute a cosine of 0.
    """
    gates = gates.float()
    if weights is None:
        per_example = cosines.mean(1)  # [B, K]
        over_all = cosines.mean((0, 1))  # [K]
    else:
        w = weights.to(cosines.dtype).unsqueeze(-1)  # [B, T, 1]
        summed = (cosines * w).sum(1)
        per_example = summed / w.sum(1).clamp_min(1.0)
        over_all = summed.sum(0) / w.sum().clamp_min(1.0)
    if averaging == "batch":
        return (gates.mean(0) * (1.0 - over_all)).sum()
    return (gates * (1.0 - per_example)).sum(-1).mean()
