"""PEMT itself: the mixture of all experts."""

from __future__ import annotations

import torch

from pemt.errors import ConfigError
from pemt.guide import guide_of
from pemt.methods.method import Setting
from pemt.model import PemtModel
from pemt.training.sourcing import start_prompt


def build(setting: Setting, kind: type[PemtModel] = PemtModel) -> PemtModel:
    """Stage 2 over the setting's experts, as this class."""
    base, task, config = setting.base, setting.task, setting.config
    weights, experts = None, list(setting.experts)
    if config.guide != "none":
        guide, _ = guide_of(setting)
        setting.notes["guide"] = guide.to_dict()
        weights = guide.weights
        # one that gives no finite values would spoil the mixture at any weight
        experts = [e for e in experts if e.name in weights]
    prompt = start_prompt(base, task, config.prompt, seed=setting.init_seed)
    torch.manual_seed(setting.init_seed)
    return kind(
        base.model,
        experts,
        config,
        prompt=prompt,
        outputs=setting.outputs,
        backbone=base.backbone,
        guide=weights,
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
