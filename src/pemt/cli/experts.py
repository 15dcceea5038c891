"""`pemt experts`: look into a library of experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pemt.errors import ConfigError, PemtError

if TYPE_CHECKING:
    from rich.table import Table

    from pemt.experts import ExpertLibrary


def list_experts(library: Path, *, json: bool = False) -> int:
    """List the experts of a library: what each was trained on, for which base, how well it did.

    Only the experts' descriptions are read. An expert whose description cannot be used is listed
    with the reason; `pemt experts verify` checks the tensors too.

    Args:
        library: Folder that holds the experts, one folder each.
        json: Print the experts' full descriptions as JSON instead of a table.

    Returns:
        0.
    """
    store = _open(library)
    rows: list[dict[str, Any]] = []
    for name in store.names():
        try:
            rows.append(store.info(name).to_json())
        except PemtError as error:
            rows.append({"name": name, "problem": str(error)})
    if json:
        _print_json(rows)
        return 0
    columns = ("name", "task", "kind", "rank", "base", "metrics", "created")
    table = _table(f"{len(rows)} experts in {library}", *columns)
    for row in rows:
        if "problem" in row:
            _add(table, row["name"], row["problem"], *[""] * (len(columns) - 2))
        else:
            _add(table, *(_cell(row[column]) for column in columns))
    _print(table)
    return 0


def show(library: Path, name: str, *, json: bool = False) -> int:
    """Show where one expert came from: task, base, data, settings and what it reached.

    Args:
        library: Folder that holds the experts, one folder each.
        name: The expert's name, as `pemt experts list` gives it.
        json: Print JSON instead of a table.

    Returns:
        0.
    """
    info = _open(library).info(name).to_json()
    if json:
        _print_json(info)
        return 0
    table = _table(f"Expert {name}", "field", "value")
    for field, value in info.items():
        _add(table, field, _cell(value))
    _print(table)
    return 0


def verify(library: Path, name: str | None = None, *, json: bool = False) -> int:
    """Check experts to the last byte: every file's hash, every tensor's shape and values.

    Run it after copying a library, or when an expert is refused.

    Args:
        library: Folder that holds the experts, one folder each.
        name: Check this expert only; without it, everything in the library.
        json: Print `{"checked": ..., "problems": [...]}` instead of sentences.

    Returns:
        0 when all is well, 1 when there is any problem.
    """
    store = _open(library)
    problems = store.verify(name)
    checked = [name] if name is not None else store.names()
    if json:
        _print_json({"checked": checked, "problems": problems})
    elif problems:
        table = _table(f"{len(problems)} problems in {library}", "problem")
        for problem in problems:
            _add(table, problem)
        _print(table)
    else:
        print(f"{len(checked)} checked, no problem: {', '.join(checked) or 'the library is empty'}")
    return 1 if problems else 0


def _open(library: Path) -> ExpertLibrary:
    """A library to read from, which has to be there."""
    from pemt.experts import ExpertLibrary

    store = ExpertLibrary(library)
    if not store.root.is_dir():
        raise ConfigError(
            f"There is no library {str(library)!r}.",
            "give the folder that `pemt train-source --library` wrote to",
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


def _print_json(data: Any) -> None:
    from json import dumps

    print(dumps(data, indent=2, ensure_ascii=False))
