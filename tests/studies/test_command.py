"""`pemt study`: one command runs, a second one only draws."""

from __future__ import annotations

import json

import pytest
import yaml

from pemt.cli import main
from pemt.experts import ExpertLibrary
from tests.bench import places


@pytest.fixture
def folder(tmp_path):
    return places.furnish(tmp_path)


def asked(folder, **changes):
    """A study's file over tiny files."""
    content = {
        "base": str(folder / "bert"), "precision": "float32",
        "libraries": {"experts": str(folder / "experts")}, "tasks": [str(folder / "one.yaml")],
        "shots": [4], "data_seeds": 1, "settings": places.SETTINGS, "test_rows": 8,
        "output": str(folder / "out"), **changes,
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def call(capsys, *arguments, code=0):
    assert main(["study", *map(str, arguments)]) == code
    return capsys.readouterr()


def made(folder):
    found = (folder / "out" / "cells").glob("*/cell.json")
    return {p.parent.name: p.stat().st_mtime_ns for p in found}


def test_sources(folder, capsys):
    path = asked(folder)
    said = call(capsys, "sources", path)
    assert "(4 of 4 cells)" in said.out
    assert "Ranking 2 sources on one-4-0" in said.err
    output = folder / "out"
    (ranking,) = (output / "rankings").glob("*.json")
    best = [r["name"] for r in json.loads(ranking.read_text())["ranking"]["ranks"]]
    cells = {c["variant"]: c for c in places.cells(output).values()}
    assert list(cells["ranked-1"]["gates"]) == best[:1]
    assert list(cells["reverse-1"]["gates"]) == best[1:]
    assert list(cells["all"]["gates"]) == ["a", "b"]
    assert all("ranking" not in c["notes"] for c in cells.values())
    for name in ("study.md", "study.csv", "study.json", "study.png", "grid.json"):
        assert (output / name).is_file()
    before = made(folder)
    (output / "study.png").unlink()
    again = call(capsys, "sources", path, "--json")
    assert "Ranking" not in again.err
    assert made(folder) == before
    assert (output / "study.png").is_file()
    assert json.loads(again.out)["plot"] == str(output / "study.png")


def test_what_was_lost_is_made_again_and_what_is_missing_is_said(folder, capsys):
    path = asked(folder, weights=[0, 0.1])
    call(capsys, "sparsity", path)
    lost = next((folder / "out" / "cells").glob("*@0-*/cell.json"))
    before = made(folder)
    lost.unlink()
    said = call(capsys, "sparsity", path, "--draw-only")
    assert "1 of 2 cells; missing: pemt@0 on one" in said.out
    assert not lost.exists()
    assert "missing" not in call(capsys, "sparsity", path).out
    after = made(folder)
    assert [n for n in after if after[n] != before[n]] == [lost.parent.name]
    assert "2 of 2" in call(capsys, "sparsity", "--draw-only", "--output", folder / "out").out
    said = call(capsys, "prompt", "--draw-only", "--output", folder / "out", code=1)
    assert "a study of sparsity, not of prompt" in said.err


def test_flags_alone(folder, capsys):
    arguments = (
        "ablation", "--library", folder / "experts", "--tasks", folder / "one.yaml", "--base",
        folder / "bert", "--shots", "2", "--data-seeds", "0,", "--output", folder / "out",
    )  # fmt: skip
    assert "give numbers" in call(capsys, *arguments, code=1).err
    said = call(capsys, "ablation", "--methods", "nothing", *arguments[1:9], code=1)
    assert "'nothing'" in said.err


def test_failed_cells(folder, capsys):
    said = call(capsys, "sparsity", asked(folder, weights=[0, 1], shots=[4, 60]), code=1)
    assert "2 failed" in said.err
    assert "(failed)" in said.out
    said = call(capsys, "sources", asked(folder, shots=[60]), "--output", folder / "none", code=1)
    assert "no finished cell of this study" in said.err
    assert "want 60" in said.err


def test_refused(folder, capsys):
    library = ExpertLibrary(folder / "experts")
    library.remove("b")
    assert "with 1: a" in call(capsys, "sources", asked(folder), code=1).err
    assert "needs tasks" in call(capsys, "sources", "--library", folder / "experts", code=1).err
    said = call(capsys, "sources", "--library", folder / "experts", "--tasks", "rte",
                "--shots", "many", code=1)  # fmt: skip
    assert "--shots many" in said.err


@pytest.mark.parametrize("name", ["sources", "sparsity", "prompt", "ablation"])
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit):
        main(["study", name, "--help"])
    said = capsys.readouterr().out
    assert f"Example: pemt study {name} recipes/studies/{name}.yaml --workers 2" in said
    assert "--draw_only" in said
