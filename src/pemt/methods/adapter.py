"""Single-task bottleneck adapters (Houlsby et al. 2019; the placement of PEMT's target adapter)."""

from __future__ import annotations

from torch import Tensor, nn

from pemt.methods.method import Setting
from pemt.model import AdaptedModel
from pemt.nn import Slot, TargetAdapter, WrappedLinear


class SerialAdapter(WrappedLinear):
    """A down projection followed by a bottleneck adapter."""

    def __init__(self, down: nn.Module, adapter: TargetAdapter, slot: Slot) -> None:
        super().__init__(down, slot)
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """`[..., F]` -> `[..., D]`."""
        f: Tensor = self.down(x)
        if self.slot.current() is None:
            return f
        y: Tensor = self.adapter(f)
        return y


class AdapterModel(AdaptedModel):
    """The base with an adapter after every feed-forward, its norms trained too."""

    @classmethod
    def build(cls, setting: Setting) -> AdapterModel:
        """The same adapters and norms that PEMT trains, without prompt and experts."""
        config = setting.config
        model = setting.bare(cls)
        with model.attaching():
            model.train_norms()
            for site in model.sites:
                adapter = TargetAdapter(
                    site.width, reduction=config.reduction, activation=config.activation
                )
                wrapped = SerialAdapter(site.module, adapter.to(model.device), model.slot)
                model.replace(site.parent, site.attribute, wrapped)
        return model
