"""Moving the weights: settings, stage 1, stage 2, evaluation, and the record of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pemt._lazy import lazy

if TYPE_CHECKING:
    from pemt.training.adapting import adapt
    from pemt.training.deploying import Deployed, load_run
    from pemt.training.evaluating import Predictions, evaluate, predict, report_of
    from pemt.training.result import AdaptResult
    from pemt.training.routing import predict_routed
    from pemt.training.settings import Answers, TrainSettings
    from pemt.training.sourcing import SourceResult, train_source
    from pemt.training.streaming import Answer, predict_stream

__getattr__ = lazy(
    __name__,
    {
        "AdaptResult": "pemt.training.result",
        "Answer": "pemt.training.streaming",
        "Answers": "pemt.training.settings",
        "Deployed": "pemt.training.deploying",
        "Predictions": "pemt.training.evaluating",
        "SourceResult": "pemt.training.sourcing",
        "TrainSettings": "pemt.training.settings",
        "adapt": "pemt.training.adapting",
        "evaluate": "pemt.training.evaluating",
        "load_run": "pemt.training.deploying",
        "predict": "pemt.training.evaluating",
        "predict_routed": "pemt.training.routing",
        "predict_stream": "pemt.training.streaming",
        "report_of": "pemt.training.evaluating",
        "train_source": "pemt.training.sourcing",
    },
)

__all__ = [
    "AdaptResult",
    "Answer",
    "Answers",
    "Deployed",
    "Predictions",
    "SourceResult",
    "TrainSettings",
    "adapt",
    "evaluate",
    "load_run",
    "predict",
    "predict_routed",
    "predict_stream",
    "report_of",
    "train_source",
]
