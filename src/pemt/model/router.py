"""Several adapted tasks on one base and one set of experts; each row of a batch is of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pemt.backbones import Backbone, max_positions
from pemt.backbones import norms as find_norms
from pemt.errors import ConfigError, ExpertError, UnknownNameError
from pemt.experts import Expert
from pemt.model.adapted import AdaptedModel
from pemt.model.coverage import banks, expert_sites
from pemt.model.pemt import NONE, PemtModel
from pemt.nn import ByTask, ForwardContext, MixtureLayer, TrainedNorm, bridge_summary
from pemt.nn.mixture import GateInput

ALIKE = ("mixture", "gate", "train_norms")
"""Settings that all tasks of a router have in common."""


@dataclass(frozen=True)
class TaskPart:
    """What one task trained: all of a `PemtModel` but the base and the experts.

    Attributes:
        name: of the task.
        config: `ALIKE` of its configuration.
        experts: as it was adapted with, in its order.
        gate_names: its gate columns.
        prompt: `[P, D]`, fused with the source prompts.
        gates: by site.
        gate_inputs: by site.
        adapters: by site.
        norms: of the base, in order; empty where they did not train.
        head: encoder-only.
        outputs: of the head.
    """

    name: str
    config: dict[str, Any]
    experts: tuple[Expert, ...]
    gate_names: list[str]
    prompt: Tensor
    gates: list[nn.Module | None]
    gate_inputs: list[GateInput]
    adapters: list[nn.Module | None]
    norms: list[nn.Module]
    head: nn.Module | None
    outputs: int | None

    @classmethod
    def of(cls, name: str, model: PemtModel) -> TaskPart:
        """The part of a model that is on its base; it is not copied. Detach the model next.

        Raises:
            ConfigError: a model that answers in another way, such as an instant one.
        """
        if type(model) is not PemtModel:
            raise ConfigError(
                f"{name!r} is a {type(model).__name__}, which runs experts one by one",
                "answer with it alone: a router takes trained mixtures",
            )
        config = model.pemt_config
        for said, wrong in (
            (f"top_k={config.top_k}", config.top_k is not None),
            ('target_adapter="lora"', config.target_adapter == "lora"),
        ):
            if wrong:
                raise ConfigError(
                    f"{name!r} was adapted with {said}",
                    "answer with it alone: a router takes dense mixtures with serial adapters",
                )
        attached = [getattr(parent, attribute) for parent, attribute, _ in model._replaced]
        with torch.no_grad():
            prompt = model.eval().prompt().clone()
        return cls(
            name=name, config={k: getattr(model.pemt_config, k) for k in ALIKE},
            experts=model.experts, gate_names=model.gate_names, prompt=prompt,
            gates=[layer.gate for layer in model.mixtures],
            gate_inputs=[layer.gate_input for layer in model.mixtures],
            adapters=[layer.adapter for layer in model.mixtures],
            norms=[m.trained for m in attached if isinstance(m, TrainedNorm)],
            head=model.head, outputs=model.outputs,
        )  # fmt: skip


class TaskRouter(AdaptedModel):
    """Answers batches whose rows are of different tasks, as each task's own model would.

    The base and the stacked experts are there once and run once for the whole batch. Prompts,
    gates, target adapters, norms and heads are each row's own. It does not train.

    Use: `with router.on(["reviews", "spam"]): router(input_ids, attention_mask)`.

    Args:
        base: with nothing attached.
        parts: of the tasks, each name once; made of models on this base.
        backbone: the base's description; looked up by its type where None.

    Raises:
        ConfigError: no tasks, one twice, or settings that cannot run together.
        ExpertError: tasks of different experts, or another base.
    """

    def __init__(
        self, base: Any, parts: Sequence[TaskPart], *, backbone: Backbone | None = None
    ) -> None:
        _check(parts)
        outputs = [part.outputs for part in parts if part.outputs is not None]
        super().__init__(base, outputs=max(outputs, default=None), backbone=backbone)
        with self.attaching():
            self._attach(base, parts)
        self.requires_grad_(False)
        self.eval()

    def _attach(self, base: Any, parts: Sequence[TaskPart]) -> None:
        first = parts[0]
        self.names = [part.name for part in parts]
        self.outputs_of = {part.name: part.outputs for part in parts}
        self.task_gates = first.config["gate"] == "task" and first.config["mixture"]
        self._rows: Tensor | None = None
        mixed = first.experts if first.config["mixture"] else ()
        others = expert_sites(
            base, self.backbone, self.base_fingerprint(), self.sites, first.experts
        )
        self.sites += others if mixed else []
        names = [e.name for e in first.experts]
        self.gate_names = [*names, NONE] if any(NONE in p.gate_names for p in parts) else names
        columns = [[self.gate_names.index(n) for n in part.gate_names] for part in parts]
        lengths = [len(part.prompt) for part in parts]
        prompts = torch.zeros(len(parts), max(lengths), self.width)
        for row, part in zip(prompts, parts, strict=True):
            row[: len(part.prompt)] = part.prompt
        self.register_buffer("prompts", prompts.to(base.device), persistent=False)
        self.register_buffer(
            "prompt_lengths", torch.tensor(lengths, device=base.device), persistent=False
        )
        if first.config["train_norms"]:
            places = list(find_norms(base, self.backbone))
            for (_, parent, attribute), own in zip(
                places, zip(*(part.norms for part in parts), strict=True), strict=True
            ):
                layer = TrainedNorm(getattr(parent, attribute), self.slot)
                layer.trained = ByTask(own, self.slot)
                self.replace(parent, attribute, layer)
        self.mixtures: list[MixtureLayer] = []
        for i, (site, bank, here) in enumerate(banks(self.sites, mixed, base.dtype)):
            gate = adapter = None
            if bank is not None:
                gate = ByTask([part.gates[i] for part in parts], self.slot, columns=columns)
            if any(part.adapters[i] is not None for part in parts):
                adapter = ByTask([part.adapters[i] for part in parts], self.slot)
            made = MixtureLayer(
                site.module, bank, gate, adapter, self.slot, index=site.index, stack=site.stack,
                gate_input=first.gate_inputs[i], sparsity=False,
                present=None if len(here) == len(self.gate_names) else here,
            )  # fmt: skip
            self.replace(site.parent, site.attribute, made.to(base.device))
            self.mixtures.append(made)
        if self.head is not None:
            widths = [range(part.outputs or 1) for part in parts]
            heads = [part.head for part in parts]
            self.head = ByTask(heads, self.slot, columns=widths, fill=-torch.inf)  # type: ignore[assignment]

    @contextmanager
    def on(self, tasks: Sequence[str]) -> Iterator[TaskRouter]:
        """Inside, row i of every batch is of the task `tasks[i]`.

        Raises:
            UnknownNameError: a task that is not here.
        """
        for name in tasks:
            if name not in self.names:
                raise UnknownNameError("task", name, self.names)
        before = self._rows
        self._rows = torch.tensor([self.names.index(name) for name in tasks])
        try:
            yield self
        finally:
            self._rows = before

    def prompt(self) -> Tensor:
        """The longest prompt, `[P, D]`."""
        longest: Tensor = self.prompts[int(self.prompt_lengths.argmax())]  # type: ignore[operator,index]
        return longest

    def _context(self, **given: Any) -> ForwardContext:
        return super()._context(tasks=self._rows, **given)

    def _run(
        self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None,
        decoder_input_ids: Tensor | None, context: ForwardContext,
    ) -> Any:  # fmt: skip
        if labels is not None:
            raise ConfigError("Labels for a router", "it answers: train each task on its own")
        return super()._run(input_ids, attention_mask, labels, decoder_input_ids, context)

    def _prompted(
        self, input_ids: Tensor, attention_mask: Tensor | None, context: ForwardContext,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """As for one task, each row with its own prompt; encoders get real positions together."""
        del labels
        if self._disabled:
            return super()._prompted(input_ids, attention_mask, context)
        if self._rows is None or len(self._rows) != len(input_ids):
            given = "no tasks" if self._rows is None else f"tasks for {len(self._rows)} rows"
            raise ConfigError(
                f"A batch of {len(input_ids)} rows and {given}",
                "say whose they are: with router.on([one task name a row])",
            )
        mask = (
            torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(torch.long)
        )
        packed = self.family != "decoder-only"
        if packed:
            order = torch.argsort(mask, dim=1, descending=True, stable=True)
            input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
        embedded = self._embed(input_ids)
        rows = self._rows.to(input_ids.device)
        prompts, lengths = self.prompts[rows], self.prompt_lengths[rows]  # type: ignore[index]
        longest = int(lengths.max())  # of these rows: the longest of all may not be here
        prompts = prompts[:, :longest]
        there = (torch.arange(longest, device=rows.device) < lengths.unsqueeze(1)).long()
        start = 1 if self.family == "encoder-only" else 0
        context.prompt_start, context.prompt_length = start, longest
        context.prompt_lengths = lengths
        embedded = torch.cat(
            [embedded[:, :start], prompts.to(embedded.dtype), embedded[:, start:]], 1
        )
        text = torch.cat([mask[:, :start], torch.zeros_like(there), mask[:, start:]], 1)
        mask = torch.cat([mask[:, :start], there, mask[:, start:]], 1)
        if packed:  # shorter prompts leave no gap: positions count
            order = torch.argsort(mask, dim=1, descending=True, stable=True)
            used = order[:, : int(mask.sum(1).max())]
            embedded = embedded.gather(1, used.unsqueeze(-1).expand(-1, -1, self.width))
            mask, text = mask.gather(1, used), text.gather(1, used)
        limit = max_positions(self.base.config, self.backbone)
        most = int(mask.sum(1).max())
        if limit is not None and most > limit:
            raise ConfigError(
                f"Prompt and text make {most} positions", f"this base has {limit}: shorten the text"
            )
        if self.task_gates:
            embedded = bridge_summary(embedded, context, reentrant=False, field="task_summary")
        return embedded, mask, text


def _check(parts: Sequence[TaskPart]) -> None:
    names = [part.name for part in parts]
    if not parts or len(set(names)) != len(names):
        raise ConfigError(f"Tasks {names}", "give at least one, each name once")
    first, wanted = parts[0], _identities(parts[0])
    for part in parts[1:]:
        own = _identities(part)
        odd = sorted(n for n in {*own, *wanted} if own.get(n) != wanted.get(n))
        if odd:
            raise ExpertError(
                f"The tasks {first.name!r} and {part.name!r} mix different experts: {odd[0]!r} is "
                "not the same in both",
                "adapt them with the same --experts from the same library, or answer apart",
            )
        for key in ALIKE:
            if part.config[key] != first.config[key]:
                raise ConfigError(
                    f"{key}={first.config[key]!r} in {first.name!r} and {part.config[key]!r} in "
                    f"{part.name!r}",
                    "adapt them alike, or answer with each alone",
                )
        if (part.outputs is None) != (first.outputs is None):
            raise ConfigError(
                f"{first.name!r} and {part.name!r} are of different bases", "answer with each alone"
            )


def _identities(part: TaskPart) -> dict[str, Any]:
    """Of every expert: what it holds, or itself where it is in no library."""
    return {e.name: e.info.content_hash or id(e) for e in part.experts}
