"""From which number of sources on more bring nothing that can be seen.

The rule: the smallest number whose mean is at most one standard error below the best mean. The best
of several noisy means is too high by about that much, and a smaller number is cheaper; this is the
"one standard error rule" of cross-validated trees (Breiman et al. 1984, section 3.4.3).

Which standard error: every number of sources sees the same targets and draws of labels, so these
are blocks, and what differs between blocks says nothing about numbers of sources. The scores are
taken as block + number + rest, and the standard error of the difference of two means over P blocks
is s sqrt(2 / P), with s the deviation of the rest, (C-1)(P-1) degrees of freedom for C numbers. One
s for all: with three draws the deviation of one difference alone is hardly known, and a number that
happens to be noisy would be let through. Targets that answer differently to a number count as rest,
so the rule is careful with few targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Enough:
    """What the rule says.

    Attributes:
        count: the smallest number that is enough.
        best: the number with the highest mean.
        error: the standard error of a difference of two means, as scores are.
        blocks: P, (target, draw) pairs.
    """

    count: int
    best: int
    error: float
    blocks: int


def enough(scores: Mapping[int, Sequence[float]]) -> Enough | None:
    """Apply the rule.

    Args:
        scores: number of sources -> `[P]` scores, the same blocks in the same order.

    Returns:
        None with fewer than two numbers or two blocks, or a score that is no number.
    """
    counts = sorted(scores)
    if len(counts) < 2:
        return None
    table = np.array([scores[c] for c in counts], dtype=np.float64)  # [C, P]
    C, P = table.shape
    if P < 2 or not np.isfinite(table).all():
        return None
    means = table.mean(1)  # [C]
    rest = table - means[:, None] - table.mean(0) + table.mean()
    error = math.sqrt(float((rest**2).sum()) / ((C - 1) * (P - 1)) * 2 / P)
    best = int(means.argmax())
    first = next(i for i in range(C) if means[i] >= means[best] - error - 1e-12)
    return Enough(count=counts[first], best=counts[best], error=error, blocks=P)
