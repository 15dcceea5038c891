"""PEMT itself: the mixture of all experts."""

from __future__ import annotations

import torch

from pemt.errors import ConfigError
from pemt.methods.method import Setting
from pemt.model import PemtModel
from pemt.training.sourcing import start_prompt


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
        outputs=setting.outputs,
        backbone=base.backbone,
    )


def build_bottleneck(setting: Setting) -> PemtModel:
    """Stage 2 over bottleneck experts, the kind that the paper's figure draws.

    Raises:
        ConfigError: an expert of another kind.
    """
    others = [e.name for e in setting.experts if e.kind != "bottleneck"]
    if others:
        all_of = len(others) == len(setting.experts)
        raise ConfigError(
            f"{'All' if all_of else 'Some'} experts are LoRAs, and this method mixes bottleneck "
            f"experts: {', '.join(others)}",
            "train bottleneck experts into a library of their own (pemt train-source TASK LIBRARY "
            "--source.kind bottleneck)" + ("" if all_of else ", or name the others with --experts"),
        )
    return build(setting)
