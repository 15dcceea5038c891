"""Learning curves as pictures, for light and for dark pages."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pemt.analysis.figures import distinct
from pemt.analysis.report.page import picture

# Okabe and Ito's blue, orange and green; in the dark lighter, as far apart
LIGHT = {"text": "#333333", "line": "#cccccc", "train": "#0072B2", "validation": "#D55E00",
         "score": "#009E73"}  # fmt: skip
DARK = {"text": "#dddddd", "line": "#555555", "train": "#56B4E9", "validation": "#E69F00",
        "score": "#4fd1a5"}  # fmt: skip
CYCLE = (
    ("#0072B2", "#56B4E9"), ("#D55E00", "#ff8f4d"), ("#009E73", "#4fd1a5"), ("#CC79A7", "#e6a0c8"),
    ("#9a6b00", "#E69F00"), ("#444444", "#cccccc"),
)  # fmt: skip
"""Of experts, on a light page and on a dark one."""
Points = Sequence[tuple[float, float]]


def points_of(entries: Any, key: str) -> list[tuple[float, float]]:
    """(step, value) of the entries of a history that have the key."""
    return [(float(e["step"]), float(e[key])) for e in entries or () if key in e]


def not_finite(*curves: Points) -> list[float]:
    """The steps where a curve is no number."""
    return sorted({step for curve in curves for step, value in curve if not math.isfinite(value)})


def learning_curves(
    train: Points, validation: Points, score: Points, *, metric: str, kept: float | None
) -> tuple[str, str] | None:
    """Loss above, validation score below, by step; a line marks the step that was kept.

    Points that are no number are left out of the line.

    Args:
        train: loss.
        validation: loss.
        score: the main metric.
        metric: its name.
        kept: the step whose parameters were kept.

    Returns:
        The picture for a light page and for a dark one; None where there is nothing to draw.
    """
    losses = [("training", "train", train), ("validation", "validation", validation)]
    panels = [("loss", [p for p in losses if _some(p[2])])]
    panels.append((metric.replace("_", " "), [p for p in [("", "score", score)] if _some(p[2])]))
    panels = [(title, curves) for title, curves in panels if curves]
    if not panels:
        return None
    light, dark = (_drawn(panels, colours, kept) for colours in (LIGHT, DARK))
    return light, dark


def _some(curve: Points) -> bool:
    return any(math.isfinite(value) for _, value in curve)


def gate_curves(panels: Mapping[str, Mapping[str, Points]]) -> tuple[str, str]:
    """Mean gates by step, a panel for each stack and a line for each expert.

    Args:
        panels: stack -> expert -> points.

    Returns:
        The picture for a light page and for a dark one.
    """
    drawn = [
        (f"gate, {stack}", [(name, i % len(CYCLE), points) for i, (name, points)
                            in enumerate(zip(distinct([*lines], 18), lines.values(), strict=True))])
        for stack, lines in panels.items()
    ]  # fmt: skip
    light, dark = (
        _drawn(drawn, {**colours, **{i: pair[at] for i, pair in enumerate(CYCLE)}}, None)
        for at, colours in enumerate((LIGHT, DARK))
    )
    return light, dark


def _drawn(panels: Any, colours: Mapping[Any, str], kept: float | None) -> str:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    plain = dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), colours["text"]
    )
    style = {
        **plain, "axes.edgecolor": colours["line"], "grid.color": colours["line"],
        "font.size": 9, "svg.hashsalt": "pemt", "text.parse_math": False,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(4.4, 0.5 + 1.7 * len(panels)), layout="constrained",
            sharex=True, squeeze=False,
        )  # fmt: skip
        for at, (title, curves) in zip(axes.flat, panels, strict=True):
            for label, colour, curve in curves:
                x = [step for step, _ in curve]
                y = [value if math.isfinite(value) else math.nan for _, value in curve]
                at.plot(
                    x, y, color=colours[colour], marker="o", markersize=3, linewidth=1.4,
                    label=label,
                )  # fmt: skip
            if kept is not None:
                at.axvline(kept, color=colours["text"], linewidth=0.8, linestyle=":")
            at.set_ylabel(title)
            at.grid(linewidth=0.4)
            at.spines[["top", "right"]].set_visible(False)
            if len(curves) > 1:
                at.legend(frameon=False, fontsize=8, ncols=1 if len(curves) < 4 else 2)
        axes[-1, 0].set_xlabel("optimiser step")
        axes[-1, 0].xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        written = io.BytesIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return picture(written.getvalue())
