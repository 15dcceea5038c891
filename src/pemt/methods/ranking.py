"""Which experts look useful for a target task, before anything is trained.

The evidence of `pemt.guide`, as a list: every expert is put on the frozen base alone, with its own
prompt, and the labelled rows run through it once. What is measured is how well the answers can be
foretold from what comes out. "No expert" is measured in the same way. With few rows these losses
are noisy, so each difference from "no expert" comes with its standard error over the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pemt.errors import ConfigError
from pemt.experts import Expert
from pemt.guide import NONE, Evidence, gather, guide_from, helpful
from pemt.methods.method import Setting
from pemt.writing import without_nan


@dataclass(frozen=True, kw_only=True)
class Rank:
    """What is known about one expert for a target, before training.

    Attributes:
        name: of the expert.
        task: it was trained on.
        loss: mean over the rows with this expert alone; lower is better.
        gain: loss without any expert minus `loss`; above 0 the expert helps.
        gain_error: standard error of `gain` over the rows (rows are few: read it as a scale).
        description: cosine of the two descriptions in the frozen base, or None without one.
        prompt: cosine of the mean rows of the expert's prompt and the target's first prompt.
        weight: what a guided mixture starts from.
    """

    name: str
    task: str
    loss: float
    gain: float
    gain_error: float
    description: float | None
    prompt: float | None
    weight: float


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All experts, best first.

    Attributes:
        ranks: by loss, lowest first.
        none_loss: the loss without any expert.
        rows: how many labelled rows it rests on.
        measure: what the loss is, for people.
        none_weight: what a guided mixture gives to no expert.
        refused: experts that give values that are not finite, and why.
        evidence: what it rests on; a guide over some of the experts need not gather it again.
    """

    ranks: tuple[Rank, ...]
    none_loss: float
    rows: int
    measure: str
    none_weight: float
    refused: dict[str, str] = field(default_factory=dict)
    evidence: Evidence | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, None for what is not a number; without the evidence."""
        listed = ("none_loss", "rows", "measure", "none_weight", "helpful", "refused")
        shown = {name: getattr(self, name) for name in listed}
        plain: dict[str, Any] = without_nan({"ranks": [asdict(r) for r in self.ranks], **shown})
        return plain

    @property
    def helpful(self) -> list[str]:
        """Names of the experts that help beyond noise, best first."""
        gains = {r.name: r.gain for r in self.ranks}
        return helpful(gains, {r.name: r.gain_error for r in self.ranks}, self.rows)

    def best(self, count: int) -> list[str]:
        """Names of the best `count` experts, best first.

        Raises:
            ConfigError: fewer experts than asked for, or none asked for.
        """
        if not 1 <= count <= len(self.ranks):
            raise ConfigError(
                f"The best {count} of {len(self.ranks)} experts",
                f"ask for 1 to {len(self.ranks)}",
            )
        return [rank.name for rank in self.ranks[:count]]


def rank_experts(setting: Setting, experts: Iterable[Expert]) -> Ranking:
    """Rank experts on the setting's training rows; each is put on and taken off in turn.

    Args:
        setting: its `experts` are not looked at.
        experts: may be a generator that loads one after the other: one is held at a time.

    Raises:
        DataError: too few rows to judge on.
        ConfigError: no experts, or none that gives finite values.
    """
    tasks: dict[str, str] = {}

    def noted() -> Iterable[Expert]:
        for expert in experts:
            tasks[expert.name] = expert.info.task
            yield expert

    evidence = gather(setting, noted())
    guide = guide_from(evidence)
    ranks = [
        Rank(
            name=name, task=tasks[name], loss=float(evidence.losses(name).mean()),
            gain=guide.gains[name], gain_error=guide.errors[name],
            description=evidence.descriptions[name], prompt=evidence.prompts[name],
            weight=guide.weights[name],
        )
        for name in evidence.experts
    ]  # fmt: skip
    ranks.sort(key=lambda rank: (rank.loss, rank.name))
    return Ranking(
        ranks=tuple(ranks), none_loss=float(evidence.losses(NONE).mean()), rows=evidence.rows,
        measure=evidence.measure, none_weight=guide.weights[NONE], refused=evidence.refused,
        evidence=evidence,
    )  # fmt: skip
