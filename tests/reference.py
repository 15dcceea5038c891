"""Naive twins of the fast paths: every expert's output is built, every token and example is looped.

Slow and plain on purpose; `pemt.nn` must give the same numbers (METHOD.md, "The exact fast form").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pemt.nn import ExpertTensors


def gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {None: lambda x: x, "gelu_new": gelu_new, "relu": lambda x: x.clamp_min(0)}


def expert_output(expert: ExpertTensors, x: Tensor) -> Tensor:
    """`e(x) = scale * B act(A x + a) + b`: `[B, T, F]` -> `[B, T, D]`."""
    z = x @ expert.A.T
    if expert.a is not None:
        z = z + expert.a
    e = expert.scale * (ACTIVATIONS[expert.activation](z) @ expert.B.T)
    return e if expert.b is None else e + expert.b


def expert_outputs(experts: list[ExpertTensors], x: Tensor) -> Tensor:
    """Every e_k: `[B, T, F]` -> `[K, B, T, D]`."""
    return torch.stack([expert_output(e, x) for e in experts])


def mixture(experts: list[ExpertTensors], x: Tensor, gates: Tensor) -> Tensor:
    """`sum_k g_k e_k`: x `[B, T, F]`, gates `[B, K]` -> `[B, T, D]`."""
    rows = []
    for b in range(len(x)):
        each = [gates[b, k] * expert_output(e, x[b : b + 1]) for k, e in enumerate(experts)]
        rows.append(sum(each[1:], each[0]))
    return torch.cat(rows)


def cosines(experts: list[ExpertTensors], x: Tensor, y: Tensor) -> Tensor:
    """cos(y, e_k) of every token: `[B, T, K]`."""
    return torch.stack(
        [F.cosine_similarity(y, e, dim=-1) for e in expert_outputs(experts, x)], dim=-1
    )


def sparsity(
    experts: list[ExpertTensors],
    x: Tensor,
    y: Tensor,
    gates: Tensor,
    weights: Tensor | None = None,
    *,
    averaging: str = "example",
) -> Tensor:
    """Task Sparsity Loss of one layer, a scalar."""
    cos = cosines(experts, x, y)
    B, T, K = cos.shape
    keep = torch.ones(B, T, dtype=torch.bool) if weights is None else weights.bool()
    if averaging == "batch":
        total = cos.new_zeros(())
        for k in range(K):
            counted = [cos[b, t, k] for b in range(B) for t in range(T) if keep[b, t]]
            total = total + gates[:, k].mean() * (1 - torch.stack(counted).mean())
        return total
    examples = []
    for b in range(B):
        loss = cos.new_zeros(())
        for k in range(K):
            counted = cos[b, keep[b], k]
            agreement = counted.mean() if len(counted) else cos.new_zeros(())
            loss = loss + gates[b, k] * (1 - agreement)
        examples.append(loss)
    return torch.stack(examples).mean()


def correlation_prompt(target: Tensor, sources: list[Tensor], scale: float = 1.0) -> Tensor:
    """`P_t + sum_k softmax_rows(scale * P_t E_k^T) E_k`, source by source and row by row."""
    rows = []
    for row in target:
        total = row
        for source in sources:
            scores = torch.stack([scale * (row * e).sum() for e in source])
            total = total + (scores.softmax(0).unsqueeze(1) * source).sum(0)
        rows.append(total)
    return torch.stack(rows)


def gate(u: Tensor, weight: Tensor, tau: float = 1.0) -> Tensor:
    """`softmax(u W_g / tau)`, example by example: `[B, W]` -> `[B, K]`."""
    rows = []
    for row in u:
        powers = torch.exp(row @ weight / tau - (row @ weight / tau).max())
        rows.append(powers / powers.sum())
    return torch.stack(rows)


def masked_gate(u: Tensor, weight: Tensor, keep: list[bool], tau: float = 1.0) -> Tensor:
    """The gate as if only some columns existed, and 0 at the others: `[B, W]` -> `[B, K]`."""
    rows = []
    for row in u:
        powers = [math.exp((row @ weight.detach()[:, k]).item() / tau) for k in range(len(keep))]
        total = sum(power for power, kept in zip(powers, keep, strict=True) if kept)
        rows.append(
            [power / total if kept else 0.0 for power, kept in zip(powers, keep, strict=True)]
        )
    return torch.tensor(rows)


def target_adapter(f: Tensor, down: Tensor, v: Tensor, up: Tensor, u: Tensor) -> Tensor:
    """`f + U gelu_new(V f + v) + u`, token by token: `[B, T, D]` -> `[B, T, D]`."""
    tokens = [token + up @ gelu_new(down @ token + v) + u for token in f.reshape(-1, f.shape[-1])]
    return torch.stack(tokens).reshape(f.shape)


def present(experts: list[ExpertTensors | None]) -> list[int]:
    """Gate columns of the experts that are at this layer."""
    return [k for k, e in enumerate(experts) if e is not None]


def partial_mixture(
    experts: list[ExpertTensors | None], x: Tensor, gates: Tensor
) -> Tensor | float:
    """`sum_k g_k e_k` where some experts have no branch: such an e_k is zero."""
    total: Tensor | float = 0.0
    for k in present(experts):
        total = total + mixture([experts[k]], x, gates[:, k : k + 1])
    return total


def partial_sparsity(
    experts: list[ExpertTensors | None], x: Tensor, y: Tensor, gates: Tensor, weights: Tensor | None
) -> Tensor | None:
    """The loss of the experts that are here, their gates made to sum to 1; None without any."""
    here = present(experts)
    if not here:
        return None
    shares = gates[:, here] / gates[:, here].sum(1, keepdim=True)
    return sparsity([experts[k] for k in here], x, y, shares, weights)


def top_gates(gates: Tensor, k: int, columns: list[int], *, scope: str = "example") -> Tensor:
    """All but the k largest of `columns` at 0, row by row, and what is left made to sum to 1."""
    rows = []
    mean = gates.mean(0)
    for row in gates:
        judged = row if scope == "example" else mean
        best = sorted(columns, key=lambda c: -judged[c].item())[:k]
        kept = torch.stack(
            [row[c] if c in best or c not in columns else 0 * row[c] for c in range(len(row))]
        )
        rows.append(kept / kept.sum())
    return torch.stack(rows)
