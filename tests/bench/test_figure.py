"""The plots: what is drawn where."""

from __future__ import annotations

import math

import matplotlib
import pytest
from matplotlib import image

from pemt.bench.comparison import compared
from pemt.bench.figure import plot
from pemt.bench.results import Results
from pemt.errors import ConfigError
from pemt.methods import METHODS
from tests.bench.cells import cell, row, study


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws cells; gives back the figure, kept open, and the file."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kept = []
    real = plt.subplots

    def subplots(*args, **options):
        made = real(*args, **options)
        kept.append(made[0])
        return made

    monkeypatch.setattr(plt, "subplots", subplots)

    def draw(cells):
        results = Results(cells=tuple(cells))
        rows = [r for s in results.shots for r in compared(results, s)]
        path = plot(results, rows, tmp_path / "new" / "figure.png")
        return [a for a in kept[-1].axes if a.get_visible()], kept[-1], path

    return draw


def several():
    return [*study(), *row("pemt", [0.5, 0.6], shots=4), *row("lora", [0.4, 0.6], shots=4),
            cell("pemt", 0, 0.95, shots=None)]  # fmt: skip


def bars(axes):
    """(x, y, half-length of the bar) of every drawn point."""
    found = []
    for container in axes.containers:
        line, _, (bar,) = container.lines
        for (x, y), ((_, low), (_, high)) in zip(
            line.get_xydata(), bar.get_segments(), strict=True
        ):
            found.append((x, y, (high - low) / 2))
    return found


def test_lines_against_shots_by_hand(drawn):
    panels, _, path = drawn(several())
    assert image.imread(path).shape[2] == 4
    assert [a.get_title() for a in panels] == ["cb", "rte", "mean over targets"]
    rte = panels[1]
    assert [t.get_text() for t in rte.get_xticklabels()] == ["4", "16", "full"]
    assert list(rte.get_xticks()) == [2, 4, 5]  # log2, the full split one step on
    found = bars(rte)
    for x, y, deviation in [(2, 55, 7.07), (4, 80, 10), (5, 95, 0), (2, 50, 14.14), (4, 70, 10)]:
        assert any(
            abs(x - a) < 0.1 and y == pytest.approx(b) and deviation == pytest.approx(c, abs=0.01)
            for a, b, c in found
        ), (x, y, deviation)
    assert len(found) == 6
    assert rte.get_ylabel() == "accuracy (points)"


def test_a_line_of_means_is_over_the_same_targets(drawn):
    """A target without 32 shots would bend the line of the others."""
    cells = [
        cell("pemt", s, score, shots=k, task=t)
        for s in (0, 1)
        for t, score in (("cb", 0.9), ("rte", 0.5), ("mrpc", 0.6))
        for k in (16, 32)
        if (t, k) != ("cb", 32)
    ]
    panels, _, _ = drawn(cells)
    assert panels[-1].get_title() == "mean over the 2 with all shots"
    assert [round(y, 6) for _, y, _ in bars(panels[-1])] == [55, 55]


def test_the_legend_tells_all_methods_apart(drawn):
    cells = [cell(m, s, 0.5, shots=k) for m in METHODS for s in (0, 1) for k in (4, 16)]
    _, figure, _ = drawn(cells)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [m.title for m in METHODS.values()]
    looks = {
        (h.get_color(), h.get_linestyle(), h.get_marker()) for h in legend.legend_handles
    }  # fmt: skip
    assert len(looks) == len(METHODS)


def test_one_number_of_shots_is_dots(drawn):
    panels, _, path = drawn([*study(), *row("spot", [math.nan])])
    assert path.stat().st_size > 0
    assert [a.get_title() for a in panels] == ["cb", "rte", "mean over targets"]
    names = [t.get_text() for t in panels[0].get_yticklabels()]
    assert names == ["PEMT", "LoRA", "best single expert", "SPoT"]
    dots = [tuple(c.lines[0].get_xydata()[0]) for c in panels[1].containers]
    assert dots == [pytest.approx((80, 0)), pytest.approx((70, -1)), pytest.approx((60, -2))]
    assert panels[0].get_xlabel() == "accuracy (points)"


def test_one_cell_is_drawn(drawn):
    panels, _, path = drawn([cell("lora", 0, 0.5)])
    assert len(panels) == 1
    assert path.stat().st_size > 0


def test_a_dollar_sign_in_a_name_is_no_mathematics(drawn):
    _, figure, path = drawn(row("pemt", [0.5, 0.6], base="m$\\frac$", task="t$x^$"))
    assert "m$\\frac$" in figure.get_suptitle()
    assert path.is_file()


def test_another_kind_of_file(tmp_path):
    results = Results(cells=tuple(study()))
    with pytest.raises(ConfigError, match=r"cannot be written as 'x\.txt'"):
        plot(results, compared(results, 16), tmp_path / "x.txt")


def test_the_legend_fits_in_the_figure(drawn):
    for tasks in (["rte"], ["rte", "cb", "wic", "cola", "mrpc"]):
        cells = [cell(m, 0, 0.5, shots=k, task=t) for m in METHODS for k in (4, 16) for t in tasks]
        _, figure, _ = drawn(cells)
        width, height = figure.canvas.get_width_height()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
