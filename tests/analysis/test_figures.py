"""Figures: whole files, equal bytes, names of every kind, hundreds of experts."""

from __future__ import annotations

import dataclasses
import io
import math
import warnings

import numpy as np
import pytest
from matplotlib import image

from pemt.analysis.correlations import MEASURES, Target, correlate
from pemt.analysis.figures import distinct, drawing, fewer_columns, fewer_rows, shown
from pemt.analysis.gates import ExampleGates, GateReport
from pemt.analysis.heat_maps import class_heat_map, correlation_maps, gate_heat_map
from pemt.analysis.history import GateHistory, GateStep, StackGates
from pemt.analysis.masks import MaskReport, MaskScore, plan_of
from pemt.analysis.plots import mask_plot, spread_plot, steps_plot
from pemt.errors import ConfigError, DataError

ODD = [
    "$x$",
    "$\\frac{",
    "[red]x",
    "a" * 64,
    "a" * 30 + "b" + "a" * 33,
    "two\nlines",
    "名",
    "",
    "e😀",
]


def report(experts, layers=("encoder 0", "encoder 1", "decoder 0"), classes=("no", "yes"), n=9):
    gates = np.random.default_rng(0).dirichlet(np.ones(len(experts)), (n, len(layers)))
    stacks = tuple(name.split(" ")[0] for name in layers)
    labels = tuple(classes[i % len(classes)] for i in range(n))
    own = {w: [i for i, label in enumerate(labels) if label == w] for w in dict.fromkeys(labels)}
    return GateReport(
        experts=tuple(experts), layers=tuple(layers), stacks=stacks, mean=gates.mean(0), rows=n,
        deviation=gates.std(0), classes={w: gates[rows].mean(0) for w, rows in own.items()},
        class_rows={w: len(rows) for w, rows in own.items()},
        examples=ExampleGates(
            ids=tuple(map(str, range(n))), labels=labels,
            by_stack={s: gates[:, [i for i, o in enumerate(stacks) if o == s]].mean(1)
                      for s in dict.fromkeys(stacks)},
        ),
    )  # fmt: skip


def history(experts, steps=(2, 4, 6), stacks=("encoder", "decoder")):
    made = []
    for step in steps:
        gates = np.random.default_rng(step).dirichlet(np.ones(len(experts))).tolist()
        own = StackGates(gates=dict(zip(experts, gates, strict=True)), effective=1.5,
                         example_effective=1.2)  # fmt: skip
        made.append(GateStep(step=step, rows=8, stacks=dict.fromkeys(stacks, own)))
    return GateHistory(steps=tuple(made), kept=4)


def masks(experts, value=0.1):
    scores = [
        MaskScore(kind=kind, expert=name, value=value, loss=None, difference=value, interval=None,
                  gain=value, gain_interval=(value - 0.1, value + 0.1), changed=0)
        for kind, name, _ in plan_of(experts, experts)
    ]  # fmt: skip
    return MaskReport(task="$task$", metric="accuracy", rows=9, scores=tuple(scores))


def table(experts, targets=("one", "two")):
    draw = np.random.default_rng(0)
    return correlate(
        [
            Target(name=t, task=t, values={m: {e: float(draw.normal()) for e in experts}
                                           for m in MEASURES})
            for t in targets
        ]
    )  # fmt: skip


FIGURES = {
    "layers": lambda experts, place: gate_heat_map(report(experts), place),
    "classes": lambda experts, place: class_heat_map(report(experts), place),
    "examples": lambda experts, place: spread_plot(report(experts), place),
    "steps": lambda experts, place: steps_plot(history(experts), place),
    "masks": lambda experts, place: mask_plot(masks(experts), place),
    "correlations": lambda experts, place: correlation_maps(table(experts), place),
}
EVERY = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


@EVERY
@pytest.mark.parametrize("experts", [["a"], ODD], ids=["one", "odd"])
def test_any_name_can_be_drawn_without_a_warning(draw, experts, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a letter the font does not have, say
        draw(experts, tmp_path / "made" / "x.png")
    assert image.imread(tmp_path / "made" / "x.png").ndim == 3
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["x.png"]


@EVERY
def test_three_hundred_experts_stay_readable(draw):
    file = io.BytesIO()
    draw([f"expert-{i}" for i in range(300)], file)
    height, width, _ = image.imread(io.BytesIO(file.getvalue())).shape
    assert max(height, width) < 4000


@pytest.mark.parametrize("name", ["layers", "masks"])
def test_equal_numbers_give_equal_bytes_in_a_file_and_in_memory(name, tmp_path):
    file = io.BytesIO()
    FIGURES[name](["a", "b"], file)
    FIGURES[name](["a", "b"], tmp_path / "x.png")
    assert file.getvalue() == (tmp_path / "x.png").read_bytes()
    assert str(tmp_path).encode() not in file.getvalue()


def test_other_numbers_give_another_picture():
    files = []
    for seed in (0, 1):
        made = report(["a", "b", "c"])
        mean = made.mean if seed == 0 else made.mean[:, ::-1]
        files.append(io.BytesIO())
        gate_heat_map(dataclasses.replace(made, mean=mean), files[-1])
    assert files[0].getvalue() != files[1].getvalue()


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        gate_heat_map(report(["a"]), tmp_path / "file" / "x.png")
    with pytest.raises(RuntimeError), drawing(tmp_path / "x.png"):
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_nothing_to_draw():
    with pytest.raises(DataError, match="No evaluations"):
        steps_plot(GateHistory(steps=()), io.BytesIO())
    with pytest.raises(DataError, match="No single examples"):
        spread_plot(dataclasses.replace(report(["a"]), examples=None), io.BytesIO())


def test_unknown_cells_and_missing_values_are_drawn():
    found = table(["a", "b", "c"])
    values = {**found.targets[0].values, "gain": {"a": 0.0}}
    target = dataclasses.replace(found.targets[0], values=values)
    held = correlate([target, found.targets[1]])
    assert math.isnan(held.table("gain")[1, 0])
    correlation_maps(held, io.BytesIO())
    mask_plot(masks(["a", "b"], value=float("nan")), io.BytesIO())


# -- names and sizes -------------------------------------------------------------------------------


def test_names_are_cut_in_the_middle_and_stay_apart():
    assert shown("mnli") == "mnli"
    assert shown("a b\tc\nd\x00") == "a b c d"
    assert shown("x" * 24) == "x" * 24
    assert shown("begin" + "x" * 40 + "end").startswith("begin")
    assert shown("begin" + "x" * 40 + "end").endswith("end")
    assert len(shown("y" * 99)) == 24
    assert shown("") == '""'
    names = distinct(["a" * 64, "a" * 63 + "b", "a" * 30 + "b" + "a" * 33, "c"])
    assert len(set(names)) == 4
    assert all(len(name) <= 24 for name in names)


def test_many_columns_keep_the_heaviest_and_the_sum():
    values = np.arange(80.0).reshape(2, 40)
    made, names = fewer_columns(values, [str(i) for i in range(40)], np.arange(40.0))
    assert names == [*map(str, range(10, 40)), "10 others, sum"]
    np.testing.assert_array_equal(made[:, :-1], values[:, 10:])
    np.testing.assert_array_equal(made[:, -1], values[:, :10].sum(1))
    same, _ = fewer_columns(values[:, :30], [str(i) for i in range(30)], np.zeros(30))
    assert same.shape == (2, 30)


def test_many_maps_of_a_layer_share_a_row():
    names = [f"encoder {i}" for i in range(31)] + [f"encoder {i} attention.q" for i in range(31)]
    values = np.random.default_rng(0).random((62, 3))
    made, shown_names = fewer_rows(values, names)
    assert shown_names[0] == "encoder 0 (mean of 2)"
    np.testing.assert_allclose(made, (values[:31] + values[31:]) / 2)
    assert fewer_rows(values[:31], names[:31])[1] == names[:31]
