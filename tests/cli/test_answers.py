"""`--answers`, intervals, classes and invalid answers, through the commands."""

from __future__ import annotations

import json

import pytest
import yaml

from pemt.cli import main
from tests import tiny

QUICK = [
    "--settings.epochs", "1", "--settings.max_source_length", "24", "--settings.evaluations", "1",
    "--settings.report_to", "none", "--settings.checkpoints", "false", "--precision", "float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a generative base, a task file and a library of one expert."""
    folder = tmp_path_factory.mktemp("answers")
    base = tiny.loaded("llama")
    base.model.save_pretrained(folder / "base")
    base.tokenizer.save_pretrained(folder / "base")
    tiny.task(folder, "reviews")
    main_arguments = [
        "train-source", folder / "reviews.yaml", folder / "experts", "--base", folder / "base",
        "--source.rank", "4", "--output", folder / "source", "--json", *QUICK,
    ]  # fmt: skip
    assert main([str(a) for a in main_arguments]) == 0
    return folder


def run(capsys, *arguments, code=0):
    assert main([str(a) for a in arguments]) == code
    return capsys.readouterr()


def adapt(place, folder, *more):
    return [
        "adapt", place / "reviews.yaml", place / "experts", "--base", place / "base", "--shots",
        "2", "--output", folder, *QUICK, *more,
    ]  # fmt: skip


def check(shown):
    """What every result holds, whatever the numbers."""
    value = shown["metrics"]["accuracy"]
    assert shown["interval"]["low"] <= value <= shown["interval"]["high"]
    assert shown["interval"]["units"] == shown["metrics"]["n"] == 16
    assert list(shown["per_class"]) == ["bad", "good"]
    assert [scores["support"] for scores in shown["per_class"].values()] == [8, 8]
    assert sum(map(sum, shown["confusion"])) == 16
    assert sum(row[-1] for row in shown["confusion"]) == shown["invalid"]
    right = sum(shown["confusion"][i][i] for i in range(2))
    assert value == pytest.approx(right / 16)
    counted = sum(count for _, count in shown["invalid_texts"])
    assert counted <= shown["invalid"]
    assert len(shown["invalid_texts"]) <= 3


def test_generated_and_ranked_answers_are_reported(place, tmp_path, capsys):
    folder = tmp_path / "run"
    made = json.loads(run(capsys, *adapt(place, folder, "--answers", "generate", "--json")).out)
    check(made)
    assert made["invalid"] > 0  # four steps teach no words
    assert len(made["invalid_texts"]) >= 1
    results = json.loads((folder / "results.json").read_text())
    check(results)
    assert {k: results[k] for k in ("interval", "per_class", "confusion", "invalid")} == {
        k: made[k] for k in ("interval", "per_class", "confusion", "invalid")
    }
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["answers"] == "generate"

    flags = ["--task", place / "reviews.yaml", "--precision", "float32"]
    again = json.loads(run(capsys, "evaluate", folder, *flags, "--json").out)
    check(again)
    assert again["answers"] == "generate"
    assert again["invalid"] == made["invalid"]
    ranked = json.loads(run(capsys, "evaluate", folder, *flags, "--answers", "rank", "--json").out)
    check(ranked)
    assert ranked["answers"] == "rank"
    assert ranked["invalid"] == 0

    text = run(capsys, "evaluate", folder, *flags).out
    assert f"{made['invalid']} of 16 answers were invalid; the commonest: " in text
    low, high = (made["interval"][end] for end in ("low", "high"))
    assert f"95 % interval {low:.3f} to {high:.3f}" in text
    assert "wide on 16 test rows" in text
    for word in ("precision", "recall", "as good", "invalid"):
        assert word in text

    one = ["predict", folder, "--text", '["nice w1"]', "--precision", "float32"]
    assert run(capsys, *one, "--answers", "rank").out.strip() in ("bad", "good")
    assert "probabilities" in run(capsys, *one, "--answers", "rank", "--json").out
    assert "probabilities" not in run(capsys, *one, "--json").out


def test_adapting_says_the_interval(place, tmp_path, capsys):
    text = run(capsys, *adapt(place, tmp_path / "run", "--answers", "rank")).out
    assert "95 % interval" in text
    assert "0 of 16 answers were invalid." in text


def test_an_unknown_way_to_answer_is_refused(place, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(a) for a in adapt(place, tmp_path / "run", "--answers", "guess")])
    error = capsys.readouterr().err
    assert "guess" in error
    assert "generate" in error


def test_rows_with_their_own_options_are_predicted(place, tmp_path, capsys):
    """WinoGrande's shape: the answer is one of two words that the row names."""
    lines = [
        {"text": f"w{i} {'nice' if i % 2 else 'dull'}", "first": "w1", "second": "w2 w3",
         "label": i % 2}
        for i in range(8)
    ]  # fmt: skip
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    described = {
        "kind": "classification", "template": "text: {text}", "label_column": "label",
        "labels": ["1", "2"], "label_values": {"0": 0, "1": 1},
        "option_columns": ["first", "second"], "description": "Given a text judge it",
        "split": {"rule": "own"},
        "rows": {"files": dict.fromkeys(("train", "validation", "test"), "own.jsonl")},
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    arguments = adapt(place, tmp_path / "run", "--json")
    arguments[1], arguments[arguments.index("2")] = tmp_path / "own.yaml", "1"
    made = json.loads(run(capsys, *arguments).out)
    assert list(made["per_class"]) == ["1", "2"]

    predicting = ["predict", tmp_path / "run", "--input", tmp_path / "own.jsonl"]
    flags = ["--precision", "float32", "--json"]
    shown = [json.loads(line) for line in run(capsys, *predicting, *flags).out.splitlines()]
    assert len(shown) == 8
    for entry in shown:
        assert set(entry["probabilities"]) == {"w1", "w2 w3"}
        assert entry["answer"] == max(entry["probabilities"], key=entry["probabilities"].get)
        assert sum(entry["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    bare = run(capsys, "predict", tmp_path / "run", "--text", '["w1"]', *flags, code=1).err
    assert "has no options" in bare
    assert "first, second" in bare
