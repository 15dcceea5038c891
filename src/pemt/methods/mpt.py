"""MPT's target stage (Wang et al. 2023, arXiv 2303.02861): a shared prompt times a rank-1 factor.

    prompt = P* * (u v^T), element by element

P* `[P, D]` was learnt on all sources at once (`pemt.training.shared_prompts`); u `[P]` and v `[D]`
start as the means of the sources' (the paper, section 3.3). All three train on the target. PEFT's
`MultitaskPromptEmbedding` supplies it, with its AVERAGE_SOURCE_TASKS start.

The paper trains P* and the factors at two rates, 0.3 and 0.4 on T5; here both have one.

Letters: P prompt length, D model width, K sources.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pemt.experts import PromptFactors
from pemt.methods.method import Setting
from pemt.methods.source_prompts import identity, shared_factors
from pemt.model import AdaptedModel


def multitask_embedding(factors: Sequence[PromptFactors]) -> Any:
    """PEFT's module for one target task, started from the sources' factors."""
    from peft import MultitaskPromptTuningConfig
    from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding
    from safetensors.torch import save_file

    rows, width = factors[0].shared.shape
    state = {
        "prompt_embeddings": factors[0].shared.float().contiguous(),
        "prefix_task_cols": torch.stack([f.u.float() for f in factors]).unsqueeze(2),  # [K, P, 1]
        "prefix_task_rows": torch.stack([f.v.float() for f in factors]).unsqueeze(1),  # [K, 1, D]
    }
    with tempfile.TemporaryDirectory(prefix="pemt-") as place:
        path = Path(place) / "sources.safetensors"
        save_file(state, path)
        config = MultitaskPromptTuningConfig(
            num_virtual_tokens=rows, token_dim=width, num_transformer_submodules=1, num_ranks=1,
            num_tasks=1, prompt_tuning_init="AVERAGE_SOURCE_TASKS",
            prompt_tuning_init_state_dict_path=str(path),
        )  # fmt: skip
        return MultitaskPromptEmbedding(config, None)


class MptModel(AdaptedModel):
    """The frozen base with MPT's prompt for one target task."""

    embedding: Any
    sources: list[list[str]]

    def options(self) -> dict[str, Any]:
        """The sources, by name and content."""
        return {**super().options(), "sources": self.sources}

    def prompt(self) -> Tensor:
        """P* * (u v^T), `[P, D]`."""
        shared: Tensor = self.embedding.embedding.weight
        rows = torch.arange(len(shared), device=shared.device).unsqueeze(0)  # [1, P]
        made: Tensor = self.embedding(rows, rows.new_zeros(1))
        return made[0]


def build(setting: Setting) -> MptModel:
    """From the prompts that were tuned together on the source tasks."""
    factors = shared_factors(setting)
    model = setting.bare(MptModel)
    with model.attaching():
        model._check_prompt(factors[0].shared)
        model.embedding = multitask_embedding(factors).to(model.device)
        model.sources = identity(setting.experts)
    return model
