"""The answers that were wrong, the surest first, with their texts: what people learn most from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pemt.tasks.metrics import compute

if TYPE_CHECKING:
    from pemt.tasks import Example, Task
    from pemt.training.evaluating import Predictions

SHOWN = 50
LETTERS = 2000
"""Longer texts are cut: a run's folder should not hold the data set again."""


def probabilities_of(predictions: Predictions) -> list[float | None]:
    """Of each answer that was given, among those that could have been; None where none was scored.

    Args:
        predictions: with or without log-probabilities.
    """
    scores = predictions.log_probabilities
    if scores is None:
        return [None] * len(predictions.values)
    rows = zip(scores, predictions.values, strict=True)
    return [None if value is None else round(float(row[value].exp()), 4) for row, value in rows]


def worst_errors(
    task: Task, examples: Sequence[Example], predictions: Predictions, *, limit: int = SHOWN
) -> list[dict[str, Any]]:
    """Wrong answers: by probability, by distance from the true score, or by how little is right.

    Args:
        task: of the examples.
        examples: labelled.
        predictions: of them, in their order.
        limit: at most this many.

    Returns:
        id, text, target, answer and probability (None where none was scored) of each.
    """
    probabilities = probabilities_of(predictions)
    found: list[tuple[float, int]] = []
    for i, (example, value) in enumerate(zip(examples, predictions.values, strict=True)):
        if task.kind == "classification":
            probability = probabilities[i]
            sure = 0.0 if probability is None or math.isnan(probability) else probability
            if value != example.label:
                found.append((-sure, i))
        elif task.kind == "regression":
            away = math.inf if value is None else abs(float(value) - float(example.label or 0.0))
            found.append((-math.inf if math.isnan(away) else -away, i))
        else:
            score = compute(task, [value], [example.accepted or (example.target,)])
            if score[task.metrics[0]] < 1:
                found.append((score[task.metrics[0]], i))
    found.sort()
    return [
        {
            "id": examples[i].id, "target": examples[i].target, "answer": predictions.texts[i],
            "probability": probabilities[i], "text": _cut(examples[i].text),
        }
        for _, i in found[:limit]
    ]  # fmt: skip


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else text[:LETTERS] + " ..."
