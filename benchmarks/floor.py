"""What a training step must cost, in multiply-adds.

The frozen base is counted by torch's `FlopCounterMode`: one pass with a gradient to its input, as
the prompt in front of it trains. What is added to its layers is computed from the shapes:

    n tokens, hidden F, width D, all experts' ranks together C = K R, adapter middle M = D / 16
    LoRA     forward n R (F + D)   backward the same to its input, and again to its weights
    experts  forward n C (F + D)   backward the same to their input; they are frozen
    loss     forward n C (D + R)   backward n C D: B^T y for the scalar products, G z for the norms,
                                   which the backward pass needs again and can keep
    adapter  forward 2 n D M       backward twice that

Gates, norms and all else that is element by element count nothing: a floor, not an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Layer:
    """One down projection: `tokens` pass it in a step."""

    tokens: int
    hidden: int
    width: int


@dataclass(frozen=True)
class Floor:
    """Multiply-adds of one step, by what makes them."""

    base: int
    experts: int = 0
    loss: int = 0
    adapter: int = 0
    lora: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.base + self.experts + self.loss + self.adapter + self.lora


def pemt_floor(base: int, layers: list[Layer], *, experts: int, rank: int, loss: bool) -> Floor:
    """Of PEMT's training step; `base` is what `counted` said of the base."""
    columns = experts * rank
    return Floor(
        base=base,
        experts=sum(2 * x.tokens * columns * (x.hidden + x.width) for x in layers),
        loss=sum(x.tokens * columns * (2 * x.width + rank) for x in layers) if loss else 0,
        adapter=sum(3 * 2 * x.tokens * x.width * (x.width // 16) for x in layers),
    )


def lora_floor(base: int, layers: list[Layer], *, rank: int) -> Floor:
    """Of a LoRA's training step on the same layers."""
    return Floor(base, lora=sum(3 * x.tokens * rank * (x.hidden + x.width) for x in layers))


def counted(step: Any) -> int:
    """Multiply-adds that a callable makes, forward and backward: matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops()) // 2
