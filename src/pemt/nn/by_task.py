"""One place in a layer, several tasks: each row of a batch goes through its own task's module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pemt.nn.context import Slot


class ByTask(nn.Module):
    """Sends each row through the module of its task, which the context names.

    What tasks have in common (the base, the experts) still runs once for the whole batch: only what
    was trained differs, and that is small.

    Args:
        choices: one module a task, each `[B, ..] -> [B, .., N]`; None passes rows on as they are.
        slot: of the model.
        columns: where each module's outputs go, where tasks have other columns than each other.
        fill: of the columns that a task does not have.
    """

    def __init__(
        self,
        choices: Sequence[nn.Module | None],
        slot: Slot,
        *,
        columns: Sequence[Sequence[int]] | None = None,
        fill: float = 0.0,
    ) -> None:
        super().__init__()
        self.choices = nn.ModuleList(nn.Identity() if c is None else c for c in choices)
        self.slot = slot
        self.columns = None if columns is None else [list(own) for own in columns]
        self.width = 0 if columns is None else 1 + max(max(own) for own in columns)
        self.fill = fill

    def _one(self, task: int, x: Tensor) -> Tensor:
        y: Tensor = self.choices[task](x)
        if self.columns is None or self.columns[task] == list(range(self.width)):
            return y
        wide = y.new_full((*y.shape[:-1], self.width), self.fill)
        wide[..., self.columns[task]] = y
        return wide

    def forward(self, x: Tensor) -> Tensor:
        """`[B, ..]` -> `[B, .., N]`; beams repeat each row of the batch, side by side."""
        context = self.slot.current()
        assert context is not None, "the model says whose rows these are"
        assert context.tasks is not None, "the model says whose rows these are"
        tasks = context.tasks
        if len(tasks) != len(x):
            tasks = tasks.repeat_interleave(len(x) // len(tasks))
        there = sorted(set(tasks.tolist()))
        if len(there) == 1:
            return self._one(there[0], x)
        made: Tensor | None = None
        for task in there:
            rows = (tasks == task).nonzero().squeeze(1).to(x.device)
            y = self._one(task, x[rows])
            if made is None:
                made = torch.empty((len(x), *y.shape[1:]), dtype=y.dtype, device=y.device)
            made[rows] = y
        assert made is not None
        return made
