"""`pemt gates`, `pemt mask` and `pemt correlations` on runs of a tiny base."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from pemt.analysis import masks as masks_module
from tests.bench import cells
from tests.cli.test_commands import adapt, place, run

__all__ = ["place"]
PRECISE = ["--precision", "float32"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(masks_module, "RESAMPLES", 20)


@pytest.fixture(scope="module")
def made(place, tmp_path_factory):
    """One run of each kind: `made(method)`; it may be changed."""
    folder = tmp_path_factory.mktemp("runs")

    def of(capsys, method="pemt"):
        if not (folder / method).exists():
            more = ["--method", method, "--test_rows", "12", "--json"]
            run(capsys, *adapt(place, folder / method, *more))
        return folder / method

    return of


def lines(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_gates_of_a_run(made, capsys):
    folder = made(capsys)
    said = run(capsys, "gates", folder, *PRECISE).out
    assert "12 test rows" in said
    for word in ("first", "second", "encoder 0", "encoder 1", "bad", "good", "of 2 experts count"):
        assert word in said
    names = {p.name for p in (folder / "gates").iterdir()}
    assert names == {
        "layers.csv", "examples.csv", "gates.json", "layers.png", "classes.png", "examples.png",
        "steps.png",
    }  # fmt: skip
    rows = lines(folder / "gates" / "layers.csv")
    assert len(rows) == 4
    assert sum(float(r["mean"]) for r in rows[:2]) == pytest.approx(1, abs=1e-5)
    scored = [r["id"] for r in json.loads((folder / "predictions.json").read_text())]
    assert [r["id"] for r in lines(folder / "gates" / "examples.csv")] == scored
    # the model folder is the same run
    shown = json.loads(run(capsys, "gates", folder / "model", *PRECISE, "--json").out)
    assert str(folder / "gates" / "layers.png") in shown["files"]
    results = json.loads((folder / "results.json").read_text())["gates"]
    assert shown["overall"]["mean"] == pytest.approx(results["mean"], abs=1e-5)
    assert shown["overall"]["effective"] == pytest.approx(results["effective_experts"], abs=1e-4)
    assert shown["history"]["kept"] == shown["history"]["steps"][0]["step"]


def test_recorded_gates_need_neither_base_nor_rows(made, capsys, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(made(capsys) / "results.json", bare)
    shown = json.loads(run(capsys, "gates", bare, "--recorded", "--json").out)
    assert shown["deviation"] is None
    assert "As the run wrote them down" in shown["notes"][0]
    assert shown["history"] is None
    assert not (bare / "gates" / "examples.csv").exists()


def test_masks_of_a_run(made, capsys, tmp_path):
    folder = made(capsys)
    told = json.loads((folder / "results.json").read_text())["metrics"]
    said = run(capsys, "mask", folder, *PRECISE).out
    for word in ("without first", "only second", "no expert", "changed"):
        assert word in " ".join(said.split())
    rows = lines(folder / "gates" / "masks.csv")
    assert [r["kind"] for r in rows] == ["all", "without", "without", "only", "only", "none"]
    assert float(rows[0]["accuracy"]) == pytest.approx(told["accuracy"])
    assert float(rows[0]["loss"]) == pytest.approx(told["loss"], abs=1e-4)
    out = tmp_path / "out"
    flags = ["--experts", "first", "--rows", "5", "--output", out, "--json"]
    some = json.loads(run(capsys, "mask", folder, *PRECISE, *flags).out)
    assert (some["rows"], len(some["scores"])) == (5, 4)
    assert (out / "masks.png").is_file()
    error = run(capsys, "mask", folder, *PRECISE, "--experts", "frist", code=1).err
    assert "Did you mean: first?" in error


def test_correlations_of_runs(made, capsys, tmp_path):
    folder = made(capsys)
    out = tmp_path / "out"
    said = run(capsys, "correlations", folder, *PRECISE, "--output", out).out
    assert "transfer gain" in said
    assert {p.name for p in out.iterdir()} == {
        "correlations.csv", "spearman.csv", "correlations.json", "correlations.png"
    }  # fmt: skip
    assert [r["source"] for r in lines(out / "correlations.csv")] == ["first", "second"]
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shown = json.loads(
        run(capsys, "correlations", folder, other, *PRECISE, "--gain", "false", "--json",
            "--output", out).out
    )  # fmt: skip
    assert [t["name"] for t in shown["targets"]] == ["first (pemt)", "first (other)"]
    assert "No transfer gain: it was not measured" in shown["notes"][0]
    assert "twice" in run(capsys, "correlations", folder, folder, code=1).err
    assert "Nothing to correlate" in run(capsys, "correlations", code=1).err


def test_a_run_takes_the_gains_that_a_grid_has_with_its_own_labels(made, capsys, tmp_path):
    folder = made(capsys)
    record = json.loads((folder / "run.json").read_text())
    task, shots = record["task"], record["rows"]["shots"]
    other = 2 * shots
    grid = cells.write(tmp_path / "grid", [
        *(cells.cell("single", 0, v, task=task, shots=k, notes={"expert": "first"})
          for k, v in ((shots, 0.7), (other, 0.9))),
        *(cells.cell("adapter", 0, 0.5, task=task, shots=k) for k in (shots, other)),
    ])  # fmt: skip
    shown = json.loads(
        run(capsys, "correlations", folder, "--bench", grid, *PRECISE, "--json",
            "--output", tmp_path / "out").out
    )  # fmt: skip
    gained = {t["name"]: t["values"]["gain"] for t in shown["targets"]}
    assert gained == {task: pytest.approx({"first": 0.2})}


@pytest.mark.parametrize("command", ["gates", "mask", "correlations"])
@pytest.mark.parametrize("method", ["probe", "pemt-no-mixture"])
def test_a_run_without_gates_says_what_it_has(made, capsys, command, method):
    folder = made(capsys, method)
    error = run(capsys, command, folder, *PRECISE, code=1).err
    assert "has no gates" in error
    assert "accuracy 0." in error
    assert "Methods with gates: pemt, uniform, guided" in error
    assert not (folder / "gates").exists()


def test_an_instant_run_shows_its_weights_instead(made, capsys):
    error = run(capsys, "gates", made(capsys, "instant"), *PRECISE, code=1).err
    assert "weights of its guide (none 0." in error


def test_folders_that_are_no_run(made, capsys, tmp_path):
    error = run(capsys, "gates", tmp_path, code=1).err
    assert "holds no run" in error
    assert "does not exist" in run(capsys, "gates", tmp_path / "nowhere", code=1).err
    (tmp_path / "file").write_text("x")
    assert "is a file" in run(capsys, "mask", tmp_path / "file", code=1).err
    broken = tmp_path / "broken"
    shutil.copytree(made(capsys), broken)
    assert "rows=0" in run(capsys, "gates", broken, *PRECISE, "--rows", "0", code=1).err
    (broken / "gates.jsonl").write_text("x")
    assert "is no evaluation" in run(capsys, "gates", broken, "--recorded", code=1).err
    (broken / "results.json").write_text("{")
    assert "is not JSON" in run(capsys, "gates", broken, code=1).err


def test_rows_that_are_others_than_those_scored_are_said(made, capsys, tmp_path):
    changed = tmp_path / "run"
    shutil.copytree(made(capsys), changed)
    told = json.loads((changed / "predictions.json").read_text())
    told[0]["id"] = "gone"
    (changed / "predictions.json").write_text(json.dumps(told))
    said = run(capsys, "gates", changed, *PRECISE).out
    assert "no row gone" in said


def test_without_rows_the_recorded_gates_are_offered(made, capsys, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(made(capsys), moved)
    path = moved / "model" / "pemt.json"
    described = json.loads(path.read_text())
    described["extra"]["task"]["rows"]["files"]["test"] = str(tmp_path / "gone.jsonl")
    path.write_text(json.dumps(described))
    error = run(capsys, "gates", moved, *PRECISE, code=1).err
    assert "gone.jsonl" in error
    assert "--recorded" in error
    assert "of 2 experts count" in run(capsys, "gates", moved, "--recorded").out


def test_an_ensemble_says_what_masks_do_not_reach(made, capsys):
    folder = made(capsys, "ensemble")
    shown = json.loads(run(capsys, "mask", folder, *PRECISE, "--json").out)
    assert any("50% of each answer" in note for note in shown["notes"])
    assert ["without", "none"] in [[s["kind"], s["expert"]] for s in shown["scores"]]
    said = run(capsys, "gates", folder, *PRECISE).out
    assert "none" in said.splitlines()[1]
    assert (folder / "gates" / "steps.png").is_file()
