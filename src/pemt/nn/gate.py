"""The gate: one weight vector over the experts per layer and example (paper section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pemt.errors import ConfigError

LEAST = 1e-4


def prompt_mean(hidden: Tensor, start: int, length: int, lengths: Tensor | None = None) -> Tensor:
    """Mean over the prompt positions: `[B, T, W]` -> `[B, W]`, float32.

    With `lengths` `[B]` row i has a prompt of `lengths[i]` positions, at most `length`.
    """
    if lengths is not None:
        if len(lengths) != len(hidden):  # beams repeat each row, side by side
            lengths = lengths.repeat_interleave(len(hidden) // len(lengths))
        there = torch.arange(length, device=hidden.device) < lengths.unsqueeze(1)  # [B, P]
        kept = hidden[:, start : start + length].float() * there.unsqueeze(-1)
        return kept.sum(1) / lengths.unsqueeze(1)
    return hidden[:, start : start + length].mean(1, dtype=torch.float32)


def entropy(gates: Tensor) -> Tensor:
    """Entropy in nats: `[.., K]` -> `[..]`; a gate of 0 adds nothing."""
    result: Tensor = torch.special.entr(gates).sum(-1)
    return result


def masked(gates: Tensor, keep: Tensor | None) -> Tensor:
    """Gates with some columns at 0: `[B, K]` -> `[B, K]`.

    What is kept sums to 1 again, in the proportions it had: the softmax over the kept columns
    alone. Kept columns that are all 0 share evenly. With nothing kept every gate is 0.

    Args:
        gates: rows sum to 1.
        keep: `[K]`, True at the columns that stay; None keeps all, and changes nothing.
    """
    if keep is None:
        return gates
    kept = gates * keep
    total = kept.sum(-1, keepdim=True)
    even = (keep / keep.sum().clamp_min(1)).to(gates.dtype)
    return torch.where(total == 0, even, kept / total)


class PromptGate(nn.Module):
    """`g = softmax(u W_g / tau)`; W_g starts at zero, so the first gates are uniform.

    With a start w it is `g = softmax(u W_g / tau + b)`, b trained from log w on: the first gates
    are w for every input.

    Args:
        width: of the gate input u: F (a layer's own hidden) or D (the encoder's output).
        experts: K.
        tau: temperature, above 0.
        start: `[K]` first gates; a gate below `LEAST` starts there, so that it can still grow.
    """

    bias: nn.Parameter | None

    def __init__(
        self, width: int, experts: int, *, tau: float = 1.0, start: Tensor | None = None
    ) -> None:
        super().__init__()
        if tau <= 0:
            raise ConfigError(f"Gate temperature {tau}", "give a number above 0")
        self.tau = tau
        self.weight = nn.Parameter(torch.zeros(width, experts))
        self.bias = None
        if start is not None:
            if start.shape != (experts,):
                raise ConfigError(
                    f"First gates of shape {tuple(start.shape)}", f"give one for each of {experts}"
                )
            self.bias = nn.Parameter(start.detach().float().clamp_min(LEAST).log())

    def scores(self, u: Tensor) -> Tensor:
        """What the softmax is over: `[B, width]` -> `[B, K]`, float32."""
        scores = u.float() @ self.weight / self.tau
        return scores if self.bias is None else scores + self.bias

    def forward(self, u: Tensor) -> Tensor:
        """`[B, width]` -> gates `[B, K]`, float32, rows sum to 1."""
        return torch.softmax(self.scores(u), dim=-1)


class UniformGate(nn.Module):
    """`g = 1 / K` for every expert, always: the gate of a mixture that does not choose.

    Args:
        experts: K.
    """

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        """Anything with a row per example, `[B, ..]` -> gates `[B, K]`, float32."""
        return x.new_full((len(x), self.experts), 1 / self.experts, dtype=torch.float32)
