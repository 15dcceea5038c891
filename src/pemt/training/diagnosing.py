"""From a finished run to its diagnosis: gathers what `pemt.analysis.diagnosis` decides on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pemt.analysis.diagnosis import diagnose
from pemt.analysis.findings import Diagnosis, Facts
from pemt.analysis.heldout import best_single, of_run
from pemt.analysis.mixture import measure_mixture
from pemt.bases import Base
from pemt.errors import PemtError
from pemt.experts import Expert
from pemt.methods import Setting, method_named
from pemt.model import AdaptedModel, PemtConfig, PemtModel
from pemt.tasks import Example, Task
from pemt.tasks.reporting import ConstantAnswer, constant_answer
from pemt.training.settings import TrainSettings
from pemt.training.sourcing import some

if TYPE_CHECKING:
    from pemt.guide import Evidence
    from pemt.training.result import AdaptResult

JUDGED, MOST_JUDGED = 32, 12
"""Training rows, and experts at most, that a diagnosis judges: a pass per expert, so few."""


def target_prompt(model: AdaptedModel) -> torch.Tensor | None:
    """A copy of the trainable target prompt as it is, `[P, D]`; None where there is none."""
    if not isinstance(model, PemtModel):
        return None
    return model.correlation_prompt.target.embedding.detach().float().cpu().clone()


def constant_of(task: Task, examples: Sequence[Example]) -> ConstantAnswer | None:
    """What the best single answer to every example scores; None for tasks without labels."""
    if task.kind != "classification":
        return None
    if "balanced_accuracy" not in task.metrics:  # as in `evaluate`
        task = replace(task, metrics=(*task.metrics, "balanced_accuracy"))
    labels = [e.label for e in examples if e.label is not None]
    groups = [e.group for e in examples]
    return constant_answer(task, labels, groups if any(groups) else None)


def judged_alone(
    base: Base, task: Task, experts: Sequence[Expert], train: Sequence[Example],
    settings: TrainSettings,
) -> Evidence | None:  # fmt: skip
    """What each expert alone says about at most 32 training rows, for a method that judges none.

    The base must have nothing attached; random numbers are left as they were. None for more than 12
    experts, which takes long beside training, for more rows than a guide looks at, where nothing is
    learnt from so few rows, and where answers are texts.
    """
    from pemt.guide import gather
    from pemt.guide.rule import is_few, takes_probes

    cheap = 0 < len(experts) <= MOST_JUDGED and is_few(len(train))
    if not cheap or not takes_probes(task, base.backbone.family):
        return None
    setting = Setting(
        base=base, task=task, experts=experts, train=some(train, JUDGED, 0), validation=[],
        config=PemtConfig(), max_source_length=settings.max_source_length,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        try:
            return gather(setting, experts)
        except PemtError:
            return None


def diagnosis_of(
    result: AdaptResult, *, first_prompt: torch.Tensor | None, validation_rows: int,
    shots: int | None, evidence: Evidence | None, own_sources: Sequence[str] | None,
) -> Diagnosis:  # fmt: skip
    """Make every check that applies to a result's method; the model is on its base.

    Args:
        result: finished but for its diagnosis.
        first_prompt: the target prompt before training.
        validation_rows: that the kept step was chosen on.
        shots: labels per class; None for the full split.
        evidence: of a guide, or of `judged_alone`; None without either.
        own_sources: the experts trained on the target task itself; None without experts.
    """
    method, model, task = method_named(result.method), result.model, result.task
    now = target_prompt(model)
    moved = None
    if first_prompt is not None and now is not None and first_prompt.shape == now.shape:
        moved = float((now - first_prompt).norm() / first_prompt.norm().clamp_min(1e-12))
    is_pemt = isinstance(model, PemtModel)
    return diagnose(
        Facts(
            method=result.method, kind=task.kind, shots=shots,
            learning_rate=result.settings.learning_rate, report=result.report,
            constant=result.constant, trains=method.trains, pemt=is_pemt,
            losses=() if result.fit is None else result.fit.losses,
            gated=is_pemt and method.trains and result.config.gate != "uniform",
            measures=measure_mixture(model, task, result.base, result.test, result.settings),
            prompt_moved=moved, guided=result.config.guide != "none",
            sparsity=model.sparsity_weight,
            mine=of_run(task, result.method, result.fit, validation_rows, result.selection),
            rival=best_single(task, evidence, result.selection),
            own_sources=own_sources,
        )
    )  # fmt: skip
