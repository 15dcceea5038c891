"""Layer norms that train without touching the base."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from pemt.nn.context import Slot


class TrainedNorm(nn.Module):
    """A trainable float32 copy of a norm beside the frozen original.

    The base keeps its own weights, so disabling or detaching gives it back bit for bit, and a norm
    near 1 can move by less than bf16's step of 0.008.

    Args:
        original: the base's norm.
        slot: of the model; while it is empty, the original answers.
    """

    def __init__(self, original: nn.Module, slot: Slot) -> None:
        super().__init__()
        self.original = original
        self.trained = copy.deepcopy(original).float().requires_grad_(True)
        self.slot = slot

    @property
    def weight(self) -> Tensor:
        """The original's weight: some bases read its type."""
        weight: Tensor = self.original.weight  # type: ignore[assignment]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` -> `[..., D]`, in x's type."""
        context = self.slot.current()
        if context is None or context.alone is not None:
            y: Tensor = self.original(x)
            return y
        y = self.trained(x.float())
        return y.to(x.dtype)
