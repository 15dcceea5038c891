"""Gate reports, masks and correlations as CSV files and as tables in a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pemt.analysis.correlations import TITLES, Correlations
from pemt.analysis.gates import GateReport, effective
from pemt.analysis.masks import MaskReport
from pemt.writing import write_named

if TYPE_CHECKING:
    from rich.table import Table

MOST_SHOWN = 10
"""Experts that a terminal shows one by one."""


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file; it is there whole or not at all. None is an empty cell.

    Raises:
        ConfigError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
    write_named(path, text.getvalue())


def write_gates(report: GateReport, folder: Path) -> list[Path]:
    """`layers.csv`, a line for each layer and expert, and `examples.csv`, one for each example.

    Args:
        report: what is written; examples only where they are there.
        folder: made where it is not.

    Returns:
        The files.
    """
    made = [folder / "layers.csv"]
    words = list(report.classes)
    lines = []
    for i, layer in enumerate(report.layers):
        for k, expert in enumerate(report.experts):
            spread = None if report.deviation is None else float(report.deviation[i, k])
            own = [float(report.classes[w][i, k]) for w in words]
            mean = float(report.mean[i, k])
            lines.append([report.stacks[i], layer, expert, mean, spread, *own])
    header = ["stack", "layer", "expert", "mean", "deviation", *(f"mean of {w}" for w in words)]
    write_csv(made[0], header, lines)
    if report.examples is not None:
        made.append(folder / "examples.csv")
        single = report.examples
        write_csv(
            made[1], ["id", "label", "stack", *report.experts],
            ([name, label, stack, *map(float, values[n])]
             for stack, values in single.by_stack.items()
             for n, (name, label) in enumerate(zip(single.ids, single.labels, strict=True))),
        )  # fmt: skip
    return made


def write_masks(report: MaskReport, path: Path) -> None:
    """A line for each mask."""
    write_csv(
        path,
        ["kind", "expert", report.metric, "loss", "difference", "low", "high", "gain", "gain low",
         "gain high", "changed"],
        ([s.kind, s.expert, s.value, s.loss, s.difference, *(s.interval or (None, None)), s.gain,
          *(s.gain_interval or (None, None)), s.changed] for s in report.scores),
    )  # fmt: skip


def write_correlations(found: Correlations, folder: Path) -> list[Path]:
    """`correlations.csv`, a line for each source and target, and `spearman.csv`."""
    made = [folder / "correlations.csv", folder / "spearman.csv"]
    write_csv(
        made[0], ["source", "target", *found.measures],
        ([s, t.name, *(t.values.get(m, {}).get(s) for m in found.measures)]
         for t in found.targets for s in found.sources),
    )  # fmt: skip
    write_csv(
        made[1], ["first", "second", "n", "rho", "p", "targets", "within", "note"],
        ([r.first, r.second, r.n, r.rho, r.p, r.targets, r.within, r.note] for r in found.rho),
    )  # fmt: skip
    return made


# -- for a terminal --------------------------------------------------------------------------------


def gate_table_of(report: GateReport) -> Table:
    """Layers x experts with their deviation, the stacks apart, then each stack's means."""
    heaviest = np.argsort(-report.overall, kind="stable")[:MOST_SHOWN]
    kept = np.sort(heaviest) if len(report.experts) > MOST_SHOWN + 1 else np.arange(
        len(report.experts)
    )  # fmt: skip
    rest = np.setdiff1d(np.arange(len(report.experts)), kept)
    names = [report.experts[k] for k in kept]
    others = [f"{len(rest)} others"] if len(rest) else []
    table = _table("layer", *names, *others, "effective", "of one example")

    def cells(mean: Any, spread: Any = None) -> list[str]:
        made = [f"{mean[k]:.2f}" + ("" if spread is None else f" ±{spread[k]:.2f}") for k in kept]
        return made + ([f"{mean[rest].sum():.2f}"] if len(rest) else [])

    one = report.example_effective
    for stack in report.stack_names:
        own = [i for i, name in enumerate(report.stacks) if name == stack]
        for i in own:
            spread = None if report.deviation is None else report.deviation[i]
            single = "" if one is None else f"{one[i]:.2f}"
            _row(table, report.layers[i], *cells(report.mean[i], spread),
                 f"{report.effective[i]:.2f}", single)  # fmt: skip
        mean = report.of_stack(stack)
        single = "" if one is None else f"{np.exp(np.log(one[own]).mean()):.2f}"
        _row(table, f"{stack}, mean", *cells(mean, report.spread.get(stack)),
             f"{effective(mean):.2f}", single, style="bold")  # fmt: skip
    return table


def class_table_of(report: GateReport) -> Table:
    """Classes x experts, the mean over each stack's layers."""
    heaviest = np.sort(np.argsort(-report.overall, kind="stable")[:MOST_SHOWN])
    table = _table("class", "rows", *(report.experts[k] for k in heaviest))
    for stack in report.stack_names:
        for word, gates in report.classes.items():
            mean = report.of_stack(stack, gates)
            named = word if len(report.stack_names) == 1 else f"{stack}: {word}"
            _row(table, named, str(report.class_rows[word]),
                 *(f"{mean[k]:.3f}" for k in heaviest))  # fmt: skip
    return table


def mask_table_of(report: MaskReport) -> Table:
    """A row for each mask; differences with their 95 % interval."""
    table = _table("experts", report.metric, "loss", "− all experts", "− no expert", "changed")
    for s in report.scores:
        _row(
            table, s.title, f"{s.value:.3f}", "" if s.loss is None else f"{s.loss:.3f}",
            "" if s.kind == "all" else _with_ends(s.difference, s.interval),
            "" if s.kind == "none" else _with_ends(s.gain, s.gain_interval), str(s.changed),
        )  # fmt: skip
    return table


def correlation_table_of(found: Correlations) -> Table:
    """Sources x measures, target by target; at most the ten heaviest sources of each."""
    table = _table("target", "source", *(TITLES[m] for m in found.measures), words=2)
    for target in found.targets:
        by = target.values.get("gate") or next(v for v in target.values.values() if v)
        there = [s for s in found.sources if any(s in v for v in target.values.values())]
        shown = sorted(there, key=lambda s: -by.get(s, -np.inf))[:MOST_SHOWN]
        for s in shown:
            values = [target.values.get(m, {}).get(s) for m in found.measures]
            _row(table, target.name, s, *("" if v is None else f"{v:.3f}" for v in values))
    return table


def rank_table_of(found: Correlations) -> Table:
    """Spearman's rank correlation of every pair of measures."""
    table = _table("measures", "rho", "p", "n", "within targets", "targets", "")
    for r in found.rho:
        _row(
            table, f"{TITLES[r.first]} and {TITLES[r.second]}",
            "" if r.rho is None else f"{r.rho:+.2f}", "" if r.p is None else f"{r.p:.3f}",
            str(r.n), "" if r.within is None else f"{r.within:+.2f}", str(r.targets), r.note,
        )  # fmt: skip
    return table


def show(table: Table) -> None:
    """Print a table as wide as it is: a narrow terminal wraps lines, and no column is squeezed."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    wide = console.options.update(width=1000, max_width=1000)
    natural = Measurement.get(console, wide, table).maximum
    Console(width=max(console.width, natural)).print(table)


def _with_ends(value: float, interval: tuple[float, float] | None) -> str:
    ends = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    return f"{value:+.3f}{ends}"


def _cut(name: str, limit: int = 24) -> str:
    """A name on one line, its middle left out where it is long."""
    plain = " ".join(name.split())
    end = (limit - 1) // 2
    return plain if len(plain) <= limit else f"{plain[: limit - 1 - end]}…{plain[-end:]}"


def _table(*columns: str, words: int = 1) -> Table:
    """The first columns are words, the others numbers; names are never taken for markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for i, name in enumerate(columns):
        left: Any = "left" if i < words else "right"
        table.add_column(Text(_cut(name)), justify=left, no_wrap=True)
    return table


def _row(table: Table, *cells: str, style: str | None = None) -> None:
    from rich.text import Text

    table.add_row(*(Text(_cut(cell, 60)) for cell in cells), style=style)
