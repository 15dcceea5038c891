"""PEMT itself: the mixture of all experts."""

from __future__ import annotations

import torch

from pemt.methods.method import Setting
from pemt.model import PemtModel
from pemt.training.sourcing import outputs_of, start_prompt


def build(setting: Setting) -> PemtModel:
    """Stage 2 over the setting's experts."""
    base, task, config = setting.base, setting.task, setting.config
    prompt = start_prompt(base, task, config.prompt, seed=setting.init_seed)
    torch.manual_seed(setting.init_seed)
    return PemtModel(
        base.model,
        setting.experts,
        config,
        prompt=prompt,
        outputs=outputs_of(task, base.backbone.family),
        backbone=base.backbone,
    )
