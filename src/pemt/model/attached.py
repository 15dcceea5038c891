"""A frozen base with something attached: putting it on, taking it off, and what of it trains."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from pemt.backbones import Backbone, Family, Site, describe, down_projections, fingerprint
from pemt.backbones import norms as find_norms
from pemt.errors import BackboneError, ConfigError
from pemt.nn import Slot, TaskHead, TrainedNorm, TrainedWeights, WrappedLinear


class AttachedModel(nn.Module):
    """Attaches to a base and gives it back; knows what trains.

    Args:
        base: a transformers model of a described type; frozen here, and given back by `detach`.
        outputs: encoder-only: number of classes, or 1 for regression; None for text to text.
        backbone: the base's description; looked up by its type where None.
    """

    def __init__(
        self, base: Any, *, outputs: int | None = None, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone or describe(base.config.model_type)
        encoder_only = self.backbone.family == "encoder-only"
        if encoder_only and outputs is None:
            raise ConfigError(
                f"An encoder-only base ({base.config.model_type}) cannot answer in free text",
                "give outputs=number of classes (1 for regression), or take a base that generates",
            )
        self.slot = Slot()
        self.base = base
        if any(isinstance(m, _attachments()) for m in base.modules()):
            raise BackboneError(
                "Something is already attached to this base",
                "call its detach() first (PEFT: unload or merge_and_unload)",
            )
        self.sites: list[Site] = down_projections(base, self.backbone)
        self._was_trained = {name: p.requires_grad for name, p in base.named_parameters()}
        self._was_training = {name: m.training for name, m in base.named_modules()}
        base.requires_grad_(False)
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []
        self._disabled = False
        self._checkpointed = False  # by us, where the base's layers were not before
        self.width = self.sites[0].width
        self.head = TaskHead(self.width, outputs or 1).to(base.device) if encoder_only else None
        self.outputs = outputs if encoder_only else None
        self.sparsity_weight = 0.0
        self.sparsity_all_tokens = False
        self.task_gates = False

    def gated_sites(self) -> list[Site]:
        """The sites that have gates, in the order of `AdaptedOutput.gates`."""
        return self.sites

    # -- attaching ---------------------------------------------------------------------------

    def _check_prompt(self, start: Tensor) -> None:
        if start.ndim != 2 or len(start) == 0 or start.shape[1] != self.width:
            raise ConfigError(
                f"A prompt of shape {tuple(start.shape)}",
                f"give [P, {self.width}] with at least one row: the base's width",
            )

    def replace(self, parent: nn.Module, attribute: str, module: nn.Module) -> None:
        """Put `module` in the place of `parent.attribute`, to be undone by `detach`."""
        self._replaced.append((parent, attribute, getattr(parent, attribute)))
        setattr(parent, attribute, module)

    def train_norms(self) -> None:
        """Give every norm of the base a trainable float32 copy."""
        for _, parent, attribute in find_norms(self.base, self.backbone):
            self.replace(parent, attribute, TrainedNorm(getattr(parent, attribute), self.slot))

    def detach(self) -> Any:
        """Take everything off and return the base, bit for bit what it was; the model is spent."""
        for parent, attribute, original in reversed(self._replaced):
            setattr(parent, attribute, original)
        self._replaced.clear()
        if self._checkpointed:
            self.gradient_checkpointing_disable()
        for name, parameter in self.base.named_parameters():
            parameter.requires_grad_(self._was_trained[name])
        for name, module in self.base.named_modules():
            module.training = self._was_training[name]
        return self.base

    @contextmanager
    def attaching(self) -> Iterator[None]:
        """Inside, an error gives the base back as it was before it goes on."""
        try:
            yield
        except BaseException:
            self.detach()
            raise

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Inside, `forward` and `generate` are the base's own, bit for bit."""
        before, self._disabled = self._disabled, True
        try:
            yield
        finally:
            self._disabled = before

    # -- what PEFT users expect ----------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The base's configuration."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        device: torch.device = self.base.device
        return device

    @property
    def family(self) -> Family:
        """The base's family."""
        return self.backbone.family

    def base_fingerprint(self) -> str:
        """Identity of the base's weights, see `pemt.backbones.fingerprint`."""
        return fingerprint(self.base, self.backbone)

    def options(self) -> dict[str, Any]:
        """What it was built with, in plain values: two models with equal options are alike."""
        return {"outputs": self.outputs}

    def trained_state(self) -> dict[str, Tensor]:
        """The parameters that train, by name, detached."""
        return {n: p.detach() for n, p in self.named_parameters() if p.requires_grad}

    def rate_factors(self) -> dict[nn.Parameter, float]:
        """Parameters that learn at another rate than the others, as a factor on it."""
        return {}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Copy trained parameters in; names and shapes must be exactly those of `trained_state`."""
        own = {n: p for n, p in self.named_parameters() if p.requires_grad}
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise ConfigError(
                f"The saved parameters do not fit this model: missing {missing[:3]}, "
                f"unexpected {extra[:3]}",
                "build the model with the settings it was saved with",
            )
        for name, parameter in own.items():
            if state[name].shape != parameter.shape:
                raise ConfigError(
                    f"{name} is {tuple(state[name].shape)} in the file",
                    f"expected {tuple(parameter.shape)}",
                )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """What trains, and nothing frozen: what a plain `transformers.Trainer` writes and reads."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        trained = {prefix + n for n, p in self.named_parameters() if p.requires_grad}
        for name in [n for n in state if n.startswith(prefix) and n not in trained]:
            del state[name]
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Copy what `state_dict` gave; with `strict` names must be exactly those."""
        del assign  # always copied: what trains stays the optimiser's tensor
        own = self.trained_state()
        missing = sorted(own.keys() - state_dict.keys())
        unexpected = sorted(state_dict.keys() - own.keys())
        if strict or not (missing or unexpected):
            self.load_trained_state(dict(state_dict))
        else:
            self.load_trained_state({n: state_dict.get(n, value) for n, value in own.items()})
        return _IncompatibleKeys(missing, unexpected)

    def parameter_counts(self) -> tuple[int, int]:
        """(trained, all of the base and what was added, frozen experts included)."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        return trained, total

    def print_trainable_parameters(self) -> None:
        """Print the trained share of the parameters, as PEFT does."""
        trained, total = self.parameter_counts()
        print(
            f"trainable params: {trained:,} || all params: {total:,} || "
            f"trainable%: {100 * trained / total:.4f}"
        )

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute layers in the backward pass; both modes of torch.utils.checkpoint work."""
        if not any(getattr(m, "gradient_checkpointing", False) for m in self.base.modules()):
            self._checkpointed = True
        self.base.activation_checkpointing_enable(
            gradient_checkpointing_kwargs or {"use_reentrant": False}
        )

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.base.activation_checkpointing_disable()
        self.base.disable_input_require_grads()
        self._checkpointed = False

    def _reentrant(self) -> bool:
        if not self.training or not torch.is_grad_enabled():
            return False
        for module in self.base.modules():
            if getattr(module, "gradient_checkpointing", False):
                function = getattr(module, "_gradient_checkpointing_func", None)
                return bool(getattr(function, "keywords", {}).get("use_reentrant", False))
        return False


def _attachments() -> tuple[type[nn.Module], ...]:
    """Layers that only something attached puts into a base; PEFT's too, where it is in use."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    ours = (WrappedLinear, TrainedNorm, TrainedWeights)
    return ours if peft is None else (*ours, peft.BaseTunerLayer)
