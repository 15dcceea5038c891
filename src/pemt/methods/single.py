"""The best single source expert with a target adapter: the mixture's honest rival.

Which expert is best is chosen without test rows: each expert's frozen features of the training rows
get a linear probe, and the expert whose probe has the lowest log-loss on the validation rows wins.
"""

from __future__ import annotations

from dataclasses import replace

from pemt.methods.method import Setting
from pemt.methods.pemt import build as build_pemt
from pemt.methods.probe import best_probe, features_of
from pemt.model import PemtModel
from pemt.nn import TaskPrompt


def rank_experts(setting: Setting) -> dict[str, float]:
    """Validation loss of a probe on each expert's frozen features; lower is better."""
    losses = {}
    for expert in setting.experts:
        model = build_pemt(replace(setting, experts=[expert]))
        # the expert as its source task left it: its own prompt, no fusion, no adapter
        model.correlation_prompt.fusion = "none"
        if len(expert.prompt):
            model.correlation_prompt.target = TaskPrompt(expert.prompt.to(model.device))
        for layer in model.mixtures:
            layer.adapter = None
        try:
            train, validation = (
                features_of(model, setting, rows) for rows in (setting.train, setting.validation)
            )
        finally:
            model.detach()
        losses[expert.name] = best_probe(setting, train, validation).loss
    return losses


def build(setting: Setting) -> PemtModel:
    """Stage 2 over the one expert that the validation rows favour."""
    losses = rank_experts(setting)
    winner = min(losses, key=lambda name: losses[name])
    setting.notes.update(expert=winner, probe_losses=losses)
    chosen = [e for e in setting.experts if e.name == winner]
    return build_pemt(replace(setting, experts=chosen))
