"""What is added to the base in each stage: the options of METHOD.md's table, one field each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pemt.errors import ConfigError, UnknownNameError

T = TypeVar("T")
SLOW = 0.05
"""Factor on the learning rate of a guided gate's weights: docs/concepts/guided.md has the trial."""

TOP_K = ("top_k", "top_k_scope", "top_k_train")


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Build a settings dataclass; an unknown key is an error with a suggestion."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UnknownNameError(f"{kind.__name__} key", key, known)
    return kind(**values)


def _check_choices(settings: Any) -> None:
    """Refuse a value that is none of its field's: it would be taken for another of them.

    Raises:
        UnknownNameError: names the field.
    """
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal and getattr(settings, name) not in get_args(hint):
            raise UnknownNameError(name, getattr(settings, name), get_args(hint))


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Stage 1: one expert and its prompt, or a source prompt alone.

    Attributes:
        kind: "lora", "bottleneck", or "prompt": prompt tuning without branches, for the methods
            that transfer prompts.
        rank: R; the paper uses 64.
        alpha: the LoRA's scale is alpha / rank.
        activation: of bottleneck experts.
        prompt: "description" (embeddings of the task's description), "random" (N(0, 1), what the
            released code ends up with), "none"; or "vocabulary", which kind "prompt" always takes.
        kaiming_b: start B as the released code does instead of at zero.
        prompt_tokens: P of kind "prompt"; a base with few positions wants fewer.
    """

    kind: Literal["lora", "bottleneck", "prompt"] = "lora"
    rank: int = 64
    alpha: float = 64.0
    activation: str = "gelu_new"
    prompt: Literal["description", "random", "none", "vocabulary"] = "description"
    kaiming_b: bool = False
    prompt_tokens: int = 100

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("rank", "prompt_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)}", "give a whole number of at least 1"
                )
        if self.kind == "prompt" and self.prompt == "description":  # the default of the others
            object.__setattr__(self, "prompt", "vocabulary")
        if (self.kind == "prompt") != (self.prompt == "vocabulary"):
            raise ConfigError(
                f"prompt={self.prompt!r} with kind={self.kind!r}",
                "kind 'prompt' starts from 'vocabulary', and no other kind does",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class PemtConfig:
    """Stage 2: the mixture of frozen experts, the target prompt and the target adapter.

    Attributes:
        gate: "example": one gate vector per example and layer; "task": from the prompt alone;
            "uniform": 1 / K for every expert, nothing to train.
        tau: gate temperature.
        mixture: whether the experts' branches are there; without them the source prompts remain,
            there are no gates, and no Task Sparsity Loss.
        prompt: first values of the target prompt: "description" or "random".
        prompt_fusion: "live", "init" (once, at the start) or "none" (no source prompts).
        prompt_scale: factor on the prompt attention's scores; 1 is the paper.
        prompt_dropout: on the prompt attention's weights.
        target_adapter: true (or "serial"): the paper's serial target adapter; "lora": a LoRA beside
            the down projection instead, so that a folded model is whole (pemt.deploy); false (or
            "none"): none.
        reduction: D / bottleneck of the target adapter; a LoRA's rank is that bottleneck.
        activation: of the serial target adapter.
        train_norms: whether all norms train.
        sparsity_weight: of the Task Sparsity Loss; 0 switches it off.
        sparsity_tokens: "text": real text and label positions; "all": every position.
        sparsity_averaging: "example" or "batch" (product of batch means).
        prompt_tokens: rows that prompt tuning trains. PEMT's own prompt is as long as its
            description, and methods that transfer prompts take the length of those.
        guide: "none" (the paper) or "evidence": the labelled rows judge the experts before training
            (pemt.guide), and what follows starts from their verdict.
        guide_gates: start the gates at the guide's weights.
        guide_prompt: weigh the source prompts in the prompt fusion by the guide.
        guide_none: "no expert" is a choice of its own, with a gate column.
        guide_prior: what the weights are drawn to: all alike, or the more alike the descriptions.
        guide_temperature: of the description prior, a difference of cosines.
        guide_strength: of the prior, in rows.
        guide_experts: the instant mixture and the ensemble ask at most this many experts ("none" is
            one), those with the largest shares: each costs a pass over every text. None: all with
            2 % or more.
        gate_rate: learning rate of the gates' weights, as a factor on the others'; None: 1 as in
            the paper, 0.05 under a guide, which fast gates forget within a few steps.
        guide_rate: the same for the start of guided gates.
        top_k: only the experts with the k largest gates of a layer work, see docs/concepts/
            many-experts.md; None: all do.
        top_k_scope: "example": each example's own k; "batch": the k with the largest mean gate of
            the batch, which is cheaper, and makes answers depend on the rows beside them.
        top_k_train: cut in training too; by default training mixes all experts.
    """

    gate: Literal["example", "task", "uniform"] = "example"
    tau: float = 1.0
    mixture: bool = True
    prompt: Literal["description", "random"] = "description"
    prompt_fusion: Literal["live", "init", "none"] = "live"
    prompt_scale: float = 1.0
    prompt_dropout: float = 0.1
    target_adapter: bool | Literal["serial", "lora", "none"] = True
    reduction: int = 16
    activation: str = "gelu_new"
    train_norms: bool = True
    sparsity_weight: float = 0.1
    sparsity_tokens: Literal["text", "all"] = "text"
    sparsity_averaging: Literal["example", "batch"] = "example"
    prompt_tokens: int = 100
    guide: Literal["none", "evidence"] = "none"
    guide_gates: bool = True
    guide_prompt: bool = True
    guide_none: bool = True
    guide_prior: Literal["uniform", "description"] = "description"
    guide_temperature: float = 0.2
    guide_strength: float = 8.0
    guide_experts: int | None = None
    gate_rate: float | None = None
    guide_rate: float = 5.0
    top_k: int | None = None
    top_k_scope: Literal["example", "batch"] = "example"
    top_k_train: bool = False

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("prompt_tokens", "reduction"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)}", "give a whole number of at least 1"
                )
        for name in ("tau", "guide_temperature", "guide_strength", "gate_rate", "guide_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value}", "give a number above 0")
        if self.guide != "none" and self.gate == "uniform":
            raise ConfigError(
                "gate='uniform' with a guide",
                "a uniform gate does not listen: take the method pemt or uniform, or another gate",
            )
        kinds = {True: True, False: False, "serial": True, "none": False, "lora": "lora"}
        if self.target_adapter not in kinds:
            raise ConfigError(
                f"target_adapter={self.target_adapter!r}", "give true, false, serial, lora or none"
            )
        # one spelling in files: what saved configurations have always said
        object.__setattr__(self, "target_adapter", kinds[self.target_adapter])
        for name in ("top_k", "guide_experts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}", "give a whole number of at least 1, or none")
        if self.top_k is None and (self.top_k_scope != "example" or self.top_k_train):
            raise ConfigError("top_k_scope or top_k_train without top_k", "say how many: top_k=4")
        if self.top_k is not None and self.gate == "uniform":
            raise ConfigError(
                f"top_k={self.top_k} with gate='uniform'", "no gate is larger: name fewer experts"
            )
        if not self.sparsity_weight >= 0:  # "not" refuses nan too
            raise ConfigError(f"sparsity_weight={self.sparsity_weight}", "give 0 or more")
        if not 0 <= self.prompt_dropout < 1:
            raise ConfigError(f"prompt_dropout={self.prompt_dropout}", "give 0 or more, below 1")

    @property
    def gate_factor(self) -> float:
        """`gate_rate`, or what it stands for."""
        if self.gate_rate is not None:
            return self.gate_rate
        return 1.0 if self.guide == "none" else SLOW

    @classmethod
    def released(cls, **changes: Any) -> PemtConfig:
        """The authors' released code, row by row of METHOD.md's table (`compat="released"`)."""
        return cls(
            **{
                "prompt": "random",
                "sparsity_tokens": "all",
                "sparsity_averaging": "batch",
                **changes,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; options that came later are named only where they are used."""
        values = asdict(self)
        later = {
            *(TOP_K if self.top_k is None else ()),
            *(("guide_experts",) if self.guide_experts is None else ()),
        }
        return {k: v for k, v in values.items() if k not in later}
