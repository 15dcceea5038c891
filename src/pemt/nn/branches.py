"""One expert: a branch parallel to a linear map of the base, and its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pemt.errors import ConfigError
from pemt.nn.activation import activation_named
from pemt.nn.context import Slot
from pemt.nn.wrapped import WrappedLinear


@dataclass(frozen=True, kw_only=True)
class ExpertTensors:
    """One expert at one layer: `e(x) = scale * B act(A x + a) + b`; a LoRA has no act, a and b.

    Attributes:
        A: `[R, F]`.
        B: `[D, R]`.
        scale: alpha / R for a LoRA, 1 for a bottleneck.
        a: `[R]`, bottleneck only.
        b: `[D]`, bottleneck only.
        activation: a name that transformers knows; None for a LoRA.
    """

    A: Tensor
    B: Tensor
    scale: float = 1.0
    a: Tensor | None = None
    b: Tensor | None = None
    activation: str | None = None


class LoraBranch(nn.Module):
    """Trainable `scale * B A x`; B starts at 0 (default) or, as in the released code, Kaiming."""

    def __init__(
        self, hidden: int, width: int, rank: int, alpha: float, *, kaiming_b: bool = False
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ConfigError(f"Expert rank {rank}", "give a whole number of at least 1")
        self.scale = alpha / rank
        self.A = nn.Parameter(torch.empty(rank, hidden))
        self.B = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        if kaiming_b:
            nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., F]` -> `[..., D]`."""
        return F.linear(F.linear(x, self.A.to(x.dtype)), (self.B * self.scale).to(x.dtype))

    def tensors(self) -> ExpertTensors:
        """What it has learnt, detached."""
        return ExpertTensors(A=self.A.detach(), B=self.B.detach(), scale=self.scale)

    def load(self, tensors: ExpertTensors) -> None:
        """Copy an expert's values in; shapes must match."""
        with torch.no_grad():
            self.A.copy_(tensors.A)
            self.B.copy_(tensors.B)
        self.scale = tensors.scale


class BottleneckBranch(nn.Module):
    """Trainable `B act(A x + a) + b`: the kind of expert that the paper's figure draws.

    Raises:
        ConfigError: an activation with weights, which an expert does not hold.
        UnknownNameError: one that transformers does not know.
    """

    def __init__(self, hidden: int, width: int, rank: int, *, activation: str = "gelu_new") -> None:
        super().__init__()
        self.activation_name = activation
        self.activation = activation_named(activation)
        if any(True for _ in self.activation.parameters()):
            raise ConfigError(
                f"The activation {activation!r} trains weights of its own",
                "an expert holds none for it: take another, such as gelu_new",
            )
        self.A = nn.Parameter(torch.empty(rank, hidden))
        self.a = nn.Parameter(torch.zeros(rank))
        self.B = nn.Parameter(torch.zeros(width, rank))
        self.b = nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., F]` -> `[..., D]`."""
        kind = x.dtype
        z = self.activation(F.linear(x, self.A.to(kind), self.a.to(kind)))
        return F.linear(z, self.B.to(kind), self.b.to(kind))

    def tensors(self) -> ExpertTensors:
        """What it has learnt, detached."""
        return ExpertTensors(
            A=self.A.detach(),
            B=self.B.detach(),
            a=self.a.detach(),
            b=self.b.detach(),
            activation=self.activation_name,
        )

    def load(self, tensors: ExpertTensors) -> None:
        """Copy an expert's values in; shapes must match."""
        with torch.no_grad():
            self.A.copy_(tensors.A)
            self.B.copy_(tensors.B)
            self.a.copy_(tensors.a if tensors.a is not None else torch.zeros_like(self.a))
            self.b.copy_(tensors.b if tensors.b is not None else torch.zeros_like(self.b))


class ParallelExpert(WrappedLinear):
    """Stage 1: a down projection, or another linear map, with one trainable branch beside it.

    Args:
        down: the base's frozen down projection, `[..., F]` -> `[..., D]`.
        branch: the expert in training.
        slot: of the model; while it is empty, the down projection answers alone.
    """

    def __init__(self, down: nn.Module, branch: LoraBranch | BottleneckBranch, slot: Slot) -> None:
        super().__init__(down, slot)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """`[..., F]` -> `[..., D]`."""
        f: Tensor = self.down(x)
        if self.slot.current() is None:
            return f
        branch: Tensor = self.branch(x)
        return f + branch
