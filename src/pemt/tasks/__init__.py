"""What a task is and where its rows come from.

Importing this package reads no data and loads no model library; ``metrics`` and ``encoding`` are
imported from their modules.
"""

from __future__ import annotations

from pemt.tasks.fewshot import FewShot, draw
from pemt.tasks.rows import Example, load_examples
from pemt.tasks.splits import Splits, load_splits, official_splits
from pemt.tasks.task import Task, task_names

__all__ = [
    "Example",
    "FewShot",
    "Splits",
    "Task",
    "draw",
    "load_examples",
    "load_splits",
    "official_splits",
    "task_names",
]
