"""``pemt tasks list`` and ``pemt tasks show``."""

from __future__ import annotations

import collections
import json as json_format
from pathlib import Path
from typing import Any

from pemt.errors import DataError
from pemt.tasks.rows import Origin, load_examples, locate
from pemt.tasks.splits import official_splits
from pemt.tasks.task import Task, task_names

EXAMPLES = 3


def list_tasks(*, json: bool = False) -> int:
    """List every task of the registry: what kind it is, how it is scored, where its rows are.

    Args:
        json: print a JSON list on stdout instead of a table.
    """
    tasks = [Task.named(name) for name in task_names()]
    entries = [
        {
            "name": task.name,
            "version": task.version,
            "kind": task.kind,
            "labels": list(task.labels),
            "metrics": list(task.metrics),
            "sources": _sources(task),
            "description": task.description.strip(),
        }
        for task in tasks
    ]
    if json:
        print(json_format.dumps(entries, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("task", "kind", "labels", "metrics", "rows from"):
        table.add_column(column, no_wrap=column in ("task", "kind"))
    for task in tasks:
        table.add_row(
            task.name,
            task.kind,
            ", ".join(task.labels) or "-",
            ", ".join(task.metrics),
            ", ".join(_sources(task)),
        )
    Console().print(table)
    return 0


def show(name: str, *, data_dir: Path | None = None, json: bool = False) -> int:
    """Show one task: description, format, labels, metrics, and its rows if they are at hand.

    Downloads nothing: where the rows would have to be fetched first, it says from where.

    Args:
        name: a task of the registry (``pemt tasks list``), or a task's YAML file.
        data_dir: a local mirror, ``<task>/<split>.jsonl.gz``; default ``PEMT_DATA_DIR``.
        json: print one JSON object on stdout instead of text.
    """
    task = Task.from_file(name) if name.endswith((".yaml", ".yml")) else Task.named(name)
    report = _report(task, data_dir)
    if json:
        print(json_format.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(report)
    return 0


def _sources(task: Task) -> list[str]:
    rows = task.rows
    named = {"files": rows.files, "wheel": rows.wheel, "Hub": rows.hub}
    found = [name for name, source in named.items() if source]
    if rows.wheel is not None:
        found[found.index("wheel")] = f"wheel {rows.wheel.asset}"
    return found


def _report(task: Task, data_dir: Path | None) -> dict[str, Any]:
    report: dict[str, Any] = {"task": task.to_dict(), "at_hand": False, "from": None}
    origin: Origin
    try:
        origin = locate(task, data_dir=data_dir)
    except DataError as error:
        report["from"] = str(error)
        return report
    report["from"] = f"{origin.kind} {origin.where}"
    report["at_hand"] = origin.at_hand
    if not origin.at_hand:
        return report
    splits = official_splits(task, load_examples(task, data_dir=data_dir))
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    report["splits"] = splits.sizes
    if task.kind == "classification":
        # by index: where rows bring their own options, the target is no label word
        counts = {s: collections.Counter(e.label for e in part) for s, part in parts.items()}
        report["label_counts"] = {
            split: {word: count[i] for i, word in enumerate(task.labels)}
            for split, count in counts.items()
        }
    report["examples"] = [
        {"id": e.id, "text": e.text, "target": e.target} for e in splits.train[:EXAMPLES]
    ]
    return report


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, task = Console(), report["task"]
    console.print(f"[bold]{task['name']}[/bold] version {task['version']}, {task['kind']}")
    console.print(escape(task["description"].strip()))
    facts = Table(show_header=False)
    for key in ("template", "labels", "metrics", "licence", "citation", "notes"):
        value = task[key]
        if value:
            text = ", ".join(value) if isinstance(value, list) else str(value).strip()
            facts.add_row(key, escape(text))
    facts.add_row("split rule", task["split"]["rule"])
    facts.add_row("rows from", escape(str(report["from"])))
    console.print(facts)
    if not report["at_hand"]:
        console.print("The rows are not at hand; they are fetched when a command first needs them.")
        return
    counts = report.get("label_counts")
    table = Table("split", "rows", *(task["labels"] if counts else ()))
    for split, size in report["splits"].items():
        cells = [str(n) for n in counts[split].values()] if counts else []
        table.add_row(split, str(size), *cells)
    console.print(table)
    for example in report["examples"]:
        console.print(f"[dim]{escape(example['id'])}[/dim] {escape(example['text'])}")
        console.print(f"  -> [bold]{escape(example['target'])}[/bold]")
