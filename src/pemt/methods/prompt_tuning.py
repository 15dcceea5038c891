"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): P trained rows before the text.

PEFT's `PromptEmbedding` holds the rows; they start from the embeddings of P tokens drawn from the
vocabulary (`vocabulary_prompt`). An encoder-only base also gets the usual task head.

Letters: P prompt length, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pemt.bases import Base
from pemt.experts import Expert
from pemt.methods.method import Setting
from pemt.methods.source_prompts import identity
from pemt.model import AdaptedModel, vocabulary_prompt
from pemt.tasks import Task
from pemt.training.sourcing import outputs_of


def prompt_embedding(start: Tensor) -> Any:
    """PEFT's module with these first values, `[P, D]`; called with row numbers it gives rows."""
    from peft import PromptEmbedding, PromptTuningConfig

    rows, width = start.shape
    config = PromptTuningConfig(
        num_virtual_tokens=rows, token_dim=width, num_transformer_submodules=1,
        prompt_tuning_init="RANDOM",
    )  # fmt: skip
    module = PromptEmbedding(config, None).to(start.device)
    with torch.no_grad():
        module.embedding.weight.copy_(start)
    return module


class PromptTuningModel(AdaptedModel):
    """The frozen base with P trained rows before the text, and nothing else.

    Args:
        base: with nothing attached.
        task: decides the head of an encoder-only base.
        start: `[P, D]` first values.
        sources: the source prompts that the start comes from.
        seed: of the head.
    """

    def __init__(
        self, base: Base, task: Task, start: Tensor, *, sources: Sequence[Expert] = (),
        seed: int = 0,
    ) -> None:  # fmt: skip
        outputs = outputs_of(task, base.backbone.family)
        torch.manual_seed(seed)
        super().__init__(base.model, outputs=outputs, backbone=base.backbone)
        with self.attaching():
            self._check_prompt(start)
            self.sources = identity(sources)
            self.prompt_embedding = prompt_embedding(start.to(self.device))

    def options(self) -> dict[str, Any]:
        """The sources, by name and content."""
        return {**super().options(), "sources": self.sources}

    def prompt(self) -> Tensor:
        """The rows, `[P, D]`."""
        weight: Tensor = self.prompt_embedding.embedding.weight
        rows: Tensor = self.prompt_embedding(torch.arange(len(weight), device=weight.device))
        return rows


def build(setting: Setting) -> PromptTuningModel:
    """`config.prompt_tokens` rows on the setting's base."""
    base = setting.base
    start = vocabulary_prompt(base.model, setting.config.prompt_tokens, seed=setting.init_seed)
    return PromptTuningModel(base, setting.task, start, seed=setting.init_seed)
