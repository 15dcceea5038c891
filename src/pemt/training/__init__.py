"""Moving the weights: settings, stage 1, stage 2, evaluation, and the record of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pemt._lazy import lazy

if TYPE_CHECKING:
    from pemt.training.adapting import AdaptResult, adapt
    from pemt.training.evaluating import Predictions, evaluate, predict, report_of
    from pemt.training.settings import Answers, TrainSettings
    from pemt.training.sourcing import SourceResult, train_source

__getattr__ = lazy(
    __name__,
    {
        "AdaptResult": "pemt.training.adapting",
        "Answers": "pemt.training.settings",
        "Predictions": "pemt.training.evaluating",
        "SourceResult": "pemt.training.sourcing",
        "TrainSettings": "pemt.training.settings",
        "adapt": "pemt.training.adapting",
        "evaluate": "pemt.training.evaluating",
        "predict": "pemt.training.evaluating",
        "report_of": "pemt.training.evaluating",
        "train_source": "pemt.training.sourcing",
    },
)

__all__ = [
    "AdaptResult",
    "Answers",
    "Predictions",
    "SourceResult",
    "TrainSettings",
    "adapt",
    "evaluate",
    "predict",
    "report_of",
    "train_source",
]
