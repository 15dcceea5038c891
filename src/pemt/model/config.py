"""What is added to the base in each stage: the options of METHOD.md's table, one field each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from pemt.errors import ConfigError, UnknownNameError

T = TypeVar("T")


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Build a settings dataclass; an unknown key is an error with a suggestion."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UnknownNameError(f"{kind.__name__} key", key, known)
    return kind(**values)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Stage 1: one expert and its prompt.

    Attributes:
        kind: "lora" or "bottleneck".
        rank: R; the paper uses 64.
        alpha: the LoRA's scale is alpha / rank.
        activation: of bottleneck experts.
        prompt: "description" (embeddings of the task's description), "random" (N(0, 1), what the
            released code ends up with) or "none".
        kaiming_b: start B as the released code does instead of at zero.
    """

    kind: Literal["lora", "bottleneck"] = "lora"
    rank: int = 64
    alpha: float = 64.0
    activation: str = "gelu_new"
    prompt: Literal["description", "random", "none"] = "description"
    kaiming_b: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank={self.rank}", "give a whole number of at least 1")

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
        target_adapter: whether the serial target adapter is there.
        reduction: D / bottleneck of the target adapter.
        activation: of the target adapter.
        train_norms: whether all norms train.
        sparsity_weight: of the Task Sparsity Loss; 0 switches it off.
        sparsity_tokens: "text": real text and label positions; "all": every position.
        sparsity_averaging: "example" or "batch" (product of batch means).
    """

    gate: Literal["example", "task", "uniform"] = "example"
    tau: float = 1.0
    mixture: bool = True
    prompt: Literal["description", "random"] = "description"
    prompt_fusion: Literal["live", "init", "none"] = "live"
    prompt_scale: float = 1.0
    prompt_dropout: float = 0.1
    target_adapter: bool = True
    reduction: int = 16
    activation: str = "gelu_new"
    train_norms: bool = True
    sparsity_weight: float = 0.1
    sparsity_tokens: Literal["text", "all"] = "text"
    sparsity_averaging: Literal["example", "batch"] = "example"

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ConfigError(f"tau={self.tau}", "give a number above 0")
        if self.sparsity_weight < 0:
            raise ConfigError(f"sparsity_weight={self.sparsity_weight}", "give 0 or more")
        if not 0 <= self.prompt_dropout < 1:
            raise ConfigError(f"prompt_dropout={self.prompt_dropout}", "give 0 or more, below 1")

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
        """Plain values, for JSON."""
        return asdict(self)
