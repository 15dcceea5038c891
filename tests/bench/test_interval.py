"""Intervals against scipy, and how often they hold what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pemt.bench import interval as module
from pemt.bench.interval import bootstrap, interval, student

DRAWS = np.array([0.031, -0.012, 0.054, 0.007, 0.022])


def test_the_bootstrap_is_scipys():
    with_scipy = stats.bootstrap(
        (DRAWS,), np.mean, n_resamples=10_000, method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert bootstrap(DRAWS) == pytest.approx(tuple(with_scipy), abs=1e-12)
    # every resample of five seeds, each as likely: 5^5 of them
    grid = np.stack(np.meshgrid(*[DRAWS] * 5)).reshape(5, -1).mean(0)
    assert bootstrap(DRAWS) == pytest.approx(np.quantile(grid, [0.025, 0.975]), abs=1.5e-3)


def test_the_students_interval_is_scipys():
    expected = stats.ttest_1samp(DRAWS, 0).confidence_interval(0.95)
    assert student(DRAWS) == pytest.approx((expected.low, expected.high))
    # 2.776 is the 97.5 % point of t with four degrees of freedom
    half = 2.7764 * DRAWS.std(ddof=1) / math.sqrt(5)
    assert student(DRAWS)[1] - DRAWS.mean() == pytest.approx(half, rel=1e-4)


def test_the_bootstrap_repeats_itself():
    assert bootstrap(DRAWS) == bootstrap(DRAWS)
    assert bootstrap(DRAWS) != bootstrap(DRAWS, seed=1)


def test_equal_differences_have_an_interval_without_width():
    assert student([0.5] * 4) == bootstrap([0.5] * 4) == (0.5, 0.5)


@pytest.mark.parametrize("values", [[], [0.1], [0.1, 0.2], [0.1, math.nan, 0.2]])
@pytest.mark.parametrize("kind", ["t", "bootstrap"])
def test_too_few_seeds_or_nan_give_none(values, kind):
    assert interval(values, kind) is None


def coverage(draw, mean, n, samples=4_000):
    """Share of samples whose 95 % interval holds the mean: bootstrap, t."""
    rng = np.random.default_rng(0)
    x = draw(rng, (samples, n))
    drawn = rng.integers(0, n, (1_000, n))
    times = np.stack([np.bincount(d, minlength=n) for d in drawn], 1) / n  # [n, resamples]
    resampled = x @ times
    low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
    half = stats.t.ppf(0.975, n - 1) * x.std(1, ddof=1) / math.sqrt(n)
    percentile = np.mean((low <= mean) & (mean <= high))
    return float(percentile), float(np.mean(np.abs(x.mean(1) - mean) <= half))


COVERAGE = {
    "normal": (lambda r, s: r.normal(size=s), 0.0),
    "uniform": (lambda r, s: r.uniform(-1, 1, s), 0.0),
    "exponential": (lambda r, s: r.exponential(size=s), 1.0),
    "Student, 3": (lambda r, s: r.standard_t(3, s), 0.0),
    "collapses": (lambda r, s: r.normal(size=s) - 8 * (r.random(s) < 0.2), -1.6),
}


def told(name):
    """The module's own table: bootstrap and t at five seeds, and at ten."""
    line = next(x for x in module.__doc__.splitlines() if x.strip().startswith(f"{name} "))
    numbers = [float(word) for word in line.replace(name, "").split() if word.startswith(".")]
    return numbers[:2], numbers[2:]


@pytest.mark.parametrize("name", COVERAGE)
def test_coverage_at_five_seeds(name):
    """The table in the module's docstring: Student's t misses less often, whatever the shape."""
    draw, mean = COVERAGE[name]
    five, ten = told(name)
    found = coverage(draw, mean, 5)
    assert found == pytest.approx(five, abs=0.015)
    assert found[1] > found[0] + 0.05
    assert coverage(draw, mean, 10) == pytest.approx(ten, abs=0.015)
