"""The rule that says how many sources are enough."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pemt.studies.diminishing import enough


def naive(scores):
    """The same, number by number: what is left of each score after its row's and column's mean."""
    counts = sorted(scores)
    blocks = len(scores[counts[0]])
    whole = sum(sum(scores[c]) for c in counts) / (len(counts) * blocks)
    squares = 0.0
    for c in counts:
        for b in range(blocks):
            row = sum(scores[c]) / blocks
            column = sum(scores[k][b] for k in counts) / len(counts)
            squares += (scores[c][b] - row - column + whole) ** 2
    variance = squares / ((len(counts) - 1) * (blocks - 1))
    error = math.sqrt(2 * variance / blocks)
    means = {c: sum(scores[c]) / blocks for c in counts}
    best = max(counts, key=lambda c: means[c])
    return min(c for c in counts if means[c] >= means[best] - error), best, error


@pytest.mark.parametrize("seed", range(5))
def test_is_what_the_sums_say(seed):
    draw = np.random.default_rng(seed)
    scores = {c: list(draw.normal(0.6 + 0.02 * c, 0.05, 7)) for c in (1, 2, 3, 5, 8)}
    found = enough(scores)
    count, best, error = naive(scores)
    assert (found.count, found.best, found.blocks) == (count, best, 7)
    assert found.error == pytest.approx(error)


def test_what_a_whole_block_has_in_common_says_nothing():
    scores = {1: [0.5, 0.6, 0.55], 2: [0.6, 0.61, 0.7], 4: [0.6, 0.7, 0.66]}
    luck = [0.3, -0.2, 0.1]
    moved = {c: [v + x for v, x in zip(values, luck, strict=True)] for c, values in scores.items()}
    a, b = enough(scores), enough(moved)
    assert (a.count, a.best) == (b.count, b.best)
    assert a.error == pytest.approx(b.error)


def test_without_noise_the_first_of_the_best():
    """Gains that are the same in every block leave no error: only equal means are enough."""
    levels = {1: 0.5, 2: 0.6, 3: 0.7, 5: 0.7, 8: 0.69}
    scores = {c: [level, level + 0.1, level - 0.2] for c, level in levels.items()}
    found = enough(scores)
    assert found.count == 3
    assert found.error == pytest.approx(0, abs=1e-12)


def test_noise_lets_smaller_numbers_through():
    scores = {1: [0.60, 0.70], 2: [0.71, 0.61], 8: [0.70, 0.66]}
    assert enough(scores).best == 8
    assert enough(scores).count == 1


@pytest.mark.parametrize(
    "scores", [{}, {1: [0.5, 0.6]}, {1: [0.5], 2: [0.6]}, {1: [0.5, math.nan], 2: [0.6, 0.7]}]
)
def test_too_little_to_say(scores):
    assert enough(scores) is None
