"""What each expert is worth at evaluation: the score without it, and with it alone.

Nothing is retrained. `PemtModel.keeping` says what a masked gate is; in short: the softmax over the
columns that stay, layer by layer. All else stays as trained with all experts: prompt (the source
prompts in it too), target adapter, norms and head. So a small difference says that the trained
model does not need the expert, not that training without it would do as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pemt.errors import ConfigError, DataError, UnknownNameError
from pemt.guide.instant import InstantModel
from pemt.model import PemtModel
from pemt.model.pemt import NONE
from pemt.tasks import Example, Task
from pemt.tasks.reporting import LEVEL, RESAMPLES
from pemt.training.evaluating import Predictions, evaluate, statistic_of
from pemt.training.settings import TrainSettings

Kind = Literal["all", "without", "only", "none"]
_FEWEST = 0.95
"""Share of the resamples that must give a number, for an interval to be given."""


@dataclass(frozen=True, kw_only=True)
class MaskScore:
    """The answers with some gate columns masked.

    Attributes:
        kind: "all", "without" one column, "only" one expert, or "none" of them.
        expert: which; None for "all" and "none".
        value: of the main metric.
        loss: mean log-loss or squared error; None where answers are generated.
        difference: `value` minus that of all experts.
        interval: 95 % of the difference, paired bootstrap over rows; None where the rows do not
            say.
        gain: `value` minus that of no expert.
        gain_interval: of `gain`, likewise.
        changed: rows answered otherwise than with all experts.
    """

    kind: Kind
    expert: str | None
    value: float
    loss: float | None
    difference: float
    interval: tuple[float, float] | None
    gain: float
    gain_interval: tuple[float, float] | None
    changed: int

    @property
    def title(self) -> str:
        """For tables."""
        plain = {"all": "all experts", "none": "no expert"}
        return plain.get(self.kind) or f"{self.kind} {self.expert}"


@dataclass(frozen=True, kw_only=True)
class MaskReport:
    """All masks on the same rows.

    Attributes:
        task: name of the target.
        metric: the task's main metric.
        rows: how many examples.
        scores: "all" first, then each "without", each "only", and "none".
        notes: what a reader must know, one sentence each.
    """

    task: str
    metric: str
    rows: int
    scores: tuple[MaskScore, ...]
    notes: tuple[str, ...] = ()

    def of(self, kind: Kind, expert: str | None = None) -> MaskScore:
        """One of the scores.

        Raises:
            UnknownNameError: not among them.
        """
        for score in self.scores:
            if (score.kind, score.expert) == (kind, expert):
                return score
        known = [s.expert for s in self.scores if s.kind == kind and s.expert]
        raise UnknownNameError(f"mask {kind!r} of", expert, known)

    def gains(self) -> dict[str, float]:
        """Measured transfer gain by expert: it alone, minus no expert."""
        return {s.expert: s.gain for s in self.scores if s.kind == "only" and s.expert}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MaskReport:
        """What `to_dict` gave, also after JSON.

        Raises:
            DataError: it is something else.
        """
        try:
            scores = []
            for given in values["scores"]:
                pairs = {
                    k: None if given[k] is None else (given[k][0], given[k][1])
                    for k in ("interval", "gain_interval")
                }
                scores.append(MaskScore(**{**given, **pairs}))
            return cls(**{**values, "scores": tuple(scores), "notes": tuple(values["notes"])})
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"No mask report ({error!r})", "run `pemt mask` again") from None


def mask_scores(
    model: PemtModel, task: Task, tokenizer: Any, examples: Sequence[Example],
    settings: TrainSettings | None = None, *, experts: Sequence[str] | None = None,
    progress: bool = False, notes: Sequence[str] = (),
) -> MaskReport:  # fmt: skip
    """Score the model with all experts, without each, with each alone, and with none.

    That is two evaluations for each expert and two more; a guided model's choice of none is left
    out once too.

    Args:
        model: stage 2, with gates.
        task: of the examples.
        tokenizer: the base's.
        examples: labelled.
        settings: batch size, lengths and how to answer.
        experts: mask these alone; all by default.
        progress: show a progress bar.
        notes: sentences to keep with the report.

    Raises:
        ConfigError: the model has no gates, or an empty list of experts.
        DataError: no examples.
        UnknownNameError: an expert that the model does not have.
    """
    if not model.gated_sites():
        raise ConfigError("This model has no gates", "take one with a mixture of experts")
    if not examples:
        raise DataError("No examples to score", "give at least one")
    if experts is not None and not experts:
        raise ConfigError("No experts to mask", "name at least one, or leave experts out for all")
    for name in experts or ():
        if name not in model.gate_names:
            raise UnknownNameError("expert", name, model.gate_names)
    chosen = [n for n in model.gate_names if experts is None or n in experts]
    plan = plan_of(model.gate_names, chosen)
    found: list[tuple[dict[str, float], Predictions]] = []
    for _, _, kept in _bar(plan, progress):
        with model.keeping(kept):
            found.append(evaluate(model, task, tokenizer, examples, settings))
    statistics = [statistic_of(task, examples, made) for _, made in found]
    units = statistics[0][0]
    draws = _resampled(units, [statistic for _, statistic in statistics])
    metric = task.metrics[0]
    values = [metrics[metric] for metrics, _ in found]
    scores = []
    for i, ((kind, expert, _), (metrics, made)) in enumerate(zip(plan, found, strict=True)):
        scores.append(
            MaskScore(
                kind=kind, expert=expert, value=values[i], loss=metrics.get("loss"),
                difference=values[i] - values[0], interval=_interval(draws[i] - draws[0]),
                gain=values[i] - values[-1], gain_interval=_interval(draws[i] - draws[-1]),
                changed=sum(
                    a != b for a, b in zip(made.texts, found[0][1].texts, strict=True)
                ),
            )
        )  # fmt: skip
    return MaskReport(
        task=task.name, metric=metric, rows=len(examples), scores=tuple(scores),
        notes=(*notes, *_about(model, model.gate_names)),
    )  # fmt: skip


def plan_of(
    columns: Sequence[str], chosen: Sequence[str]
) -> list[tuple[Kind, str | None, set[str]]]:
    """The masks in their order: (kind, expert, columns that stay).

    Args:
        columns: all gate columns; "none" is the choice of no expert.
        chosen: those that are left out and kept alone.
    """
    every = set(columns)
    plan: list[tuple[Kind, str | None, set[str]]] = [("all", None, every)]
    plan += [("without", name, every - {name}) for name in chosen]
    plan += [("only", name, {name}) for name in chosen if name != NONE]
    return [*plan, ("none", None, set())]


def _resampled(units: int, statistics: Sequence[Any]) -> NDArray[np.float64]:
    """Every statistic on the same resamples, `[M, RESAMPLES]`."""
    draw = np.random.default_rng(0)
    made = np.empty((len(statistics), RESAMPLES))
    for r in range(RESAMPLES):
        drawn = draw.integers(0, units, units)
        made[:, r] = [statistic(drawn) for statistic in statistics]
    return made


def _interval(differences: NDArray[np.float64]) -> tuple[float, float] | None:
    """Percentile interval; a resample without a number (one class alone, say) does not count."""
    given = differences[np.isfinite(differences)]
    if len(given) < _FEWEST * len(differences):
        return None
    low, high = np.quantile(given, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _about(model: PemtModel, columns: Sequence[str]) -> list[str]:
    said = []
    if len(columns) == 1:
        said.append("There is one expert: without it is the same as no expert.")
    if NONE in columns:
        said.append(
            "The gates may also choose no expert. Without an expert that choice stays and takes "
            "its part of what is freed; an expert alone has weight 1."
        )
    if isinstance(model, InstantModel):
        said.append(
            f"Masks change the trained part, {model.blend:.0%} of each answer; the instant "
            "mixture beside it stays as it is."
        )
    if model.pemt_config.prompt_fusion != "none" and any(len(e.prompt) for e in model.experts):
        said.append(
            "The prompt keeps what it takes from all source prompts: only gates are masked."
        )
    return said


def _bar(items: Sequence[Any], show: bool) -> Any:
    if not show:
        return items
    from rich.progress import track

    return track(items, description="masking", transient=True)
