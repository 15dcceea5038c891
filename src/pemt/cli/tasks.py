"""``pemt tasks list``, ``pemt tasks show`` and ``pemt tasks check``."""

from __future__ import annotations

import collections
import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pemt.cli.choose import task_from
from pemt.errors import DataError
from pemt.tasks.rows import Origin, locate
from pemt.tasks.splits import load_splits
from pemt.tasks.task import Task, task_names

if TYPE_CHECKING:
    from rich.console import Console

    from pemt.tasks.checking import TaskReport
    from pemt.tasks.lengths import Lengths

EXAMPLES = 3
SHOWN_PROBLEMS = 20
SHOWN_PLACES = 5


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


def check(
    task: str,
    *,
    base: str = "minilm",
    max_source_length: int = 256,
    max_target_length: int = 16,
    data_dir: Path | None = None,
    json: bool = False,
    **flags: Any,
) -> int:
    """Check a task before training: its rows, labels, repeated texts and lengths, all its problems.

    Every unusable row is listed with file and line, not only the first. Of the base only the
    tokenizer is loaded. Exits with 1 where training would refuse the task, with 0 otherwise.

    Example: pemt tasks check my.yaml

    Your own rows: pemt tasks check rows.csv --text-template "message: {text}" --label-column kind
    --description "Given a message after 'message:', the task is to ..."

    Args:
        task: a name of `pemt tasks list`, a YAML file of your own, or a data file (.csv, .tsv,
            .jsonl, .parquet) with --text-template, --label-column and --description; --train FILE
            may stand in its place.
        base: whose tokenizer measures the texts: minilm, smollm2, a folder or a Hub id.
        max_source_length: tokens of a text that training is given.
        max_target_length: tokens of an answer, end token included.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        json: print the report as JSON on stdout.
        flags: of `choose.task_from`: how to read a data file.
    """
    from pemt.bases import load_tokenizer
    from pemt.tasks.checking import check_task
    from pemt.tasks.lengths import Reader

    chosen = task_from(task, **flags)
    words = load_tokenizer(base)
    reader = Reader(
        base=words.name, tokenizer=words.tokenizer, family=words.backbone.family,
        positions=words.positions, max_source_length=max_source_length,
        max_target_length=max_target_length,
    )  # fmt: skip
    report = check_task(chosen, data_dir=data_dir, reader=reader)
    if json:
        print(json_format.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print_check(report)
    return 0 if report.trains else 1


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
    splits = load_splits(task, data_dir=data_dir)
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
    console.print(f"[bold]{escape(task['name'])}[/bold] version {task['version']}, {task['kind']}")
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
    table = Table("split", "rows", *(map(escape, task["labels"]) if counts else ()))
    for split, size in report["splits"].items():
        cells = [str(n) for n in counts[split].values()] if counts else []
        table.add_row(split, str(size), *cells)
    console.print(table)
    for example in report["examples"]:
        console.print(f"[dim]{escape(example['id'])}[/dim] {escape(example['text'])}")
        console.print(f"  -> [bold]{escape(example['target'])}[/bold]")


def _print_check(report: TaskReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{escape(report.task)}[/bold], {report.kind}, {escape(report.source)}")
    if report.splits:
        table = Table("split", "rows", "repeated texts")
        labels = list(report.splits["train"].labels)
        for word in labels[:SHOWN_PROBLEMS]:
            table.add_column(escape(word))
        for name, split in report.splits.items():
            counts = [str(n) for n in split.labels.values()][:SHOWN_PROBLEMS]
            table.add_row(name, str(split.rows), str(split.duplicates), *counts)
        console.print(table)
        if len(labels) > SHOWN_PROBLEMS:
            console.print(f"... and {len(labels) - SHOWN_PROBLEMS} labels more (--json has all).")
        each = " per label" if labels else ""
        pairs = ", ".join(f"{pair} {count}" for pair, count in report.overlap.items())
        console.print(f"Texts in two splits: {pairs}.")
        console.print(f"Texts with different answers: {report.contradictions}.")
        console.print(
            f"Enough rows for up to {report.most_shots} shots{each}, and as many for validation."
        )
    if report.lengths is not None:
        _print_lengths(console, report.lengths)
    for identity, text, target in report.examples:
        console.print(f"[dim]{escape(identity)}[/dim] {escape(text)}")
        console.print(f"  -> [bold]{escape(target)}[/bold]")
    for note in report.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
    for problem in report.problems[:SHOWN_PROBLEMS]:
        console.print(f"[red]problem:[/red] {escape(problem.what)}", soft_wrap=True)
        places = problem.places
        if places:
            more = f" and {len(places) - SHOWN_PLACES} more" if len(places) > SHOWN_PLACES else ""
            rows = f"{len(places)} {'row' if len(places) == 1 else 'rows'}"
            shown = ", ".join(places[:SHOWN_PLACES])
            console.print(f"  {rows}: {escape(shown)}{more}", soft_wrap=True)
        if problem.fix:
            console.print(f"  -> {escape(problem.fix)}", soft_wrap=True)
    if len(report.problems) > SHOWN_PROBLEMS:
        console.print(f"... and {len(report.problems) - SHOWN_PROBLEMS} problems more.")
    if report.trains:
        console.print("No problem: this task trains.")
    else:
        console.print(f"{len(report.problems)} problems: this task would not train.")


def _print_lengths(console: Console, lengths: Lengths) -> None:
    from rich.markup import escape

    quantiles = ", ".join(f"{name} {size}" for name, size in lengths.quantiles.items())
    console.print(f"Tokens of {lengths.measured} texts for {escape(lengths.base)}: {quantiles}.")
    console.print(f"Longer than the limit of {lengths.limit}: {lengths.truncated:.1%}.")
    console.print(f"Prompt, from the description: {lengths.prompt} tokens.")
    if lengths.label_tokens:
        words = [" ".join(tokens) for tokens in lengths.label_tokens.values()]
        listed = ", ".join(f"{w} ({t})" for w, t in zip(lengths.label_tokens, words, strict=True))
        written = "" if lengths.family != "encoder-only" else ", which this base need not write"
        console.print(escape(f"Label words and their tokens{written}: {listed}."))
