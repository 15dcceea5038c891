"""The small target adapter (METHOD.md, stage 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pemt.errors import ConfigError
from pemt.nn.activation import activation_named


class TargetAdapter(nn.Module):
    """Serial bottleneck `y = f + U act(V f + v) + u`, width D -> D/reduction -> D.

    Weights start at N(0, 0.01^2), biases at 0. They are kept in float32 and used in f's type.

    Args:
        width: D.
        reduction: how many times narrower the middle is (the paper: 16).
        activation: a name that transformers knows.

    Raises:
        ConfigError: a reduction that does not fit the width.
        UnknownNameError: an activation that transformers does not know.
    """

    def __init__(self, width: int, *, reduction: int = 16, activation: str = "gelu_new") -> None:
        super().__init__()
        if reduction < 1 or width < reduction:
            raise ConfigError(
                f"Target adapter reduction {reduction} at model width {width}",
                f"give a number from 1 to {width}",
            )
        middle = width // reduction
        self.down = nn.Linear(width, middle)
        self.up = nn.Linear(middle, width)
        self.activation = activation_named(activation)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

    def forward(self, f: Tensor) -> Tensor:
        """`[..., D]` -> `[..., D]`."""
        kind = f.dtype
        hidden = self.activation(F.linear(f, self.down.weight.to(kind), self.down.bias.to(kind)))
        change: Tensor = F.linear(hidden, self.up.weight.to(kind), self.up.bias.to(kind))
        return torch.add(f, change)
