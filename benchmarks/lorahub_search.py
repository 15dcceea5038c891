"""Which gradient-free optimiser finds LoraHub's weights best in 40 evaluations?

    python benchmarks/lorahub_search.py

Two kinds of loss over K weights in [-1.5, 1.5], from 0 on, each with LoraHub's penalty: a random
quadratic, and LoraHub's own shape (a LoRA composed of K random ones must imitate one composed at
hidden weights). Prints the mean over draws of the best value found; lower is better. With nevergrad
installed, the paper's NGOpt is in the table too.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Callable

import numpy as np
from scipy.optimize import direct, minimize

from pemt.methods.lorahub import BOUND, BUDGET, PENALTY

Loss = Callable[[np.ndarray], float]


class Spent(Exception):  # noqa: N818 - the end of the budget, no error
    pass


class Counted:
    """A loss that keeps its best value and ends at the budget."""

    def __init__(self, loss: Loss) -> None:
        self.loss, self.done, self.best = loss, 0, float("inf")

    def __call__(self, given: np.ndarray) -> float:
        if self.done == BUDGET:
            raise Spent
        self.done += 1
        weights = np.clip(np.asarray(given, float), -BOUND, BOUND)
        value = self.loss(weights) + PENALTY * float(np.abs(weights).sum())
        self.best = min(self.best, value)
        return value


def quadratic(count: int, seed: int) -> Loss:
    draw = np.random.default_rng(seed)
    centre = draw.uniform(-1.2, 1.2, count)
    Q = draw.normal(size=(2 * count, count))
    return lambda w: float(np.square(Q @ (w - centre)).sum() / np.square(Q @ centre).sum())


def composed(count: int, seed: int) -> Loss:
    draw = np.random.default_rng(seed)
    D, F, R, N = 16, 32, 4, 64
    A, B = draw.normal(size=(count, R, F)) / F**0.5, draw.normal(size=(count, D, R)) / R**0.5
    X = draw.normal(size=(F, N))
    hidden = draw.uniform(-1.2, 1.2, count) * (draw.random(count) < max(0.4, 2 / count))

    def output(w: np.ndarray) -> np.ndarray:
        return np.tensordot(w, B, 1) @ np.tensordot(w, A, 1) @ X

    Y = output(hidden)
    Y = Y + 0.3 * (Y.std() or 1.0) * draw.normal(size=Y.shape)
    return lambda w: float(np.square(output(w) - Y).mean() / np.square(Y).mean())


def local(method: str, **options: float) -> Callable[[Counted, int, int], object]:
    def run(loss: Counted, count: int, _: int) -> None:
        bounds = [(-BOUND, BOUND)] * count
        minimize(loss, np.zeros(count), method=method, bounds=bounds, options=options)

    return run


def simplex(loss: Counted, count: int, _: int) -> None:
    start = np.vstack([np.zeros(count), np.eye(count)])
    bounds = [(-BOUND, BOUND)] * count
    minimize(
        loss, np.zeros(count), method="Nelder-Mead", bounds=bounds,
        options={"initial_simplex": start, "adaptive": True},
    )  # fmt: skip


def random(loss: Counted, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    loss(np.zeros(count))
    while True:
        loss(draw.uniform(-BOUND, BOUND, count))


def nevergrad(loss: Counted, count: int, seed: int) -> None:
    import nevergrad as ng

    weights = ng.p.Array(init=np.zeros(count), lower=-BOUND, upper=BOUND)
    weights.random_state.seed(seed)
    ng.optimizers.NGOpt(parametrization=weights, budget=BUDGET).minimize(loss)


WAYS = {
    "COBYLA": local("COBYLA", rhobeg=0.5, maxiter=1000, tol=1e-3),
    "COBYQA": local("COBYQA", initial_tr_radius=0.5, maxfev=1000),
    "Nelder-Mead": simplex,
    "Powell": local("Powell"),
    "DIRECT": lambda loss, count, _: direct(loss, [(-BOUND, BOUND)] * count),
    "random": random,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=20)
    given = parser.parse_args()
    ways = dict(WAYS)
    with contextlib.suppress(ImportError):
        import nevergrad as _  # noqa: F401

        ways["NGOpt"] = nevergrad
    warnings.simplefilter("ignore")  # of optimisers about a budget that ends them
    print("| loss | K |", " | ".join(ways), "|")
    print("| --- " * (len(ways) + 2) + "|")
    for name, make in (("quadratic", quadratic), ("composed", composed)):
        for count in (2, 4, 8, 20):
            means = []
            for run in ways.values():
                found = []
                for seed in range(given.draws):
                    loss = Counted(make(count, seed))
                    with contextlib.suppress(Spent):
                        run(loss, count, seed)
                    found.append(loss.best)
                means.append(float(np.mean(found)))
            print(f"| {name} | {count} |", " | ".join(f"{m:.3f}" for m in means), "|", flush=True)


if __name__ == "__main__":
    main()
