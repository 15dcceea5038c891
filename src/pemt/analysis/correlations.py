"""Sources beside targets: what was known before, what was learnt, and what it was worth.

description   cosine of the two task descriptions in the frozen base
prompt        cosine of the mean rows of source prompt and trained target prompt
attention     share of the target prompt's attention that a source prompt would get if one
              softmax ran over the positions of all of them. (In PEMT each source prompt has a
              softmax of its own, so its raw mass is the same for all.)
added         share in length of what the source prompts add to the target prompt
gate          mean gate weight over the layers and examples
gain          measured transfer gain, see `pemt.analysis.masks`: this expert alone minus none
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from pemt.errors import DataError

MEASURES = ("description", "prompt", "attention", "added", "gate", "gain")
TITLES = {
    "description": "description similarity", "prompt": "prompt similarity",
    "attention": "prompt attention", "added": "added to the prompt", "gate": "gate weight",
    "gain": "transfer gain",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target's measures.

    Attributes:
        name: of the row in tables: the target task, with more where several runs share it.
        task: the target task.
        values: measure -> source -> value; a source without a value is not in it.
        gain_from: what the gain was measured by, for people; empty without one.
        missing: measure -> why it is not there, one sentence.
        shots: labels per class, of a grid's cells; None for the full split, and of runs.
    """

    name: str
    task: str
    values: dict[str, dict[str, float]]
    gain_from: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    shots: int | None = None


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's rank correlation of two measures.

    Attributes:
        first: a measure.
        second: another.
        n: pairs of source and target that have both.
        rho: over all pairs; None with fewer than three, or where a measure never differs.
        p: of `rho`, as if the pairs were independent, which pairs of one target are not.
        targets: how many targets have three or more sources with both, and differing.
        within: mean over these of each target's own rank correlation; None without any.
        note: why `rho` is not given.
    """

    first: str
    second: str
    n: int
    rho: float | None
    p: float | None
    targets: int
    within: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Correlations:
    """Sources x targets, measure by measure.

    Attributes:
        sources: names of experts.
        targets: with their measures.
        rho: every pair of measures that were computed.
        notes: what a reader must know, one sentence each.
    """

    sources: tuple[str, ...]
    targets: tuple[Target, ...]
    rho: tuple[RankCorrelation, ...]
    notes: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """Those that at least one target has."""
        return tuple(m for m in MEASURES if any(t.values.get(m) for t in self.targets))

    def table(self, measure: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """`[sources, targets]`, nan where it is not known."""
        return np.array(
            [[t.values.get(measure, {}).get(s, math.nan) for t in self.targets]
             for s in self.sources]
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Correlations:
        """What `to_dict` gave.

        Raises:
            DataError: it is something else.
        """
        try:
            return cls(
                sources=tuple(values["sources"]), notes=tuple(values["notes"]),
                targets=tuple(Target(**t) for t in values["targets"]),
                rho=tuple(RankCorrelation(**r) for r in values["rho"]),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise DataError(
                f"No correlations ({error!r})", "run `pemt correlations` again"
            ) from None


def correlate(targets: Sequence[Target], notes: Sequence[str] = ()) -> Correlations:
    """Put targets side by side and correlate their measures.

    Args:
        targets: at least one.
        notes: sentences to keep.

    Raises:
        DataError: no targets, none of their sources, or a value that is not finite.
    """
    sources = tuple(
        dict.fromkeys(s for t in targets for m in MEASURES for s in t.values.get(m, {}))
    )
    if not targets or not sources:
        raise DataError("No measures of any source", "give a run with experts")
    for target in targets:
        for measure, values in target.values.items():
            for source, value in values.items():
                if not math.isfinite(value):
                    raise DataError(
                        f"The {TITLES[measure]} of {source!r} on {target.name} is {value}",
                        "the model or the expert is broken: look at `pemt gates`",
                    )
    held = Correlations(sources=sources, targets=tuple(targets), rho=())
    pairs = [(a, b) for i, a in enumerate(held.measures) for b in held.measures[i + 1 :]]
    rho = tuple(_rank(held, a, b) for a, b in pairs)
    return Correlations(
        sources=sources, targets=tuple(targets), rho=rho, notes=(*notes, *_about(targets))
    )


def _about(targets: Sequence[Target]) -> list[str]:
    """What is missing and where gains come from, each reason once."""
    said: dict[str, list[str]] = {}
    for target in targets:
        for measure, why in target.missing.items():
            said.setdefault(f"No {TITLES[measure]}: {why}", []).append(target.name)
        if target.gain_from:
            said.setdefault(f"Transfer gain is {target.gain_from}.", []).append(target.name)
    return [f"{', '.join(names)}: {text}" for text, names in said.items()]


def _rank(held: Correlations, first: str, second: str) -> RankCorrelation:
    a, b = held.table(first), held.table(second)
    there = np.isfinite(a) & np.isfinite(b)
    n = int(there.sum())
    rho = p = None
    note = ""
    if n < 3:
        note = f"{n} pairs: at least three are needed"
    elif _still(a[there]) or _still(b[there]):
        note = f"{TITLES[first if _still(a[there]) else second]} never differs"
    else:
        found = stats.spearmanr(a[there], b[there])
        rho, p = float(found.statistic), float(found.pvalue)
    own = []
    for column in range(a.shape[1]):
        both = there[:, column]
        x, y = a[both, column], b[both, column]
        if len(x) >= 3 and not _still(x) and not _still(y):
            own.append(float(stats.spearmanr(x, y).statistic))
    return RankCorrelation(
        first=first, second=second, n=n, rho=rho, p=p, targets=len(own),
        within=float(np.mean(own)) if own else None, note=note,
    )  # fmt: skip


def _still(values: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    return bool(np.ptp(values) < 1e-12)
