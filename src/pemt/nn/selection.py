"""The k experts with the largest gates: which they are, and work on their columns alone.

    scores [B,K] -> gates [B,K] and who is chosen, [k] or [B,k] -> a bank of these -> mixture, loss

What is cut are branches. A gate column without a branch at a layer (no expert, an expert that is
absent there) costs nothing, so it is never counted among the k and keeps its part. The gates are
the softmax over the scores that are left: gradients reach these, and none reaches the others.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pemt.nn.experts import ExpertBank

Scope = Literal["example", "batch"]
APART = 2
"""Rows work on weights of their own, copied, where the batch chose over so many times k experts."""


def top_gates(
    scores: Tensor, k: int, present: Tensor | None, *, scope: Scope
) -> tuple[Tensor, Tensor | None]:
    """The softmax over the scores that are left when all but the k largest are cut.

    Args:
        scores: `[B, K]`, whose softmax is the dense mixture's gates.
        k: how many experts are kept; as many as are here, or more, cut none.
        present: columns of the experts that have a branch here; None: all.
        scope: "example": each row keeps its own; "batch": all rows keep those with the largest
            mean gate, so that a row's answer depends on the rows beside it.

    Returns:
        Gates `[B, K]` that sum to 1, and numbers among `present`: `[B, k]` ("example"), `[k]`
        ("batch"), or None where nothing was cut. Of equal gates the first named is kept.
    """
    gates = scores.softmax(-1)
    here = gates.detach() if present is None else gates.detach().index_select(-1, present)
    if k >= here.shape[-1]:
        return gates, None
    ranked = here if scope == "example" else here.mean(0)
    chosen = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    cut = torch.ones_like(here, dtype=torch.bool).scatter(-1, chosen.expand(len(here), -1), False)
    if present is not None:
        cut = torch.zeros_like(gates, dtype=torch.bool).index_copy(-1, present, cut)
    # of the scores, not of the gates: what is cut then gets no gradient at all, where the division
    # by a sum would leave it rounding errors, which Adam makes steps of
    return scores.masked_fill(cut, float("-inf")).softmax(-1), chosen


class RowExperts:
    """Each row's own k LoRA experts of one rank: their weights copied row by row.

    Costs k experts for each row however many the batch chose together. The methods are those of
    `ExpertBank`; columns of z and gates are the row's own, in the order of its choice.

    Args:
        bank: of one group, without bottlenecks.
        chosen: `[B, k]` numbers of experts.
    """

    def __init__(self, bank: ExpertBank, chosen: Tensor) -> None:
        (group,) = bank.groups
        self.chosen, self.rank = chosen, group.rank
        B, k = chosen.shape
        flat = bank.inverse[chosen].reshape(-1)
        blocks = (bank.experts, group.rank)
        self.A = bank.A.view(*blocks, -1).index_select(0, flat).view(B, k * group.rank, -1)
        by_expert = bank.B.T.reshape(*blocks, -1)  # [K, R, D], a view
        self.B = by_expert.index_select(0, flat).view(B, k * group.rank, -1)
        gram: Tensor = bank.gram0  # type: ignore[assignment]
        self.gram = gram[flat]  # [B*k, R, R]

    def gates_of(self, gates: Tensor) -> Tensor:
        """Of the row's experts: `[rows, N]` -> `[rows, k]`; beams of a row stand side by side."""
        return gates.gather(-1, self.chosen.repeat_interleave(len(gates) // len(self.chosen), 0))

    def _apply(self, x: Tensor, weights: Tensor) -> Tensor:
        B = len(weights)
        y = torch.bmm(x.reshape(B, -1, x.shape[-1]), weights.to(x.dtype))
        return y.reshape(*x.shape[:-1], -1)

    def hidden_of(self, x: Tensor) -> Tensor:
        """`z = A x` of the row's experts: `[rows, .., F]` -> `[rows, .., kR]`."""
        return self._apply(x, self.A.transpose(1, 2))

    def mix(self, z: Tensor, gates: Tensor) -> Tensor:
        """`sum_k g_k e_k`: z `[rows, .., kR]`, gates `[rows, k]` -> `[rows, .., D]`."""
        wide = gates.to(z.dtype).repeat_interleave(self.rank, -1, output_size=z.shape[-1])
        return self._apply(z * wide.reshape(len(z), *[1] * (z.ndim - 2), -1), self.B)

    def cosines(self, y: Tensor, z: Tensor, eps: float = 1e-8) -> Tensor:
        """cos(y, e_k) of every token: y `[B, T, D]`, z `[B, T, kR]` -> `[B, T, k]`, float32."""
        B, T = z.shape[:2]
        k = self.chosen.shape[1]
        split = z.reshape(B, T, k, self.rank).float()
        projected = self._apply(y, self.B.transpose(1, 2)).reshape(split.shape).float()
        dots = (projected * split).sum(-1)
        flat = split.permute(0, 2, 1, 3).reshape(B * k, T, self.rank)
        squares = (torch.bmm(flat, self.gram) * flat).sum(-1).reshape(B, k, T).transpose(1, 2)
        norm_y = y.float().square().sum(-1, keepdim=True).clamp_min(eps * eps).sqrt()
        return dots / (norm_y * squares.clamp_min(eps * eps).sqrt())


class BatchExperts:
    """The experts that a batch works on together, in one smaller bank.

    Args:
        bank: of all experts here.
        chosen: `[n]` their numbers, each once.
    """

    def __init__(self, bank: ExpertBank, chosen: Tensor) -> None:
        self.bank, self.columns = bank.subset(chosen)
        self.hidden_of, self.mix = self.bank.hidden_of, self.bank.mix
        self.cosines = self.bank.cosines

    def gates_of(self, gates: Tensor) -> Tensor:
        """Of these experts: `[rows, N]` -> `[rows, n]`."""
        return gates.index_select(-1, self.columns)


def chosen_experts(
    bank: ExpertBank, chosen: Tensor, *, together: bool = False
) -> RowExperts | BatchExperts:
    """What works on the chosen experts' columns alone.

    Args:
        bank: of all experts here.
        chosen: `[k]`, or `[B, k]` by row.
        together: every row needs every chosen expert (the batch-averaged loss).
    """
    if chosen.ndim == 1:
        return BatchExperts(bank, chosen)
    union = torch.unique(chosen)
    apart = len(union) > APART * chosen.shape[1]
    if apart and not together and len(bank.groups) == 1 and not bank.bottleneck:
        return RowExperts(bank, chosen)
    return BatchExperts(bank, union)
