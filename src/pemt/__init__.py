"""Few labels, many experts: transfer with mixtures of frozen adapters (PEMT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pemt._lazy import lazy

if TYPE_CHECKING:
    from pemt.bases import Base, load_base
    from pemt.errors import PemtError
    from pemt.experts import Expert, ExpertLibrary
    from pemt.model import PemtConfig, PemtModel, SourceConfig, SourceModel
    from pemt.tasks import Task
    from pemt.training import TrainSettings, adapt, evaluate, predict, train_source

__version__ = "0.1.0"

__getattr__ = lazy(
    __name__,
    {
        "Base": "pemt.bases",
        "load_base": "pemt.bases",
        "PemtError": "pemt.errors",
        "Expert": "pemt.experts",
        "ExpertLibrary": "pemt.experts",
        "PemtConfig": "pemt.model",
        "PemtModel": "pemt.model",
        "SourceConfig": "pemt.model",
        "SourceModel": "pemt.model",
        "Task": "pemt.tasks",
        "TrainSettings": "pemt.training",
        "adapt": "pemt.training",
        "evaluate": "pemt.training",
        "predict": "pemt.training",
        "train_source": "pemt.training",
    },
)

__all__ = [
    "Base",
    "Expert",
    "ExpertLibrary",
    "PemtConfig",
    "PemtError",
    "PemtModel",
    "SourceConfig",
    "SourceModel",
    "Task",
    "TrainSettings",
    "adapt",
    "evaluate",
    "load_base",
    "predict",
    "train_source",
]
