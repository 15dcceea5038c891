"""What each study varies, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pemt.bench.grid import Grid
from pemt.errors import PemtError
from pemt.methods import METHODS
from pemt.studies import ablation, prompt, sources, sparsity, study
from pemt.studies.file import DEFAULTS, read_question
from pemt.studies.kinds import KINDS
from pemt.tasks import Task

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "studies").glob("*.yaml"))
NAMES = ["mnli", "qnli", "qqp", "sst2", "boolq"]
DRAWS = ["rte-16-0", "rte-16-1", "cb-16-0", "cb-16-1"]


class Library:
    """Experts named after their tasks."""

    def __init__(self, _):
        pass

    def names(self):
        return NAMES

    def info(self, name):
        return SimpleNamespace(task=name)


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setattr(study, "ExpertLibrary", Library)


def grid(**changes):
    return Grid(**{
        "base": "b", "tasks": ["rte", "cb"], "methods": ["pemt"], "libraries": {"experts": "lib"},
        "experts": NAMES, "data_seeds": [0, 1], **changes,
    })  # fmt: skip


def rank():
    return dict.fromkeys(DRAWS, NAMES)


def never():
    raise AssertionError("ranked for nothing")


def test_sources_come_one_after_the_other():
    made, varied = sources.build(grid(), {"counts": [1, 2, 4, 5]}, rank)
    experts = {v.name: v.experts for v in varied.variants}
    assert list(experts) == [
        *(f"{order}-{n}" for order in ("ranked", "reverse", "random") for n in (1, 2, 4)), "all",
    ]  # fmt: skip
    for draw in DRAWS:
        assert experts["ranked-2"][draw] == ["mnli", "qnli"]
        assert experts["reverse-2"][draw] == ["boolq", "sst2"]
        for order in ("ranked", "reverse", "random"):  # each holds the one before
            assert experts[f"{order}-4"][draw][:2] == experts[f"{order}-2"][draw]
            assert experts[f"{order}-2"][draw][:1] == experts[f"{order}-1"][draw]
    assert len({tuple(experts["random-4"][draw]) for draw in DRAWS}) > 1
    assert experts["all"] == NAMES
    assert made.reference == "pemt@all"
    assert made.point("pemt@all").lines == ("ranked", "reverse", "random")
    assert [p.x for p in made.points if "random" in p.lines] == [1, 2, 4, 5]
    again, same = sources.build(grid(), {"counts": [1, 2, 4, 5]}, rank)
    assert (again, same.to_dict()) == (made, varied.to_dict())


def test_a_random_order_hangs_on_the_draw_alone():
    """A ranking that changes, as with another expert's row, must not move it."""
    assert sources.ordered("random", NAMES, "rte-16-0") == sources.ordered(
        "random", NAMES[::-1], "rte-16-0"
    )
    assert sorted(sources.ordered("random", NAMES, "rte-16-0")) == sorted(NAMES)


def test_counts_by_default_are_below_all():
    made, _ = sources.build(grid(), {"orders": ["ranked"]}, rank)
    assert [p.x for p in made.points] == [1, 2, 3, 5]
    made, _ = sources.build(grid(experts=None), {"orders": ["ranked"]}, rank)
    assert [p.x for p in made.points] == [1, 2, 3, 5]


def test_weights():
    made, varied = sparsity.build(grid(), {"weights": [3.0, 0.0, 0.1]}, never)
    assert [p.x for p in made.points] == [0, 0.1, 3]
    assert made.reference == "pemt@0.1"
    assert [v.pemt["sparsity_weight"] for v in varied.varied] == [0, 0.1, 3]
    made, _ = sparsity.build(grid(), {"weights": [1.0, 0.0]}, never)
    assert made.reference == "pemt@0"
    made, _ = sparsity.build(grid(), {"weights": [1e7, 1e-7]}, never)  # no sign in a name
    assert [p.arm for p in made.points] == ["pemt@1e-07", "pemt@1e07"]


def test_descriptions():
    short = {"short": {"rte": "Follows?", "cb": "So?", "paws": "not a target"}}
    made, varied = prompt.build(grid(), {"wordings": short}, never)
    rte = Task.named("rte")
    told = {v.name: v.told(rte).description for v in varied.varied}
    assert [p.arm for p in made.points] == [f"pemt@{name}" for name in told]
    assert told["standard"] == rte.description == told["random"]
    assert told["short"] == "Follows?"
    assert told["twice"] == f"{rte.description} {rte.description}"
    assert rte.description.startswith(told["half"])
    assert len(told["half"].split()) == (len(rte.description.split()) + 1) // 2
    assert told["other"] == Task.named("question_types").description
    assert told["shuffled"] != rte.description
    assert sorted(told["shuffled"].split()) == sorted(rte.description.split())
    assert varied.varied[-1].pemt == {"prompt": "random"}
    assert made.reference == "pemt@standard"


@pytest.mark.parametrize("name", ["other", "random", "half", "shuffled"])
def test_a_wording_named_like_a_way_that_is_not_taken_has_its_own_title(name):
    own = {name: {"rte": "Follows?", "cb": "So?"}}
    made, _ = prompt.build(grid(), {"wordings": own, "ways": ["twice"]}, never)
    assert [p.title for p in made.points] == ["standard", name, "twice"]


def test_parts():
    made, varied = ablation.build(grid(), {}, never)
    assert [p.arm for p in made.points] == ["pemt", *ablation.PARTS]
    assert [m.name for m in varied.chosen] == ["pemt", *ablation.PARTS]
    every = {name for name, m in METHODS.items() if name.startswith("pemt-") and m.changes}
    assert set(ablation.PARTS) == every


BAD = {
    "one source": ("sources", {"experts": ["qqp"]}, {}, ["with 1: qqp", "two or more"]),
    "too many": ("sources", {}, {"counts": [1, 9]}, ["9 of 5 sources", "1 to 5"]),
    "none": ("sources", {}, {"counts": [0]}, ["0 of 5"]),
    "order": ("sources", {}, {"orders": ["rank"]}, ["'rank'", "Did you mean: ranked?"]),
    "twice": ("sources", {}, {"counts": [1, 1]}, ["name each once"]),
    "picked anew": ("sources", {"experts": "auto:2"}, {}, ["auto:2", "name the sources"]),
    "one gate": ("sparsity", {"experts": ["qqp"]}, {}, ["one source", "two or more"]),
    "one weight": ("sparsity", {}, {"weights": [1.0]}, ["[1.0]", "two or more"]),
    "below 0": ("sparsity", {}, {"weights": [-1.0, 1.0]}, ["-1.0", "0 or more"]),
    "no number": ("sparsity", {}, {"weights": [math.nan, 1.0]}, ["nan", "0 or more"]),
    "infinite": ("sparsity", {}, {"weights": [0.1, math.inf]}, ["inf", "0 or more"]),
    "alike": ("sparsity", {}, {"weights": [0.1, 0.10000001]}, ["0.10000001", "each once"]),
    "fixed": ("sparsity", {"methods": ["pemt-no-tsl"]}, {}, ["'pemt-no-tsl'", "take one"]),
    "way": ("prompt", {}, {"ways": ["shuffle"]}, ["'shuffle'", "Did you mean: shuffled?"]),
    "wording": ("prompt", {}, {"wordings": {"x": {"rte": "y"}}}, ["'x'", "cb", "write one"]),
    "same name": ("prompt", {}, {"wordings": {"twice": {"rte": "y", "cb": "y"}}}, ["each once"]),
    "nothing": ("prompt", {}, {"ways": []}, ["one at least"]),
    "target": ("prompt", {}, {"other": "cb"}, ["'cb'", "other: TASK"]),
    "method": ("ablation", {}, {"methods": ["pemt-no-gates"]}, ["'pemt-no-gates'"]),
    "alone": ("ablation", {}, {"methods": ["pemt"]}, ["no other"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    name, changes, options, told = BAD[case]
    with pytest.raises(PemtError) as caught:
        KINDS[name].build(grid(**changes), options, rank)
    for part in told:
        assert part in str(caught.value)


FILES = {
    "key": ("libraries: {experts: lib}\ntasks: [rte]\nweight: [1]\n",
            ["study.yaml:3", "'weight'", "Did you mean: weights?"]),
    "methods": ("libraries: {experts: lib}\ntasks: [rte]\nmethods: [pemt]\n",
                ["study.yaml:3", "no methods", "method: pemt"]),
    "variants": ("libraries: {experts: lib}\ntasks: [rte]\nvariants: [x]\n", ["study.yaml:3"]),
    "no tasks": ("libraries: {experts: lib}\n", ["study.yaml", "needs tasks"]),
    "no library": ("tasks: [rte]\n", ["study.yaml", "needs libraries", "--library"]),
    "known target": ("libraries: {experts: lib}\ntasks: [rte, qnli]\n",
                     ["study.yaml", "'qnli' is a target", "experts: [mnli, qqp, sst2, boolq]"]),
    "wrong type": ("libraries: {experts: lib}\ntasks: [rte]\nweights: [much]\n",
                   ["study.yaml:3", "weights is 'much'"]),
    "method": ("libraries: {experts: lib}\ntasks: [rte]\nmethod: lora\n", ["lora", "no experts"]),
    "no method": ("libraries: {experts: lib}\ntasks: [rte]\nmethod: pmt\n", ["'pmt'", "pemt?"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_a_file_is_pointed_at(case, tmp_path):
    content, told = FILES[case]
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(PemtError) as caught:
        read_question(KINDS["sparsity"], tmp_path / "study.yaml", {})
    for part in told:
        assert part in str(caught.value)


def test_flags_go_before_the_file_and_defaults_behind(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("libraries: {experts: lib}\ntasks: [rte]\nshots: [4]\nweights: [0, 1]\n")
    question = read_question(KINDS["sparsity"], file, {"tasks": ["cb"], "weights": None})
    assert [t.task.name for t in question.grid.targets] == ["cb"]
    assert question.grid.shots == [4]
    assert question.options == {"weights": [0.0, 1.0]}
    assert question.grid.settings.epochs == DEFAULTS["settings"]["epochs"]
    assert question.grid.data_seeds == [0, 1, 2]
    assert question.output == Path("runs/studies/mine")
    plain = read_question(
        KINDS["sparsity"], None, {"tasks": ["cb"], "libraries": {"experts": "lib"}}
    )
    assert plain.output == Path("runs/studies/sparsity")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes(path):
    kind = KINDS[path.stem]
    text = path.read_text(encoding="utf-8")
    assert f"pemt study {kind.name} recipes/studies/{path.name}" in text
    question = read_question(kind, path, {})
    draws = [f"{t.task.name}-16-{s}" for t in question.grid.targets for s in range(3)]
    made, varied = kind.build(
        question.grid, question.options, lambda: {d: list(question.grid.experts) for d in draws}
    )
    assert question.output == Path("runs/studies") / kind.name
    assert len(made.points) <= (16 if kind.name == "sources" else 8)
    assert replace(varied).to_dict() == varied.to_dict()
    page = path.parents[2] / "docs" / "studies" / f"{kind.name}.md"
    assert f"<!-- {kind.name}: begin -->" in page.read_text(encoding="utf-8")


def test_there_is_a_recipe_for_each():
    assert [p.stem for p in RECIPES] == sorted(KINDS)
