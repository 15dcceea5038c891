"""Gates of many passes, added up as they happen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pemt.nn.gate import entropy


class GateRecord:
    """Sums over the rows of passes, by layer.

    Args:
        layers: numbers of the layers that have gates (`pemt.backbones.Site.index`), in order.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = list(layers)
        self.rows = 0
        self._gates: Tensor | None = None
        self._entropy: Tensor | None = None

    def add(self, gates: Mapping[int, Tensor]) -> None:
        """Add one pass: `[B, K]` by layer. A pass without gates, as of one expert alone, is none.

        Args:
            gates: of `ForwardContext.gates`.
        """
        if not self.layers or any(layer not in gates for layer in self.layers):
            return
        stacked = torch.stack([gates[layer].detach().float() for layer in self.layers])  # [L, B, K]
        summed, entropies = stacked.sum(1), entropy(stacked).sum(1)
        self._gates = summed if self._gates is None else self._gates + summed
        self._entropy = entropies if self._entropy is None else self._entropy + entropies
        self.rows += stacked.shape[1]

    def mean(self) -> Tensor | None:
        """Mean gates over rows, `[L, K]`, on the CPU; None where nothing was recorded."""
        return None if self._gates is None else self._gates.cpu() / self.rows

    def entropy(self) -> Tensor | None:
        """Mean over rows of each row's entropy, `[L]`, nats, on the CPU."""
        return None if self._entropy is None else self._entropy.cpu() / self.rows
