"""What all figures share: names that always fit, files that are there whole, a size limit.

Every figure goes to a path or an open binary file, as PNG. It holds no date, version or path, so
equal numbers give equal bytes with equal libraries.
"""

from __future__ import annotations

import io
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pemt.analysis.gates import Array
from pemt.writing import write_named

Place = Path | BinaryIO
"""Where a figure goes."""

# Okabe and Ito's palette, told apart under every common colour blindness, without its pale yellow
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
GREY = "#999999"
MOST_COLUMNS = 30
"""Experts that a heat map shows one by one; the rest share one column."""
MOST_ROWS = 60
"""Layers that a heat map shows one by one; linear maps of one layer then share a row."""


@contextmanager
def drawing(place: Place, **subplots: Any) -> Iterator[tuple[Any, Any]]:
    """Yields a figure and its axes `[rows, columns]`; writes it when all went well.

    Args:
        place: a path, whose folder is made, or an open binary file.
        **subplots: of matplotlib's `subplots`.

    Raises:
        ConfigError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure, axes = plt.subplots(layout="constrained", squeeze=False, **subplots)
        try:
            yield figure, axes
            _as_it_is(figure)
            image = io.BytesIO()
            figure.savefig(image, dpi=150, format="png", metadata={"Software": None})
        finally:
            plt.close(figure)
    if isinstance(place, Path):
        write_named(place, image.getvalue())
    else:
        place.write(image.getvalue())


def _as_it_is(figure: Any) -> None:
    """A dollar sign in a name is a dollar sign, not mathematics."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def shown(name: str, limit: int = 24) -> str:
    """A name as a figure can show it: one line, letters the font has, at most `limit` of them.

    The middle goes first: long names tend to differ at their ends.
    """
    plain = "".join(
        " " if letter.isspace() or unicodedata.category(letter).startswith("C")
        else letter if ord(letter) in _letters() else "\N{WHITE SQUARE}"
        for letter in name
    ).strip()  # fmt: skip
    plain = plain or '""'
    if len(plain) <= limit:
        return plain
    end = (limit - 1) // 2
    return f"{plain[: limit - 1 - end]}…{plain[len(plain) - end :]}"


@lru_cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def distinct(names: Sequence[str], limit: int = 24) -> list[str]:
    """`shown` for several names: those that would look alike get a number."""
    plain = [shown(name, limit) for name in names]
    often, seen = Counter(plain), Counter[str]()
    made = []
    for name, short in zip(names, plain, strict=True):
        seen[short] += 1
        number = f" #{seen[short]}"
        made.append(short if often[short] == 1 else shown(name, limit - len(number)) + number)
    return made


def fewer_columns(values: Array, names: Sequence[str], weight: Array) -> tuple[Array, list[str]]:
    """At most `MOST_COLUMNS` columns and one for the sum of the others.

    Args:
        values: `[.., K]`.
        names: K of them.
        weight: `[K]`; the heaviest stay, in their order.
    """
    if len(names) <= MOST_COLUMNS:
        return values, distinct(names)
    heaviest = np.argsort(-weight, kind="stable")[:MOST_COLUMNS]
    kept = np.sort(heaviest)
    rest = np.setdiff1d(np.arange(len(names)), kept)
    joined = np.concatenate([values[..., kept], values[..., rest].sum(-1, keepdims=True)], -1)
    return joined, [*distinct([names[i] for i in kept]), f"{len(rest)} others, sum"]


def fewer_rows(values: Array, names: Sequence[str]) -> tuple[Array, list[str]]:
    """Linear maps of one layer as their mean, where there are more than `MOST_ROWS` rows.

    Args:
        values: `[L, ..]`.
        names: L layers, as "encoder 0 attention.self.query".
    """
    if len(names) <= MOST_ROWS:
        return values, list(names)
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(" ".join(name.split(" ")[:2]), []).append(i)
    joined = np.stack([values[rows].mean(0) for rows in groups.values()])
    return joined, [
        name if len(rows) == 1 else f"{name} (mean of {len(rows)})" for name, rows in groups.items()
    ]


def turned(names: Sequence[str]) -> dict[str, Any]:
    """How tick labels below columns stand so that none covers another."""
    if max(map(len, names), default=0) <= 8 and len(names) <= 12:
        return {"rotation": 0, "ha": "center"}
    if len(names) <= 12:
        return {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    return {"rotation": 90, "ha": "right", "va": "center", "rotation_mode": "anchor"}
