"""Gates as tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pemt.model import AdaptedModel


def layer_names(model: AdaptedModel) -> list[str]:
    """Short names of the layers that have gates, in the gates' order.

    "encoder 0" is a layer's down projection, "encoder 0 attention.self.query" another of its linear
    maps. Down projections come first.
    """
    return [site.label for site in model.gated_sites()]


def entropy(gates: Tensor) -> Tensor:
    """Of gates, `[.., K]` -> `[..]`, in nats: from 0, one expert has all, to log K, all alike."""
    return -(gates * gates.clamp_min(1e-12).log()).sum(-1)


def gate_table(gates: Tensor, model: AdaptedModel, experts: list[str]) -> dict[str, Any]:
    """Mean gates with names: by layer and expert, over all layers, and how many experts count.

    Args:
        gates: `[layers, K]`, rows sum to 1.
        model: whose layers they are.
        experts: K names.
    """
    mean = gates.mean(0)
    rows = zip(layer_names(model), gates.tolist(), strict=True)
    return {
        "by_layer": {name: dict(zip(experts, row, strict=True)) for name, row in rows},
        "mean": dict(zip(experts, mean.tolist(), strict=True)),
        "effective_experts": math.exp(float(entropy(mean))),
    }
