"""One layer of PEMT: down projection, frozen experts, gate, target adapter, sparsity loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pemt.nn.adapter import TargetAdapter
from pemt.nn.context import ForwardContext, Slot, attach_sparsity
from pemt.nn.experts import ExpertBank
from pemt.nn.gate import PromptGate, prompt_mean
from pemt.nn.sparsity import Averaging, task_sparsity

GateInput = Literal["hidden", "summary", "task"]


class MixtureLayer(nn.Module):
    """`f = W_o x + sum_k g_k e_k(x)`, then `y = f + adapter(f)` (METHOD.md, stage 2).

    It wraps the down projection alone: all it needs is that layer's input.

    Args:
        down: the base's frozen down projection, `[..., F]` -> `[..., D]`.
        bank: the layer's frozen experts.
        gate: of width F ("hidden") or D ("summary", "task").
        adapter: the target adapter, or None.
        slot: of the model; while it is empty, the down projection answers alone.
        index: of this layer among all wrapped layers, encoder first.
        stack: "encoder" or "decoder": whose token weights the loss uses.
        gate_input: "hidden": this layer's own x; "summary": the encoder's final output; "task": the
            prompt alone.
        averaging: of the Task Sparsity Loss.
    """

    def __init__(
        self,
        down: nn.Module,
        bank: ExpertBank,
        gate: PromptGate,
        adapter: TargetAdapter | None,
        slot: Slot,
        *,
        index: int,
        stack: str,
        gate_input: GateInput,
        averaging: Averaging = "example",
    ) -> None:
        super().__init__()
        self.down = down
        self.bank = bank
        self.gate = gate
        self.adapter = adapter
        self.slot = slot
        self.index = index
        self.stack = stack
        self.gate_input: GateInput = gate_input
        self.averaging: Averaging = averaging

    @property
    def weight(self) -> Tensor:
        """The down projection's weight: T5 reads its type."""
        weight: Tensor = self.down.weight  # type: ignore[assignment]
        return weight

    def gates(self, x: Tensor, context: ForwardContext) -> Tensor:
        """The gates of this pass, `[B, K]`: given, reused, or computed from the prompt."""
        rows = x.shape[0]
        fixed = context.fixed_gates.get(self.index)
        if fixed is not None:
            given = fixed.to(x.device).expand(rows, -1)
            context.gates[self.index] = given
            return given
        kept = context.gates.get(self.index)
        if context.reuse_gates and kept is not None:
            return _rows(kept, rows)
        if self.gate_input == "hidden":
            gates: Tensor = self.gate(prompt_mean(x, context.prompt_start, context.prompt_length))
        else:
            summary = context.summary if self.gate_input == "summary" else context.task_summary
            assert summary is not None, "the model sets the gate input before the layers run"
            gates = self.gate(summary)
        context.gates[self.index] = gates
        return _rows(gates, rows)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, F]` -> `[B, T, D]`."""
        context = self.slot.current()
        f: Tensor = self.down(x)
        if context is None:
            return f
        z = self.bank.hidden_of(x)  # [B, T, C]
        gates = self.gates(x, context)  # [B, K]
        y = f + self.bank.mix(z, gates)
        if self.adapter is not None:
            y = self.adapter(y)
        if context.sparsity:
            loss = task_sparsity(
                gates,
                self.bank.cosines(y, z),
                context.token_weights.get(self.stack),
                averaging=self.averaging,
            )
            y = attach_sparsity(y, loss, context, self.index)
        return y


def _rows(gates: Tensor, rows: int) -> Tensor:
    """Beams and returned sequences repeat each row of the batch, side by side."""
    return gates if gates.shape[0] == rows else gates.repeat_interleave(rows // gates.shape[0], 0)
