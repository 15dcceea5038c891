"""Task-description prompts and the correlation-guided prompt (METHOD.md; paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pemt.errors import ConfigError

Fusion = Literal["live", "init", "none"]


class TaskPrompt(nn.Module):
    """A trainable prompt `[P, D]`, started from the embeddings of a task description's tokens.

    Args:
        start: `[P, D]` first values, copied in float32.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        if start.ndim != 2 or start.shape[0] == 0:
            raise ConfigError(
                f"A prompt of shape {tuple(start.shape)}", "give [P, D] with at least one row"
            )
        self.embedding = nn.Parameter(start.detach().float().clone())

    def forward(self) -> Tensor:
        """The prompt, `[P, D]`."""
        return self.embedding


class CorrelationPrompt(nn.Module):
    """The target prompt plus what it finds in the frozen source prompts.

    `P = P_t + sum_k w_k dropout(softmax_rows(scale * P_t E_k^T)) E_k`, every w_k 1 in the paper. It
    stays live: the gradient reaches `P_t` through the scores too.

    Args:
        start: `[P, D]` first values of the trainable target prompt P_t.
        sources: the frozen source prompts E_k, `[P_k, D]` each.
        dropout: on the attention weights, in training.
        scale: factor on the scores: 1 (the paper, T5) or for example 1/sqrt(D).
        fusion: "live" (default), "init" (added once to the first values of P_t) or "none".
        weights: `[K]` w_k of the sources, fixed; all 1 by default.
    """

    sources: Tensor
    outside: Tensor
    weights: Tensor | None

    def __init__(
        self,
        start: Tensor,
        sources: Sequence[Tensor],
        *,
        dropout: float = 0.1,
        scale: float = 1.0,
        fusion: Fusion = "live",
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if weights is not None and weights.shape != (len(sources),):
            raise ConfigError(
                f"Weights of shape {tuple(weights.shape)} for {len(sources)} source prompts",
                "give one for each",
            )
        for k, source in enumerate(sources):
            if source.ndim != 2 or source.shape[1] != start.shape[1]:
                raise ConfigError(
                    f"Source prompt {k} has shape {tuple(source.shape)}",
                    f"give [P_k, {start.shape[1]}]: the width of the target prompt",
                )
        self.fusion: Fusion = fusion
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        # sources of unequal length are padded, so that all attend in one batched product
        longest = max((len(s) for s in sources), default=1)
        padded = start.new_zeros(max(len(sources), 1), longest, start.shape[1], dtype=torch.float32)
        outside = torch.ones(padded.shape[:2], dtype=torch.bool, device=start.device)
        for k, source in enumerate(sources):
            padded[k, : len(source)] = source.detach().float()
            outside[k, : len(source)] = False
        self.count = len(sources)
        self.register_buffer("sources", padded, persistent=False)  # [K, Pmax, D]
        self.register_buffer("outside", outside, persistent=False)  # [K, Pmax]
        given = None if weights is None else weights.detach().float().to(start.device)
        self.register_buffer("weights", given, persistent=False)  # [K]
        self._made: tuple[Tensor, Tensor] | None = None  # P_t and the prompt made from it
        first = start.detach().float()
        if fusion == "init" and sources:
            self.dropout.eval()  # what were dropped here would be missing for good
            first = first + self.attend(first)
            self.dropout.train()
        self.target = TaskPrompt(first)

    def attend(self, query: Tensor) -> Tensor:
        """`sum_k w_k softmax_rows(scale * query E_k^T) E_k`: `[P, D]` -> `[P, D]`."""
        scores = self.scale * torch.einsum("pd,kqd->kpq", query, self.sources)
        scores = scores.masked_fill(self.outside.unsqueeze(1), float("-inf"))
        attention = self.dropout(scores.softmax(-1))  # [K, P, Pmax]
        if self.weights is not None:
            attention = attention * self.weights.view(-1, 1, 1)
        return torch.einsum("kpq,kqd->pd", attention, self.sources)

    def forward(self) -> Tensor:
        """The fused prompt, `[P, D]`, float32.

        In evaluation without gradients it is a constant: made once, and again where P_t has other
        values, however they got there.
        """
        target: Tensor = self.target()
        if self.fusion != "live" or self.count == 0:
            return target
        if self.training or torch.is_grad_enabled():
            return target + self.attend(target)
        made = self._made
        if made is None or made[0].device != target.device or not torch.equal(made[0], target):
            made = self._made = (target.detach().clone(), target + self.attend(target))
        return made[1]

    def train(self, mode: bool = True) -> CorrelationPrompt:
        """As torch's; what was made before is forgotten."""
        self._made = None
        return super().train(mode)
