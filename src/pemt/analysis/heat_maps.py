"""Heat maps: gates by layer and class, and measures of sources by target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pemt.analysis.correlations import TITLES, Correlations
from pemt.analysis.figures import (
    MOST_COLUMNS,
    Place,
    distinct,
    drawing,
    fewer_columns,
    fewer_rows,
    shown,
    turned,
)
from pemt.analysis.gates import Array, GateReport

MOST_CLASSES = 40


def gate_heat_map(report: GateReport, place: Place, *, title: str = "Mean gates") -> None:
    """Layers x experts, a panel for each stack.

    The colours reach from 0 to the largest gate, or to twice a uniform one if that is more: what
    is near uniform looks alike. Beyond 30 experts the lightest share a column, beyond 60 linear
    maps those of one layer share a row.

    Args:
        report: the gates.
        place: a path or an open binary file; PNG.
        title: above.
    """
    panels = []
    for stack in report.stack_names:
        own = [i for i, name in enumerate(report.stacks) if name == stack]
        rows, names = fewer_rows(report.mean[own], [report.layers[i] for i in own])
        values, columns = fewer_columns(rows, report.experts, report.overall)
        panels.append((stack, values, [shown(n, 40) for n in names], columns))
    _panels(panels, place, title=_counted(title, report.rows), count=len(report.experts))


def class_heat_map(report: GateReport, place: Place, *, title: str = "Mean gates by class") -> None:
    """Classes x experts, a panel for each stack; at most 40 classes, those with most examples.

    Args:
        report: with classes.
        place: a path or an open binary file; PNG.
        title: above.
    """
    most = sorted(report.classes, key=lambda word: -report.class_rows[word])[:MOST_CLASSES]
    words = [word for word in report.classes if word in most]
    if len(words) < len(report.classes):
        title = f"{title} ({len(words)} of {len(report.classes)} classes)"
    names = [f"{n} ({report.class_rows[w]})" for n, w in zip(distinct(words), words, strict=True)]
    panels = []
    for stack in report.stack_names:
        rows = np.stack([report.of_stack(stack, report.classes[w]) for w in words])
        values, columns = fewer_columns(rows, report.experts, report.overall)
        panels.append((stack, values, names, columns))
    _panels(panels, place, title=_counted(title, report.rows), count=len(report.experts))


def _counted(title: str, rows: int | None) -> str:
    return title if rows is None else f"{title}, {rows} examples"


def _panels(
    panels: Sequence[tuple[str, Array, list[str], list[str]]], place: Place, *, title: str,
    count: int,
) -> None:  # fmt: skip
    """Panels below each other that share columns and colours; the sum of others has no colour."""
    columns, uniform = panels[0][3], 1 / count
    heights = [len(names) for _, _, names, _ in panels]
    single = slice(None) if count <= MOST_COLUMNS else slice(-1)
    largest = [float(values[:, single].max()) for _, values, _, _ in panels]
    top = max(min(1.0, 2 * uniform), *largest)
    each = 0.72 if len(columns) <= 12 else 0.42
    left = 0.075 * max(len(name) for _, _, names, _ in panels for name in names)
    width = max(left + 1.3 + each * len(columns), 0.085 * len(title) + 0.6, 4.0)
    height = 1.5 + sum(0.26 * n + 0.35 for n in heights)
    with drawing(
        place, nrows=len(panels), figsize=(width, height), sharex=True, height_ratios=heights
    ) as (figure, axes):
        for at, (stack, values, names, _) in zip(axes[:, 0], panels, strict=True):
            coloured = np.full(values.shape, np.nan)
            coloured[:, single] = values[:, single]
            image = at.imshow(
                np.ma.masked_invalid(coloured), vmin=0, vmax=top, cmap="viridis", aspect="auto"
            )
            at.set_yticks(range(len(names)), names)
            at.set_xticks(range(len(columns)), columns, **turned(columns))
            if len(panels) > 1:
                at.set_title(stack)
            _numbers(
                at, values, lambda v: v / top > 0.6, small=each < 0.5,
                digits=2 if top >= 0.1 else 3,
            )  # fmt: skip
        figure.suptitle(title)
        bar = figure.colorbar(image, ax=axes[:, 0].tolist(), label="gate weight")
        bar.ax.axhline(uniform, color="white", linewidth=1.5)
        bar.ax.axhline(uniform, color="black", linewidth=1.5, linestyle=(0, (2, 2)))
        bar.ax.set_title("-- = 1/K", fontsize=7)


def correlation_maps(
    found: Correlations, place: Place, *, title: str = "Sources beside targets"
) -> None:
    """Sources x targets, a panel for each measure, each with colours of its own.

    Shares (attention, added, gate) start at 0; similarities and gains are centred on 0 where some
    are below. A grey cell is not known. At most 30 sources, those with the largest gate first.

    Args:
        found: the measures.
        place: a path or an open binary file; PNG.
        title: above.
    """
    measures = found.measures
    sources = list(range(len(found.sources)))
    if len(sources) > 30:
        by = found.table("gate" if "gate" in measures else measures[0])
        sources = sorted(np.argsort(-np.nan_to_num(by).sum(1), kind="stable")[:30].tolist())
        title = f"{title} ({len(sources)} of {len(found.sources)} sources)"
    rows = distinct([found.sources[i] for i in sources])
    columns = distinct([t.name for t in found.targets])
    across = min(3, len(measures))
    down = math.ceil(len(measures) / across)
    each = max(0.72 * len(columns), 1.9) + 0.075 * max(map(len, rows)) + 0.9
    below = 0.3 if turned(columns)["rotation"] == 0 else 0.05 * max(map(len, columns))
    height = 0.5 + down * (max(0.28 * len(rows), 0.8) + 0.5 + below)
    with drawing(place, nrows=down, ncols=across, figsize=(max(each * across, 4.0), height)) as (
        figure,
        axes,
    ):
        for at, measure in zip(axes.flat, measures, strict=False):
            _measure(figure, at, found.table(measure)[sources], measure)
            at.set_yticks(range(len(rows)), rows)
            at.set_xticks(range(len(columns)), columns, **turned(columns))
            at.set_title(TITLES[measure])
        for at in list(axes.flat)[len(measures) :]:
            at.set_visible(False)
        figure.suptitle(title)


def _measure(figure: Any, at: Any, values: Array, measure: str) -> None:
    finite = values[np.isfinite(values)]
    low, high, colours = 0.0, float(finite.max()), "viridis"
    if measure == "gain" or float(finite.min()) < 0:
        high = max(float(np.abs(finite).max()), 1e-3)
        low, colours = -high, "RdBu"
    elif measure in ("description", "prompt"):  # all cosines of sentences are high
        low = float(finite.min())
    if high - low < 1e-9:
        low = high - 1
    image = at.imshow(
        np.ma.masked_invalid(values), vmin=low, vmax=high, cmap=colours, aspect="auto"
    )
    at.set_facecolor("#d5d5d5")  # of what is not known: white would read as no gain

    def dark_on(value: float) -> bool:
        share = (value - low) / (high - low)
        return abs(share - 0.5) < 0.3 if colours == "RdBu" else share > 0.6

    _numbers(at, values, dark_on, signed=measure == "gain", small=values.size > 60)
    figure.colorbar(image, ax=at)


def _numbers(
    at: Any, values: Array, dark_on: Any, *, signed: bool = False, small: bool, digits: int = 2
) -> None:
    """Values in their cells, while they can be read."""
    if values.size > 900:
        return
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            if math.isfinite(value):
                text = f"{value:{'+' if signed else ''}.{digits}f}"
                at.text(
                    column, row, text, ha="center", va="center", fontsize=6 if small else 8,
                    color="black" if dark_on(value) else "white",
                )  # fmt: skip
