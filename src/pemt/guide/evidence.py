"""Evidence: how well each expert, and no expert, foretells the answers of rows it has not seen.

Every expert is put on the frozen base alone, with its own prompt, and each labelled row runs
through it once. On each view of what comes out a small regression is cross-validated; the view
"named" needs none. Tasks that generate have nothing to regress on: there the loss of the answers
themselves is the evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from pemt.errors import ConfigError, DataError
from pemt.experts import Expert
from pemt.guide.probes import STRENGTHS, Fold, folds_of, held_out, log_probabilities, truth_of
from pemt.guide.views import Array, View, alone, features_of, fitted_lengths, views_of
from pemt.methods.method import Setting
from pemt.model import AdaptedModel
from pemt.model.pemt import NONE
from pemt.tasks import Example, Task
from pemt.tasks.encoding import Collator, encode
from pemt.training.evaluating import evaluating, side_of
from pemt.training.sourcing import start_prompt

MEASURES = {
    "classification": "held-out log-loss, nats per row",
    "regression": "held-out log-loss of a Gaussian, nats per row",
    "generation": "loss of the answers, nats per row",
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One view through one expert.

    Attributes:
        expert: its name, or `NONE`.
        view: what was looked at; "answers" for the answers' own loss of a generation task.
        losses: `[N]`, nats of each row, held out.
        said: `[N, C]` held-out log-probabilities, `[N, 1]` held-out scores, or None for generation.
        values: `[N, d]` what was seen of the rows, for a probe on all of them; None for generation.
    """

    expert: str
    view: View
    losses: Array
    said: Array | None = None
    values: Array | None = None

    @property
    def loss(self) -> float:
        """Mean over the rows, in nats."""
        return float(self.losses.mean())


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the labelled rows say about every expert.

    Attributes:
        experts: names, in the order they were judged in.
        candidates: every view through every expert; those of `NONE` first.
        rows: how many labelled rows.
        kind: of the task.
        truth: `[N]` labels or scores; empty for generation.
        descriptions: cosine of the target's description with each expert's, in the frozen base;
            None without one.
        prompts: cosine of the mean rows of target prompt and expert prompt; None without one.
        refused: experts that could not be judged, and why.
        judged: how many experts were looked at, those that `among` left out included; 0 stands for
            the number of `experts`.
    """

    experts: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    rows: int
    kind: str
    truth: Array
    descriptions: dict[str, float | None] = field(default_factory=dict)
    prompts: dict[str, float | None] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    judged: int = 0

    def __post_init__(self) -> None:
        if not self.judged:
            object.__setattr__(self, "judged", len(self.experts))

    @property
    def measure(self) -> str:
        """What a loss is, for people."""
        return MEASURES[self.kind]

    def of(self, expert: str) -> tuple[Candidate, ...]:
        """An expert's candidates, by view."""
        return tuple(c for c in self.candidates if c.expert == expert)

    def among(self, experts: Sequence[str]) -> Evidence:
        """The same rows' evidence about some of the experts, in this order."""
        known = [name for name in experts if name in self.experts]
        return replace(
            self, experts=tuple(known),
            candidates=tuple(c for name in (NONE, *known) for c in self.of(name)),
            descriptions={name: self.descriptions[name] for name in known},
            prompts={name: self.prompts[name] for name in known},
            refused={name: why for name, why in self.refused.items() if name in experts},
        )  # fmt: skip

    def losses(self, expert: str) -> Array:
        """Loss of each row, `[N]`, by the even mixture of an expert's views, in nats.

        Not by its best view: the more views there are, the luckier the best of them.
        """
        stacked = np.stack([-c.losses for c in self.of(expert)])
        result: Array = np.log(len(stacked)) - np.logaddexp.reduce(stacked, axis=0)
        return result


def gather(setting: Setting, experts: Iterable[Expert]) -> Evidence:
    """Judge experts on the setting's training rows; each is put on and taken off in turn.

    An expert that gives values that are not finite is left out, and named in `refused`.

    Args:
        setting: its `experts` are not looked at.
        experts: may be a generator that loads one after the other: one is held at a time.

    Raises:
        DataError: too few rows, or a base that gives values that are not finite.
        ConfigError: no experts, or one named "none".
    """
    task, rows = setting.task, setting.train
    generates = task.kind == "generation"
    if generates and not rows:
        raise DataError("No labelled rows to judge experts on", "give at least one")
    folds = [] if generates else folds_of(task, rows)
    truth = np.zeros(0) if generates else truth_of(rows)
    with alone(setting, None) as model:
        found = _candidates(model, setting, None, folds, truth)
        about = _about(model, setting, task.description)
    target = start_prompt(setting.base, task, "description").float().mean(0)
    names: list[str] = []
    descriptions: dict[str, float | None] = {}
    prompts: dict[str, float | None] = {}
    refused: dict[str, str] = {}
    for expert in experts:
        name = expert.name
        if name == NONE or name in names or name in refused:
            raise ConfigError(
                f"An expert named {name!r}" + ("" if name == NONE else ", twice"),
                f"each name counts once, and {NONE!r} stands for no expert: rename it",
            )
        with alone(setting, expert) as model:
            try:
                own = _candidates(model, setting, expert, folds, truth)
            except DataError as error:
                refused[name] = error.what
                continue
            descriptions[name] = None
            if expert.info.description:
                with model.disable():
                    descriptions[name] = _cosine(
                        about, _about(model, setting, expert.info.description)
                    )
        prompts[name] = None
        if len(expert.prompt):
            prompts[name] = _cosine(target, expert.prompt.float().mean(0).to(target))
        found += own
        names.append(name)
    if not names and not refused:
        raise ConfigError("No experts to judge", "train or import some: pemt train-source --help")
    return Evidence(
        experts=tuple(names), candidates=tuple(found), rows=len(rows), kind=task.kind, truth=truth,
        descriptions=descriptions, prompts=prompts, refused=refused,
    )  # fmt: skip


def _candidates(
    model: AdaptedModel, setting: Setting, expert: Expert | None, folds: list[Fold], truth: Array
) -> list[Candidate]:
    name = NONE if expert is None else expert.name
    task = setting.task
    if task.kind == "generation":
        losses = answer_losses(model, setting)
        if not np.isfinite(losses).all():
            raise DataError(
                f"The loss with {name!r} is not finite", "verify the expert, or leave it out"
            )
        return [Candidate(expert=name, view="answers", losses=losses)]
    return candidates_of(name, views_of(model, setting, expert, setting.train), task, folds, truth)


def candidates_of(
    name: str, views: dict[View, Array], task: Task, folds: list[Fold], truth: Array
) -> list[Candidate]:
    """Judge what was seen of labelled rows through one expert.

    Args:
        name: of the expert.
        views: `[N, d]` each, of `views_of`.
        task: the target, not one that generates.
        folds: of the rows.
        truth: `[N]`.
    """
    classes = task.num_labels if task.kind == "classification" else None
    found = []
    for view, values in views.items():
        if view == "named":
            said = log_probabilities(values)
        else:
            said = held_out(values, truth, folds, STRENGTHS[view], classes)
        losses = losses_of(said, truth, classes)
        found.append(Candidate(expert=name, view=view, losses=losses, said=said, values=values))
    return found


def losses_of(said: Array, truth: Array, classes: int | None) -> Array:
    """Nats of each row, `[N]`: log-loss, or that of a Gaussian around the score.

    The Gaussian's variance is the mean squared error of the same rows.
    """
    if classes is not None:
        result: Array = -said[np.arange(len(truth)), truth.astype(int)]
        return result
    squares = (said[:, 0] - truth) ** 2
    variance = max(float(squares.mean()), 1e-12)
    gaussian: Array = 0.5 * (np.log(2 * np.pi * variance) + squares / variance)
    return gaussian


def _about(model: AdaptedModel, setting: Setting, description: str) -> torch.Tensor:
    """A description in the base's own space: its mean final hidden state, `[D]`."""
    text = [Example("0", description, None, "")]
    return torch.from_numpy(features_of(model, setting, text))[0]


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))


@torch.no_grad()
def answer_losses(model: AdaptedModel, setting: Setting) -> Array:
    """Loss of each training row's answer, summed over its tokens, `[N]`, in nats."""
    tokenizer, family = setting.base.tokenizer, model.family
    fitted = fitted_lengths(model, setting, 64)
    encoded = encode(setting.train, setting.task, tokenizer, family, **fitted)
    collate: Any = Collator(tokenizer, family, side=side_of(family))
    losses = []
    with evaluating(model):
        for row in encoded:
            batch = collate([row])
            ids, mask, labels = (
                batch[k].to(model.device) for k in ("input_ids", "attention_mask", "labels")
            )
            tokens = int((labels != -100).sum())
            losses.append(float(model(ids, mask, labels).task_loss) * tokens)
    return np.array(losses)
