"""`pemt experts`: look into a library of experts, on disk or on the Hub."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pemt.errors import ConfigError, PemtError

if TYPE_CHECKING:
    from rich.table import Table

    from pemt.experts import ExpertLibrary


def list_experts(library: str, *, json: bool = False) -> int:
    """List the experts of a library: what each was trained on, for which base, how well it did.

    Only the experts' descriptions are read. An expert whose description cannot be used is listed
    with the reason; `pemt experts verify` checks the tensors too.

    Args:
        library: Folder that holds the experts, one folder each, or hf://user/repo@revision.
        json: Print the experts' full descriptions as JSON instead of a table.

    Returns:
        0.
    """
    store = open_library(library)
    rows: list[dict[str, Any]] = []
    for name, found in store.infos():
        if isinstance(found, PemtError):
            rows.append({"name": name, "problem": str(found)})
        else:
            rows.append(found.to_json())
    if json:
        print_json(rows)
        return 0
    columns = ("name", "task", "kind", "rank", "base", "metrics", "created")
    table = _table(f"{len(rows)} experts in {store}", *columns)
    for row in rows:
        if "problem" in row:
            _add(table, row["name"], row["problem"], *[""] * (len(columns) - 2))
        else:
            _add(table, *(_cell(row[column]) for column in columns))
    _print(table)
    return 0


def show(library: str, name: str, *, json: bool = False) -> int:
    """Show where one expert came from: task, base, data, settings and what it reached.

    "size" is the mean norm of its branches' B A; in a mixture much larger experts drown others.

    Args:
        library: Folder that holds the experts, one folder each, or hf://user/repo@revision.
        name: The expert's name, as `pemt experts list` gives it.
        json: Print JSON instead of a table.

    Returns:
        0.
    """
    store = open_library(library)
    shown = store.info(name).to_json()
    with contextlib.suppress(PemtError):  # of damaged tensors `verify` tells
        shown["size"] = round(store.load(name, verify=False).size, 3)
    if json:
        print_json(shown)
        return 0
    table = _table(f"Expert {name}", "field", "value")
    for field, value in shown.items():
        _add(table, field, _cell(value))
    _print(table)
    return 0


def verify(library: str, name: str | None = None, *, json: bool = False) -> int:
    """Check experts to the last byte: every file's hash, every tensor's shape and values.

    Run it after copying a library, or when an expert is refused.

    Args:
        library: Folder that holds the experts, one folder each, or hf://user/repo@revision.
        name: Check this expert only; without it, everything in the library.
        json: Print `{"checked": ..., "problems": [...]}` instead of sentences.

    Returns:
        0 when all is well, 1 when there is any problem.
    """
    store = open_library(library)
    problems = store.verify(name)
    checked = [name] if name is not None else store.names()
    if json:
        print_json({"checked": checked, "problems": problems})
    elif problems:
        table = _table(f"{len(problems)} problems in {library}", "problem")
        for problem in problems:
            _add(table, problem)
        _print(table)
    else:
        print(f"{len(checked)} checked, no problem: {', '.join(checked) or 'the library is empty'}")
    return 1 if problems else 0


def open_library(library: str) -> ExpertLibrary:
    """A library to read from, which has to be there.

    Raises:
        ConfigError: it is not.
    """
    from pemt.experts import ExpertLibrary, HubLibrary

    store = ExpertLibrary(library)
    if not isinstance(store, HubLibrary) and not store.root.is_dir():
        raise ConfigError(
            f"There is no library {str(library)!r}.",
            "give the folder that `pemt train-source` wrote to",
        )
    return store


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title))
    for position, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=position == 0 and len(columns) > 1)
    return table


def _add(table: Table, *cells: str) -> None:
    """Add a row; descriptions and paths may hold brackets, which are no markup."""
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))


def _print(table: Table) -> None:
    from rich.console import Console

    Console().print(table)


def print_json(data: Any) -> None:
    """Print JSON on stdout."""
    from json import dumps

    print(dumps(data, indent=2, ensure_ascii=False))
