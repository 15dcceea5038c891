"""The instant mode and its ensemble with a trained PEMT, see `pemt.guide.instant`.

On tasks that generate there is nothing to fit probes on: the instant mode is then PEMT's mixture
itself, its gates and prompts at the guide's weights, with nothing trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from pemt.errors import ConfigError
from pemt.guide import NONE, Evidence, Guide, guide_of
from pemt.guide.guide import Share
from pemt.guide.instant import Instant, InstantModel, Part, best_sharpness
from pemt.guide.probes import STRENGTHS, fit_probe
from pemt.guide.views import Viewer
from pemt.methods.method import Setting
from pemt.methods.pemt import build as build_pemt
from pemt.methods.probe import require_labels_for_probes
from pemt.model import AdaptedModel, PemtModel
from pemt.training.sourcing import start_prompt

LEAST = 0.02
"""Shares below it are dropped: each expert costs one pass over every text."""


class GuidedStart(PemtModel):
    """PEMT as the guide starts it. What would train is saved as it is, as nothing else tells it."""

    def parameter_counts(self) -> tuple[int, int]:
        """(0, everything)."""
        return 0, super().parameter_counts()[1]


def build(setting: Setting) -> AdaptedModel:
    """Answers at once; nothing trains."""
    if setting.task.kind == "generation":
        config = replace(
            setting.config, guide="evidence", target_adapter=False, train_norms=False,
            sparsity_weight=0.0, prompt_dropout=0.0,
        )  # fmt: skip
        return build_pemt(replace(setting, config=config), GuidedStart)
    return _build(setting, blend=0.0)


def build_ensemble(setting: Setting) -> AdaptedModel:
    """A guided PEMT to be trained, and the instant mixture; answers are the mean of both."""
    return _build(setting, blend=0.5)


def _build(setting: Setting, *, blend: float) -> InstantModel:
    require_labels_for_probes(setting, "The instant mixture")
    if not setting.config.mixture:
        raise ConfigError(
            "mixture=False leaves the instant mixture no expert's branches to read",
            "leave it on, or take a method that only trains, such as pemt-no-mixture",
        )
    guide, evidence = guide_of(setting)
    if "instant" not in setting.shared:
        setting.shared["instant"] = _fitted(setting, guide, evidence)
    instant: Instant = setting.shared["instant"]
    setting.notes["guide"] = guide.to_dict()
    setting.notes["sharpness"] = instant.sharpness
    used = {p.expert for p in instant.parts}
    if blend:  # training may find use for what evidence did not
        used |= guide.weights.keys()
    experts = [e for e in setting.experts if e.name in used]
    if not experts:  # none at all has a share; the model still needs one to be built on
        first = max(evidence.experts, key=lambda name: guide.weights[name])
        experts = [e for e in setting.experts if e.name == first]
    shown = {name: guide.weights[name] for name in [*(e.name for e in experts), NONE]}
    total = sum(shown.values())
    config = replace(setting.config, guide="evidence")
    if not blend:
        config = replace(config, target_adapter=False, train_norms=False, sparsity_weight=0.0)
    prompt = start_prompt(setting.base, setting.task, config.prompt, seed=setting.init_seed)
    torch.manual_seed(setting.init_seed)
    return InstantModel(
        setting.base.model, experts, config, prompt=prompt, outputs=setting.outputs,
        backbone=setting.base.backbone, guide={n: w / total for n, w in shown.items()},
        instant=instant, blend=blend,
    )  # fmt: skip


def of_the_largest(shares: Sequence[Share], count: int | None) -> list[Share]:
    """The shares of the `count` experts that have most in all their views; None keeps all."""
    totals: dict[str, float] = {}
    for share in shares:
        totals[share.expert] = totals.get(share.expert, 0.0) + share.weight
    largest = sorted(totals, key=lambda name: -totals[name])[:count]
    return [s for s in shares if s.expert in largest]


def _fitted(setting: Setting, guide: Guide, evidence: Evidence) -> Instant:
    """Probes on all rows for every part with a share, from what the evidence has seen already."""
    task = setting.task
    classes = task.num_labels if task.kind == "classification" else None
    kept = [s for s in guide.shares if s.weight >= LEAST] or list(guide.shares)
    kept = of_the_largest(kept, setting.config.guide_experts)
    total = sum(s.weight for s in kept)
    truth, base = evidence.truth, setting.base
    by_name = {e.name: e for e in setting.experts}
    found = {(c.expert, c.view): c for c in evidence.candidates}
    viewers: dict[str, Viewer] = {}
    lent = {  # as `alone` lends it to experts that came without a prompt
        e.name: start_prompt(base, task, "description").detach().cpu()
        for e in setting.experts
        if not len(e.prompt)
    }
    for name in dict.fromkeys(s.expert for s in kept):
        expert = None if name == NONE else by_name[name]
        viewers[name] = Viewer(expert, task, base.tokenizer, base.backbone.family)
    parts, said = [], []
    for share in kept:
        candidate = found[share.expert, share.view]
        assert candidate.values is not None
        assert candidate.said is not None
        probe = None
        if share.view != "named":
            probe = fit_probe(candidate.values, truth, STRENGTHS[share.view], classes)
        weight = share.weight / total
        parts.append(Part(expert=share.expert, view=share.view, weight=weight, probe=probe))
        if classes is not None:
            said.append(weight * np.exp(candidate.said))
    sharpness = best_sharpness(np.log(sum(said)), truth) if said else 1.0
    return Instant(
        parts=tuple(parts), sharpness=sharpness, task=task, viewers=viewers, prompts=lent
    )
