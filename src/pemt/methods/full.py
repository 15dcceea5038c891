"""Full fine-tuning: every weight of the base trains.

    theta = theta_0 + what the labels teach, theta of all embeddings, layers and norms

In float32, whatever type the base is in: a bfloat16 weight of 1 cannot take a step of 1e-5. The
base therefore computes in float32 while it is attached. Kept in memory, per parameter: the base's
own weight (once, untouched), its float32 copy, the gradient, and AdamW's two moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pemt.backbones import linear_widths
from pemt.errors import ConfigError
from pemt.methods.method import Setting
from pemt.model import AdaptedModel
from pemt.nn import TrainedWeights

PLACE = "trained_weights"


class FullModel(AdaptedModel):
    """The base with all its weights in training, and a head where it is encoder-only."""

    @classmethod
    def build(cls, setting: Setting) -> FullModel:
        """Float32 copies of every weight, put in the base's places.

        Raises:
            ConfigError: a quantised base.
        """
        base = setting.base
        model = setting.bare(cls)
        with model.attaching():
            _require_floating(base.model)
            # a head of ours reads the hidden states, so no gradient ever reaches BERT's pooler
            pooler = getattr(base.model, "pooler", None) if model.head is not None else None
            weights = TrainedWeights(base.model, () if pooler is None else (pooler,))
            base.model.add_module(PLACE, weights)
        return model

    @property
    def weights(self) -> TrainedWeights | None:
        """What is in the base's places; None before it is built and after `detach`."""
        found = self.base._modules.get(PLACE)
        return found if isinstance(found, TrainedWeights) else None

    def detach(self) -> Any:
        """Put the base's own weights back."""
        if (weights := self.weights) is not None:
            weights.put_back()
            del self.base._modules[PLACE]
        return super().detach()

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Inside, the base computes with its own weights, in their type."""
        weights = None if self._disabled else self.weights  # inside another, nothing is left to do
        with super().disable():
            if weights is None:
                yield
                return
            weights.put_back()
            try:
                yield
            finally:
                weights.put_in()

    def base_fingerprint(self) -> str:
        """Identity of the base's own weights, not of the trained ones."""
        with self.disable():
            return super().base_fingerprint()


def _require_floating(base: nn.Module) -> None:
    """Refuse packed weights: they cannot be copied into float32 one by one, nor take a gradient.

    Raises:
        ConfigError: names the first one.
    """
    for path, module in base.named_modules():
        held = [p for p in module._parameters.values() if p is not None]
        if linear_widths(module) is not None and not isinstance(
            getattr(module, "weight", None), nn.Parameter
        ):
            kind = f"a {type(module).__name__}"  # packed weights in buffers
        elif packed := [p for p in held if not p.is_floating_point() or p.element_size() < 2]:
            kind = str(packed[0].dtype)
        else:
            continue
        raise ConfigError(
            f"Full fine-tuning of a quantised base: {path!r} is {kind}",
            "load the base in float32 or bfloat16, or take lora, adapter or pemt, which leave its "
            "weights alone",
        )
