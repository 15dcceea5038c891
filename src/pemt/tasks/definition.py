"""A task's YAML file: the keys it may hold, and what contradicts itself in a task."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pemt.errors import ConfigError
from pemt.tasks.shaping import Mark
from pemt.tasks.sources import Group, SplitRule, build, mapping, parse_rows, strings

if TYPE_CHECKING:
    from pemt.tasks.task import Task

_COLUMN = re.compile(r"[^\W\d](?:[\w -]*\w)?")
KINDS = ("classification", "regression", "generation")
METRICS: dict[str, tuple[str, ...]] = {
    "classification": (
        "accuracy", "f1", "macro_f1", "balanced_accuracy", "matthews",
        "question_f1", "question_exact_match",
    ),
    "regression": ("pearson", "spearman"),
    "generation": ("exact_match", "token_f1"),
}  # fmt: skip
"""The metrics each kind of task may name; the first a task names is its main one."""


def task_keys(raw: object, where: str, folder: Path) -> dict[str, Any]:
    """The arguments of ``Task`` from the content of a YAML file.

    Args:
        raw: as parsed.
        where: the file, for messages.
        folder: what paths in it are relative to.

    Raises:
        ConfigError: a part of the wrong shape.
        UnknownNameError: an unknown key in one of the parts.
    """
    keys = dict(mapping(raw, where))
    keys.setdefault("name", Path(where).stem)
    keys.setdefault("version", 1)
    keys["labels"] = strings(keys.get("labels", ()), f"{where}: labels")
    keys["metrics"] = strings(
        keys.get("metrics", METRICS.get(str(keys.get("kind")), ("",))[:1]), f"{where}: metrics"
    )
    keys["rows"] = parse_rows(keys.get("rows", {}), where, folder)
    keys["split"] = build(SplitRule, keys.get("split", {}), f"{where}: split")
    keys["option_columns"] = strings(keys.get("option_columns", ()), f"{where}: option_columns")
    variants = mapping(keys.get("label_variants", {}), f"{where}: label_variants")
    keys["label_variants"] = {
        word: strings(variants[word], f"{where}: label_variants.{word}") for word in variants
    }
    keys["clean"] = dict(mapping(keys.get("clean", {}), f"{where}: clean"))
    marks = keys.get("marks", ())
    if not isinstance(marks, (list, tuple)):
        raise ConfigError(f"{where}: marks is {marks!r}", "give a list of mappings")
    keys["marks"] = tuple(build(Mark, mark, f"{where}: marks") for mark in marks)
    if keys.get("group") is not None:
        keys["group"] = build(Group, keys["group"], f"{where}: group")
    if "label_values" in keys:
        values = mapping(keys["label_values"], f"{where}: label_values")
        keys["label_values"] = {key: _index(values[key], where) for key in values}
    if "label_bins" in keys:
        bins = mapping(keys["label_bins"], f"{where}: label_bins")
        keys["label_bins"] = {word: _interval(bins[word], where) for word in bins}
    if keys.get("score_range") is not None:
        keys["score_range"] = _interval(keys["score_range"], where)
    return keys


def problem_of(task: Task) -> tuple[str, str] | None:
    """What contradicts itself in a task, and the remedy."""
    if not task.metrics:
        return "no metric", "name at least one"
    if not task.description.strip():
        return (
            "no description",
            "write one sentence, from which the prompt starts: Given INPUT, the task is to GOAL.",
        )
    if task.kind == "classification" and len(task.labels) < 2:
        return f"{len(task.labels)} labels", "a classification task needs at least two label words"
    if task.kind != "classification" and task.labels:
        return f"labels with kind {task.kind!r}", "leave labels out"
    if len(set(task.labels)) != len(task.labels):
        return f"a label word twice in {task.labels}", "label words must differ"
    for word in task.labels:
        if not word or word != word.strip():
            return f"the label word {word!r}", "write it without spaces at its ends, and not blank"
    for name, words in task.label_variants.items():
        if len(words) != len(task.labels) or len(set(words)) != len(words):
            return f"label variant {name!r} is {words}", f"give {len(task.labels)} different words"
    if task.option_columns and len(task.option_columns) != len(task.labels):
        return (
            f"{len(task.option_columns)} option_columns and {len(task.labels)} labels",
            "give one column per label, in the same order",
        )
    two_labels = [name for name in ("f1", "question_f1") if name in task.metrics]
    if two_labels and len(task.labels) != 2:
        return f"metric {two_labels[0]} with more than two labels", "use macro_f1"
    if any(not 0 <= index < len(task.labels) for index in task.label_values.values()):
        return "label_values point outside labels", f"use 0 to {len(task.labels) - 1}"
    if task.label_bins and set(task.label_bins) != set(task.labels):
        return "label_bins do not name each label once", f"labels: {', '.join(task.labels)}"
    if task.score_step <= 0:
        return f"score_step {task.score_step}", "give a number above 0"
    try:
        parts = list(string.Formatter().parse(task.template))
    except ValueError as error:
        return f"template {task.template!r}: {error}", "write column names in braces"
    names = [name for _, name, spec, conversion in parts if name is not None]
    if not names:
        return f"template {task.template!r} reads no column", "write column names in braces: {text}"
    if any(not _COLUMN.fullmatch(name) for name in names) or any(p[2] for p in parts):
        # Attribute and index access would let a template read more than the row's columns.
        return f"template {task.template!r}", "write plain column names in braces: {text}"
    return None


def _interval(raw: object, where: str) -> tuple[float, float]:
    if isinstance(raw, (list, tuple)) and len(raw) == 2:
        low, high = raw
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low <= high:
            return float(low), float(high)
    raise ConfigError(f"{where}: {raw!r} is not an interval", "give [low, high]")


def _index(raw: object, where: str) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    raise ConfigError(f"{where}: label_values: {raw!r} is not an index", "give 0, 1, ...")
