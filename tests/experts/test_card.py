"""Cards: what the Hub reads, what people read, and nothing that breaks out of either."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pemt.cli import main
from pemt.experts import ExpertLibrary
from pemt.experts.card import code, expert_card, library_card, measures, model_card, text
from tests import tiny

from .builders import make_base, make_expert, make_info

NASTY = (
    "</td><script>alert(1)</script>\n---\nlicense: mit\n```\n| x | `y` [z](http://e.vil) {{ 7*7 }}"
)


def front(card: str) -> dict:
    """The front matter, read as the Hub reads it."""
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))


def body(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def snippets(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def library(tmp_path: Path) -> ExpertLibrary:
    library = ExpertLibrary(tmp_path / "experts")
    for seed, name in enumerate(["films", "news"]):
        library.add(make_expert(name, seed=seed))
    return library


def test_an_experts_card_says_where_it_came_from():
    info = make_info(
        base="google-t5/t5-base", task="mnli", content_hash="c" * 64,
        metrics={"test": {"accuracy": 0.875, "loss": 0.5, "n": 300}, "validation": 0.9},
    )  # fmt: skip
    card = expert_card(info)
    head = front(card)
    assert head["library_name"] == "peft"
    assert head["base_model"] == "google-t5/t5-base"
    assert head["license"] == "unknown"
    assert head["datasets"] == ["nyu-mll/glue"]
    assert {"pemt", "lora"} <= set(head["tags"])
    result = head["model-index"][0]["results"][0]
    assert result["task"]["type"] == "text-classification"
    assert result["dataset"]["config"] == "mnli"
    assert result["metrics"] == [
        {"type": "accuracy", "value": 0.875, "name": "accuracy (n = 300, one run)"}
    ]
    for part in ("rank 4", "negative, positive", "b" * 8, "c" * 64, "n = 300, one run", "Williams",
                 "no part of the PEFT adapter"):  # fmt: skip
        assert part in card, part
    assert front(expert_card(info, licence="apache-2.0"))["license"] == "apache-2.0"


def test_only_what_was_measured_is_reported():
    card = expert_card(make_info(metrics={}, settings={}, task="my_own", base="a/local/path"))
    assert "No results were recorded." in card
    assert "licence and source are not recorded" in card
    assert front(card)["model-index"][0]["results"] == []
    assert "base_model" not in front(card)
    assert "datasets" not in front(card)


def test_an_imported_experts_card_says_so():
    origin = {"format": "peft", "source": "someone/lora", "base_model_name_or_path": "bert"}
    card = expert_card(make_info(origin=origin, coverage="linear"))
    assert "| imported | from someone/lora (peft), whose base is called bert |" in card
    assert "branches beside linear maps of" in card
    assert "imported" not in expert_card(make_info())
    assert "unrecorded place" in expert_card(make_info(origin={"x": 1}))


def test_spread_needs_more_than_one_run():
    metrics = {
        "test": {"n": 100, "f1": {"mean": 0.5, "deviation": 0.02, "runs": 3}, "accuracy": 0.25},
        "validation": 0.75, "broken": None, "flag": True,
    }  # fmt: skip
    found = {m.name: (m.split, m.value, m.basis) for m in measures(metrics)}
    assert found == {
        "f1": ("test", 0.5, "n = 100, ± 0.0200 over 3 runs"),
        "accuracy": ("test", 0.25, "n = 100, one run"),
        "main metric": ("validation", 0.75, "n not recorded, one run"),
    }
    assert measures({"f1": {"mean": 0.5, "deviation": 0.02, "runs": 1}})[0].deviation is None
    assert measures({"accuracy": 0.5})[0].split == "as recorded"


def test_an_interval_stands_beside_its_metric_alone():
    sure = {"metric": "f1", "low": 0.4, "high": 0.6, "level": 0.95}
    found = measures({"test": {"n": 28, "f1": 0.5, "accuracy": 0.7, "interval": sure}})
    assert {m.name: m.basis for m in found} == {
        "f1": "n = 28, one run, 95 % interval over rows 0.4000 to 0.6000",
        "accuracy": "n = 28, one run",
    }
    for none in (None, {}, {"metric": "f1", "low": None, "high": 0.6}):
        assert measures({"n": 28, "f1": 0.5, "interval": none})[0].interval is None


@pytest.mark.parametrize("value", [NASTY, "a\u2028b", "- x", "# x", "\x00", "1. x", "<!-- x"])
def test_what_somebody_wrote_stays_text(value):
    """A description can neither end the front matter or a table nor bring HTML or code along."""
    info = make_info(
        description=value, task=value, base=value, label_words=(value, "b"), created=value,
        data_fingerprint=value, settings={value: value}, versions={value: value},
        metrics={value: 0.5, "test": {value: 0.5}},
        origin={"source": value, "format": value, "base_model_name_or_path": value},
    )  # fmt: skip
    described = {
        "base": value, "family": value, "base_fingerprint": value,
        "experts": [{"name": value, "content_hash": value}],
        "extra": {"task": {"name": value, "description": value, "labels": [value],
                           "licence": value, "citation": value},
                  "metrics": {value: 1.0}, "settings": {value: value}},
    }  # fmt: skip
    plain = expert_card(make_info())
    for card in (expert_card(info), library_card([info]), model_card(described)):
        assert front(card)["license"] == "unknown"
        assert card.count("\n---\n") == 1
        assert re.findall(r"<(?!!-- This card)", body(card)) == []
        assert "49" not in body(card)
        assert not re.search(r"^(- x|# x|1\. x)", body(card), flags=re.MULTILINE)
    assert expert_card(info).count("\n```") == plain.count("\n```")
    assert len(body(expert_card(info)).splitlines()) <= len(body(plain).splitlines()) + 5


def test_text_and_code_spans():
    assert text("a <b> & [c](d) | *e* `f`") == r"a &lt;b&gt; &amp; \[c\](d) \| \*e\* \`f\`"
    assert text("  two\n lines ") == "two lines"
    assert code("a`b|<c>\nd") == "`a?b??c? d`"


def test_a_cards_lines_load_the_expert(library, monkeypatch):
    """The three lines, from the folder that the card names; and PEFT's two."""
    monkeypatch.chdir(library.root)
    card = (library.root / "films" / "README.md").read_text(encoding="utf-8")
    ours, peft = snippets(card)
    assert len(ours.strip().splitlines()) == 3
    scope: dict = {"base_model": make_base("bert")}
    exec(ours, scope)
    assert scope["expert"].info == library.info("films")
    exec(peft, scope)
    assert type(scope["model"]).__name__ == "PeftModelForFeatureExtraction"


def test_a_librarys_card_lists_its_experts_and_loads_them(library, monkeypatch, capsys):
    assert main(["experts", "card", str(library.root)]) == 0
    card = capsys.readouterr().out
    assert "# A library of 2 experts" in card
    assert card.index("[films](films/README.md)") < card.index("[news](news/README.md)")
    assert "accuracy 0.8750 (n not recorded, one run)" in card
    monkeypatch.chdir(library.root)
    scope: dict = {}
    exec(snippets(card)[0], scope)
    assert [e.name for e in scope["experts"]] == ["films", "news"]


def test_cards_are_written_on_request(library, capsys):
    (library.root / "films" / "README.md").unlink()
    before = library.info("films")
    assert main(["experts", "card", str(library.root), "--name", "films", "--write"]) == 0
    assert "Written" in capsys.readouterr().out
    assert main(["experts", "card", str(library.root), "--write", "--licence", "mit"]) == 0
    assert front((library.root / "README.md").read_text())["license"] == "mit"
    assert library.load("films").info == before
    assert library.names() == ["films", "news"]
    assert sorted(path.name for path in library.root.iterdir()) == [
        ".lock",
        "README.md",
        "films",
        "news",
    ]


def test_a_bottlenecks_card_does_not_speak_of_peft(tmp_path):
    info = ExpertLibrary(tmp_path).add(make_expert("films", kind="bottleneck"))
    assert len(snippets(expert_card(info))) == 1
    assert "plain PEFT cannot hold" in expert_card(info)


def test_a_model_gets_a_card_whose_lines_load_it(tmp_path, monkeypatch, capsys):
    loaded = tiny.loaded("bert")
    loaded.model.save_pretrained(tmp_path / "base")
    loaded.tokenizer.save_pretrained(tmp_path / "base")
    task = tiny.task(tmp_path, "mine").to_dict()
    model = tiny.pemt(loaded.model)
    folder = model.save_pretrained(
        tmp_path / "adapted", base_name=str(tmp_path / "base"),
        extra={"task": task, "metrics": {"accuracy": 0.5, "n": 12}, "settings": {"epochs": 1}},
    )  # fmt: skip
    model.detach()
    card = (folder / "README.md").read_text(encoding="utf-8")
    head = front(card)
    assert head["library_name"] == "pemt"
    assert head["pipeline_tag"] == "text-classification"
    assert (
        head["model-index"][0]["results"][0]["metrics"][0]["name"] == "accuracy (n = 12, one run)"
    )
    for expert in model.experts:
        assert expert.name in card
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(snippets(card)[0], scope)
    assert scope["model"].expert_names == model.expert_names
    assert "trainable params" in capsys.readouterr().out


def test_a_model_without_a_task_gets_a_card_too():
    described = {
        "base": "b", "family": "encoder-only", "base_fingerprint": "f", "experts": [],
        "extra": {"task": "not a mapping", "metrics": None, "settings": []},
    }  # fmt: skip
    assert "No results were recorded." in model_card(described)
    assert "model-index" not in front(model_card(described))
