"""BitFit: only biases train (Ben Zaken et al. 2022, arXiv 2106.10199).

    linear maps   W x + b_0 + b        norms   norm(x) + b        b starts at 0

with b_0 the base's own bias, where it has one. T5 and Llama have none, so b is a new bias of zeros.
AdamW without weight decay cannot tell a trained b_0 from a trained change b beside it, and a
change in float32 may be smaller than the step of a bfloat16 b_0.

Which biases: of every linear map inside the layers, of every norm (the shift, not the scale), and
in bases that generate of the map to the vocabulary. That is how the BitFit of T5-base is made in
the code behind the published figure (Karimi Mahabadi et al. 2021, Compacter), which later papers
print as 280 K: 202,752 (linear maps) + 47,616 (norms) + 32,128 (vocabulary) = 282,496.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pemt.backbones import Backbone, linear_paths, linear_widths
from pemt.backbones import norms as find_norms
from pemt.methods.method import Setting
from pemt.model import AdaptedModel
from pemt.nn import Slot, WrappedLinear


class Shifted(WrappedLinear):
    """A linear map or a norm of the base with a trained float32 change of its bias.

    Args:
        down: the base's module, `[..., F]` -> `[..., width]`.
        width: of its output.
        slot: of the model; while it is empty, the base's module answers alone.
    """

    def __init__(self, down: nn.Module, width: int, slot: Slot) -> None:
        super().__init__(down, slot)
        self.change = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., F]` -> `[..., width]`, in the base's type."""
        y: Tensor = self.down(x)
        if self.slot.current() is None:
            return y
        return y + self.change.to(y.dtype)


class BitFitModel(AdaptedModel):
    """The frozen base with every bias in training."""

    @classmethod
    def build(cls, setting: Setting) -> BitFitModel:
        """A change of 0 at every bias."""
        base = setting.base
        model = setting.bare(cls)
        with model.attaching():
            for path, width in biases(base.model, base.backbone):
                parent, _, attribute = path.rpartition(".")
                holder = base.model.get_submodule(parent)
                shifted = Shifted(getattr(holder, attribute), width, model.slot)
                model.replace(holder, attribute, shifted.to(model.device))
        return model


def biases(base: Any, backbone: Backbone) -> list[tuple[str, int]]:
    """Paths and output widths of all that has a bias, or gets one."""
    paths = linear_paths(base, backbone)
    if backbone.family != "encoder-only":
        vocabulary = base.get_output_embeddings()
        paths += [name for name, module in base.named_modules() if module is vocabulary]
    widths = [linear_widths(base.get_submodule(path)) for path in paths]
    found = [(path, w[1]) for path, w in zip(paths, widths, strict=True) if w is not None]
    for path, parent, attribute in find_norms(base, backbone):
        weight: Any = getattr(parent, attribute).weight
        found.append((path, int(weight.shape[-1])))
    return found
