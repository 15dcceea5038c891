"""What the layers of a trained PEMT do on a few rows: the numbers behind its diagnosis.

One pass in evaluation mode with a hook on every mixture layer; nothing is drawn or changed.

B rows, N tokens of real text, K gate columns, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pemt.nn import LoraBranch

if TYPE_CHECKING:
    from pemt.bases import Base
    from pemt.model import AdaptedModel
    from pemt.nn import MixtureLayer
    from pemt.tasks import Example, Task
    from pemt.training.settings import TrainSettings

ROWS = 32
TOKENS = 96
"""Tokens of the first batch, per layer, that experts are compared on: the mean cosine of two
experts moved by less than 0.01 with ten times as many."""
NUMBERS = 16_000_000
"""At most this many numbers of expert outputs at once: fewer tokens where there are many experts.
"""


@dataclass(frozen=True, kw_only=True)
class MixtureMeasures:
    """Means over rows and real tokens; a layer is a linear map with experts beside it.

    Attributes:
        rows: looked at.
        experts: names of the gate columns, "none" among them where it is a choice.
        gates: `[layers, K]` mean gates.
        moved: `[layers]` share of a gate's weight that is not where uniform gates have it: half the
            sum of |g_k - 1/K|, mean over rows.
        mixture: `[down projections]` mean length of the experts' part of the layer's change.
        adapter: `[down projections]` the same of the target adapter's part; empty without one.
        cosines: `[K, K]` mean |cos| of two experts' outputs for the same token, over tokens and
            layers; nan for those that are never beside the same map.
    """

    rows: int
    experts: tuple[str, ...]
    gates: Tensor
    moved: Tensor
    mixture: Tensor
    adapter: Tensor
    cosines: Tensor


@torch.no_grad()
def measure_mixture(
    model: AdaptedModel, task: Task, base: Base, examples: Sequence[Example],
    settings: TrainSettings, *, rows: int = ROWS,
) -> MixtureMeasures | None:  # fmt: skip
    """Look at the first rows.

    Args:
        model: trained, on its base.
        task: of the examples.
        base: the base it is on.
        examples: their labels are not looked at.
        settings: lengths and batch size.
        rows: at most this many.

    Returns:
        None for a model without gates, or without examples.
    """
    from pemt.model import PemtModel
    from pemt.tasks.encoding import Collator, encode_prompts_only
    from pemt.training.evaluating import evaluating, lengths, side_of

    if not isinstance(model, PemtModel) or not examples or not model.gated_sites():
        return None
    chosen = list(examples[:rows])
    with evaluating(model):  # the prompt's length is asked for by making one, with its dropout
        room = lengths(model, settings)
    encoded = encode_prompts_only(chosen, task, base.tokenizer, model.family, **room)
    collate = Collator(base.tokenizer, model.family, side=side_of(model.family))
    layers = [layer for layer in model.mixtures if layer.bank is not None]
    looks = [_Look(layer, len(model.gate_names)) for layer in layers]
    hooks = [layer.register_forward_hook(look) for layer, look in zip(layers, looks, strict=True)]
    gates = []
    try:
        with evaluating(model):
            for start in range(0, len(encoded), settings.eval_batch_size):
                batch = collate(encoded[start : start + settings.eval_batch_size])
                ids, mask = (batch[k].to(model.device) for k in ("input_ids", "attention_mask"))
                gates.append(model.gates(ids, mask).cpu())
    finally:
        for hook in hooks:
            hook.remove()
    every = torch.cat(gates, 1)  # [layers, B, K]
    down = [look for look in looks if look.tokens and look.layer.adapter is not None]
    cosines = torch.stack([look.cosines for look in looks])  # [layers, K, K]
    return MixtureMeasures(
        rows=len(chosen), experts=tuple(model.gate_names), gates=every.mean(1),
        moved=(every - 1 / every.shape[-1]).abs().sum(-1).mean(1) / 2,
        mixture=torch.tensor([look.mixture / look.tokens for look in looks if look.tokens]),
        adapter=torch.tensor([look.adapter / look.tokens for look in down]),
        cosines=cosines.nanmean(0),
    )  # fmt: skip


class _Look:
    """A hook of one layer, and what it has seen."""

    def __init__(self, layer: MixtureLayer, columns: int) -> None:
        self.layer = layer
        self.tokens, self.mixture, self.adapter = 0, 0.0, 0.0
        self.cosines = torch.full((columns, columns), float("nan"))
        self._compared = False

    def __call__(self, module: Any, given: tuple[Any, ...], output: Tensor) -> None:
        del module, output
        context, layer = self.layer.slot.current(), self.layer
        x: Tensor = given[0]
        bank = layer.bank
        if context is None or bank is None or layer.index not in context.gates:
            return  # switched off, or one expert runs alone
        if x.ndim != 3:  # a base that flattens its batch
            return
        weights = context.token_weights.get(layer.stack)
        # real text alone: [B, T]
        real = x.new_ones(x.shape[:2], dtype=torch.bool) if weights is None else weights.bool()
        if real.shape != x.shape[:2]:
            real = x.new_ones(x.shape[:2], dtype=torch.bool)
        tokens = x[real]  # [N, F]
        if not self._compared:
            self._compared = True
            self._compare(tokens)
        if not layer.sparsity:  # the target adapter is at down projections alone
            return
        gates = context.gates[layer.index][real.nonzero()[:, 0]]  # [N, K]
        if layer.present is not None:
            gates = gates.index_select(-1, layer.present)
        mixture = bank.mix(bank.hidden_of(tokens), gates).float()  # [N, D]
        self.tokens += len(tokens)
        self.mixture += float(mixture.norm(dim=-1).sum())
        if isinstance(layer.adapter, LoraBranch):  # it reads what the map reads
            self.adapter += float(layer.adapter(tokens).float().norm(dim=-1).sum())
        elif layer.adapter is not None:
            f = layer.down(tokens).float() + mixture
            self.adapter += float((layer.adapter(f) - f).norm(dim=-1).sum())

    def _compare(self, tokens: Tensor) -> None:
        """Mean |cos| of every two experts' outputs, `[K, K]`."""
        bank = self.layer.bank
        assert bank is not None
        count = max(8, min(TOKENS, NUMBERS // (bank.experts * bank.width)))
        some = tokens[:: max(1, len(tokens) // count)][:count]
        outputs = torch.stack([bank.one(some, k).float() for k in range(bank.experts)])  # [K, N, D]
        outputs = F.normalize(outputs, dim=-1)
        cosines = torch.einsum("and,bnd->nab", outputs, outputs).abs().mean(0).cpu()
        here = range(bank.experts) if self.layer.present is None else self.layer.present.tolist()
        columns = torch.tensor(list(here))
        self.cosines[columns.unsqueeze(1), columns] = cosines
