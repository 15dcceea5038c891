"""`benchmarks/scale.py --quick`: it runs, compares like with like, and names no machine."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[1] / "benchmarks" / "scale.py"


@pytest.fixture
def scale():
    spec = importlib.util.spec_from_file_location("scale", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quick_run_prints_a_table_and_writes_json(scale, tmp_path, monkeypatch, capsys):
    output = tmp_path / "scale.json"
    monkeypatch.setattr(
        "sys.argv", ["scale.py", "--quick", "--rounds", "1", "--output", str(output)]
    )
    scale.main()
    shown = capsys.readouterr().out
    assert "| training: experts | dense | top-2 by example | top-2 by batch |" in shown
    written = json.loads(output.read_text())
    assert [line["experts"] for line in written["experts"]] == [4, 8]
    for line in written["experts"]:
        for way in scale.PASSES:
            assert line[way].keys() == set(scale.KINDS)
            assert line[way]["dense"]["of_dense"] == 1
            assert all(cell["seconds"] > 0 for cell in line[way].values())
    assert written["machine"].keys() == {"cpu", "threads", "versions"}
    assert "/" not in json.dumps({k: v for k, v in written.items() if k != "machine"})


def test_every_kind_is_what_it_says(scale):
    size = scale.SIZES["quick"]
    model = scale.built(8, size).eval()
    ids = torch.randint(3, 1000, (size["batch"], size["text"]))
    seen = {}
    for kind in scale.KINDS:
        scale.cut(model, kind, size["top"])
        gates = model.gates(ids)
        seen[kind] = (gates > 0).sum(-1)
        union = (gates > 0).any(1).sum(-1)
        if kind == "example":  # the rows of a batch choose different experts
            assert (union > size["top"]).all()
        if kind == "batch":
            assert (union == size["top"]).all()
    assert (seen["dense"] == 8).all()
    assert (seen["example"] == size["top"]).all()
    assert (seen["batch"] == size["top"]).all()
