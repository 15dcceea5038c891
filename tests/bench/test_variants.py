"""Variants of a grid: what they change, how they are named; a grid without any is as before."""

from __future__ import annotations

import json

import pytest

from pemt.bench.asked import read_asked
from pemt.bench.comparison import compared
from pemt.bench.difference import differences
from pemt.bench.grid import Grid
from pemt.bench.plan import make_plan
from pemt.bench.results import read_results
from pemt.bench.variant import GridVariant
from pemt.cli import main
from pemt.errors import PemtError
from tests import tiny
from tests.bench import places
from tests.bench.test_running import go

WORDS = "Given a text judge"
VARIANTS = [
    "same", {"strong": {"pemt": {"sparsity_weight": 2.0}}}, {"one": {"experts": ["b"]}},
    {"picked": {"experts": "auto:1"}}, {"told": {"descriptions": {"one": WORDS}}},
    {"longer": {"settings": {"max_steps": 3}}},
    {"drawn": {"experts": {"one-4-0": ["b", "a"]}}},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return places.furnish(tmp_path)


def test_a_variant_is_the_grid_with_its_changes(folder):
    """Its cell has the key, and the numbers, of a grid that says the same without variants."""
    given = {"methods": ["pemt"], "data_seeds": 1}
    run = go(places.grid(folder, **given, variants=VARIANTS), base=tiny.loaded("bert"))
    assert run.ran == [
        f"one-4-0-pemt@{v}"
        for v in ("same", "strong", "one", "picked", "told", "longer", "drawn")
    ]  # fmt: skip
    cells = {c.variant: c for c in run.cells}
    alone = {
        "same": {}, "strong": {"pemt": {"sparsity_weight": 2.0}}, "one": {"experts": ["b"]},
        "picked": {"experts": "auto:1"}, "drawn": {"experts": ["b", "a"]},
        "longer": {"settings": {**places.SETTINGS, "max_steps": 3}},
    }  # fmt: skip
    for name, changes in alone.items():
        (plain,) = go(places.grid(folder, **given, **changes), base=tiny.loaded("bert")).cells
        assert (plain.key, plain.metrics) == (cells[name].key, cells[name].metrics), name
        assert plain.name == cells[name].name.replace(f"@{name}", "")
    assert len({c.key for c in run.cells}) == len(VARIANTS)
    assert cells["told"].config["task"]["description"] == WORDS
    assert cells["told"].gates_by_layer != cells["same"].gates_by_layer
    assert list(cells["drawn"].gates) == ["b", "a"]
    assert go(places.grid(folder, **given, variants=VARIANTS)).ran == []


def test_gates_and_their_spread_are_kept(folder):
    (cell,) = go(places.grid(folder, methods=["pemt"], data_seeds=1)).cells
    layers = cell.gates_by_layer
    assert len(layers) == 2
    assert list(cell.gates.values()) == pytest.approx(
        [sum(g) / 2 for g in zip(*layers, strict=True)]
    )
    spread = cell.gate_spread
    assert 1 <= spread["effective_experts"] <= 2
    assert 0.5 <= spread["top"] <= 1
    (flat,) = go(places.grid(folder, methods=["uniform"], data_seeds=1)).cells
    assert flat.gate_spread["effective_experts"] == pytest.approx(2)
    assert flat.gate_spread["top"] == pytest.approx(0.5)
    (none,) = go(places.grid(folder, methods=["pemt-no-mixture"], data_seeds=1)).cells
    assert (none.gate_spread, none.gates_by_layer) == (None, None)


def test_tables_compare_variants_as_they_compare_methods(folder, capsys):
    path = places.grid(
        folder, methods=["pemt", "adapter"], data_seeds=3,
        variants=["b-first", {"a-second": {"settings": {"max_steps": 1}}}],
    )  # fmt: skip
    go(path, only_methods=["pemt"])
    results = read_results(folder / "out")
    assert results.methods == ("pemt@b-first", "pemt@a-second")
    assert "6 of 12 cells; missing: adapter@b-first on one" in results.header[0]
    (row,) = compared(results, 4)
    assert [s.n for s in row.entries.values()] == [3, 3]
    (found,) = differences(results, 4, "pemt@b-first")
    assert (found.method, found.summary.n) == ("pemt@a-second", 3)
    assert read_asked(folder / "out").arms[0] == "pemt@b-first"
    assert main(["bench", "status", str(folder / "out"), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["finished"], state["remaining"]) == (6, 6)
    assert state["cells"]["pemt@a-second"]["one"] == {"finished": 3, "failed": 0, "remaining": 0}
    assert main(["bench", "table", str(folder / "out"), "--costs", "--against",
                 "pemt@b-first"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "PEMT, b-first" in said
    assert "Differences to PEMT, b-first" in said


def test_a_grid_without_variants_says_nothing_of_them(folder):
    """Folders of earlier runs must be found again."""
    grid = Grid.from_file(places.grid(folder))
    assert "variants" not in grid.to_dict()
    assert [v.name for v in grid.varied] == [""]
    (cell,) = go(places.grid(folder, methods=["probe"], data_seeds=1)).cells
    assert cell.name == f"one-4-0-probe-{cell.key}"


BAD = {
    "name": ([{"a/b": {}}], ["'a/b'", "folder's name"]),
    "twice": (["x", "x"], ["'x', 'x'", "each once"]),
    "key": ([{"x": {"prompt": 1}}], ["grid.yaml", "'prompt'", "key of a variant"]),
    "pemt key": ([{"x": {"pemt": {"taus": 1}}}], ["'taus'", "Did you mean: tau?"]),
    "pemt value": ([{"x": {"pemt": {"tau": 0}}}], ["tau=0"]),
    "seed": ([{"x": {"settings": {"init_seed": 1}}}], ["init_seed", "data seed"]),
    "no experts": ([{"x": {"experts": []}}], ["grid.yaml", "name at least one"]),
    "task": ([{"x": {"descriptions": {"three": "y"}}}], ["'three'", "task of the variant"]),
    "experts' task": ([{"x": {"experts": {"won": ["a"]}}}], ["'won'", "Did you mean: one?"]),
    "experts' draw": ([{"x": {"experts": {"one-4": ["a"]}}}], ["'one-4'", "task or draw"]),
    "no such draw": ([{"x": {"experts": {"one": ["a"], "one-4-00": ["b"]}}}], ["'one-4-00'"]),
    "experts of none": ([{"x": {"experts": {}}}], ["'x'", "for no task"]),
    "experts of libraries": ([{"x": {"experts": {"one": {"experts": ["a"]}}}}], ["a text"]),
    "best": ([{"x": {"experts": "best:4"}}], ["grid.yaml", "'best:4'", "auto:4"]),
    "best of a task": ([{"x": {"experts": {"one": "auto:0"}}}], ["grid.yaml", "'auto:0'"]),
    "decided": ([{"x": {"pemt": {"sparsity_weight": 1.0}}}],
                ["pemt.sparsity_weight", "'pemt-no-tsl'", "take one of them out"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_pointed_at(case, tmp_path):
    places.furnish(tmp_path)
    variants, told = BAD[case]
    with pytest.raises(PemtError) as caught:
        Grid.from_file(places.grid(tmp_path, methods=["pemt", "pemt-no-tsl"], variants=variants))
    for part in told:
        assert part in str(caught.value)


def test_experts_that_are_not_there():
    one = GridVariant(name="x", experts=["c"])
    with pytest.raises(PemtError, match="'c'"):
        one.among({"a": "1", "b": "2"}, "one", "one-4-0")
    drawn = GridVariant(name="x", experts={"one-4-0": ["b"]})
    assert drawn.among({"a": "1", "b": "2"}, "one", "one-4-0") == {"b": "2"}
    with pytest.raises(PemtError, match="names no experts for the draw one-4-1"):
        drawn.among({"b": "2"}, "one", "one-4-1")


def test_experts_by_task_and_by_draw(folder):
    """A draw's own names go before its task's."""
    both = GridVariant(name="x", experts={"one": ["a"], "one-4-0": ["b"]})
    pool = {"a": "1", "b": "2"}
    assert both.among(pool, "one", "one-4-0") == {"b": "2"}
    assert both.among(pool, "one", "one-8-1") == {"a": "1"}
    with pytest.raises(PemtError, match="names no experts for the draw two-4-0"):
        both.among(pool, "two", "two-4-0")
    own = {"own": {"experts": {"one": ["b"], "one-4-1": ["a"]}}}
    path = places.grid(folder, methods=["pemt"], data_seeds=2, variants=[own])
    cells = {c.data_seed: c for c in go(path).cells}
    assert {seed: list(c.gates) for seed, c in cells.items()} == {0: ["b"], 1: ["a"]}


def planned(path, **given):
    base = tiny.loaded("bert")
    return make_plan(Grid.from_file(path), base, **given).jobs


def test_what_a_draw_is_told_is_what_the_grid_could_say(folder):
    """Names, "auto:1" or null, of a draw, a task or the grid: one key for what is the same."""

    def key(**changes):
        (job,) = planned(places.grid(folder, methods=["pemt"], data_seeds=1, **changes))
        return job.key, list(job.experts), job.auto

    for said in (["b"], "auto:1", None):
        for told in ({"one": said}, {"one": ["a"], "one-4-0": said}):
            assert key(variants=[{"x": {"experts": told}}]) == key(experts=said)
    of_grid = key(experts="auto:1", variants=[{"x": {"experts": {"one": None}}}])
    assert of_grid == key(experts="auto:1")


def test_a_cluster_is_sent_what_any_cell_takes(folder):
    """Not the experts of the last cell alone."""
    given = {"tasks": [str(folder / "one.yaml"), str(folder / "two.yaml")], "data_seeds": 1}
    told = {"x": {"experts": {"one": ["a", "b"], "two": ["b"]}}}
    path = places.grid(folder, methods=["pemt", "adapter"], variants=[told], **given)
    plan = make_plan(Grid.from_file(path), tiny.loaded("bert"))
    assert plan.jobs[-2].method == "pemt"
    assert list(plan.jobs[-2].experts) == ["b"]
    assert {kind: sorted(names) for kind, names in plan.experts().items()} == {
        "experts": ["a", "b"]
    }


def test_shared_prompts_stay_together_in_a_variant(folder, monkeypatch):
    pool = {"a": "1", "b": "2"}
    monkeypatch.setattr("pemt.bench.plan._experts", lambda grid, kind, base: pool)
    monkeypatch.setattr("pemt.bench.plan._source_tasks", lambda grid, kind, names: pool)
    given = {"methods": ["mpt"], "libraries": {"shared-prompts": "there"}, "data_seeds": 1}
    (plain,) = planned(places.grid(folder, **given, experts=["a"]))
    for said in (["a"], "auto:1", {"one": ["a"]}):
        (job,) = planned(places.grid(folder, **given, variants=[{"x": {"experts": said}}]))
        assert (list(job.experts), job.auto, job.key) == (["a", "b"], None, plain.key)


@pytest.mark.parametrize("experts", [
    {"one": ["a"], "one-8-0": ["zz"]}, {"one": "auto:3"}, "auto:99",
])  # fmt: skip
def test_experts_that_no_cell_could_have_are_refused_before_any_runs(folder, experts):
    path = places.grid(folder, methods=["pemt"], variants=[{"x": {"experts": experts}}])
    with pytest.raises(PemtError, match=r"'zz'|The best \d+ of 2 experts"):
        planned(path)
