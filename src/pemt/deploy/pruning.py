"""Experts that hardly count taken out of an adapted model, for good.

An expert goes where its mean gate is below a share in every layer that it has a branch in. Its gate
columns go with it, so the softmax is over those that stay: their gates are the old ones, made to
sum to 1 again for each example. Under top-k the k largest are taken among those that stay, so one
that was cut may come in. What it gave through the prompt stays: the fused prompt is a constant
after training, and is written down as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pemt.errors import ConfigError
from pemt.guide.instant import InstantModel
from pemt.model import PemtModel
from pemt.model.pemt import NONE


@dataclass(frozen=True)
class Pruning:
    """Who stays and who goes.

    Attributes:
        shares: by expert, the largest of its layers' mean gates.
        kept: names, in gate-column order.
        dropped: names, in gate-column order.
    """

    shares: dict[str, float]
    kept: list[str]
    dropped: list[str]


def pruning_of(model: PemtModel, gates: Tensor, *, below: float) -> Pruning:
    """Who would go.

    Args:
        model: adapted, with a mixture.
        gates: mean gates over examples, `[layers, K]`, as `pemt.training.adapting.gates_of`.
        below: experts with less than this share everywhere go.

    Raises:
        ConfigError: a model that cannot be pruned, a share out of range, or one that no expert has.
    """
    if isinstance(model, InstantModel):
        raise ConfigError(
            "An instant mixture asks each of its experts alone",
            "it has left out shares below 2 % already; prune a run of --method pemt or guided",
        )
    if not model.gated_sites():
        raise ConfigError("A model without a mixture has no gates", "there is nothing to prune")
    if model.pemt_config.gate == "uniform":
        raise ConfigError(
            "A uniform mixture gives all experts the same share", "adapt again with fewer --experts"
        )
    if not 0 < below < 1:
        raise ConfigError(f"below={below}", "give a share above 0 and below 1, such as 0.02")
    sites = [layer for layer in model.mixtures if layer.gate is not None]
    shares = dict.fromkeys(model.expert_names, 0.0)
    for layer, row in zip(sites, gates.tolist(), strict=True):
        here = range(len(shares)) if layer.present is None else layer.present.tolist()
        for k in here:
            name = model.expert_names[k]
            shares[name] = max(shares[name], row[k])
    kept = [name for name, share in shares.items() if share >= below]
    if not kept:
        name = max(shares, key=lambda n: shares[n])
        raise ConfigError(
            f"Every expert has less than {below:g} everywhere; the most is {shares[name]:.4f} "
            f"({name})",
            "give a smaller share",
        )
    return Pruning(shares, kept, [name for name in shares if name not in kept])


def prune_model(model: PemtModel, dropped: Sequence[str]) -> PemtModel:
    """The model without these experts, on the same base; the model given is spent.

    Args:
        model: adapted.
        dropped: names of experts.

    Raises:
        ConfigError: an expert that is not in the model, or all of them.
    """
    unknown = sorted(set(dropped) - set(model.expert_names))
    staying = [e for e in model.experts if e.name not in dropped]
    if unknown or not staying:
        raise ConfigError(
            f"Dropping {', '.join(unknown or dropped)}",
            f"name some, not all, of {', '.join(model.expert_names)}",
        )
    model.eval()
    with torch.no_grad():
        prompt = model.prompt().clone()
    names = [*(e.name for e in staying), *([NONE] if NONE in model.gate_names else [])]
    columns = torch.tensor([model.gate_names.index(name) for name in names])
    cut = {}
    for key, value in model.trained_state().items():
        of_gate = key.endswith((".gate.weight", ".gate.bias"))
        cut[key] = value.index_select(-1, columns.to(value.device)) if of_gate else value.clone()
    config = replace(model.pemt_config, prompt_fusion="none")
    guide = None if model.guide is None else _shares(model.guide, [*names, NONE])
    outputs, backbone, base = model.outputs, model.backbone, model.detach()
    smaller = PemtModel(
        base, staying, config, prompt=prompt, outputs=outputs, backbone=backbone, guide=guide
    )
    with smaller.attaching():
        cut["correlation_prompt.target.embedding"] = prompt
        # a map that only dropped experts were beside is no longer wrapped
        wanted = smaller.trained_state().keys()
        smaller.load_trained_state({key: cut[key] for key in wanted})
    return smaller.eval()


def _shares(guide: dict[str, float], names: Sequence[str]) -> dict[str, float]:
    """The guide of those that stay, summing to 1 again."""
    left = {name: guide[name] for name in dict.fromkeys(names)}
    total = sum(left.values())
    return {n: w / total for n, w in left.items()} if total else {**left, NONE: 1.0}
