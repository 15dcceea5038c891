"""The interface of methods, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import Any, Literal, TypeVar, cast

import torch

from pemt.backbones import Family
from pemt.bases import Base
from pemt.errors import ConfigError, UnknownNameError
from pemt.experts import Expert
from pemt.model import AdaptedModel, PemtConfig
from pemt.tasks import Example, Task
from pemt.training.sourcing import outputs_of

Library = Literal["none", "experts", "bottleneck", "prompts", "shared-prompts"]
"""What a method takes from the library it is given: experts of PEMT's first stage, bottleneck
experts, prompts tuned on the source tasks, or prompts tuned on all of them at once (MPT)."""

FAMILIES: tuple[Family, ...] = ("encoder-decoder", "decoder-only", "encoder-only")
KINDS = ("classification", "regression", "generation")
M = TypeVar("M", bound=AdaptedModel)


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
        shared: what the models of one run compute once, such as evidence: a run builds a model for
            each learning rate it tries.
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
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> int | None:
        """Width of the head that the task needs, or None where answers are text."""
        return outputs_of(self.task, self.base.backbone.family)

    def bare(self, cls: type[M]) -> M:
        """The base with nothing of a method on it yet but its head, seeded."""
        torch.manual_seed(self.init_seed)
        return cls(self.base.model, outputs=self.outputs, backbone=self.base.backbone)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method.

    Attributes:
        title: what tables call it.
        paper: where it was published.
        builder: "module:function" of what makes the model on the setting's base.
        learning_rates: by family; what was measured to work, see docs/results.md.
        trains: False where building already fits everything.
        library: what it takes from a library of experts.
        families: where it is defined; `elsewhere` says why not on the others.
        kinds: of tasks it can answer.
        elsewhere: one sentence for people who ask for it where it is not defined.
        changes: fields of PemtConfig that make an ablation.
        reads: fields of PemtConfig that it looks at; `unread` names the others.
        rebuilt: whether base, task and options make its model again, so that the trained parameters
            are all that a folder needs; PEMT's models say more, see `pemt.model.storage`.
    """

    title: str
    paper: str
    builder: str
    learning_rates: dict[Family, float]
    trains: bool = True
    library: Library = "none"
    families: tuple[Family, ...] = FAMILIES
    kinds: tuple[str, ...] = KINDS
    elsewhere: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    rebuilt: bool = False

    @property
    def is_pemt(self) -> bool:
        """Whether it is PEMT's mixture of experts, guided, ablated or as published."""
        return self.builder == "pemt.methods.pemt:build"

    @property
    def transfers(self) -> bool:
        """Whether it uses what was learnt on source tasks."""
        return self.library != "none"

    def configured(self, config: PemtConfig) -> PemtConfig:
        """PEMT's options as this method uses them."""
        return replace(config, **self.changes)

    def unread(self, config: PemtConfig) -> list[str]:
        """The options of `config` that are not the defaults, and that this method ignores.

        Those that it sets itself are ignored too, where it sets them to something else.
        """
        usual, used = PemtConfig(), self.configured(config)
        return [
            f.name for f in fields(config)
            if getattr(config, f.name) != getattr(usual, f.name)
            and (f.name not in self.reads or getattr(config, f.name) != getattr(used, f.name))
        ]  # fmt: skip

    def refusal(self, family: Family, kind: str) -> str | None:
        """Why it does not apply to a base of this family and a task of this kind, or None."""
        if family not in self.families:
            return f"{self.title} is not defined on {family} bases. {self.elsewhere}".strip()
        if kind not in self.kinds:
            return f"{self.title} cannot answer a {kind} task. {self.elsewhere}".strip()
        return None

    def build(self, setting: Setting) -> AdaptedModel:
        """The model on the setting's base; an error leaves the base as it was.

        Raises:
            ConfigError: the method does not apply here.
        """
        reason = self.refusal(setting.base.backbone.family, setting.task.kind)
        if reason is not None:
            raise ConfigError(reason, "`pemt bench methods` lists what applies where")
        module, _, name = self.builder.partition(":")
        owner: Any = import_module(module)
        for part in name.split("."):
            owner = getattr(owner, part)
        make = cast("Callable[[Setting], AdaptedModel]", owner)
        return make(replace(setting, config=self.configured(setting.config)))


def _rates(encoder_only: float, decoder_only: float, encoder_decoder: float) -> dict[Family, float]:
    return {
        "encoder-only": encoder_only,
        "decoder-only": decoder_only,
        "encoder-decoder": encoder_decoder,
    }


_USUAL = _rates(2e-3, 1e-3, 1e-3)
_PROMPTS = _rates(2e-3, 2e-2, 3e-1)
_BOTTLENECK = frozenset({"reduction", "activation"})
_PROMPT = frozenset({"prompt_tokens"})
_MIXTURE = frozenset(f.name for f in fields(PemtConfig)) - _PROMPT
_PEMT: dict[str, Any] = {
    "paper": "Lin et al. 2024, arXiv 2402.15082", "builder": "pemt.methods.pemt:build",
    "learning_rates": _USUAL, "library": "experts", "reads": _MIXTURE,
}  # fmt: skip

METHODS: dict[str, Method] = {
    "pemt": Method(title="PEMT", **_PEMT),
    # -- nothing but the target's own labels
    "full": Method(
        title="full fine-tuning", paper="-", builder="pemt.methods.full:FullModel.build",
        learning_rates=_rates(5e-5, 2e-5, 1e-4), rebuilt=True,
    ),
    "probe": Method(
        title="linear probe", paper="-", builder="pemt.methods.probe:ProbeModel.build",
        learning_rates=_rates(1.0, 1.0, 1.0), trains=False, kinds=("classification", "regression"),
        elsewhere="There is nothing to regress on: use lora, adapter or pemt.",
    ),
    "bitfit": Method(
        title="BitFit", paper="Ben Zaken et al. 2022, arXiv 2106.10199",
        builder="pemt.methods.bitfit:BitFitModel.build", learning_rates=_rates(5e-3, 2e-3, 1e-3),
        rebuilt=True,
    ),
    "lora": Method(
        title="LoRA", paper="Hu et al. 2022, arXiv 2106.09685",
        builder="pemt.methods.lora:LoraModel.build", learning_rates=_USUAL, rebuilt=True,
    ),
    "adapter": Method(
        title="adapter", paper="Houlsby et al. 2019, arXiv 1902.00751",
        builder="pemt.methods.adapter:AdapterModel.build", learning_rates=_USUAL, rebuilt=True,
        reads=_BOTTLENECK,
    ),
    "adamix": Method(
        title="AdaMix", paper="Wang et al. 2022, arXiv 2205.12410",
        builder="pemt.methods.adamix:AdaMixModel.build", learning_rates=_USUAL, rebuilt=True,
        reads=_BOTTLENECK,
    ),
    "prompt-tuning": Method(
        title="prompt tuning", paper="Lester et al. 2021, arXiv 2104.08691",
        builder="pemt.methods.prompt_tuning:build", learning_rates=_PROMPTS, rebuilt=True,
        reads=_PROMPT,
    ),
    "setfit": Method(
        title="SetFit", paper="Tunstall et al. 2022, arXiv 2209.11055",
        builder="pemt.methods.setfit:SetFitModel.build", learning_rates=_rates(2e-5, 2e-5, 2e-5),
        trains=False, families=("encoder-only",), kinds=("classification",),
        elsewhere="It tunes a sentence encoder and fits a classifier on its embeddings.",
    ),
    "zero-shot": Method(
        title="zero-shot", paper="Brown et al. 2020, arXiv 2005.14165",
        builder="pemt.methods.instructed:zero_shot", learning_rates=_rates(1.0, 1.0, 1.0),
        trains=False, families=("decoder-only",),
        elsewhere="It needs a base that goes on with a text.",
    ),
    "in-context": Method(
        title="in-context examples", paper="Brown et al. 2020, arXiv 2005.14165",
        builder="pemt.methods.instructed:in_context", learning_rates=_rates(1.0, 1.0, 1.0),
        trains=False, families=("decoder-only",),
        elsewhere="It needs a base that goes on with a text.",
    ),
    # -- with what was learnt on source tasks
    "single": Method(
        title="best single expert", paper="-", builder="pemt.methods.single:build",
        learning_rates=_USUAL, library="experts", kinds=("classification", "regression"),
        reads=_MIXTURE,
        elsewhere="A probe chooses the expert, and texts leave it nothing to regress on: take pemt "
        "with the expert you name, or guided.",
    ),
    # no gate trains, so the TSL would only pull y towards the mean expert, and choose nothing
    "uniform": Method(
        title="uniform mixture", **{**_PEMT, "paper": "-"},
        changes={"gate": "uniform", "sparsity_weight": 0.0},
    ),
    "lorahub": Method(
        title="LoraHub", paper="Huang et al. 2023, arXiv 2307.13269",
        builder="pemt.methods.lorahub:LoraHubModel.build", learning_rates=_rates(1.0, 1.0, 1.0),
        trains=False, library="experts", families=("encoder-decoder", "decoder-only"),
        kinds=("classification", "generation"),
        elsewhere="It trains nothing by gradient, so a head for new labels would stay random.",
    ),
    "fusion": Method(
        title="AdapterFusion", paper="Pfeiffer et al. 2021, arXiv 2005.00247",
        builder="pemt.methods.fusion:FusionModel.build", learning_rates=_rates(5e-4, 5e-4, 5e-4),
        library="experts",
    ),
    "mixda": Method(
        title="MixDA", paper="Diao et al. 2023, arXiv 2306.05406",
        builder="pemt.methods.mixda:MixDaModel.build", learning_rates=_USUAL, library="experts",
        reads=_BOTTLENECK,
    ),
    "spot": Method(
        title="SPoT", paper="Vu et al. 2022, arXiv 2110.07904",
        builder="pemt.methods.spot:build", learning_rates=_PROMPTS, library="prompts",
    ),
    "attempt": Method(
        title="ATTEMPT", paper="Asai et al. 2022, arXiv 2205.11961",
        builder="pemt.methods.attempt:AttemptModel.build", learning_rates=_PROMPTS,
        library="prompts",
    ),
    "mpt": Method(
        title="MPT", paper="Wang et al. 2023, arXiv 2303.02861",
        builder="pemt.methods.mpt:build", learning_rates=_PROMPTS, library="shared-prompts",
    ),
    # -- beyond the paper: the labelled rows judge the experts first, see docs/concepts/guided.md
    "guided": Method(
        title="guided PEMT", **{**_PEMT, "paper": "-"}, changes={"guide": "evidence"},
    ),
    "guided-no-tsl": Method(
        title="guided PEMT, no TSL", **{**_PEMT, "paper": "-"},
        changes={"guide": "evidence", "sparsity_weight": 0.0},
    ),
    "instant": Method(
        title="instant mixture", paper="-", builder="pemt.methods.instant:build",
        learning_rates=_rates(1.0, 1.0, 1.0), trains=False, library="experts", reads=_MIXTURE,
    ),
    "ensemble": Method(
        title="guided PEMT and instant mixture", paper="-",
        builder="pemt.methods.instant:build_ensemble", learning_rates=_USUAL, library="experts",
        kinds=("classification", "regression"), changes={"guide": "evidence"}, reads=_MIXTURE,
        elsewhere="Generated texts cannot be averaged: use guided.",
    ),
    # -- PEMT with one part taken out or exchanged
    "pemt-no-mixture": Method(
        title="PEMT, no mixture", **_PEMT, changes={"mixture": False, "sparsity_weight": 0.0}
    ),
    "pemt-no-prompt": Method(
        title="PEMT, no correlation prompt", **_PEMT, changes={"prompt_fusion": "none"}
    ),
    "pemt-no-description": Method(
        title="PEMT, no description", **_PEMT, changes={"prompt": "random"}
    ),
    "pemt-no-tsl": Method(title="PEMT, no TSL", **_PEMT, changes={"sparsity_weight": 0.0}),
    "pemt-no-adapter": Method(
        title="PEMT, no target adapter", **_PEMT, changes={"target_adapter": False}
    ),
    "pemt-frozen-norms": Method(
        title="PEMT, frozen norms", **_PEMT, changes={"train_norms": False}
    ),
    "pemt-task-gates": Method(
        title="PEMT, task-level gates", **_PEMT, changes={"gate": "task"}
    ),
    "pemt-bottleneck": Method(
        title="PEMT, bottleneck experts",
        **{**_PEMT, "builder": "pemt.methods.pemt:build_bottleneck", "library": "bottleneck"},
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
