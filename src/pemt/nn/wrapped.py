"""What stands in the place of one of the base's linear maps."""

from __future__ import annotations

from torch import Tensor, nn

from pemt.nn.context import Slot


class WrappedLinear(nn.Module):
    """A linear map of the base with something beside or behind it.

    Modeling code may read a linear map's attributes (T5 asks `wo.weight` for its type), so the
    wrapper shows those of what it wraps.

    Args:
        down: the base's frozen linear map, `[..., F]` -> `[..., D]`; mostly a down projection.
        slot: of the model; while it is empty, the linear map answers alone.
    """

    def __init__(self, down: nn.Module, slot: Slot) -> None:
        super().__init__()
        self.down = down
        self.slot = slot

    @property
    def weight(self) -> Tensor:
        """The wrapped map's weight."""
        weight: Tensor = self.down.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The wrapped map's bias."""
        bias: Tensor | None = self.down.bias  # type: ignore[assignment]
        return bias

    @property
    def in_features(self) -> int:
        """The wrapped map's input width."""
        width: int = self.down.in_features  # type: ignore[assignment]
        return width

    @property
    def out_features(self) -> int:
        """The wrapped map's output width."""
        width: int = self.down.out_features  # type: ignore[assignment]
        return width
