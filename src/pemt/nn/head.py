"""The task head of encoder-only bases."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TaskHead(nn.Linear):
    """Mean of the text's final hidden states (prompt and padding left out), then one linear map.

    It starts near zero: a head that already fits the few labels leaves the rest nothing to learn.

    Args:
        width: D.
        outputs: number of classes, or 1 for regression.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(width, outputs)
        nn.init.normal_(self.weight, std=1e-3)
        nn.init.zeros_(self.bias)

    @staticmethod
    def pool(hidden: Tensor, text: Tensor) -> Tensor:
        """Hidden states `[B, T, D]` and 0/1 text mask `[B, T]` -> `[B, D]`, float32."""
        weights = text.to(torch.float32).unsqueeze(-1)
        return (hidden.float() * weights).sum(1) / weights.sum(1).clamp_min(1.0)

    def forward(self, pooled: Tensor) -> Tensor:
        """`[B, D]` -> logits `[B, outputs]`, float32."""
        return super().forward(pooled.float())
