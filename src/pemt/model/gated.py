"""A model with gates, looked at and masked while it runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pemt.errors import UnknownNameError
from pemt.model.adapted import AdaptedModel
from pemt.nn import ForwardContext
from pemt.nn.gate import entropy

NONE = "none"
"""The gate column, and the guide's entry, of no expert."""


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


def joined(records: Sequence[GateRecord]) -> GateRecord:
    """One record of the rows of several, all of the same model."""
    first, *others = [r for r in records if r.rows] or list(records)
    for other in others:
        if other._gates is None or other._entropy is None or first._gates is None:
            continue
        assert first._entropy is not None
        first._gates, first._entropy = first._gates + other._gates, first._entropy + other._entropy
        first.rows += other.rows
    return first


class GatedModel(AdaptedModel):
    """What `PemtModel` is built on: gates that can be recorded, and masked without retraining."""

    _columns: tuple[bool, ...] | None = None
    _gate_record: GateRecord | None = None

    @property
    def gate_names(self) -> list[str]:
        """Gate columns, in order."""
        raise NotImplementedError

    def _context(self, **given: Any) -> ForwardContext:
        if self._columns is not None:
            given["gate_mask"] = torch.tensor(self._columns, device=self.device)
        return super()._context(**given)

    def _passed(self, context: ForwardContext) -> None:
        if self._gate_record is not None:
            self._gate_record.add(context.gates)

    @contextmanager
    def keeping(self, names: Collection[str]) -> Iterator[None]:
        """Inside, only these gate columns count; nothing is retrained. All of them change nothing.

        In every layer the others' gates are 0, and those kept are made to sum to 1 again in the
        proportions they had (`pemt.nn.gate.masked`), before top-k takes its k. One name alone
        has weight 1, "none" or no name leaves every expert out. A column keeps its share where its
        expert is absent, as in training. Prompt, target adapters, norms and head stay as they were
        trained, the source prompts in the prompt among them.

        Args:
            names: of `gate_names`.

        Raises:
            UnknownNameError: a name that is no gate column.
        """
        for name in names:
            if name not in {*self.gate_names, NONE}:
                raise UnknownNameError("gate column", name, self.gate_names)
        kept = tuple(name in names for name in self.gate_names)
        before, self._columns = self._columns, None if all(kept) else kept
        try:
            yield
        finally:
            self._columns = before

    @contextmanager
    def recording(self) -> Iterator[GateRecord]:
        """Inside, the gates of every pass that answers are added up; it costs no pass of its own.

        Nothing is drawn, and no number of any pass changes.
        """
        before, record = self._gate_record, GateRecord([s.index for s in self.gated_sites()])
        self._gate_record = record
        try:
            yield record
        finally:
            self._gate_record = before
