"""`pemt bench run`, `status` and `methods`; the recipes for grids; the how-to page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from pemt.bench.grid import Grid
from pemt.cli import main
from pemt.methods import METHODS
from tests.bench import places

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes" / "bench").glob("*.yaml"))


def call(capsys, *arguments, code=0):
    assert main([str(a) for a in arguments]) == code
    return capsys.readouterr()


@pytest.fixture
def folder(tmp_path):
    return places.furnish(tmp_path)


def test_run_and_status(folder, capsys):
    tasks = [str(folder / "one.yaml"), str(folder / "two.yaml")]
    path = places.grid(folder, tasks=tasks, shots=[4, 30], data_seeds=1,
                       methods=["probe", "zero-shot"])  # fmt: skip
    said = call(capsys, "bench", "status", path).out
    assert "has not been run" in said
    assert "0 finished, 0 failed, 8 remain." in said
    said = call(capsys, "bench", "run", path, "--only-tasks", "one", code=1)
    assert "1 of 2 cells are finished (1 made by this run), 1 failed" in said.out
    assert "want 30" in said.out
    assert re.search(
        r"not run: zero-shot on one: zero-shot is not defined on encoder-only", said.out
    )
    assert "[2/2] one-4-0-probe: accuracy 0." in said.err
    answer = json.loads(call(capsys, "bench", "status", folder / "out", "--json").out)
    assert (answer["finished"], answer["failed"], answer["remaining"]) == (1, 1, 4)
    assert answer["cells"]["probe"]["one"] == {"finished": 1, "failed": 1, "remaining": 0}
    assert answer["cells"]["zero-shot"]["one"] is None
    assert json.loads(call(capsys, "bench", "status", path, "--json").out) == answer
    said = call(capsys, "bench", "status", path).out
    assert "1/2, 1 failed" in said
    assert said.count("zero-shot is not defined") == 1
    said = call(capsys, "bench", "run", path, "--json", code=1)
    summary = json.loads(said.out)
    assert (summary["cells"], summary["finished"], summary["made"]) == (4, 2, 1)
    assert {f["cell"].partition("-probe")[0] for f in summary["failed"]} == {"one-30-0", "two-30-0"}


def test_output_and_data_are_flags_too(folder, capsys, monkeypatch):
    path = places.grid(folder, methods=["probe"], data_seeds=1)
    said = call(capsys, "bench", "run", path, "--output", folder / "else").out
    assert f"Everything is in {folder / 'else'}." in said
    assert not (folder / "out").exists()
    content = yaml.safe_load(path.read_text())
    del content["output"]
    path.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(folder)
    assert "Everything is in runs/grid." in call(capsys, "bench", "run", path).out
    assert len(places.cells(folder / "runs" / "grid")) == 1


def test_mistakes(folder, capsys):
    path = places.grid(folder, methods=["prob"])
    assert "Did you mean: probe?" in call(capsys, "bench", "run", path, code=1).err
    path = places.grid(folder)
    assert "names nothing" in call(
        capsys, "bench", "run", path, "--only-methods", "probe,", code=1
    ).err  # fmt: skip
    assert "holds no grid.json" in call(capsys, "bench", "status", folder, code=1).err
    assert "cannot be read" in call(capsys, "bench", "run", folder / "none.yaml", code=1).err


def test_methods_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = call(capsys, "bench", "methods").out
    for name, method in METHODS.items():
        assert re.search(rf"│ {name} +│", said)
        assert method.title.split()[0] in said
    listed = json.loads(call(capsys, "bench", "methods", "--json").out)
    assert listed["mpt"]["library"] == "shared-prompts"
    assert listed["setfit"]["families"] == ["encoder-only"]
    assert listed["probe"]["learning_rates"] is None


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe(path):
    grid = Grid.from_file(path)
    text = path.read_text(encoding="utf-8")
    assert f"pemt bench run recipes/bench/{path.name}" in text
    family = {"minilm": "encoder-only", "smollm2": "decoder-only"}[grid.base]
    for m in grid.chosen:
        assert any(m.method.refusal(family, t.task.kind) is None for t in grid.targets)
        assert m.method.library in ("none", *grid.libraries)
    other = re.search(r"Experts as in (\S+\.yaml)", text)
    if other:
        text += (path.parent / other[1]).read_text(encoding="utf-8")
    trained = re.findall(r"train (\w+) \d", text)
    for names in re.findall(r"(?:for task in|--sources) ([\w ]+)", text):
        trained += names.split()
    rows = re.search(r"for rows in ([\d ]+);", text)
    if rows:
        trained += [f"{name}-{n}" for n in rows[1].split() for name in set(trained)]
    for variant in grid.variants:
        some = variant.experts or ()
        named = some.values() if isinstance(some, dict) else [some]
        assert {n for names in named for n in names} <= set(grid.experts)
    assert set(trained) == set(grid.experts), "the comment trains what the grid uses"
    if path.stem == "offline":
        for name in grid.experts:
            source = ROOT / "recipes" / "offline" / f"minilm-source-{name}.yaml"
            assert yaml.safe_load(source.read_text())["library"] == grid.libraries["experts"]


def test_the_page_is_exact(tmp_path):
    page = (ROOT / "docs" / "how-to" / "compare-methods.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    path = tmp_path / "grid.yaml"
    path.write_text(example, encoding="utf-8")
    grid = Grid.from_file(path)
    assert grid.rates_of(grid.chosen[2], "encoder-only") == (1e-3, 2e-3)
    named = {key for line in re.findall(r"^\| (`.*?) \|", page, re.M)
             for key in re.findall(r"`(\w+)`", line)}  # fmt: skip
    assert named == set(Grid.__dataclass_fields__)
    for line in re.findall(r"^pemt .*$", page, re.M):
        for file in re.findall(r"recipes/\S+\.yaml", line.replace("$task", "tweets")):
            assert (ROOT / file).is_file()
