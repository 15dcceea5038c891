"""Answers without training: every expert alone, read by its probes, mixed by the evidence.

    p(c | x) ~ (sum_j w_j p_j(c | x)) ** b       j: one view through one expert, or through none

w and the probes come from the labelled rows (`pemt.guide.evidence`); b makes the held-out
probabilities of the mixture as likely as they can be. Each expert with a share costs one pass over
the text.

The same model can carry a trained PEMT beside it: its answers are then the mean of both
(`blend` 0.5). The trained part never changes what the experts alone say: during their passes
neither its norms nor its adapters, gates or prompt are there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pemt.backbones import Site
from pemt.errors import ConfigError
from pemt.guide.probes import FittedProbe, log_probabilities
from pemt.guide.views import Array, View, Viewer
from pemt.model.pemt import NONE, PemtModel
from pemt.model.prompted import AdaptedOutput
from pemt.nn import ForwardContext
from pemt.tasks import Task
from pemt.training.evaluating import evaluating
from pemt.training.memory import heap

if TYPE_CHECKING:
    from pemt.bases import Base
    from pemt.experts import Expert

PROBE = ("mean", "weight", "bias")
REMEMBERED = 4096
"""Texts whose mixture is kept, so that judging a run on the same rows costs one look at them."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One view through one expert.

    Attributes:
        expert: its name, or "none".
        view: what its probe reads.
        weight: its share.
        probe: None for "named", which is read as it is.
    """

    expert: str
    view: View
    weight: float
    probe: FittedProbe | None = None


@dataclass(frozen=True, kw_only=True)
class Instant:
    """All that the instant mode needs beside the experts.

    Attributes:
        parts: with their shares, which sum to 1.
        sharpness: b; 1 leaves the mixture's probabilities as they are.
        task: the target task.
        viewers: by expert.
        prompts: of experts that came without one, `[P, D]`.
    """

    parts: tuple[Part, ...]
    sharpness: float
    task: Task
    viewers: dict[str, Viewer]
    prompts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def classes(self) -> int | None:
        """Of the task; None for scores."""
        return self.task.num_labels if self.task.kind == "classification" else None


class InstantModel(PemtModel):
    """`PemtModel` with an instant mixture beside it.

    Args:
        instant: the mixture.
        blend: share of the trained part in the answers: 0 answers at once, 0.5 averages both.
        base: see `PemtModel`, as all others.
        *args: of `PemtModel`.
        **kwargs: of `PemtModel`.
    """

    def __init__(
        self, base: Any, *args: Any, instant: Instant, blend: float = 0.0, **kwargs: Any
    ) -> None:
        self.only: int | None = None
        super().__init__(base, *args, **kwargs)
        self.instant, self.blend = instant, blend
        self._numbers = {name: k for k, name in enumerate(self.expert_names)}
        self._kept: OrderedDict[bytes, Array] = OrderedDict()
        with self.attaching():
            unknown = {p.expert for p in instant.parts} - self._numbers.keys() - {NONE}
            if unknown:
                raise ConfigError(
                    f"A mixture of experts that are not here: {', '.join(sorted(unknown))}",
                    f"the experts are {', '.join(self.expert_names)}",
                )
            if blend == 0:  # nothing of it is ever used
                self.requires_grad_(False)

    # -- one expert alone ------------------------------------------------------------------------

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Inside, passes are those of the frozen base with one expert, or none, and its prompt."""
        if name == NONE:
            with self.disable():
                yield
            return
        before, self.only = self.only, self._numbers[name]
        try:
            yield
        finally:
            self.only = before

    def _context(self, **given: Any) -> ForwardContext:
        return super()._context(**given, alone=self.only)

    def prompt(self) -> Tensor:
        """The correlation-guided prompt, or that of the expert that is alone, `[P, D]`."""
        if self.only is None:
            return super().prompt()
        expert = self.experts[self.only]
        own = expert.prompt if len(expert.prompt) else self.instant.prompts[expert.name]
        return own.to(self.device)

    def prompt_rows(self) -> int:
        """The most positions that a prompt of any pass takes."""
        lent = [len(p) for p in self.instant.prompts.values()]
        return max(super().prompt_rows(), *(len(e.prompt) for e in self.experts), *lent, 0)

    def turns(self) -> int:
        """How often an answer asks the base: with each expert alone, and with the trained part."""
        return len({part.expert for part in self.instant.parts}) + (self.blend > 0)

    # -- answers -----------------------------------------------------------------------------------

    @torch.no_grad()
    def mixture(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the experts say together: log-probabilities `[B, C]`, or scores `[B, 1]`, float32.

        Args:
            input_ids: `[B, S]`.
            attention_mask: `[B, S]`.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        keys = [
            row[keep.bool()].cpu().numpy().tobytes()
            for row, keep in zip(input_ids, mask, strict=True)
        ]
        fresh = [i for i, key in enumerate(keys) if key not in self._kept]
        if fresh:
            for i, row in zip(fresh, self._look(input_ids[fresh], mask[fresh]), strict=True):
                self._kept[keys[i]] = row
        said = np.stack([self._kept[key] for key in keys])
        while len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)
        return torch.from_numpy(said).float().to(self.device)

    def _look(self, ids: Tensor, mask: Tensor) -> Array:
        by_expert: dict[str, list[Part]] = {}
        for part in self.instant.parts:
            by_expert.setdefault(part.expert, []).append(part)
        total: Any = 0.0
        for name, parts in by_expert.items():
            heap.settle()
            with self.alone(name), evaluating(self):  # what is kept must not hold dropout
                seen = self.instant.viewers[name].look(self, ids, mask, {p.view for p in parts})
            for part in parts:
                total = total + part.weight * said_by(part, seen[part.view], self.instant.classes)
        if self.instant.classes is None:
            result: Array = total
            return result
        return sharpened(np.log(total), self.instant.sharpness)

    @torch.no_grad()
    def label_scores(
        self, input_ids: Tensor, attention_mask: Tensor | None, answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """Log-probabilities over the labels, `[B, C]`, float32."""
        if self.head is not None:
            logits: Tensor = self(input_ids, attention_mask).logits
            return logits.float().log_softmax(-1)
        if self._disabled:  # what the base says must not be kept as the mixture's answer either
            return super().label_scores(input_ids, attention_mask, answers)
        instant = self.mixture(input_ids, attention_mask)
        if self.blend == 0:
            return instant
        return self._blended(super().label_scores(input_ids, attention_mask, answers), instant)

    def _blended(self, trained: Tensor, instant: Tensor) -> Tensor:
        """Scores `[B, 1]`, or log-probabilities `[B, C]`, averaged as scores or probabilities."""
        if self.outputs == 1:
            return self.blend * trained + (1 - self.blend) * instant
        return (self.blend * trained.exp() + (1 - self.blend) * instant.exp()).log()

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **settings: Any
    ) -> Any:
        """The trained part's texts.

        Raises:
            ConfigError: nothing was trained: probes tell labels apart, they write nothing.
        """
        if self.blend == 0 and not self._disabled:
            raise ConfigError(
                "The instant mixture scores labels; it writes no text",
                "leave answers at 'auto' or 'rank', or adapt with guided",
            )
        return super().generate(input_ids, attention_mask, **settings)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        labels: Tensor | None = None, **given: Any,
    ) -> AdaptedOutput | Any:  # fmt: skip
        """A pass of the trained part. A head's logits, without labels, are those of both.

        They are then log-probabilities `[B, C]`, or scores `[B, 1]`; with labels, for training,
        they are the trained part's alone.
        """
        answers = labels is None and self.only is None and not self._disabled
        if self.head is None or not answers:
            return super().forward(input_ids, attention_mask, labels, **given)
        instant = self.mixture(input_ids, attention_mask)
        if self.blend == 0:
            return AdaptedOutput(logits=instant)
        output = super().forward(input_ids, attention_mask, **given)
        trained: Tensor = output.logits  # type: ignore[assignment]
        if self.outputs != 1:
            trained = trained.log_softmax(-1)
        output.logits = self._blended(trained, instant)
        return output

    def gated_sites(self) -> list[Site]:
        """The sites with gates; none where the trained part has no say."""
        return super().gated_sites() if self.blend else []

    # -- what it is --------------------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        """The configuration, the experts and the parts."""
        parts = [[p.expert, p.view, round(p.weight, 6)] for p in self.instant.parts]
        return {**super().options(), "instant": parts, "blend": self.blend}

    def beside(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The parts in plain values, and their numbers by name."""
        listed, tensors = [], {}
        for i, part in enumerate(self.instant.parts):
            scale = None
            if part.probe is not None:
                scale = part.probe.scale
                for name in PROBE:
                    values = np.ascontiguousarray(getattr(part.probe, name), dtype=np.float64)
                    tensors[f"{i}.{name}"] = torch.from_numpy(values)
            own = {"expert": part.expert, "view": part.view, "weight": part.weight}
            listed.append({**own, "scale": scale})
        for name, prompt in self.instant.prompts.items():
            tensors[f"prompt.{name}"] = prompt.detach().float().cpu().contiguous()
        stated = {
            "sharpness": self.instant.sharpness, "blend": self.blend,
            "task": self.instant.task.to_dict(), "parts": listed,
        }  # fmt: skip
        return {"instant": stated}, tensors

    def parameter_counts(self) -> tuple[int, int]:
        """(trained and fitted, everything with it)."""
        trained, total = super().parameter_counts()
        probes = [p.probe for p in self.instant.parts if p.probe is not None]
        fitted = sum(p.weight.size + p.bias.size for p in probes)
        return trained + fitted, total + fitted


def said_by(part: Part, values: Array, classes: int | None) -> Array:
    """Probabilities `[N, C]` (or scores `[N, 1]`) of one part from its view `[N, d]`."""
    if part.probe is None:
        return np.exp(log_probabilities(values))
    scores = part.probe.scores(values)
    return scores if classes is None else np.exp(log_probabilities(scores))


def sharpened(logs: Array, sharpness: float) -> Array:
    """Log-probabilities `[N, C]` to the power of `sharpness`, summing to 1 again."""
    return log_probabilities(sharpness * logs)


def best_sharpness(logs: Array, truth: Array) -> float:
    """The power that makes held-out answers most likely, pulled to 1 as if by ten rows.

    Args:
        logs: held-out log-probabilities of the mixture, `[N, C]`.
        truth: `[N]` labels.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(truth))

    def loss(power: float) -> float:
        said = sharpened(logs, float(np.exp(power)))[rows, truth.astype(int)]
        return float(-said.sum() + 10 * power**2 / 2)

    found = minimize_scalar(loss, bounds=(-1.5, 1.5), method="bounded")
    return float(np.exp(found.x))


def from_saved(
    stated: Mapping[str, Any], tensors: Mapping[str, Tensor], experts: Sequence[Expert], base: Base
) -> dict[str, Any]:
    """The arguments of `InstantModel` from what `beside` gave.

    Raises:
        ConfigError: a number is missing.
    """
    from pemt.training.deploying import task_from_saved

    task = task_from_saved(stated["task"])
    by_name: dict[str, Expert | None] = {NONE: None, **{e.name: e for e in experts}}
    parts, viewers = [], {}
    for i, part in enumerate(stated["parts"]):
        name = part["expert"]
        if name not in by_name:
            raise ConfigError(f"The instant mixture needs {name!r}", "copy the folder again")
        viewers[name] = Viewer(by_name[name], task, base.tokenizer, base.backbone.family)
        probe = None
        if part["scale"] is not None:
            lacking = [n for n in PROBE if f"{i}.{n}" not in tensors]
            if lacking:
                raise ConfigError(
                    f"The instant mixture lacks {i}.{lacking[0]}", "copy the folder again"
                )
            mean, weight, bias = (tensors[f"{i}.{n}"].double().numpy() for n in PROBE)
            probe = FittedProbe(mean=mean, scale=part["scale"], weight=weight, bias=bias)
        parts.append(Part(expert=name, view=part["view"], weight=part["weight"], probe=probe))
    lent = {n[len("prompt.") :]: t for n, t in tensors.items() if n.startswith("prompt.")}
    instant = Instant(
        parts=tuple(parts), sharpness=stated["sharpness"], task=task, viewers=viewers, prompts=lent
    )
    return {"instant": instant, "blend": stated["blend"]}
