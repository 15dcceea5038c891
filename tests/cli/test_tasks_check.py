"""``pemt tasks check`` and tasks from flags, from the command line."""

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
HOW = [
    "--text-template", "text: {body}", "--label-column", "verdict",
    "--description", "Given a text after 'text:', the task is to judge it: answer bad or good.",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "bert"
    loaded = tiny.loaded("bert")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "my rows.csv"
    lines = (f"sample number {i},{('bad', 'good')[i % 2]}" for i in range(60))
    path.write_text("body,verdict\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(capsys, *arguments, code=0):
    assert main([str(a) for a in arguments]) == code
    return capsys.readouterr()


def test_the_flags_and_the_file_give_one_report(base, rows, tmp_path, capsys):
    flags = run(capsys, "tasks", "check", "--train", rows, *HOW, "--base", base, "--json").out
    plain = run(capsys, "tasks", "check", rows, *HOW, "--base", base, "--json").out
    written = {
        "name": "my_rows", "kind": "classification", "template": HOW[1], "label_column": HOW[3],
        "description": HOW[5], "labels": ["bad", "good"],
        "rows": {"files": {"train": "my rows.csv"}},
    }  # fmt: skip
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    file = run(capsys, "tasks", "check", path, "--base", base, "--json").out
    assert json.loads(flags) == json.loads(plain) == json.loads(file)
    report = json.loads(file)
    assert report["trains"]
    assert {n: s["rows"] for n, s in report["splits"].items()} == {
        "train": 42, "validation": 6, "test": 12,
    }  # fmt: skip
    assert report["lengths"]["label_tokens"].keys() == {"bad", "good"}


def test_what_a_person_reads(base, rows, capsys):
    with rows.open("a", encoding="utf-8") as file:
        file.write("x,maybe\n" * 7 + " ,good\n")
    how = [*HOW, "--labels", "bad,good", "--base", base]
    said = " ".join(run(capsys, "tasks", "check", rows, *how, code=1).out.split())
    for words in (
        "label 'maybe' is outside the label set", "7 rows:", "my rows.csv:62", "and 2 more",
        "blank text", "my rows.csv:69", "2 problems: this task would not train",
        "text: sample number", "-> good", "Prompt, from the description:",
    ):  # fmt: skip
        assert words in said


def test_twenty_problems_then_a_count(base, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    lines = (f"sample {i},{('bad', 'good', f'odd {i}')[i % 3]}" for i in range(90))
    path.write_text("body,verdict\n" + "\n".join(lines) + "\n", encoding="utf-8")
    how = [*HOW, "--labels", "bad,good", "--base", base]
    said = run(capsys, "tasks", "check", path, *how, code=1).out
    assert said.count("outside the label set") == 20
    assert "... and 10 problems more" in said
    listed = json.loads(run(capsys, "tasks", "check", path, *how, "--json", code=1).out)
    assert len(listed["problems"]) == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            [],
            ["--text-template and --label-column and --description are not given", '"question: {'],
        ),
        (HOW[:4], ["--description is not given"]),
        ([*HOW, "--labels", '["bad"'], ["no list of words"]),
        ([*HOW, "--kind", "clasification"], ["Did you mean: classification"]),
        ([*HOW, "--label-column", "verdit"], ["my rows.csv:2", "Did you mean: verdict"]),
        ([*HOW, "--text-template", "text"], ["reads no column"]),
        ([*HOW, "--description", " "], ["no description"]),
        ([*HOW, "--labels", "bad,bad"], ["twice"]),
        ([*HOW, "--test-file", "gone.csv"], ["gone.csv does not exist"]),
        ([*HOW, "--base", "minilmm"], ["Did you mean: minilm?"]),
    ],
)
def test_mistakes_are_explained(rows, capsys, arguments, words):
    error = run(capsys, "tasks", "check", rows, *arguments, code=1).err
    for word in words:
        assert word in error


def test_flags_without_a_data_file_are_refused(capsys):
    error = run(capsys, "tasks", "check", "rte", "--label-column", "x", code=1).err
    assert "--label-column goes with a data file" in error


def test_an_unknown_split_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path), "--split", "tset"])
    error = capsys.readouterr().err
    assert "split" in error
    assert "'test'" in error


def test_flags_are_in_the_help(capsys):
    for command in (["adapt"], ["train-source"], ["tasks", "check"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        shown = capsys.readouterr().out
        for flag in (
            "--text_template",
            "--label_column",
            "--labels",
            "--test_file",
            "--train FILE",
        ):
            assert flag in shown


def test_a_run_from_flags_answers_without_its_file(base, rows, tmp_path, capsys):
    how = [*HOW, "--base", base, *QUICK, "--json"]
    library, folder = tmp_path / "experts", tmp_path / "run"
    run(capsys, "train-source", "--train", rows, library, *how, "--source.rank", "4",
        "--name", "mine", "--output", tmp_path / "source")  # fmt: skip
    made = run(capsys, "adapt", library, "--train", rows, *how, "--shots", "4", "--output", folder)
    made = json.loads(made.out)
    assert made["task"] == "my_rows"
    flags = ["--precision", "float32", "--json"]
    again = json.loads(run(capsys, "evaluate", folder, *flags).out)
    assert again["metrics"]["accuracy"] == made["metrics"]["accuracy"]
    other = tmp_path / "other.csv"
    other.write_text("body,verdict\nsample,bad\n", encoding="utf-8")
    scored = json.loads(run(capsys, "evaluate", folder, "--task", other, *flags).out)
    assert scored["metrics"]["n"] == 1
    error = run(capsys, "evaluate", folder, "--task", other, "--split", "train", code=1).err
    assert "scored whole" in error
    rows.unlink()
    entry = json.loads(run(capsys, "predict", folder, "--text", '["good"]', *flags).out)
    assert entry["text"] == "text: good"
    assert entry["answer"] in ("bad", "good")
    assert "does not exist" in run(capsys, "evaluate", folder, code=1).err


@pytest.mark.offline_assets
def test_the_default_base(rows, capsys, offline_assets):
    report = json.loads(run(capsys, "tasks", "check", rows, *HOW, "--json").out)
    assert report["lengths"]["base"] == "minilm"
    # [CLS] text : sample number n [SEP]
    assert report["lengths"]["quantiles"]["max"] == 7
