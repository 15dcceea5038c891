"""AdapterFusion (Pfeiffer et al. 2021, arXiv 2005.00247): attention over frozen experts, per token.

With f the down projection's output and e_k expert k's, at one token of one layer (all `[D]`):

    s_k = softmax_k((W_q f) . (W_k e_k))
    y   = f + W_v sum_k s_k e_k
    loss = task loss + 0.01 sum over layers |W_v - I|^2

W_v starts as the identity and noise of 1e-6, so that the first y is an average of the experts. The
penalty, the starts N(0, 0.02^2) of W_q and W_k and the factor 0.01 are those of the authors'
adapter-transformers; there W_q and W_k have biases too, here they have none, as in the paper.

The paper has no prompt, and the experts' own prompts belong to their source tasks: none is used.
There is no target adapter, and norms stay frozen. What trains is W_q, W_k and W_v, 3 D^2 a layer,
and an encoder-only base's head.

No expert's output is ever built: `W_k e_k . q = e_k . (W_k^T q)`, and the experts' bank gives that
product and the weighted sum from their R hidden numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pemt.methods.frozen import FrozenExperts
from pemt.methods.method import Setting
from pemt.model.prompted import AdaptedOutput
from pemt.nn import ExpertBank, Slot, WrappedLinear

PENALTY = 0.01
"""Weight of |W_v - I|^2, as in adapter-transformers."""


class FusionLayer(WrappedLinear):
    """A linear map with frozen experts beside it, and attention over them.

    Args:
        down: the base's frozen linear map, `[.., F]` -> `[.., D]`.
        bank: the experts that are here.
        slot: of the model; while it is empty, the linear map answers alone.
    """

    def __init__(self, down: nn.Module, bank: ExpertBank, slot: Slot) -> None:
        super().__init__(down, slot)
        self.bank = bank
        width = bank.width
        self.query, self.key = (
            nn.Parameter(nn.init.normal_(torch.empty(width, width), std=0.02)) for _ in range(2)
        )
        self.value = nn.Parameter(torch.eye(width) + 1e-6 * torch.randn(width, width))

    def attention(self, f: Tensor, z: Tensor) -> Tensor:
        """Weights of the experts here: f `[.., D]`, z `[.., C]` -> `[.., N]`, float32."""
        q = F.linear(f, self.query.to(f.dtype))  # W_q f, [.., D]
        scores = self.bank.dots(q @ self.key.to(f.dtype), z)  # (W_k^T q) . e_k
        return scores.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """`[.., F]` -> `[.., D]`."""
        f: Tensor = self.down(x)
        if self.slot.current() is None:
            return f
        z = self.bank.hidden_of(x)  # [.., C]
        mixed = self.bank.mix(z, self.attention(f, z))
        return f + F.linear(mixed, self.value.to(f.dtype))

    def penalty(self) -> Tensor:
        """`|W_v - I|^2`, scalar."""
        identity = torch.eye(len(self.value), device=self.value.device)
        return (self.value - identity).square().sum()


class FusionModel(FrozenExperts):
    """The frozen base with attention over the frozen experts at every place that has some."""

    layers: list[FusionLayer]

    @classmethod
    def build(cls, setting: Setting) -> FusionModel:
        """Attention over the setting's experts."""
        model = cls.on(setting)
        with model.attaching():
            model.layers = []
            for site, bank, _ in model.banks():
                if bank is not None:
                    layer = FusionLayer(site.module, bank, model.slot).to(model.device)
                    model.replace(site.parent, site.attribute, layer)
                    model.layers.append(layer)
        return model

    def forward(self, *args: Any, **kwargs: Any) -> AdaptedOutput | Any:
        """As `PromptedModel.forward`, with the penalty on W_v in the loss."""
        output = super().forward(*args, **kwargs)
        if not self._disabled and output.loss is not None:
            # in proportion to the rows, so that accumulated gradients equal one large batch's
            every = kwargs.get("num_examples_in_batch")
            rows = len(args[0] if args else kwargs["input_ids"])
            share = 1.0 if every is None else rows / float(every)
            penalty = torch.stack([layer.penalty() for layer in self.layers]).sum()
            output.loss = output.loss + PENALTY * share * penalty.to(output.loss.dtype)
        return output
