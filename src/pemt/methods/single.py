"""The best single source expert with a target adapter: the mixture's honest rival.

Which expert is best is chosen without test rows: each expert's frozen features of the training rows
get a linear probe, and the expert whose probe has the lowest log-loss on the validation rows wins.
"""

from __future__ import annotations

from dataclasses import replace

from pemt.guide.views import alone, features_of
from pemt.methods.method import Setting
from pemt.methods.pemt import build as build_pemt
from pemt.methods.probe import best_probe
from pemt.model import PemtModel


def probe_losses(setting: Setting) -> dict[str, float]:
    """Validation loss of a probe on each expert's frozen features; lower is better."""
    losses = {}
    for expert in setting.experts:
        with alone(setting, expert) as model:
            train, validation = (
                features_of(model, setting, rows) for rows in (setting.train, setting.validation)
            )
        losses[expert.name] = best_probe(setting, train, validation)[1]
    return losses


def build(setting: Setting) -> PemtModel:
    """Stage 2 over the one expert that the validation rows favour."""
    losses = probe_losses(setting)
    winner = min(losses, key=lambda name: losses[name])
    setting.notes.update(expert=winner, probe_losses=losses)
    chosen = [e for e in setting.experts if e.name == winner]
    return build_pemt(replace(setting, experts=chosen))
