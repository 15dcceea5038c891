"""Plots: the spread over examples, gates over steps, and what each expert is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pemt.analysis.figures import COLOURS, DASHES, GREY, Place, distinct, drawing, shown, turned
from pemt.analysis.gates import GateReport
from pemt.analysis.history import GateHistory
from pemt.analysis.masks import MaskReport, MaskScore
from pemt.errors import DataError

MOST_SPREAD, MOST_GROUPS, MOST_LINES, MOST_MASKS = 12, 6, 12, 40


def _heaviest(weights: Any, most: int) -> list[int]:
    """The `most` largest, in their order."""
    return sorted(np.argsort(-np.asarray(weights), kind="stable")[:most].tolist())


def spread_plot(
    report: GateReport, place: Place, *, title: str = "Gates of single examples"
) -> None:
    """Boxes over the examples' gates (mean over layers) less their mean, by expert and class.

    A panel for each stack. The mean itself stands with the expert's name: it is often so far from
    the other experts' that on one scale no spread would be seen.

    At most 12 experts (the heaviest) and 6 classes (the first); beyond, all classes are one box.

    Args:
        report: measured, with examples.
        place: a path or an open binary file; PNG.
        title: above.

    Raises:
        DataError: a report without examples.
    """
    if report.examples is None:
        raise DataError("No single examples in this report", "measure the gates again")
    kept = _heaviest(report.overall, MOST_SPREAD)
    names = distinct([report.experts[k] for k in kept])
    labels = np.array(report.examples.labels)
    words = list(report.classes) if 1 < len(report.classes) <= MOST_GROUPS else []
    groups = [labels == w for w in words] or [np.ones(len(labels), dtype=bool)]
    each = 0.8 / len(groups)
    width = max(2.2 + max(0.75, 0.24 * len(groups)) * len(kept), 5.0)
    height = 2.6 + (0.04 * max(map(len, names)) if turned(names)["rotation"] else 0.0)
    size = (width, 0.9 + height * len(report.stack_names))
    with drawing(place, nrows=len(report.stack_names), figsize=size) as (figure, axes):
        for at, stack in zip(axes[:, 0], report.stack_names, strict=True):
            values = report.examples.by_stack[stack]
            means = values.mean(0)
            values = values - means
            for g, rows in enumerate(groups):
                places = [i + (g - (len(groups) - 1) / 2) * each for i in range(len(kept))]
                boxes = at.boxplot(
                    [values[rows, k] for k in kept], positions=places, widths=0.8 * each,
                    patch_artist=True, manage_ticks=False, flierprops={"markersize": 2},
                    medianprops={"color": "black"},
                )  # fmt: skip
                for box in boxes["boxes"]:
                    box.set(facecolor=COLOURS[g], alpha=0.75)
            at.axhline(0, color=GREY, linestyle="--", linewidth=1)
            called = [f"{name}\n{means[k]:.2f}" for k, name in zip(kept, names, strict=True)]
            at.set_xticks(range(len(kept)), called, **turned(names))
            at.set_xlim(-0.6, len(kept) - 0.4)
            at.set_ylabel("gate − mean gate")
            at.set_title(stack)
        figure.suptitle(f"{title}, {len(labels)} examples\nbelow each name: its mean", fontsize=10)
        if words:
            from matplotlib.patches import Patch

            handles = [
                Patch(facecolor=COLOURS[g], alpha=0.75, label=name)
                for g, name in enumerate(distinct(words))
            ]
            _legend(figure, handles, width)


def steps_plot(history: GateHistory, place: Place, *, title: str = "Gates during training") -> None:
    """A line for each expert over the steps, a panel per stack, effective experts below.

    At most 12 experts, those that are heaviest at any step; the mean of the others is grey.

    Args:
        history: with at least one step.
        place: a path or an open binary file; PNG.
        title: above.

    Raises:
        DataError: no steps.
    """
    if not history.steps:
        raise DataError("No evaluations in this history", "adapt with validation rows")
    stacks, names = history.stack_names, history.experts
    steps = [s.step for s in history.steps]
    lines = {s: np.array([history.line(s, name) for name in names]) for s in stacks}
    kept = _heaviest(np.max([v.max(1) for v in lines.values()], axis=0), MOST_LINES)
    others = [k for k in range(len(names)) if k not in kept]
    mark = "o" if len(steps) < 40 else ""
    handles: list[Any] = []
    width = max(4.6 * len(stacks), 6.4)
    with drawing(
        place, nrows=2, ncols=len(stacks), figsize=(width, 5.4), sharex=True, sharey="row",
        height_ratios=(3, 1.3),
    ) as (figure, axes):  # fmt: skip
        for column, stack in enumerate(stacks):
            top, below = axes[0, column], axes[1, column]
            drawn = []
            for i, (k, name) in enumerate(
                zip(kept, distinct([names[k] for k in kept]), strict=True)
            ):
                drawn += top.plot(
                    steps, lines[stack][k], color=COLOURS[i % len(COLOURS)], marker=mark,
                    linestyle=DASHES[i // len(COLOURS)], markersize=3, label=name,
                )  # fmt: skip
            if others:
                drawn += top.plot(
                    steps, lines[stack][others].mean(0), color=GREY,
                    label=f"{len(others)} others, mean",
                )  # fmt: skip
            top.axhline(1 / len(names), color=GREY, linestyle="--", linewidth=1)
            top.set_title(stack)
            own = [s.stacks[stack] for s in history.steps]
            below.plot(steps, [s.effective for s in own], color="black", label="of the mean gates")
            below.plot(
                steps, [s.example_effective for s in own], color="black", linestyle=":",
                label="of one row in one layer",
            )  # fmt: skip
            below.set_ylim(0.8, len(names) + 0.2)
            below.set_xlabel("step")
            below.xaxis.get_major_locator().set_params(integer=True)
            for at in (top, below):
                at.spines[["top", "right"]].set_visible(False)
                if history.kept is not None:
                    at.axvline(history.kept, color="black", linewidth=0.8, alpha=0.5)
            handles = drawn
        axes[0, 0].set_ylabel("mean gate weight")
        axes[1, 0].set_ylabel("effective\nexperts")
        axes[1, 0].legend(frameon=False, fontsize=7, loc="best")
        kept_at = "" if history.kept is None else f"; upright line: step {history.kept} was kept"
        rows = history.steps[-1].rows
        figure.suptitle(
            f"{title}, mean of {rows} validation rows\ndashes: 1/K{kept_at}", fontsize=10
        )
        _legend(figure, handles, width)


def mask_plot(
    report: MaskReport, place: Place, *, title: str = "What each expert is worth"
) -> None:
    """Two panels of dots with intervals: without each expert against all, each alone against none.

    At most 40 experts, those with the largest differences.

    Args:
        report: of `pemt.analysis.masks`.
        place: a path or an open binary file; PNG.
        title: above.
    """
    without = [s for s in report.scores if s.kind == "without"]
    only = {s.expert: s for s in report.scores if s.kind == "only"}
    names = [s.expert or "" for s in without]
    if len(names) > MOST_MASKS:
        size = [max(abs(s.difference), abs(only[s.expert].gain) if s.expert in only else 0.0)
                for s in without]  # fmt: skip
        kept = _heaviest(size, MOST_MASKS)
        title = f"{title} ({len(kept)} of {len(names)})"
        without, names = [without[i] for i in kept], [names[i] for i in kept]
    alone = [only.get(name) for name in names]
    every, nothing = report.of("all").value, report.of("none").value
    rows = distinct(names)
    height = 1.6 + 0.3 * len(rows)
    width = 6.4 + 0.075 * max(map(len, rows))
    with drawing(place, ncols=2, figsize=(width, height), sharey=True) as (figure, axes):
        left, right = axes[0]
        _dots(left, [(s, s.difference, s.interval) for s in without], COLOURS[1])
        left.set_title(f"without it − all ({every:.3f})")
        _dots(right, [(s, s.gain, s.gain_interval) if s else None for s in alone], COLOURS[0])
        right.axvline(every - nothing, color="black", linestyle=":", linewidth=1)
        right.set_title(f"it alone − none ({nothing:.3f}); dots: all")
        left.set_yticks(range(len(rows)), rows)
        left.set_ylim(len(rows) - 0.4, -0.6)
        for at in (left, right):
            at.set_xlabel(f"{shown(report.metric)} difference")
            at.locator_params(axis="x", nbins=5)
            at.axvline(0, color=GREY, linewidth=1)
            at.spines[["top", "right"]].set_visible(False)
            at.grid(axis="x", color="#e4e4e4", linewidth=0.6)
            at.set_axisbelow(True)
        figure.suptitle(f"{title}, {shown(report.task)}, {report.rows} rows, 95 % intervals")


def _dots(
    at: Any, found: Sequence[tuple[MaskScore, float, tuple[float, float] | None] | None],
    colour: str,
) -> None:  # fmt: skip
    for i, one in enumerate(found):
        if one is None or not np.isfinite(one[1]):
            continue
        _, value, interval = one
        if interval is not None:
            at.plot(interval, [i, i], color=colour, linewidth=1.5, alpha=0.7)
        at.plot([value], [i], marker="o", color=colour, markersize=5)


def _legend(figure: Any, handles: Sequence[Any], width: float) -> None:
    """Below the panels, in as many columns as fit."""
    widest = 0.075 * max(len(str(h.get_label())) for h in handles) + 0.65  # inches
    columns = max(1, min(len(handles), int(width / widest)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
