"""The best single source expert with a target adapter: the mixture's honest rival.

Which expert is best is chosen without test rows: each expert's frozen features of the training rows
get a linear probe, and the expert whose probe has the lowest log-loss on the validation rows wins.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pemt.errors import ConfigError, DataError
from pemt.guide.views import alone, features_of
from pemt.methods.method import Setting
from pemt.methods.pemt import build as build_pemt
from pemt.methods.probe import best_probe
from pemt.model import PemtModel


def probe_losses(setting: Setting) -> dict[str, float]:
    """Validation loss of a probe on each expert's frozen features; lower is better.

    Experts that give values that are not finite are left out, and noted as "refused".
    """
    losses: dict[str, float] = {}
    refused: dict[str, str] = {}
    for expert in setting.experts:
        with alone(setting, expert) as model:
            try:
                train, validation = (
                    features_of(model, setting, rows, expert)
                    for rows in (setting.train, setting.validation)
                )
            except DataError as error:
                refused[expert.name] = error.what
                continue
        losses[expert.name] = best_probe(setting, train, validation)[1]
    if refused:
        setting.notes["refused"] = refused
    return losses


def build(setting: Setting) -> PemtModel:
    """Stage 2 over the one expert that the validation rows favour.

    Raises:
        ConfigError: no expert is left.
        DataError: training rows of one class.
    """
    names = tuple(e.name for e in setting.experts)
    probed = setting.shared.setdefault("probed", {})  # for all learning rates, by the experts
    if names not in probed:
        noted: dict[str, Any] = {}
        probed[names] = probe_losses(replace(setting, notes=noted)), noted
    losses, noted = probed[names]
    if not losses:
        raise ConfigError(
            "No expert could be judged: "
            + ("; ".join(noted.get("refused", {}).values()) or "none was given"),
            "verify the library (pemt experts verify)",
        )
    winner = min(losses, key=lambda name: losses[name])
    setting.notes.update(expert=winner, probe_losses=losses, **noted)
    chosen = [e for e in setting.experts if e.name == winner]
    model = build_pemt(replace(setting, experts=chosen))
    if setting.config.guide != "none":  # it is of the winner, which was picked from all of them
        guide = setting.notes["guide"]
        guide["judged"] = max(guide["judged"], len(losses))
    return model
