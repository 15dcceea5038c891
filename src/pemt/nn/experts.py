"""Experts: frozen branches parallel to a linear map of the base, any number in two products.

    x [B,T,F] --+--> W_o ------------------------------(+)--> f [B,T,D]
                |                                       |
                +--> A_cat -> z [B,T,C] -> g (x) z -> B_cat      C = sum of the experts' ranks

Stage 1 trains one branch (branches.py). Stage 2 stacks K frozen ones; neither the mixture nor the
loss ever builds an expert's output `[B,T,D]`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.activations import ACT2FN

from pemt.errors import ConfigError
from pemt.nn.activation import activation_named
from pemt.nn.branches import ExpertTensors
from pemt.nn.moments import moments


@dataclass(frozen=True)
class _Group:
    """Experts of one kind and rank, adjacent in the stack: `members`, `rank` columns each."""

    members: tuple[int, ...]
    rank: int
    activation: str | None
    start: int

    @property
    def stop(self) -> int:
        return self.start + len(self.members) * self.rank


class ExpertBank(nn.Module):
    """K frozen experts of one layer, stacked; ranks and kinds may differ.

    Args:
        experts: in gate-column order; all of the same F and D.

    Raises:
        ConfigError: no expert, or shapes that do not agree.
        UnknownNameError: an activation that transformers does not know.
    """

    A: Tensor
    B: Tensor
    a: Tensor | None
    b: Tensor | None
    order: Tensor
    inverse: Tensor
    repeats: Tensor
    made_from: tuple[object, ...] = ()

    def __init__(
        self, experts: Sequence[ExpertTensors], *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if not experts:
            raise ConfigError("A bank without experts", "give at least one expert")
        hidden, width = experts[0].A.shape[1], experts[0].B.shape[0]
        for k, e in enumerate(experts):
            if e.A.shape[1] != hidden or e.B.shape != (width, e.A.shape[0]):
                raise ConfigError(
                    f"Expert {k} has A {tuple(e.A.shape)} and B {tuple(e.B.shape)}",
                    f"this layer takes A [R, {hidden}] and B [{width}, R]",
                )
            if e.activation is not None:
                activation_named(e.activation)
        dtype = dtype or experts[0].A.dtype
        # experts of equal kind and rank sit side by side: the loss then reshapes instead of looping
        groups: dict[tuple[int, str | None], list[int]] = {}
        for k, e in enumerate(experts):
            groups.setdefault((e.A.shape[0], e.activation), []).append(k)
        self.groups: list[_Group] = []
        start = 0
        for (rank, activation), members in groups.items():
            self.groups.append(_Group(tuple(members), rank, activation, start))
            start = self.groups[-1].stop
        order = [k for group in self.groups for k in group.members]
        self.experts, self.width, self.hidden = len(experts), width, hidden
        self.sorted = order == list(range(len(order)))
        self.places = {k: place for place, k in enumerate(order)}
        ordered = [experts[k] for k in order]
        self.bottleneck = any(e.activation is not None for e in experts)

        keep = self._keep
        keep("A", torch.cat([e.A.detach() for e in ordered]).to(dtype))  # [C, F]
        scaled = torch.cat([e.scale * e.B.detach().float() for e in ordered], 1)
        keep("B", scaled.to(dtype))  # [D, C], scale folded in
        keep("order", torch.tensor(order))
        inverse = torch.empty(len(order), dtype=torch.long)
        inverse[torch.tensor(order)] = torch.arange(len(order))
        keep("inverse", inverse)
        keep("repeats", torch.tensor([e.A.shape[0] for e in ordered]))
        keep("a", None)
        keep("b", None)
        if self.bottleneck:
            zero = experts[0].A
            keep("a", torch.cat([_or_zeros(e.a, e.A.shape[0], zero) for e in ordered]).to(dtype))
            keep(
                "b", torch.stack([_or_zeros(e.b, width, zero) for e in ordered]).to(dtype)
            )  # [K, D]
        for i, group in enumerate(self.groups):  # constants of the loss, float32
            count, rank = len(group.members), group.rank
            b = self.B[:, group.start : group.stop].float().T.reshape(count, rank, width)
            keep(f"gram{i}", b @ b.transpose(1, 2))  # [n, R, R]
            if self.bottleneck:
                assert self.b is not None
                rows = torch.tensor([order.index(k) for k in group.members])
                bias = self.b[rows].float()  # [n, D]
                keep(f"cross{i}", torch.einsum("nrd,nd->nr", b, bias))
                keep(f"square{i}", bias.square().sum(-1))

    @property
    def columns(self) -> int:
        """C, the sum of the ranks."""
        return self.A.shape[0]

    @property
    def size(self) -> int:
        """How many numbers the experts are: A, B and the biases of all."""
        return sum(t.numel() for t in (self.A, self.B, self.a, self.b) if t is not None)

    def sharing(self) -> ExpertBank:
        """Another bank with the very same tensors; moving one of them leaves the other in place."""
        twin = copy.copy(self)
        twin._buffers = dict(self._buffers)
        return twin

    def subset(self, chosen: Tensor) -> tuple[ExpertBank, Tensor]:
        """A bank of some of the experts, copied from the stacks, and whose its columns are.

        Args:
            chosen: `[n]` numbers of experts, as the bank was given them, each once.

        Returns:
            The bank, and `[n]` their numbers in its order: that of the stacks.
        """
        places = self.inverse[chosen].sort().values
        part = ExpertBank.__new__(ExpertBank)
        nn.Module.__init__(part)
        part.experts, part.width, part.hidden = len(places), self.width, self.hidden
        part.sorted, part.bottleneck = True, self.bottleneck
        part.groups, first = [], 0
        columns = []
        for i, group in enumerate(self.groups):
            last = first + len(group.members)
            # one group: all are in it, and their number is known without asking the device
            alone = len(self.groups) == 1
            inside = places if alone else places[(places >= first) & (places < last)]
            if len(inside) == 0:
                first = last
                continue
            own = inside - first
            steps = torch.arange(group.rank, device=own.device)
            columns.append(((own * group.rank + group.start)[:, None] + steps).reshape(-1))
            start = part.groups[-1].stop if part.groups else 0
            n = sum(len(g.members) for g in part.groups)
            j = len(part.groups)
            members = tuple(range(n, n + len(inside)))
            part.groups.append(_Group(members, group.rank, group.activation, start))
            for name in ("gram", "cross", "square"):
                if hasattr(self, f"{name}{i}"):
                    part._keep(f"{name}{j}", getattr(self, f"{name}{i}")[own])
            first = last
        every = torch.cat(columns)
        part._keep("A", self.A.index_select(0, every))
        part._keep("B", self.B.index_select(1, every))
        part._keep("a", None if self.a is None else self.a.index_select(0, every))
        part._keep("b", None if self.b is None else self.b.index_select(0, places))
        part._keep("repeats", self.repeats.index_select(0, places))
        here = torch.arange(len(places), device=places.device)
        part._keep("order", here)
        part._keep("inverse", here)
        part.places = {k: k for k in range(len(places))}
        return part, self.order[places]

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

    def hidden_of(self, x: Tensor) -> Tensor:
        """`z = act(A x + a)` of all experts: `[..., F]` -> `[..., C]`."""
        z = F.linear(x, self.A, self.a)
        if not self.bottleneck:
            return z
        parts = [
            ACT2FN[g.activation](z[..., g.start : g.stop])
            if g.activation
            else z[..., g.start : g.stop]
            for g in self.groups
        ]
        return torch.cat(parts, -1)

    def _columns_of(self, gates: Tensor) -> Tensor:
        """Each expert's gate on each of its columns: `[B, K]` -> `[B, C]`."""
        if not self.sorted:
            gates = gates.index_select(-1, self.order)
        if len(self.groups) == 1:  # one rank: a plain view, no data-dependent size
            rank = self.groups[0].rank
            return gates.unsqueeze(-1).expand(*gates.shape, rank).reshape(*gates.shape[:-1], -1)
        return gates.repeat_interleave(self.repeats, -1, output_size=self.columns)

    def mix(self, z: Tensor, gates: Tensor) -> Tensor:
        """`sum_k g_k e_k` without any e_k: z `[B, .., C]` -> `[B, .., D]`.

        Args:
            z: what `hidden_of` gave.
            gates: `[B, K]`, one vector for all tokens of a row, or `[B, .., K]`, one per token.
        """
        mixed = F.linear(z * _over_tokens(self._columns_of(gates).to(z.dtype), z), self.B)
        if self.b is not None:
            ordered = gates if self.sorted else gates.index_select(-1, self.order)
            mixed = mixed + _over_tokens(ordered.to(z.dtype) @ self.b, z)
        return mixed

    def one(self, x: Tensor, expert: int) -> Tensor:
        """`e_k(x)` of one expert, without the others: x `[.., F]` -> `[.., D]`.

        Args:
            x: input.
            expert: its number, as the bank was given them.
        """
        group = next(g for g in self.groups if expert in g.members)
        start = group.start + group.members.index(expert) * group.rank
        rows = slice(start, start + group.rank)
        z = F.linear(x, self.A[rows], None if self.a is None else self.a[rows])
        if group.activation:
            z = ACT2FN[group.activation](z)
        return F.linear(z, self.B[:, rows], None if self.b is None else self.b[self.places[expert]])

    def dots(self, y: Tensor, z: Tensor) -> Tensor:
        """`<y, e_k> = (B_k^T y) . z_k + <y, b_k>` of every token, without any e_k.

        y `[.., D]`, z `[.., C]` -> `[.., K]`, float32.
        """
        products = (y @ self.B).float() * z.float()  # [.., C]
        parts = []
        for group in self.groups:
            columns = products[..., group.start : group.stop]
            parts.append(columns.reshape(*y.shape[:-1], len(group.members), group.rank).sum(-1))
        dots = torch.cat(parts, -1)
        if self.b is not None:
            dots = dots + (y @ self.b.T).float()
        return dots if self.sorted else dots.index_select(-1, self.inverse)

    def cosines(self, y: Tensor, z: Tensor, eps: float = 1e-8) -> Tensor:
        """cos(y, e_k) of every token: y `[B, T, D]`, z `[B, T, C]` -> `[B, T, K]`, float32.

        `<y, e_k> = (B_k^T y) . z_k` and `|e_k|^2 = z_k^T G_k z_k`; biases add `<y, b_k>`,
        `2 (B_k^T b_k) . z_k` and `|b_k|^2`. eps as in torch's cosine_similarity.
        """
        projected = y @ self.B  # [B, T, C]
        dots, squares = [], []
        for i, group in enumerate(self.groups):
            n, rank = len(group.members), group.rank
            columns = slice(group.start, group.stop)
            product, squared = moments(
                projected[..., columns].reshape(-1, n, rank),
                z[..., columns].reshape(-1, n, rank),
                getattr(self, f"gram{i}"),
                getattr(self, f"cross{i}") if self.bottleneck else None,
            )
            if self.bottleneck:
                squared = squared + getattr(self, f"square{i}")
            dots.append(product.reshape(*z.shape[:-1], n))
            squares.append(squared.reshape(*z.shape[:-1], n))
        dot = torch.cat(dots, -1) if len(dots) > 1 else dots[0]
        square = torch.cat(squares, -1) if len(squares) > 1 else squares[0]
        if self.b is not None:
            dot = dot + (y @ self.b.T).float()
        norm_y = y.float().square().sum(-1, keepdim=True).clamp_min(eps * eps).sqrt()
        cosines = dot / (norm_y * square.clamp_min(eps * eps).sqrt())
        return cosines if self.sorted else cosines.index_select(-1, self.inverse)


def _over_tokens(rows: Tensor, z: Tensor) -> Tensor:
    """Vectors `[B, N]`, shaped to meet every token of z `[B, .., C]`; `[B, .., N]` as they are."""
    if rows.ndim == z.ndim:
        return rows
    return rows.reshape(rows.shape[0], *[1] * (z.ndim - 2), rows.shape[-1])


def _or_zeros(value: Tensor | None, size: int, like: Tensor) -> Tensor:
    return like.new_zeros(size) if value is None else value.detach().to(like.dtype)
