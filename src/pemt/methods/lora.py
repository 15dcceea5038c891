"""Single-task LoRA by PEFT, on every linear layer of the base's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pemt.experts import ExpertLayer
from pemt.methods.method import Setting
from pemt.model import AdaptedModel

RANK, ALPHA = 8, 16


class LoraModel(AdaptedModel):
    """The base with PEFT's LoRA injected (rank 8, alpha 16, all linear layers)."""

    @classmethod
    def build(cls, setting: Setting) -> LoraModel:
        """PEFT's own layers, in float32; the base stays in its type."""
        from peft import LoraConfig, inject_adapter_in_model

        base = setting.base
        model = setting.bare(cls)
        before = dict(base.model.named_modules())
        targets = linear_layers(base.model, base.backbone)
        model.transposed = {type(before[t]).__name__ for t in targets} == {"Conv1D"}
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets,
            fan_in_fan_out=model.transposed,
        )  # fmt: skip
        inject_adapter_in_model(config, base.model)
        model._injected = {}
        for path in targets:
            parent, _, name = path.rpartition(".")
            holder = before[parent]
            layer = getattr(holder, name)
            model._injected[path] = layer
            model._replaced.append((holder, name, before[path]))
            for key, parameter in layer.named_parameters():
                if "lora_" in key:  # PEFT's own name for what it adds
                    parameter.data = parameter.data.float()
        return model

    transposed: bool  # the base stores its maps as `[F, D]` (GPT-2)
    _injected: dict[str, Any]

    def branches(self) -> tuple[ExpertLayer, ...]:
        """A copy of each branch as it stands: A `[R, F]`, B `[D, R]`, float32, by module path."""
        (name,) = {key for layer in self._injected.values() for key in layer.lora_A}
        return tuple(
            ExpertLayer(
                module=path,
                A=layer.lora_A[name].weight.detach().to("cpu", copy=True),
                B=layer.lora_B[name].weight.detach().to("cpu", copy=True),
                scale=float(layer.scaling[name]),
            )
            for path, layer in self._injected.items()
        )

    def detach(self) -> Any:
        """Also take off the mark that PEFT leaves on a base."""
        self.base.__dict__.pop("peft_config", None)
        return super().detach()

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Inside, the base answers as it was."""
        if self._disabled:  # inside another, which ends later
            yield
            return
        for layer in self._injected.values():
            layer.enable_adapters(False)
        try:
            with super().disable():
                yield
        finally:
            for layer in self._injected.values():
                layer.enable_adapters(True)


def linear_layers(model: Any, backbone: Any) -> list[str]:
    """Paths of every linear layer inside the base's stacks, attention and feed-forward."""
    found = []
    for stack in backbone.stacks:
        for name, module in model.get_submodule(stack.layers).named_modules():
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                found.append(f"{stack.layers}.{name}")
    return found
