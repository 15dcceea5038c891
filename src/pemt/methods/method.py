"""The interface of methods, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pemt.backbones import Family
from pemt.bases import Base
from pemt.errors import UnknownNameError
from pemt.experts import Expert
from pemt.model import AdaptedModel, PemtConfig
from pemt.tasks import Example, Task


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a method may use.

    Attributes:
        base: loaded, with nothing attached.
        task: the target task.
        experts: the library's experts; single-task methods leave them alone.
        train: the labelled examples.
        validation: examples to select on.
        config: PEMT's options.
        init_seed: of new weights.
        max_source_length: tokens of text, as in `TrainSettings`.
        notes: filled by methods that choose something, such as which expert.
    """

    base: Base
    task: Task
    experts: Sequence[Expert]
    train: Sequence[Example]
    validation: Sequence[Example]
    config: PemtConfig
    init_seed: int = 0
    max_source_length: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method.

    Attributes:
        title: what tables call it.
        build: makes the model on the setting's base.
        learning_rates: by family; what was measured to work, see docs/results.md.
        trains: False where `build` already fits everything.
        transfers: whether it uses experts.
    """

    title: str
    build: Callable[[Setting], AdaptedModel]
    learning_rates: dict[Family, float]
    trains: bool = True
    transfers: bool = False


def _pemt(setting: Setting) -> AdaptedModel:
    from pemt.methods.pemt import build

    return build(setting)


def _single(setting: Setting) -> AdaptedModel:
    from pemt.methods.single import build

    return build(setting)


def _lora(setting: Setting) -> AdaptedModel:
    from pemt.methods.lora import LoraModel

    return LoraModel.build(setting)


def _adapter(setting: Setting) -> AdaptedModel:
    from pemt.methods.adapter import AdapterModel

    return AdapterModel.build(setting)


def _probe(setting: Setting) -> AdaptedModel:
    from pemt.methods.probe import ProbeModel

    return ProbeModel.build(setting)


def _rates(encoder_only: float, decoder_only: float, encoder_decoder: float) -> dict[Family, float]:
    return {
        "encoder-only": encoder_only,
        "decoder-only": decoder_only,
        "encoder-decoder": encoder_decoder,
    }


METHODS: dict[str, Method] = {
    "pemt": Method(
        title="PEMT", build=_pemt, learning_rates=_rates(2e-3, 1e-3, 1e-3), transfers=True
    ),
    "single": Method(
        title="best single expert", build=_single, learning_rates=_rates(2e-3, 1e-3, 1e-3),
        transfers=True,
    ),
    "lora": Method(title="LoRA", build=_lora, learning_rates=_rates(2e-3, 1e-3, 1e-3)),
    "adapter": Method(title="adapter", build=_adapter, learning_rates=_rates(2e-3, 1e-3, 1e-3)),
    "probe": Method(
        title="linear probe", build=_probe, learning_rates=_rates(1.0, 1.0, 1.0), trains=False
    ),
}  # fmt: skip


def method_named(name: str) -> Method:
    """The method of this name.

    Raises:
        UnknownNameError: no such method.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]
