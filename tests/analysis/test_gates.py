"""Gates as tables and pictures."""

from __future__ import annotations

import pytest
import torch
from matplotlib import image

from pemt.analysis.gates import GateReport, gate_table, layer_names
from pemt.analysis.heat_maps import gate_heat_map
from tests import adapters, tiny


def test_layers_are_counted_in_each_stack():
    model = tiny.pemt(tiny.base("t5"))
    assert layer_names(model) == ["encoder 0", "encoder 1", "decoder 0", "decoder 1"]


def test_layers_beside_other_linear_maps_are_named_after_them():
    base = tiny.base("bert")
    paths = [f"encoder.layer.1.{inner}" for inner in ("attention.self.key", "output.dense")]
    model = tiny.pemt(base, [adapters.partial(base, "a", paths)])
    # the first layer's down projection has no expert, and so no gates
    assert layer_names(model) == ["encoder 1", "encoder 1 attention.self.key"]
    gates = model.gates(*tiny.batch()).mean(1)
    table = gate_table(gates, model, ["a"])
    assert table["by_layer"] == {name: {"a": 1.0} for name in layer_names(model)}


def test_a_heat_map_of_other_linear_maps(tmp_path):
    base = tiny.base("t5")
    model = tiny.pemt(base, adapters.pair(base))
    gates = model.gates(*tiny.batch()).mean(1)
    assert gates.shape == (len(layer_names(model)), 2)
    names = layer_names(model)
    assert names[:4] == ["encoder 0", "encoder 1", "decoder 0", "decoder 1"]
    assert "decoder 1 layer.1.EncDecAttention.k" in names
    gate_heat_map(GateReport.from_means(gates, model, ["a", "b"]), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


def test_a_table_by_hand():
    model = tiny.pemt(tiny.base("bert"))
    gates = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    table = gate_table(gates, model, ["a", "b", "c"])
    assert table["by_layer"] == {
        "encoder 0": {"a": 0.5, "b": 0.5, "c": 0.0},
        "encoder 1": {"a": 1.0, "b": 0.0, "c": 0.0},
    }
    assert table["mean"] == {"a": 0.75, "b": 0.25, "c": 0.0}
    # exp of the entropy of (3/4, 1/4): 4 / 3^(3/4)
    assert table["effective_experts"] == pytest.approx(4 / 3**0.75)


def test_equal_gates_count_every_expert():
    model = tiny.pemt(tiny.base("bert"))
    table = gate_table(torch.full((2, 3), 1 / 3), model, ["a", "b", "c"])
    assert table["effective_experts"] == pytest.approx(3)


def test_names_that_do_not_fit_the_columns_are_refused():
    model = tiny.pemt(tiny.base("bert"))
    with pytest.raises(ValueError, match="argument"):
        gate_table(torch.full((2, 3), 1 / 3), model, ["a", "b"])


def test_a_heat_map_shows_the_gates(tmp_path):
    """Other gates, another picture; the folder is made."""
    model = tiny.pemt(tiny.base("bert"))
    drawn = []
    for i, row in enumerate([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]):
        path = tmp_path / "new" / f"{i}.png"
        gates = torch.tensor([row, row])
        gate_heat_map(GateReport.from_means(gates, model, ["a", "b", "c"]), path)
        drawn.append(image.imread(path))
    assert drawn[0].shape == drawn[1].shape
    assert (drawn[0] != drawn[1]).any()
