"""Rows from files, mirror and wheels: what is read, and which file and line an error names."""

from __future__ import annotations

import gzip
import json

import pytest

from pemt.errors import DataError
from pemt.tasks.rows import _example, load_examples, locate
from pemt.tasks.task import Task
from tests.tasks.builders import make_task, mirror

JSONL = '{"text": "one", "label": 0}\n\n{"text": "two", "label": "good"}\n'


def load(folder, name, content, **changes):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_examples(make_task(folder, rows={"files": {"train": name}}, **changes))["train"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)),
        ("a.csv", "text,label\none,0\ntwo,good\n"),
        ("a.csv", "\ufefflabel,text\r\nbad,one\r\n1,two\r\n"),
        ("a.tsv", "text\tlabel\none\t0\ntwo\tgood\n"),
        ("a.csv.gz", gzip.compress(b'text,label\n"one","0"\ntwo,1\n', mtime=0)),
    ],
)
def test_every_format_gives_the_same_examples(tmp_path, name, content):
    examples = load(tmp_path, name, content)
    assert [(e.id, e.text, e.label, e.target) for e in examples] == [
        ("train:0", "text: one", 0, "bad"),
        ("train:1", "text: two", 1, "good"),
    ]


def test_missing_file_and_missing_column_list_what_is_there(tmp_path):
    task = make_task(tmp_path, rows={"files": {"train": "none.csv"}})
    with pytest.raises(DataError, match="does not exist"):
        load_examples(task)
    with pytest.raises(DataError, match="the columns are: body, label"):
        load(tmp_path, "a.csv", "body,label\nx,0\n")


def test_own_ids_are_used_where_unique(tmp_path):
    rows = [{"text": str(i), "label": 0, "idx": 10 + i} for i in range(3)]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    assert [e.id for e in load(tmp_path, "a.jsonl", content)] == [
        "train:10",
        "train:11",
        "train:12",
    ]
    rows[2]["idx"] = 10
    content = "".join(json.dumps(row) + "\n" for row in rows)
    assert [e.id for e in load(tmp_path, "a.jsonl", content)] == ["train:0", "train:1", "train:2"]


def test_distinct_keeps_one_and_drops_contradictions(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,0\nb,0\na,0\nb,1\nc,1\n")
    rows = {"files": {"train": "a.csv"}, "distinct": True}
    examples = load_examples(make_task(tmp_path, rows=rows))["train"]
    assert [(e.id, e.text) for e in examples] == [("train:0", "text: a"), ("train:4", "text: c")]


def test_dropped_labels(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,0\nb,odd\n")
    rows = {"files": {"train": "a.csv"}, "drop_labels": ["odd"]}
    assert len(load_examples(make_task(tmp_path, rows=rows))["train"]) == 1


def test_generation_and_regression_targets(tmp_path):
    content = '{"text": "q", "label": "4.1"}\n'
    answer = {"kind": "generation", "labels": [], "metrics": ["exact_match"]}
    (example,) = load(tmp_path, "a.jsonl", content, **answer)
    assert (example.label, example.target) == (None, "4.1")
    score = {"kind": "regression", "labels": [], "metrics": ["pearson"]}
    (example,) = load(tmp_path, "a.jsonl", content, **score)
    assert (example.label, example.target) == (4.1, "4.0")


def write_mirror(folder, splits=("train", "validation")):
    folder.mkdir(parents=True)
    for split in splits:
        with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
            file.write(JSONL)


def test_the_mirror_is_found_by_name_alias_and_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("PEMT_DATA_DIR", raising=False)
    data = tmp_path / "data"
    write_mirror(data / "other")
    task = make_task(tmp_path, rows={"mirror": ["other"]}, split={"rule": "halve_validation"})
    for given in (data, str(data)):
        assert set(load_examples(task, data_dir=given)) == {"train", "validation"}
    with pytest.raises(DataError, match="has no rows: no files"):
        load_examples(task)
    monkeypatch.setenv("PEMT_DATA_DIR", str(data))
    assert locate(task).kind == "mirror"


def test_an_incomplete_or_absent_mirror_is_an_error(tmp_path):
    write_mirror(tmp_path / "data" / "tiny", ("train",))
    task = make_task(tmp_path, split={"rule": "halve_validation"})
    with pytest.raises(DataError, match=r"has no validation\.jsonl\.gz"):
        load_examples(task, data_dir=tmp_path / "data")
    with pytest.raises(DataError, match="does not exist"):
        load_examples(task, data_dir=tmp_path / "dota")


@pytest.mark.mirror
def test_mirror_rows_render_as_the_paper_s():
    examples = load_examples(Task.named("cb"), data_dir=mirror())
    assert {e.target for e in examples["train"]} == {"entailment", "contradiction", "neutral"}
    assert all(e.text.startswith("premise: ") for e in examples["train"])
    assert all(" hypothesis: " in e.text for e in examples["train"])


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_a_blank_group_is_pointed_at(tmp_path, blank):
    """A CSV file cannot say None; such rows failed where they were scored, after the training."""
    task = make_task(tmp_path, group={"column": "user"})
    with pytest.raises(DataError, match="there: no value in the group column 'user'\\n"):
        _example(task, {"text": "w1", "label": "good", "user": blank}, "0", "there")
    made = _example(task, {"text": "w1", "label": "good", "user": 0}, "0", "there")
    assert made.group == "0"
