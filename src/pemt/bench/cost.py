"""What a method costs: parameters, time and memory over all of its cells."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from pemt.bench.results import Results


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one method.

    Attributes:
        method: its name.
        trained: fewest and most parameters trained; heads and prompts differ from task to task.
        share: most trained over total.
        train_seconds: median over cells, of all learning rates tried.
        seconds: median over cells, with building and evaluating.
        peak_memory: most bytes; None where no cell says.
        n: cells.
    """

    method: str
    trained: tuple[int, int]
    share: float
    train_seconds: float
    seconds: float
    peak_memory: int | None
    n: int


def costs(results: Results) -> list[Cost]:
    """One per method, in the order of tables."""
    found = []
    for method in results.methods:
        cells = [c for c in results.cells if c.arm == method]
        memory = [c.peak_memory for c in cells if c.peak_memory is not None]
        found.append(
            Cost(
                method=method,
                trained=(min(c.trained for c in cells), max(c.trained for c in cells)),
                share=max(c.trained / c.total if c.total else 0.0 for c in cells),
                train_seconds=median(c.train_seconds for c in cells),
                seconds=median(c.seconds for c in cells),
                peak_memory=max(memory, default=None), n=len(cells),
            )
        )  # fmt: skip
    return found
