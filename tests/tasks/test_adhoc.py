"""A task from data files and flags: the same as from YAML, and what is asked when in doubt."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from pemt.errors import ConfigError, DataError, UnknownNameError
from pemt.tasks import Task, draw, load_examples, official_splits, task_names
from pemt.tasks.adhoc import is_data_file, task_from_files, task_name, task_on_file
from pemt.tasks.metrics import compute
from pemt.training.deploying import task_from_saved
from tests.tasks.builders import make_task

SAID = {
    "text_template": "question: {question}",
    "label_column": "answer",
    "description": "Given a question after 'question:', the task is to answer yes or no.",
}


def write_rows(path, answers, column="answer"):
    rows = [json.dumps({"question": f"number {i}?", column: a}) for i, a in enumerate(answers)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def from_answers(folder, answers, **more):
    return task_from_files(train=write_rows(folder / "rows.jsonl", answers), **{**SAID, **more})


@pytest.mark.parametrize("parts", [("train",), ("train", "test"), ("train", "validation", "test")])
def test_flags_equal_yaml(tmp_path, parts):
    files = {}
    for part, size in zip(parts, (60, 20, 20), strict=False):
        files[part] = tmp_path / f"{part}.csv"
        lines = [f"{part} {i % (size - 5)},{('yes', 'no')[i % 3 == 0]}" for i in range(size)]
        files[part].write_text("question,answer\n" + "\n".join(lines), encoding="utf-8")
    said = task_from_files(**files, **SAID)
    written = {
        "name": "train", "kind": "classification", "description": SAID["description"],
        "template": SAID["text_template"], "label_column": "answer", "labels": ["no", "yes"],
        "rows": {"files": {part: path.name for part, path in files.items()}},
    }  # fmt: skip
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    task = Task.from_file(path)
    assert said == task
    ours, theirs = (official_splits(t, load_examples(t)) for t in (said, task))
    assert ours == theirs
    for seed in range(3):
        one, other = (
            draw(s, t, shots=4, data_seed=seed) for s, t in ((ours, said), (theirs, task))
        )
        assert one.manifest == other.manifest
        assert one.train == other.train


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        (["b", "a", "b", "c", "a", "c"], ("a", "b", "c")),
        ([2, 10, 2, 10], ("2", "10")),
        (["2", "10", "1.0", "1"], ("1", "2", "10")),
        ([1.0, 0.0, 1], ("0", "1")),
        ([True, False], ("False", "True")),
        ([-1, 1, -1], ("-1", "1")),
        ([" x", "y "], ("x", "y")),
    ],
)
def test_label_words_are_read_off_the_rows(tmp_path, answers, labels):
    task = from_answers(tmp_path, answers)
    assert (task.kind, task.labels) == ("classification", labels)
    assert from_answers(tmp_path, answers[::-1]).labels == labels, "the order of rows is no matter"
    read = {e.target for e in load_examples(task)["train"]}
    assert read == set(labels)


def test_numbers_as_words_are_never_indices(tmp_path):
    task = from_answers(tmp_path, [1, 2, 3, 1, 2, 3])
    assert [task.label_of({"answer": v}) for v in (1, "1", 1.0, "1.0", 3)] == [0, 0, 0, 0, 2]
    with pytest.raises(DataError, match="label 0 is outside the label set\n  -> allowed: '1', '2'"):
        task.label_of({"answer": 0})


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([0.5, 1.25, 4.9], ["3 distinct numbers in 3 rows, from 0.5 to 4.9", "such as 0.5 at",
                            "rows.jsonl:1", "--kind regression", "--labels"]),
        (list(range(21)) * 2, ["21 distinct numbers in 42 rows, from 0 to 20", "regression"]),
        ([f"text {i}" for i in range(9)], ["9 distinct texts in 9 rows", "'text 0'",
                                           "--kind generation"]),
        ([["a", "b"], "c"], ["rows.jsonl:1: a list", "--kind generation"]),
        (["Positive", "positive", "Positive"], ["'Positive' (2 rows, first at", "rows.jsonl:1",
                                                "'positive' (1 row, at", "rows.jsonl:2", "case"]),
        (["a"], ["nothing but 'a' (1 rows)", "--labels"]),
        ([None, " "], ["blank in every row", "--label-column"]),
    ],
)  # fmt: skip
def test_doubt_is_asked_about(tmp_path, answers, words):
    with pytest.raises(DataError) as caught:
        from_answers(tmp_path, answers)
    for word in words:
        assert word in str(caught.value)


def test_the_kind_can_be_said(tmp_path):
    scores = from_answers(tmp_path, [0.5, 1, 4.5], kind="regression")
    assert (scores.kind, scores.score_range, scores.score_step) == ("regression", (0.5, 4.5), 0.2)
    assert scores.metrics == ("pearson",)
    assert from_answers(tmp_path, [0.0, 1.0, 0.3], kind="regression").score_step == 0.05
    free = from_answers(tmp_path, [f"text {i}" for i in range(9)], kind="generation")
    assert (free.kind, free.labels) == ("generation", ())
    every = from_answers(tmp_path, [f"c{i}" for i in range(100)], kind="classification")
    assert len(every.labels) == 100
    chosen = from_answers(tmp_path, [0, 1, 0], labels=["bad", "good"], metrics=["macro_f1"])
    assert (chosen.labels, chosen.metrics) == (("bad", "good"), ("macro_f1",))
    assert [e.target for e in load_examples(chosen)["train"]] == ["bad", "good", "bad"]


@pytest.mark.parametrize(
    ("answers", "said", "error", "message"),
    [
        (["a", "b"], {"kind": "clasification"}, UnknownNameError, "Did you mean: classification"),
        (["a", "b"], {"metrics": ["acuracy"]}, UnknownNameError, "Did you mean: accuracy"),
        (["a", "b"], {"labels": ["a", "a"]}, ConfigError, "twice"),
        (["a", "b"], {"labels": ["a"]}, ConfigError, "at least two"),
        (["a", "b"], {"kind": "regression"}, DataError, r"rows.jsonl:1: 'a' is no number"),
        ([2, 2], {"kind": "regression"}, ConfigError, "Every score is 2"),
        (["a", "b"], {"description": " "}, ConfigError, "no description"),
        (["a", "b"], {"text_template": "question"}, ConfigError, "reads no column"),
        (["a", "b"], {"text_template": "{qestion}"}, DataError,
         r"rows.jsonl:1: no column 'qestion'. Did you mean: question"),
        (["a", "b"], {"label_column": "anser"}, DataError,
         r"rows.jsonl:1: no column 'anser'. Did you mean: answer"),
    ],
)  # fmt: skip
def test_mistakes_name_place_and_remedy(tmp_path, answers, said, error, message):
    with pytest.raises(error, match=message):
        from_answers(tmp_path, answers, **said)


def test_a_space_at_the_end_of_a_column_is_shown(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["a", "b"], column="answer ")
    with pytest.raises(DataError, match="Did you mean: 'answer '"):
        task_from_files(train=path, **SAID)
    path = tmp_path / "rows.csv"
    path.write_text("question, answer \nx,a\ny,b\n", encoding="utf-8")
    assert task_from_files(train=path, **SAID).labels == ("a", "b")


def test_a_column_name_with_spaces(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("The question,answer\nx,a\ny,b\n", encoding="utf-8")
    task = task_from_files(train=path, **{**SAID, "text_template": "q: {The question}"})
    assert load_examples(task)["train"][0].text == "q: x"


def test_names_come_from_files(tmp_path):
    names = {
        "my.csv": "my", "My data (2).csv.gz": "My_data_2", "a.b.jsonl": "a_b", "é.tsv": "task",
        "MY.CSV.GZ": "MY",
    }  # fmt: skip
    assert {name: task_name(tmp_path / name) for name in names} == names
    assert from_answers(tmp_path, ["a", "b"], name="other").name == "other"
    assert [is_data_file(n) for n in ("a.csv", "a.TSV", "a.jsonl.gz", "a.yaml", "rte")] == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("name", task_names())
def test_a_saved_task_is_the_task(name):
    task = Task.named(name)
    assert task_from_saved(json.loads(json.dumps(task.to_dict()))) == task


def test_a_task_from_flags_is_saved_whole_and_needs_no_file(tmp_path):
    task = from_answers(tmp_path, ["yes", "no", "yes"])
    saved = json.loads(json.dumps(task.to_dict()))
    (tmp_path / "rows.jsonl").unlink()
    again = task_from_saved(saved)
    assert again == task
    assert again.render({"question": "why?"}) == "question: why?"
    with pytest.raises(DataError, match="does not exist"):
        load_examples(again)


def test_a_task_on_another_file(tmp_path):
    task = from_answers(tmp_path, ["yes", "no", "yes"])
    other = task_on_file(task, write_rows(tmp_path / "other.jsonl", ["no"]))
    assert {s: [e.target for e in part] for s, part in load_examples(other).items()} == {
        "test": ["no"]
    }
    assert replace(other, rows=task.rows, split=task.split) == task


def test_a_file_is_read_as_the_task_reads_its_own(tmp_path):
    task = make_task(
        tmp_path, rows={"files": {"train": "none.jsonl"}, "drop_labels": ["?"], "distinct": True},
        group={"column": "at.question"}, metrics=["question_exact_match"],
    )  # fmt: skip
    rows = [
        {"text": f"row {i % 5}", "label": label, "at": {"question": i % 2}}
        for i, label in enumerate(["bad", "?", "good", "bad", "good", "bad"])
    ]
    path = tmp_path / "other.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    other = task_on_file(task, path)
    examples = load_examples(other)["test"]
    assert [(e.text, e.target, e.group) for e in examples] == [
        ("text: row 0", "bad", "0"), ("text: row 2", "good", "0"), ("text: row 3", "bad", "1"),
        ("text: row 4", "good", "0"),
    ]  # fmt: skip
    questions = [e.group for e in examples]
    assert compute(other, [0, 1, 0, 0], [0, 1, 0, 1], questions) == {"question_exact_match": 0.5}


def test_a_file_without_the_group_is_scored_by_row(tmp_path):
    task = make_task(
        tmp_path, rows={"files": {"train": "none.csv"}}, group={"column": "at.question"}
    )
    path = tmp_path / "other.csv"
    path.write_text("text,label\nx,bad\ny,good\n", encoding="utf-8")
    assert task_on_file(task, path).group is None
    assert [e.group for e in load_examples(task_on_file(task, path))["test"]] == ["", ""]
    path.write_text("text,label,at.question\nx,bad,1\ny,good,1\n", encoding="utf-8")
    assert [e.group for e in load_examples(task_on_file(task, path))["test"]] == ["1", "1"]
    with pytest.raises(DataError, match="does not exist"):
        task_on_file(task, tmp_path / "missing.csv")


@pytest.mark.parametrize("answers", [[{"a": 1}], [[]], [float("nan"), 1.0]])
def test_odd_answers_are_refused(tmp_path, answers):
    with pytest.raises(DataError) as caught:
        from_answers(tmp_path, answers)
    assert caught.value.fix
