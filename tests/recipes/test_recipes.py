"""Every recipe parses as its command would read it, and trains one step on a tiny base."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import pemt.bases
from pemt.cli import main
from pemt.experts import ExpertLibrary
from pemt.tasks import Example, Splits, Task, task_names
from pemt.tasks.encoding import fingerprint
from pemt.training import adapting, sourcing
from tests import tiny

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(p for p in FOLDER.glob("*/*.yaml") if p.parent.name not in ("bench", "studies"))
TINY = {"google-t5/t5-base": "t5", "minilm": "bert", "smollm2": "llama"}

# METHOD.md, protocol: batch, source length, epochs of stage 2 where they are not 100, 256, 20
STAGE_TWO = {
    "cb": (32, 256, 20), "wsc": (32, 256, 20), "boolq": (64, 256, 20), "rte": (64, 256, 20),
    "multirc": (64, 348, 10), "nq": (32, 512, 5), "hotpotqa": (32, 512, 5),
    "searchqa": (32, 512, 5), "newsqa": (32, 512, 5),
}  # fmt: skip
SOURCES = ["mnli", "qnli", "qqp", "sst2", "squad", "record"]


def content(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def examples(task: Task, split: str, count: int) -> list[Example]:
    """Made-up rows that look like the task's."""
    made = []
    for i in range(count):
        text = f"{split} w{i % 24} w{i // 24} w{(7 * i) % 24} {'nice' if i % 2 else 'poor'}"
        if task.kind == "generation":
            made.append(Example(f"{split}:{i}", text, None, "nice", accepted=("nice", "fine")))
            continue
        label = i % len(task.labels) if task.labels else 1.0
        options = ("w1", "w2") if task.option_columns else ()
        group = f"{split} {i // 2}" if task.group else ""
        made.append(
            Example(
                f"{split}:{i}", text, label, task.answer(label, options),
                group=group, options=options,
            )
        )  # fmt: skip
    return made


def tiny_base(recipe: dict, task: Task):
    words = {word for label in (*task.labels, "w1") for word in label.split()}
    known = set(tiny.tokenizer("decoder-only").get_vocab())
    return tiny.loaded(TINY[recipe["base"]], 0, *sorted(words - known))


@pytest.fixture
def offline(monkeypatch):
    """Puts the tiny base and made-up rows in the place of the real ones; one expert a source."""

    def arrange(recipe: dict, folder: Path) -> None:
        task = Task.named(recipe["task"])
        base = tiny_base(recipe, task)

        def splits(task: Task, **_: object) -> Splits:
            size = 2 * recipe.get("shots", 4) * max(len(task.labels), 2)
            return Splits(*(examples(task, s, size) for s in ("train", "validation", "test")))

        monkeypatch.setattr(pemt.bases, "load_base", lambda *_, **__: base)
        for module in (sourcing, adapting):
            monkeypatch.setattr(module, "load_splits", splits)
        for seed, name in enumerate(recipe.get("experts") or ["one", "two"]):
            expert = tiny.expert(base.model, name, seed=seed)
            known = replace(expert.info, tokenizer_fingerprint=fingerprint(base.tokenizer))
            ExpertLibrary(folder / "library").add(replace(expert, info=known))

    return arrange


def test_there_is_one_for_each_task_of_the_paper():
    stages = {stage: set() for stage in ("source", "target")}
    for path in (FOLDER / "paper").glob("*.yaml"):
        stage, _, task = path.stem.partition("-")
        stages[stage].add(task)
    glue, superglue = {"stsb", "mrpc", "rte", "cola"}, {"multirc", "boolq", "wic", "wsc", "cb"}
    mrqa, others = {"nq", "hotpotqa", "searchqa", "newsqa"}, {"winogrande", "yelp_polarity"}
    targets = {*glue, *superglue, *mrqa, *others, "scitail", "paws"}
    assert stages == {"source": set(SOURCES), "target": {*SOURCES, *targets}}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_recipe(path, tmp_path, offline, capsys):
    recipe = content(path)
    first = path.read_text(encoding="utf-8")
    command, shown = re.search(r"#   pemt ([a-z-]+) --config (\S+)\n", first).groups()
    assert FOLDER.parent / shown == path, "its comment names another file"
    stage, _, task = path.stem.removeprefix(f"{recipe['base']}-").partition("-")
    assert recipe["task"] == task
    assert recipe["task"] in task_names()
    assert command == {"source": "train-source", "target": "adapt"}[stage]
    if path.parent.name == "paper":
        check_paper(stage, recipe)
    offline(recipe, tmp_path)
    library = tmp_path / ("new" if stage == "source" else "library")
    arguments = [
        command, "--config", str(path), recipe["task"], str(library),
        "--output", str(tmp_path / "run"), "--settings.max_steps", "1",
        "--settings.evaluations", "1", "--settings.report_to", "none",
        "--settings.batch_size", "4", "--settings.max_source_length", "16", "--json",
        "--settings.checkpoints", "false", "--precision", "float32",
    ]  # fmt: skip
    arguments += ["--source.rank", "2"] if stage == "source" else ["--test_rows", "4"]
    if "learning_rates" in recipe:
        arguments += ["--learning_rates", "[0.001]"]
    assert main(arguments) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "results.json").is_file()


def check_paper(stage: str, recipe: dict) -> None:
    settings = recipe["settings"]
    assert settings["answers"] == "generate"
    if stage == "source":
        assert recipe["source"] == {"rank": 64, "alpha": 64}
        assert settings["learning_rate"] == 5e-4
        assert settings["warmup_steps"] == 500
        table = (128, 256, 5)
    else:
        assert recipe["experts"] == SOURCES
        assert recipe["method"] == "pemt"
        assert recipe["learning_rates"] == [1e-3, 6e-4, 3e-4]
        assert recipe["validation"] == "full"
        assert settings["warmup_steps"] == 0
        table = STAGE_TWO.get(recipe["task"], (100, 256, 20))
    assert (settings["batch_size"], settings["max_source_length"], settings["epochs"]) == table
    assert settings["evaluations"] == settings["epochs"], "best epoch on validation"
