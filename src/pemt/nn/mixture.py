"""One layer of PEMT: linear map, frozen experts, gate, target adapter, sparsity loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pemt.errors import ConfigError
from pemt.nn.adapter import TargetAdapter
from pemt.nn.branches import LoraBranch
from pemt.nn.by_task import ByTask
from pemt.nn.context import ForwardContext, Slot, attach_sparsity
from pemt.nn.experts import ExpertBank
from pemt.nn.gate import PromptGate, UniformGate, masked, prompt_mean
from pemt.nn.selection import BatchExperts, RowExperts, Scope, chosen_experts, top_gates
from pemt.nn.sparsity import Averaging, task_sparsity
from pemt.nn.wrapped import WrappedLinear

GateInput = Literal["hidden", "summary", "task", "none"]


class MixtureLayer(WrappedLinear):
    """`f = W x + sum_k g_k e_k(x)`, then `y = f + adapter(f)` (METHOD.md, stage 2).

    A target adapter that is a LoRA stands beside the linear map instead: `y = f + adapter(x)`.

    It wraps one linear map, the down projection or another: all it needs is that map's input.

    An expert may have no branch here. The gate still has one column per expert, in the same order:
    the absent expert takes its share of the softmax and adds nothing, so every layer's gates are a
    distribution over the same K names, and a layer can turn away from the experts that it has.

    Args:
        down: the base's frozen linear map, `[B, .., F]` -> `[B, .., D]`.
        bank: the frozen experts that are here; None where there is none.
        gate: over all K experts, of width F ("hidden") or the model's D ("summary", "task"), or a
            uniform one ("none"); None without a bank.
        adapter: the target adapter, or None.
        slot: of the model; while it is empty, the linear map answers alone.
        index: of this layer among all wrapped ones, see `pemt.backbones.Site`.
        stack: "encoder" or "decoder": whose token weights the loss uses.
        gate_input: "hidden": this layer's own x; "summary": the encoder's final output; "task": the
            prompt alone; "none": no input, for a uniform gate.
        averaging: of the Task Sparsity Loss.
        present: gate columns of the bank's experts; None: all, in order.
        sparsity: whether the Task Sparsity Loss is made here.
        top_k: only the experts with the k largest gates work, see `pemt.nn.selection`; None: all.
        scope: whose k largest: each example's own, or the batch's.
        top_k_train: whether the others rest in training too.

    Raises:
        ConfigError: a bank that does not fit the columns named.
    """

    present: Tensor | None

    def __init__(
        self,
        down: nn.Module,
        bank: ExpertBank | None,
        gate: PromptGate | UniformGate | ByTask | None,
        adapter: TargetAdapter | LoraBranch | ByTask | None,
        slot: Slot,
        *,
        index: int,
        stack: str,
        gate_input: GateInput,
        averaging: Averaging = "example",
        present: Sequence[int] | None = None,
        sparsity: bool = True,
        top_k: int | None = None,
        scope: Scope = "example",
        top_k_train: bool = False,
    ) -> None:
        super().__init__(down, slot)
        if (bank is None) != (gate is None):
            raise ConfigError("A bank and no gate, or a gate and no bank", "give both or none")
        if bank is not None and present is not None and bank.experts != len(present):
            raise ConfigError(
                f"A bank of {bank.experts} experts for the gate columns {list(present)}",
                "name one column for each",
            )
        self.bank = bank
        self.gate = gate
        self.adapter = adapter
        self.index = index
        self.stack = stack
        self.gate_input: GateInput = gate_input
        self.averaging: Averaging = averaging
        self.sparsity = sparsity
        self.top_k = top_k
        self.scope: Scope = scope
        self.top_k_train = top_k_train
        columns = None if present is None else torch.tensor(list(present), dtype=torch.long)
        self.register_buffer("present", columns, persistent=False)

    def gates(self, x: Tensor, context: ForwardContext) -> Tensor:
        """The gates of this pass, `[B, K]`: given, reused, or computed from the prompt."""
        assert self.gate is not None, "only a layer with experts has gates"
        rows = x.shape[0]
        fixed = context.fixed_gates.get(self.index)
        if fixed is not None:
            given = masked(fixed.to(x.device).expand(rows, -1), context.gate_mask)
            context.gates[self.index] = given
            return given
        kept = context.gates.get(self.index)
        if context.reuse_gates and kept is not None:
            return _rows(kept, rows)
        if self.gate_input == "none" or isinstance(self.gate, UniformGate):
            gates = masked(self.gate(x), context.gate_mask)
        else:
            gates = self._gates_of(self.gate, self._gate_reads(x, context), context)
        context.gates[self.index] = gates
        return _rows(gates, rows)

    def _gate_reads(self, x: Tensor, context: ForwardContext) -> Tensor:
        """The gate's input u, `[B, width]`."""
        if self.gate_input == "hidden":
            if x.ndim != 3:
                raise ConfigError(
                    f"A layer that finds its gates in its own input got {tuple(x.shape)}",
                    "it takes [B, T, F]; use gate='task' on a base that flattens its batch",
                )
            start, length = context.prompt_start, context.prompt_length
            return prompt_mean(x, start, length, context.prompt_lengths)
        summary = context.summary if self.gate_input == "summary" else context.task_summary
        assert summary is not None, "the model sets the gate input before the layers run"
        return summary

    def _gates_of(self, gate: PromptGate | ByTask, u: Tensor, context: ForwardContext) -> Tensor:
        """All gates, or the k largest of those not masked; the context is told whose they are."""
        mask = context.gate_mask
        if self.top_k is None or (self.training and not self.top_k_train):
            return masked(gate(u), mask)
        assert isinstance(gate, PromptGate), "a router takes no tasks with top-k"
        scores = gate.scores(u)
        if mask is not None and bool(mask.any()):
            scores = scores.masked_fill(~mask, float("-inf"))
        gates, chosen = top_gates(scores, self.top_k, self.present, scope=self.scope)
        if chosen is not None:
            context.chosen[self.index] = chosen
        return masked(gates, mask)

    def _working(self, context: ForwardContext) -> ExpertBank | RowExperts | BatchExperts:
        """The experts of this pass: all that are here, or those chosen by their gates."""
        assert self.bank is not None
        chosen = context.chosen.get(self.index)
        if chosen is None:
            return self.bank
        kept = context.working.get(self.index)
        if kept is None:
            together = self.averaging == "batch" and context.sparsity
            kept = chosen_experts(self.bank, chosen, together=together)
            if context.reuse_gates:  # decoding steps and beams find their weights here
                context.working[self.index] = kept
        return kept

    def _alone(self, x: Tensor, y: Tensor, expert: int) -> Tensor:
        """The linear map with one expert at weight one, if it is here."""
        if self.bank is None:
            return y
        if self.present is None:
            return y + self.bank.one(x, expert)
        here: list[int] = self.present.tolist()
        return y + self.bank.one(x, here.index(expert)) if expert in here else y

    def forward(self, x: Tensor) -> Tensor:
        """`[B, .., F]` -> `[B, .., D]`."""
        context = self.slot.current()
        y: Tensor = self.down(x)
        if context is None:
            return y
        if context.alone is not None:
            return self._alone(x, y, context.alone)
        if self.bank is not None:
            gates = self.gates(x, context)  # [B, K]
            if self.present is not None:
                gates = gates.index_select(-1, self.present)
            experts = self._working(context)
            if isinstance(experts, (RowExperts, BatchExperts)):
                gates = experts.gates_of(gates)
            z = experts.hidden_of(x)  # [B, .., C]
            y = y + experts.mix(z, gates)
        if isinstance(self.adapter, LoraBranch):
            y = y + self.adapter(x)
        elif self.adapter is not None:
            y = self.adapter(y)
        if context.sparsity and self.sparsity and self.bank is not None:
            loss = task_sparsity(
                gates if self.present is None else _shares(gates),
                experts.cosines(y, z),
                context.token_weights.get(self.stack),
                averaging=self.averaging,
            )
            y = attach_sparsity(y, loss, context, self.index)
        return y


def _shares(gates: Tensor) -> Tensor:
    """Gates of the experts that are here, made to sum to 1: `[B, N]` -> `[B, N]`.

    The loss is then that of a mixture of these alone. Without it, moving weight to the experts that
    are absent would lower the loss for nothing.
    """
    return gates / gates.sum(-1, keepdim=True).clamp_min(1e-12)


def _rows(gates: Tensor, rows: int) -> Tensor:
    """Beams and returned sequences repeat each row of the batch, side by side."""
    return gates if gates.shape[0] == rows else gates.repeat_interleave(rows // gates.shape[0], 0)
