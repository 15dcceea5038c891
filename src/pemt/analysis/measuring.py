"""Gates of a model on examples: one pass over the texts, nothing trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pemt.analysis.gates import Array, ExampleGates, GateReport, check_finite
from pemt.errors import ConfigError, DataError
from pemt.model import PemtModel
from pemt.nn.gate import entropy
from pemt.tasks import Example, Task
from pemt.tasks.encoding import Collator, encode_prompts_only
from pemt.training.evaluating import evaluating, lengths, longest_first, side_of
from pemt.training.settings import TrainSettings

STILL = 1e-6
"""A standard deviation up to this is no spread."""


@torch.no_grad()
def measure_gates(
    model: PemtModel, task: Task, tokenizer: Any, examples: Sequence[Example],
    settings: TrainSettings | None = None, *, notes: Sequence[str] = (),
) -> GateReport:  # fmt: skip
    """The gates of every example, summed up by layer, class and stack.

    Sums are kept, not all gates: what grows with the examples is `[N, K]` for each stack.

    Args:
        model: stage 2, with gates.
        task: of the examples.
        tokenizer: the base's.
        examples: their labels decide the classes, where the task has classes.
        settings: batch size and lengths.
        notes: sentences to keep with the report.

    Raises:
        ConfigError: the model has no gates.
        DataError: no examples, or gates that are not finite.
    """
    sites = model.gated_sites()
    if not sites:
        raise ConfigError("This model has no gates", "take one with a mixture of experts")
    if not examples:
        raise DataError("No examples to look at", "give at least one")
    settings = settings or TrainSettings()
    names, layers = model.gate_names, [s.label for s in sites]
    stacks = tuple(s.stack for s in sites)
    encoded = encode_prompts_only(
        examples, task, tokenizer, model.family, **lengths(model, settings)
    )
    collate = Collator(tokenizer, model.family, side=side_of(model.family))
    size = (len(sites), len(names))
    total, squares, entropies = np.zeros(size), np.zeros(size), np.zeros(size[0])
    classes = {word: np.zeros(size) for word in _classes(task)}
    counts = dict.fromkeys(classes, 0)
    by_stack = {s: np.zeros((len(examples), size[1])) for s in dict.fromkeys(stacks)}
    origin: Array | None = None  # deviations are summed from here: exactly 0 where nothing differs
    order = longest_first(encoded)
    with evaluating(model):
        for start in range(0, len(order), settings.eval_batch_size):
            rows = order[start : start + settings.eval_batch_size]
            batch = collate([encoded[i] for i in rows])
            found = model.gates(
                batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
            ).cpu()  # [L, B, K]
            gates = found.double().numpy()
            check_finite(gates, layers)
            origin = gates[:, 0].copy() if origin is None else origin
            away = gates - origin[:, None]
            total += away.sum(1)
            squares += (away**2).sum(1)
            entropies += entropy(found.double()).sum(1).numpy()
            for stack, kept in by_stack.items():
                kept[rows] = gates[[i for i, own in enumerate(stacks) if own == stack]].mean(0)
            for b, i in enumerate(rows):
                word = _class_of(task, examples[i])
                if word in classes:
                    classes[word] += gates[:, b]
                    counts[word] += 1
    assert origin is not None
    n = len(examples)
    variance = np.maximum(squares - total**2 / n, 0.0) / max(n - 1, 1)
    there = {word: values / counts[word] for word, values in classes.items() if counts[word]}
    labels = tuple(_class_of(task, e) or e.target for e in examples)
    deviation = np.sqrt(variance)
    return GateReport(
        experts=tuple(names), layers=tuple(layers), stacks=stacks, mean=origin + total / n,
        rows=n, deviation=deviation, example_effective=np.exp(entropies / n),
        spread={s: kept.std(0, ddof=1 if n > 1 else 0) for s, kept in by_stack.items()},
        classes=there, class_rows={word: counts[word] for word in there},
        class_share={s: _between(kept, labels) for s, kept in by_stack.items()} if there else {},
        examples=ExampleGates(
            ids=tuple(e.id for e in examples), labels=labels, by_stack=by_stack
        ),
        notes=(*notes, *_about(model, n, deviation)),
    )  # fmt: skip


def _classes(task: Task) -> tuple[str, ...]:
    """The words by which examples are grouped; none where rows have words of their own."""
    return task.labels if task.kind == "classification" and not task.option_columns else ()


def _class_of(task: Task, example: Example) -> str:
    if not _classes(task) or example.label is None:
        return ""
    return task.labels[int(example.label)]


def _between(gates: Array, labels: Sequence[str]) -> float:
    """Share of the variance of `[N, K]`, summed over columns, that lies between classes."""
    whole = float(((gates - gates.mean(0)) ** 2).sum())
    if whole <= STILL**2 * gates.size:
        return 0.0
    kept = np.array(labels)
    within = 0.0
    for word in set(labels):
        own = gates[kept == word]
        within += float(((own - own.mean(0)) ** 2).sum())
    return 1 - within / whole


def _about(model: PemtModel, rows: int, deviation: Array) -> list[str]:
    """What a reader must know to read the numbers."""
    said = []
    if len(model.gate_names) == 1:
        said.append("There is one expert, so every gate is 1 whatever was learnt.")
    elif model.pemt_config.gate == "uniform":
        said.append("These gates are uniform by construction; nothing about them was learnt.")
    elif rows > 1 and deviation.max() <= STILL:
        why = {
            "task": "they read the prompt alone (gate='task')",
            "example": "nothing of the text reaches them (a decoder-only base reads the prompt "
            "first)" if model.family == "decoder-only" else "the texts do not move them",
        }  # fmt: skip
        said.append(f"Every example has the same gates: {why[model.pemt_config.gate]}.")
    banks = [layer.bank for layer in model.mixtures if layer.bank is not None]
    if any(bank.experts < len(model.experts) for bank in banks):
        said.append(
            "Some experts are absent at some of the base's linear maps; their gate there is a "
            "share that adds nothing."
        )
    return said
