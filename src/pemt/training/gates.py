"""The gates that a model gives to examples of a task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from pemt.bases import Base
from pemt.model import AdaptedModel, PemtModel
from pemt.tasks import Example, Task
from pemt.tasks.encoding import Collator, encode_prompts_only
from pemt.training.evaluating import evaluating, lengths, side_of
from pemt.training.settings import TrainSettings


@torch.no_grad()
def gates_of(
    model: AdaptedModel,
    task: Task,
    base: Base,
    examples: Sequence[Example],
    settings: TrainSettings,
) -> tuple[torch.Tensor, dict[str, float]] | None:
    """Mean gates over examples, `[layers, K]`, and how far the gates of one example are spread.

    The spread is a mean over layers and examples: "entropy" in nats, "top", the largest weight, and
    "effective_experts", exp(entropy). A mean over examples is flatter than the gates that it is
    over. None for a model without gates.
    """
    from pemt.analysis.gates import entropy

    if not isinstance(model, PemtModel) or not examples or not model.gated_sites():
        return None
    total = torch.zeros(len(model.gated_sites()), len(model.gate_names))
    spread = torch.zeros(2)
    for gates in gates_of_rows(model, task, base, examples, settings):
        total += gates.sum(1).cpu()
        spread += torch.stack([entropy(gates).sum(), gates.amax(-1).sum()]).cpu()
    nats, top = (spread / (len(examples) * len(total))).tolist()
    spreads = {"entropy": nats, "effective_experts": math.exp(nats), "top": top}
    return total / len(examples), spreads


@torch.no_grad()
def gates_of_rows(
    model: PemtModel, task: Task, base: Base, examples: Sequence[Example], settings: TrainSettings
) -> Iterator[torch.Tensor]:
    """The gates of examples, batch by batch: `[layers, B, K]`."""
    encoded = encode_prompts_only(
        examples, task, base.tokenizer, model.family, **lengths(model, settings)
    )
    collate = Collator(base.tokenizer, model.family, side=side_of(model.family))
    with evaluating(model):
        for start in range(0, len(encoded), settings.eval_batch_size):
            batch = collate(encoded[start : start + settings.eval_batch_size])
            yield model.gates(
                batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
            )
