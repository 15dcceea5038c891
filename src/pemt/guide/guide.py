"""The weights that evidence gives to experts, and to none of them.

Weights are those of a mixture of the candidates' held-out predictions, the most likely one given
the rows and a prior (stacking, Wolpert 1992, as a mixture fitted by expectation-maximisation):

    maximise  sum_n log sum_c w_c q_c(n)  +  m sum_c p_c log w_c        q_c(n): held-out likelihood

p spreads over experts evenly, or by how alike the descriptions are, and over an expert's views
evenly. m rows' worth of prior keep a few lucky rows from deciding, and make "no difference found"
mean "all of them".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from pemt.errors import ConfigError
from pemt.guide.evidence import Evidence, gather
from pemt.guide.views import Array, View
from pemt.methods.method import Setting
from pemt.model.pemt import NONE
from pemt.tasks import Example, Task
from pemt.training.sourcing import some
from pemt.writing import without_nan

Prior = Literal["uniform", "description"]
STRENGTH = 8.0
"""m: what the development targets settled on, see docs/concepts/guided.md."""
NOISE = 0.05
"""How often the best of several useless experts may pass for one that helps."""
ROUNDS = 500
ROWS = 512
"""Labelled rows that are looked at, at most: more would cost passes and decide nothing."""
OF_EACH = 2
"""Rows of each class that are looked at where there are as many: one to fit, one to hold out."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """One candidate's part in the mixture."""

    expert: str
    view: View
    weight: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Where a mixture looks first.

    Attributes:
        weights: by expert, `NONE` among them; they sum to 1.
        shares: the same by view, as the instant mode mixes them.
        gains: by expert: loss without any expert minus loss with it, mean over the rows, in nats.
        errors: standard error of each gain over the rows; nan with one row.
        rows: how many rows it rests on.
        prior: what the weights were drawn to.
        temperature: of a description prior.
        refused: experts that could not be judged, and why.
        judged: how many experts were looked at; more than `gains` has where these are the best of
            them. None stands for the number of `gains`.
    """

    weights: dict[str, float]
    shares: tuple[Share, ...]
    gains: dict[str, float]
    errors: dict[str, float]
    rows: int
    prior: Prior = "description"
    temperature: float = 0.2
    refused: dict[str, str] | None = None
    judged: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the errors of a single row are None."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Guide:
        """What `to_dict` gave; what was saved before `judged` was kept has all it judged."""
        shares = tuple(Share(**share) for share in values["shares"])
        errors = {n: float("nan") if e is None else e for n, e in values["errors"].items()}
        kept = {"judged": len(values["gains"]), **values}
        return cls(**{**kept, "shares": shares, "errors": errors})

    @property
    def helpful(self) -> list[str]:
        """Experts that help beyond noise."""
        return helpful(self.gains, self.errors, self.rows, self.judged)

    def verdict(self) -> str:
        """One sentence: which experts help, or that none is needed."""
        sure = sorted(self.helpful, key=lambda name: -self.weights[name])
        none = self.weights[NONE]
        if sure:
            named = ", ".join(f"{name} ({self.weights[name]:.2f})" for name in sure[:3])
            more = "" if len(sure) <= 3 else f" and {len(sure) - 3} more"
            return f"On {self.rows} rows these experts help beyond noise: {named}{more}."
        if none >= 0.5:
            return (
                f"On {self.rows} rows no expert helps: you do not need experts here "
                f"(weight of none {none:.2f})."
            )
        return (
            f"On {self.rows} rows no single expert helps beyond noise; the weights spread over "
            f"{sum(w >= 0.05 for w in self.weights.values())} choices, none has {none:.2f}."
        )


def guide_of(setting: Setting) -> tuple[Guide, Evidence]:
    """The guide over a setting's experts, as configured; found once for all models of a run.

    Evidence in `setting.shared`, of the same rows and at least these experts, is used as it is.
    There, "guide" is what was found of the most experts: methods may take some of them only.

    Raises:
        DataError: too few rows.
        ConfigError: an expert named "none", or none that could be judged.
    """
    names = tuple(e.name for e in setting.experts)
    found: dict[tuple[str, ...], tuple[Guide, Evidence]] = setting.shared.setdefault("guides", {})
    if names not in found:
        config = setting.config
        known: Evidence | None = setting.shared.get("evidence")
        if known is not None:
            evidence = known.among(names)
        else:
            judged = replace(setting, train=looked_at(setting.task, setting.train))
            evidence = gather(judged, setting.experts)
        guide = guide_from(
            evidence, prior=config.guide_prior, temperature=config.guide_temperature,
            strength=config.guide_strength, none=config.guide_none,
        )  # fmt: skip
        found[names] = guide, evidence
        setting.shared["guide"] = found[max(found, key=len)]
    return found[names]


def looked_at(task: Task, rows: Sequence[Example]) -> list[Example]:
    """The rows that experts are judged on: at most `ROWS`, drawn by seed 0.

    They are those of `some`. Where that leaves fewer than `OF_EACH` rows of a class that has more,
    as many of every class are drawn first (of whole groups, as far as they fit), then the others.
    """
    drawn = some(rows, ROWS, 0)
    if task.kind != "classification":
        return drawn
    there, kept = (Counter(e.label for e in part) for part in (rows, drawn))
    if all(kept[label] >= min(OF_EACH, count) for label, count in there.items()):
        return drawn
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))
    members: dict[str, list[Example]] = {}
    turns: dict[str, int] = {}  # which of its class the first row of a group is
    seen: Counter[float | None] = Counter()
    for i in order:
        group = rows[i].group or f"\0{i}"
        members.setdefault(group, []).append(rows[i])
        turns[group] = min(turns.get(group, OF_EACH), seen[rows[i].label])
        seen[rows[i].label] += 1
    chosen: list[Example] = []
    for group in sorted(members, key=turns.__getitem__):
        if len(chosen) + len(members[group]) <= ROWS:
            chosen += members[group]
    return chosen


def guide_from(
    evidence: Evidence, *, prior: Prior = "description", temperature: float = 0.2,
    strength: float = STRENGTH, none: bool = True,
) -> Guide:  # fmt: skip
    """Weigh experts by what was held out.

    Args:
        evidence: of `gather`.
        prior: "uniform", or "description": the more alike the descriptions, the more weight.
        temperature: of the description prior, a difference of cosines; above 0.
        strength: of the prior, in rows.
        none: whether "no expert" is a choice.

    Raises:
        ConfigError: a temperature or strength that is not above 0, or nothing to choose from.
    """
    for name, value in (("temperature", temperature), ("strength", strength)):
        if not value > 0:
            raise ConfigError(f"{name}={value} of the guide", "give a number above 0")
    # in the order of their names: sums then come out alike whatever order they were judged in
    candidates = sorted(
        (c for c in evidence.candidates if none or c.expert != NONE),
        key=lambda c: (c.expert != NONE, c.expert),
    )
    if not evidence.experts:
        raise ConfigError(
            "No expert could be judged: " + "; ".join(evidence.refused.values()),
            "verify the library (pemt experts verify)",
        )
    experts = list(dict.fromkeys(c.expert for c in candidates))
    before = dict(zip(experts, _prior(evidence, experts, prior, temperature), strict=True))
    views = {name: sum(c.expert == name for c in candidates) for name in experts}
    first = np.array([before[c.expert] / views[c.expert] for c in candidates])
    weights = mixture_weights(np.stack([-c.losses for c in candidates]), first, strength)
    shares = tuple(
        Share(expert=c.expert, view=c.view, weight=float(w), loss=c.loss)
        for c, w in zip(candidates, weights, strict=True)
    )
    gains, errors = _gains(evidence)
    return Guide(
        weights={
            name: sum(s.weight for s in shares if s.expert == name)
            for name in dict.fromkeys([NONE, *experts])
        },
        shares=shares, gains=gains, errors=errors, rows=evidence.rows, prior=prior,
        temperature=temperature, refused=dict(evidence.refused), judged=evidence.judged,
    )  # fmt: skip


def helpful(
    gains: Mapping[str, float], errors: Mapping[str, float], rows: int, judged: int | None = None
) -> list[str]:
    """Experts whose gain is beyond noise, in the order given.

    The more experts are looked at, the luckier the best of them. So each is tested at `NOISE`
    divided by their number (Bonferroni), by Student's t, one-sided.

    Args:
        gains: by expert.
        errors: standard errors over the rows, by expert.
        rows: how many both rest on; of a single row nothing can be said.
        judged: how many experts were looked at, where these are some of them; None: these.
    """
    from scipy import stats

    if rows < 2:
        return []
    limit = float(stats.t.ppf(1 - NOISE / max(1, len(gains), judged or 0), rows - 1))
    return [name for name, gain in gains.items() if gain > limit * errors[name]]


def left_out(refused: Mapping[str, str]) -> list[str]:
    """A sentence for each expert that could not be judged: its name, and why."""
    return [f"{name} was left out: {why}." for name, why in refused.items()]


def mixture_weights(likelihoods: Array, prior: Array, strength: float) -> Array:
    """Mixture weights of highest posterior, `[C]`; the problem is concave, so there is one.

    Args:
        likelihoods: log-likelihood of each row under each candidate, `[C, N]`.
        prior: `[C]`, above 0, sums to 1.
        strength: of the prior, in rows.
    """
    # each column's largest taken off: the weights do not change, and nothing underflows
    scaled = np.exp(likelihoods - likelihoods.max(0, keepdims=True))
    weights = prior.copy()
    for _ in range(ROUNDS):
        parts = weights[:, None] * scaled
        counts = (parts / np.maximum(parts.sum(0), 1e-300)).sum(1) + strength * prior
        moved = counts / counts.sum()
        close = np.abs(moved - weights).max() < 1e-9
        weights = moved
        if close:
            break
    return weights


def _prior(evidence: Evidence, experts: list[str], prior: Prior, temperature: float) -> Array:
    even = np.full(len(experts), 1 / len(experts))
    known = {n: s for n in experts if (s := evidence.descriptions.get(n)) is not None}
    if prior == "uniform" or not known:
        return even
    # "none", and experts without a description, are as likely as the mean of those that have one
    mean = sum(known.values()) / len(known)
    scores = np.array([known.get(n, mean) for n in experts]) / temperature
    odds = np.exp(scores - scores.max())
    result: Array = odds / odds.sum()
    return result


def _gains(evidence: Evidence) -> tuple[dict[str, float], dict[str, float]]:
    nothing = evidence.losses(NONE)
    gains, errors = {}, {}
    for name in evidence.experts:
        by_row = nothing - evidence.losses(name)
        gains[name] = float(by_row.mean())
        errors[name] = (
            float(by_row.std(ddof=1) / len(by_row) ** 0.5) if len(by_row) > 1 else float("nan")
        )
    return gains, errors
