"""A frozen base with what the method adds: `SourceModel` (stage 1) and `PemtModel` (stage 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pemt._lazy import lazy

if TYPE_CHECKING:
    from pemt.model.adapted import AdaptedModel, AdaptedOutput
    from pemt.model.config import PemtConfig, SourceConfig
    from pemt.model.description import description_prompt, random_prompt, vocabulary_prompt
    from pemt.model.pemt import PemtModel
    from pemt.model.router import TaskPart, TaskRouter
    from pemt.model.source import SourceModel

__getattr__ = lazy(
    __name__,
    {
        "AdaptedModel": "pemt.model.adapted",
        "AdaptedOutput": "pemt.model.adapted",
        "PemtConfig": "pemt.model.config",
        "PemtModel": "pemt.model.pemt",
        "SourceConfig": "pemt.model.config",
        "SourceModel": "pemt.model.source",
        "TaskPart": "pemt.model.router",
        "TaskRouter": "pemt.model.router",
        "description_prompt": "pemt.model.description",
        "random_prompt": "pemt.model.description",
        "vocabulary_prompt": "pemt.model.description",
    },
)

__all__ = [
    "AdaptedModel",
    "AdaptedOutput",
    "PemtConfig",
    "PemtModel",
    "SourceConfig",
    "SourceModel",
    "TaskPart",
    "TaskRouter",
    "description_prompt",
    "random_prompt",
    "vocabulary_prompt",
]
