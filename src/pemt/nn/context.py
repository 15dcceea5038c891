"""What one forward pass tells every layer, and how the layers' loss gets back to them.

The wrapped layers sit deep inside a base model whose code we do not touch, so what they need to
know (where the prompt is, which tokens count, the gates of this sequence) cannot be an argument.
It is a `ForwardContext`, held by a `Slot` that all layers of one model share.

The Task Sparsity Loss is made inside the layers but belongs to the loss at the end. A list that
layers append to would be filled twice by gradient checkpointing and, in its re-entrant mode, hold
tensors without a graph. So the loss travels with the graph instead:

    layer:   y' = attach_sparsity(y, tsl)      forward: y; remembers the number tsl
    end:     loss = combine_loss(ce, weight)   forward: ce + weight * mean of the numbers
    backward of `loss` runs first and leaves d loss / d tsl in `LayerLosses`; the backward of each
    `attach_sparsity` hands it to its own tsl, in the graph that recomputation has just rebuilt.

These functions hold `LayerLosses`, never the context: that holds gates, whose graph holds the
functions of the layers below, and the garbage collector does not see through such a circle.

Gradient scaling and accumulation are inherited, because d loss / d tsl is made from the gradient
that arrives at `loss`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pemt.nn.gate import prompt_mean


@dataclass
class LayerLosses:
    """The Task Sparsity Loss of one forward pass, layer by layer; no tensor here has a graph.

    Attributes:
        values: detached loss of each layer, float32 scalars.
        gradient: d loss / d (one layer's loss), set when the backward pass starts.
    """

    values: dict[int, Tensor] = field(default_factory=dict)
    gradient: Tensor | None = None


@dataclass(kw_only=True)
class ForwardContext:
    """The state of one forward pass, or of one `generate` call.

    Attributes:
        prompt_start: index of the first prompt position in the prompted sequence.
        prompt_length: P.
        prompt_lengths: `[B]`, where rows have prompts of different lengths, the longest P.
        tasks: `[B]` number of each row's task, on the CPU, where rows are of several.
        token_weights: per stack ("encoder" or "decoder") the `[B, T]` 0/1 weights of the tokens
            that the Task Sparsity Loss averages over; None means every position.
        sparsity: whether layers compute the loss at all.
        summary: `[B, D]` gate input of the decoder layers of an encoder-decoder.
        task_summary: `[B, D]` gate input of every layer under task-level gates (rows are equal).
        fixed_gates: gates given from outside, `[K]` each, by layer; they replace the computed ones.
        gate_mask: `[K]`, True at the gate columns that stay, see `pemt.nn.gate.masked`.
        gates: `[B, K]` gates of this pass by layer.
        chosen: by layer, who works under top-k: numbers of experts, `[k]` or `[B, k]`.
        working: decoding: by layer, the weights of those, copied once.
        alone: number of the one expert that runs, at weight one and with nothing that trains beside
            it: no other expert, no target adapter, the base's own norms.
        reuse_gates: decoding: gates found in `gates` are reused, not computed again.
        losses: of the layers.
    """

    prompt_start: int = 0
    prompt_length: int = 0
    prompt_lengths: Tensor | None = None
    tasks: Tensor | None = None
    token_weights: dict[str, Tensor | None] = field(default_factory=dict)
    sparsity: bool = False
    summary: Tensor | None = None
    task_summary: Tensor | None = None
    fixed_gates: dict[int, Tensor] = field(default_factory=dict)
    gate_mask: Tensor | None = None
    gates: dict[int, Tensor] = field(default_factory=dict)
    chosen: dict[int, Tensor] = field(default_factory=dict)
    working: dict[int, Any] = field(default_factory=dict)
    alone: int | None = None
    reuse_gates: bool = False
    losses: LayerLosses = field(init=False)

    def __post_init__(self) -> None:
        self.losses = LayerLosses()  # torch.compile does not trace it as a default factory


class Slot:
    """Holds the context that the layers of one model read; empty means "behave as the base"."""

    def __init__(self) -> None:
        self.active: ForwardContext | None = None
        self._replay: ForwardContext | None = None

    def current(self) -> ForwardContext | None:
        """The running pass's context; inside a backward pass, that of the pass being replayed."""
        if self.active is not None:
            return self.active
        # checkpointed segments are recomputed inside the backward pass, after `active` was cleared
        return self._replay if torch._C._current_graph_task_id() != -1 else None

    def replay(self, context: ForwardContext) -> None:
        """Called when the backward pass of `context` starts."""
        self._replay = context

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        copy = Slot()
        memo[id(self)] = copy
        return copy


class _EnterBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, slot: Slot, context: ForwardContext) -> Tensor:
        ctx.slot, ctx.context = slot, context
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.slot.replay(ctx.context)
        return gradient, None, None


class _AttachSparsity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor, losses: LayerLosses, index: int) -> Tensor:
        ctx.losses = losses
        losses.values[index] = loss.detach()
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        return gradient, ctx.losses.gradient, None, None


class _CombineLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, sparsity: Tensor, weight: float, losses: LayerLosses
    ) -> Tensor:
        ctx.losses, ctx.weight, ctx.layers = losses, weight, len(losses.values)
        return loss + weight * sparsity.to(loss.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.losses.gradient = gradient.float() * (ctx.weight / ctx.layers)
        return gradient, None, None, None


class _BridgeSummary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, leaf: Tensor, start: int, length: int) -> Tensor:
        ctx.leaf, ctx.start, ctx.length = leaf, start, length
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.leaf.grad is not None:
            gradient = gradient.clone()
            share = (ctx.leaf.grad / ctx.length).to(gradient.dtype)
            gradient[:, ctx.start : ctx.start + ctx.length] += share.unsqueeze(1)
        return gradient, None, None, None


def _apply(function: Any, *arguments: Any) -> Tensor:
    if torch.is_grad_enabled():
        made: Tensor = _apply_uncompiled(function, *arguments)
        return made
    result: Tensor = function.apply(*arguments)  # torch leaves `apply` untyped
    return result


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _apply_uncompiled(function: Any, *arguments: Any) -> Tensor:
    """Outside compiled graphs: what these functions leave in the context is a side effect."""
    result: Tensor = function.apply(*arguments)
    return result


def enter_backward(logits: Tensor, slot: Slot, context: ForwardContext) -> Tensor:
    """Identity whose backward tells `slot` which forward pass is being differentiated."""
    return _apply(_EnterBackward, logits, slot, context)


def attach_sparsity(y: Tensor, loss: Tensor, context: ForwardContext, index: int) -> Tensor:
    """Identity in `y`; ties the scalar `loss` of layer `index` to y's place in the graph."""
    return _apply(_AttachSparsity, y, loss, context.losses, index)


def mean_sparsity(context: ForwardContext) -> Tensor | None:
    """Mean over layers of the detached Task Sparsity Loss, scalar; None without one."""
    values = list(context.losses.values.values())
    return torch.stack(values).mean() if values else None


def combine_loss(loss: Tensor, weight: float, context: ForwardContext) -> Tensor:
    """`loss + weight * (mean over layers of the sparsity loss)`, scalar (METHOD.md, stage 2)."""
    sparsity = mean_sparsity(context)
    if sparsity is None:
        return loss
    return _apply(_CombineLoss, loss, sparsity, weight, context.losses)


def bridge_summary(
    hidden: Tensor,
    context: ForwardContext,
    *,
    reentrant: bool,
    field: Literal["summary", "task_summary"] = "summary",
) -> Tensor:
    """Set a gate input that layers read from the context to the prompt positions' mean of `hidden`.

    Re-entrant checkpointing differentiates each layer on its own, so a tensor of the outer graph
    that reaches a layer outside its arguments would be differentiated once per layer. Then the
    summary is handed over as a leaf, and its gradient joins that of `hidden` once all readers are
    done.

    Args:
        hidden: the encoder's final output ("summary") or the input embeddings ("task_summary"),
            `[B, T, D]`.
        context: of this pass; the field is set to `[B, D]`, float32.
        reentrant: whether the layers that read it are checkpointed in re-entrant mode.
        field: which gate input.

    Returns:
        `hidden`, to be used from here on.
    """
    start, length = context.prompt_start, context.prompt_length
    summary = prompt_mean(hidden, start, length, context.prompt_lengths)
    if reentrant and summary.requires_grad:
        summary = summary.detach().requires_grad_()
        hidden = _apply(_BridgeSummary, hidden, summary, start, length)
    setattr(context, field, summary)
    return hidden
