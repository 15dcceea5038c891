"""Which method for how many labels: what the development targets settled, as a rule.

docs/concepts/guided.md has the measurements behind it. With few labels the guided mixture and the
instant one answer together; where the labels say that no expert helps, the target adapter is
trained without any; with many labels they guide the gates, and the Task Sparsity Loss, which took
them astray where no source is close, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from pemt.backbones import Family
from pemt.guide.guide import ROWS, Guide
from pemt.model.pemt import NONE
from pemt.tasks import Task

AUTO = "auto"
"""The name that asks for the rule where a method is named."""
ALONE = 0.5
"""From this weight of "none" on, experts are left out."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the rule says.

    Attributes:
        method: a name in `pemt.methods.METHODS`.
        why: one sentence.
    """

    method: str
    why: str


def is_few(rows: int) -> bool:
    """Whether the guide is asked: it looks at so many labelled rows, and no more was measured."""
    return rows <= ROWS


def takes_probes(task: Task, family: Family) -> bool:
    """Whether probes can be fitted for the task: its answers are labels, or of a head."""
    if family == "encoder-only":
        return task.kind in ("classification", "regression")
    return task.kind == "classification" and not task.option_columns


def choice_of(guide: Guide | None, rows: int, *, probes: bool = True) -> Choice:
    """The rule.

    Args:
        guide: of the labelled rows; None where they are not few.
        rows: how many labelled rows there are.
        probes: whether the task has an instant mixture that probes can be fitted for.
    """
    if guide is None:
        return Choice(
            method="guided-no-tsl",
            why=f"{rows} labelled rows are more than {ROWS}: {ROWS} of them guide the mixture, and "
            "the Task Sparsity Loss is left out.",
        )
    if guide.weights[NONE] >= ALONE:
        return Choice(
            method="adapter",
            why=f"{rows} labelled rows are few, and they find no use for the experts: the target "
            "adapter is trained alone.",
        )
    if probes:
        return Choice(
            method="ensemble",
            why=f"{rows} labelled rows are few: they guide the mixture and answer beside it.",
        )
    return Choice(method="guided", why=f"{rows} labelled rows are few: they guide the mixture.")
