"""What is looked at in a cell beside its score, each a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pemt.bench.cell import Cell

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a cell.

    Attributes:
        title: with its unit.
        digits: shown after the point.
        of: the number, from the cell and the reference's cell of the same target and draw; None
            where there is none.
    """

    title: str
    digits: int
    of: Callable[[Cell, Cell | None], float | None]


def distance(a: list[list[float]], b: list[list[float]]) -> float:
    """Total variation between gates `[layers][K]`: the share of weight that is elsewhere, 0 to 1.

    A mean over layers of `sum_k |a_k - b_k| / 2`.
    """
    apart = [
        sum(abs(x - y) for x, y in zip(one, other, strict=True)) / 2
        for one, other in zip(a, b, strict=True)
    ]
    return sum(apart) / len(apart)


def from_uniform(cell: Cell, _: Cell | None = None) -> float | None:
    """How far the gates are from all experts alike."""
    gates = cell.gates_by_layer
    if gates is None:
        return None
    return distance(gates, [[1 / len(layer)] * len(layer) for layer in gates])


def moved(cell: Cell, reference: Cell | None) -> float | None:
    """How far the gates are from the reference's; None where the experts are not the same."""
    if reference is None or cell.gates_by_layer is None or reference.gates_by_layer is None:
        return None
    if list(cell.gates or ()) != list(reference.gates or ()):
        return None
    return distance(cell.gates_by_layer, reference.gates_by_layer)


def _spread(name: str) -> Callable[[Cell, Cell | None], float | None]:
    return lambda cell, _: None if cell.gate_spread is None else cell.gate_spread[name]


def _words(cell: Cell, _: Cell | None) -> float | None:
    description = cell.config.get("task", {}).get("description")
    return None if description is None else float(len(description.split()))


MEASURES: dict[str, Measure] = {
    "effective_experts": Measure(
        title="effective experts", digits=2, of=_spread("effective_experts")
    ),
    "entropy": Measure(title="gate entropy (nats)", digits=2, of=_spread("entropy")),
    "top": Measure(title="largest gate", digits=2, of=_spread("top")),
    "from_uniform": Measure(title="gates from uniform", digits=3, of=from_uniform),
    "moved": Measure(title="gates moved from reference", digits=3, of=moved),
    "words": Measure(title="words of the description", digits=0, of=_words),
    "trained": Measure(title="trained parameters", digits=0, of=lambda c, _: float(c.trained)),
    "parameters": Measure(
        title="parameters (M)", digits=2, of=lambda c, _: c.total / 1e6
    ),
    "train_seconds": Measure(
        title="training (s)", digits=1, of=lambda c, _: c.train_seconds
    ),
    "seconds": Measure(title="whole cell (s)", digits=1, of=lambda c, _: c.seconds),
    "peak_memory": Measure(
        title="peak memory (MiB)", digits=0,
        of=lambda c, _: None if c.peak_memory is None else c.peak_memory / MIB,
    ),
}  # fmt: skip
"""Name -> measure. Effective experts are exp(mean entropy of one example's gates in one layer)."""
