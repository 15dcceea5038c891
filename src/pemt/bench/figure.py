"""Scores against shots, or method by method where there is one number of shots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pemt.bench.asked import shots_title
from pemt.bench.cell import method_of
from pemt.bench.comparison import Row, mean_row
from pemt.bench.results import Results, title_of
from pemt.errors import ConfigError
from pemt.methods import METHODS

# Okabe and Ito's palette, told apart under every common colour blindness; its yellow is too pale
# for lines on white. Markers and dashes carry methods beyond seven, and black-and-white prints.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
KINDS: dict[str, dict[str, str]] = {
    "PEMT": {"color": PALETTE[0], "marker": "o"},
    "PEMT with a part changed": {"color": PALETTE[0], "marker": "o", "markerfacecolor": "white"},
    "uses source tasks": {"color": PALETTE[1], "marker": "s"},
    "target's labels only": {"color": "#555555", "marker": "^"},
}
"""Of methods in a dot plot, where names stand beside the dots."""


def plot(results: Results, rows: Sequence[Row], path: Path, *, across: int | None = None) -> Path:
    """One panel per target and one for their mean; bars are standard deviations over seeds.

    A line's means are all over the same targets, those that have every number of shots. A score
    that is no number has no point; the tables say where.

    Args:
        results: whose methods are drawn.
        rows: of every number of shots, as `compared` gives them.
        path: a .png, .pdf or .svg file.
        across: panels side by side; by default what suits their number.

    Raises:
        ConfigError: another kind of file, or one that cannot be written.
    """
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"a plot cannot be written as {path.name!r}", "end it in .png or .pdf")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, over = _same_targets(results, rows)
    names: list[str | None] = [*results.tasks]
    if any(r.task is None and r.entries for r in rows):
        names.append(None)
    draw = _lines if len(results.shots) > 1 else _dots
    height = 2.9 if len(results.shots) > 1 else 0.9 + 0.24 * len(results.methods)
    across = min(len(names), across or (3 if len(names) in (3, 5, 6, 9) else 4))
    down = math.ceil(len(names) / across)
    width = max(2.7 * across + 0.9, 4.2 if across == 1 else 5.2)
    handles = _handles(results, lines=draw is _lines)
    # in inches: a letter of nine points, and a sample of the line with the space around it
    widest = 0.075 * max(len(str(handle.get_label())) for handle in handles) + 0.65
    columns = max(1, min(len(handles), int(width / widest)))
    legend = 0.3 + 0.2 * math.ceil(len(handles) / columns)
    plain = {"text.parse_math": False}  # a dollar sign in a name is a dollar sign
    with plt.rc_context({"font.size": 9, "axes.titlesize": 10, **plain}):
        figure, axes = plt.subplots(
            down, across, figsize=(width, height * down + 0.4 + legend),
            layout="constrained", squeeze=False, sharey=draw is _dots,
        )  # fmt: skip
        for at, name in zip(axes.flat, names, strict=False):
            draw(at, results, [r for r in rows if r.task == name])
            metric = next(r.metric for r in rows if r.task == name)
            at.set_title(name or over, fontweight=None if name else "bold")
            at.grid(color="#e4e4e4", linewidth=0.6)
            at.set_axisbelow(True)
            at.spines[["top", "right"]].set_visible(False)
            (at.set_ylabel if draw is _lines else at.set_xlabel)(_axis(metric))
        for at in axes.flat[len(names) :]:
            at.set_visible(False)
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False,
            handlelength=3,
        )  # fmt: skip
        seeds = sorted({s.n for r in rows if r.task for s in r.entries.values()})
        spread = "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
        which = "" if draw is _lines else f", {shots_title(results.shots[0])}"
        apart = "\n" if width < 5.2 else " "
        figure.suptitle(
            f"{results.base}{which}:{apart}mean ± standard deviation over n={spread} data seeds"
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror})") from error
        finally:
            plt.close(figure)
    return path


def _same_targets(results: Results, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows with means that can be joined by a line, and what these are over.

    Where fewer than two targets have every number of shots, the means over all targets stay.
    """
    common = [t for t in results.tasks if all(t in results.tasks_at(s) for s in results.shots)]
    plain = [r for r in rows if r.task is not None]
    if len(common) == len(results.tasks) or len(common) < 2:
        every = {s for s in results.shots if len(results.tasks_at(s)) == len(results.tasks)}
        return [r for r in rows if r.task is not None or r.shots in every], "mean over targets"
    means = [
        mean_row(results, [r for r in plain if r.shots == s and r.task in common])
        for s in results.shots
    ]
    return [*plain, *means], f"mean over the {len(common)} with all shots"


def _axis(metric: str) -> str:
    known = {"question_f1": "F1a", "token_f1": "token F1"}
    return f"{known.get(metric, metric.replace('_', ' '))} (points)" if metric else "points"


def _lines(at: Any, results: Results, rows: list[Row]) -> None:
    """A line per method; the full split, of another size in each task, stands apart."""
    known = [s for s in results.shots if s is not None]
    place = {s: math.log2(s) for s in known}
    full = max(place.values()) + 1.0
    for i, method in enumerate(results.methods):
        # side by side, so that bars of equal methods are all seen
        aside = 0.16 * (i / max(1, len(results.methods) - 1) - 0.5)
        there = [
            (r.shots, r.entries[method]) for r in rows
            if method in r.entries and not math.isnan(r.entries[method].mean)
        ]  # fmt: skip
        style = _style(method, i)
        for dashes, part in (
            (style["linestyle"], [p for p in there if p[0] is not None]),
            ("none", [p for p in there if p[0] is None]),
        ):
            if part:
                at.errorbar(
                    [full + aside if s is None else place[s] + aside for s, _ in part],
                    [100 * e.mean for _, e in part],
                    yerr=[0.0 if math.isnan(e.deviation) else 100 * e.deviation for _, e in part],
                    **{**style, "linestyle": dashes},
                )  # fmt: skip
    ticks = [(x, str(s)) for s, x in place.items()]
    ticks += [(full, "full")] if None in results.shots else []
    at.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
    at.set_xlabel("shots (log scale)")


def _dots(at: Any, results: Results, rows: list[Row]) -> None:
    """A dot per method, the first on top."""
    for i, method in enumerate(results.methods):
        entry = rows[0].entries.get(method) if rows else None
        if entry is None or math.isnan(entry.mean):
            continue
        at.errorbar(
            [100 * entry.mean], [-i],
            xerr=[0.0 if math.isnan(entry.deviation) else 100 * entry.deviation],
            markersize=5, linewidth=1.2, capsize=2, **KINDS[_kind(method)],
        )  # fmt: skip
    at.set_yticks([-i for i in range(len(results.methods))], map(title_of, results.methods))
    at.set_ylim(-len(results.methods) + 0.4, 0.6)


def _style(method: str, i: int) -> dict[str, Any]:
    mine = method == "pemt"
    return {
        "color": PALETTE[i % len(PALETTE)],
        "marker": MARKERS[(i + i // len(PALETTE)) % len(MARKERS)],
        "linestyle": DASHES[i // len(PALETTE) % len(DASHES)], "markersize": 5 if mine else 4,
        "linewidth": 2.2 if mine else 1.2, "elinewidth": 0.9, "capsize": 2,
        "zorder": 4 if mine else 3,
    }  # fmt: skip


def _kind(method: str) -> str:
    if method.startswith("pemt"):
        return "PEMT" if method == "pemt" else "PEMT with a part changed"
    known = METHODS.get(method_of(method))
    transfers = known is not None and known.transfers
    return "uses source tasks" if transfers else "target's labels only"


def _handles(results: Results, *, lines: bool) -> list[Any]:
    """Of the legend; from the styles, so that a method without a point in a panel is in it."""
    from matplotlib.lines import Line2D

    if not lines:
        present = {_kind(method) for method in results.methods}
        return [
            Line2D([], [], linestyle="none", label=kind, **style)  # type: ignore[arg-type]
            for kind, style in KINDS.items()
            if kind in present
        ]
    handles = []
    for i, method in enumerate(results.methods):
        style = _style(method, i)
        del style["elinewidth"], style["capsize"]
        handles.append(Line2D([], [], label=title_of(method), **style))
    return handles
