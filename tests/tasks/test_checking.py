"""What a check of a task finds: sizes, repeated texts, lengths, every problem with its place."""

from __future__ import annotations

import gzip
import json
import re

import pytest
from tokenizers import normalizers

from pemt.errors import DataError
from pemt.tasks import draw, load_examples, official_splits
from pemt.tasks.checking import check_task
from pemt.tasks.lengths import Reader
from tests.tasks.builders import make_task, make_tokenizer


def check(folder, reader=None, name="rows.csv", **changes):
    rows = {"files": {"train": name}}
    return check_task(make_task(folder, **{"rows": rows, **changes}), reader=reader)


def write(folder, content, name="rows.csv"):
    content = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(content)


def healthy(count=30, start=0):
    rows = (f"sample {i},{i % 2}\n" for i in range(start, start + count))
    return "text,label\n" + "".join(rows)


def reader(style="bert", family="encoder-only", **limits):
    return Reader(base="tiny", tokenizer=make_tokenizer(style), family=family, **limits)


def problems(report):
    return [(p.what, p.places) for p in report.problems]


def test_a_healthy_task(tmp_path):
    write(tmp_path, healthy())
    report = check(tmp_path, reader())
    task = make_task(tmp_path, rows={"files": {"train": "rows.csv"}})
    splits = official_splits(task, load_examples(task))
    assert report.trains
    assert {name: split.rows for name, split in report.splits.items()} == splits.sizes
    for name, split in report.splits.items():
        targets = [e.target for e in getattr(splits, name)]
        assert split.labels == {word: targets.count(word) for word in task.labels}
    assert set(report.overlap.values()) == {0}
    assert (report.contradictions, report.problems, report.notes) == (0, (), [])
    assert report.examples[0] == tuple(
        getattr(splits.train[0], k) for k in ("id", "text", "target")
    )
    assert json.loads(json.dumps(report.to_dict()))["trains"] is True


def test_a_text_with_two_labels_is_one_row_of_the_most_shots(tmp_path):
    for name in ("validation", "test"):
        write(tmp_path, "text,label\np,0\nq,1\n", f"{name}.csv")
    both = "".join(f"both {i},{label}\n" for i in range(4) for label in (0, 1))
    write(tmp_path, f"text,label\n{both}a,0\nb,0\nc,1\nd,1\n")
    files = {"train": "rows.csv", "validation": "validation.csv", "test": "test.csv"}
    task = make_task(tmp_path, rows={"files": files}, split={"rule": "own"})
    most, splits = check_task(task).most_shots, official_splits(task, load_examples(task))
    for seed in range(5):
        draw(splits, task, shots=most, data_seed=seed)


def test_the_most_shots_are_the_most(tmp_path):
    write(tmp_path, healthy(41))
    task = make_task(tmp_path, rows={"files": {"train": "rows.csv"}})
    most, splits = check_task(task).most_shots, official_splits(task, load_examples(task))
    assert most > 0
    draw(splits, task, shots=most, data_seed=0)
    with pytest.raises(DataError):
        draw(splits, task, shots=most + 1, data_seed=0)


def test_every_unusable_row_is_named(tmp_path):
    bad = "odd,maybe\n,1\nhalf,0.5\nodd again,maybe\nnone,\nwhole,1.0\ncase,Good\n"
    write(tmp_path, healthy(20) + bad)
    report = check(tmp_path)
    at = [f"{tmp_path / 'rows.csv'}:{line}" for line in range(22, 29)]
    assert problems(report) == [
        ("label 'maybe' is outside the label set", (at[0], at[3])),
        ("blank text", (at[1],)),
        ("label '0.5' is outside the label set", (at[2],)),
        ("no value in the label column 'label'", (at[4],)),
        ("label 'Good' is outside the label set", (at[6],)),
    ]
    assert "'good' differs from it in case only" in report.problems[-1].fix
    assert all(p.fix for p in report.problems)
    assert not report.trains
    assert sum(split.rows for split in report.splits.values()) == 21, "1.0 is the label 1"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.csv", "text,label\n", "no rows"),
        ("rows.csv", "txt,label\na,0\nb,1\n", "no column 'text'. Did you mean: txt"),
        ("rows.csv", "text,label\nonly,1\n", "split is empty"),
        ("gone.csv", None, "does not exist"),
    ],
)
def test_unusable_files_are_problems(tmp_path, name, content, words):
    if content is not None:
        write(tmp_path, content, name)
    report = check(tmp_path, reader(), name=name)
    assert any(words in p.what for p in report.problems), problems(report)
    assert not report.trains


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("rows.csv", healthy(20) + "a,b,c\nx,1\nd\n", {22: "3 cells", 24: "1 cells"}),
        (
            "rows.jsonl",
            "".join(f'{{"text": "s {i}", "label": {i % 2}}}\n' for i in range(20)) + "{\n[1]\n3\n",
            {21: "not JSON", 22: "a list", 23: "a int"},
        ),
        (
            "rows.csv",
            (healthy(20) + "\xe9,1\nfine,0\n\xfc,1\n").encode("latin-1"),
            {22: "byte 0xe9", 24: "byte 0xfc"},
        ),
    ],
)
def test_every_broken_line_is_named(tmp_path, name, content, lines):
    write(tmp_path, content, name)
    found = check(tmp_path, name=name).problems
    assert len(found) == len(lines)
    for problem, (line, words) in zip(found, lines.items(), strict=True):
        assert problem.places == (f"{tmp_path / name}:{line}",)
        assert re.match(words, problem.what)
        assert problem.fix
    with pytest.raises(DataError, match=rf"{name}:{min(lines)}: "):
        load_examples(make_task(tmp_path, rows={"files": {"train": name}}))


def test_a_truncated_mirror_is_a_problem(tmp_path):
    rows = "".join(f'{{"text": "{i}", "label": {i % 2}}}\n' for i in range(500)).encode()
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(rows, mtime=0))
    (folder / "validation.jsonl.gz").write_bytes(gzip.compress(rows, mtime=0)[:-20])
    task = make_task(tmp_path, split={"rule": "halve_validation"})
    found = check_task(task, data_dir=tmp_path / "data").problems
    assert any("validation.jsonl.gz" in p.what and "truncated" in p.what for p in found)


def test_a_task_without_rows_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.delenv("PEMT_DATA_DIR", raising=False)
    report = check_task(make_task(tmp_path))
    assert "has no rows" in report.problems[0].what
    assert not report.trains


def test_repeated_texts_overlap_and_contradictions(tmp_path):
    write(tmp_path, "text,label\nsame,0\nSAME ,0\nother,0\nthird,1\nfourth,1\n", "train.csv")
    write(tmp_path, "text,label\nsame,1\nnew,0\nnew  ,0\n", "test.csv")
    write(tmp_path, "text,label\nThird,1\nown,0\n", "validation.csv")
    files = {split: f"{split}.csv" for split in ("train", "validation", "test")}
    report = check(tmp_path, rows={"files": files})
    assert {n: s.duplicates for n, s in report.splits.items()} == {
        "train": 1, "validation": 0, "test": 1,
    }  # fmt: skip
    assert report.overlap == {"train/validation": 1, "train/test": 1, "validation/test": 0}
    assert report.contradictions == 1
    assert report.trains, "notes do not keep a task from training"
    notes = "\n".join(report.notes)
    for said in ("1 of 3 test rows (33.3%)", "1 of 5 train rows repeat", "bad and good"):
        assert said in notes


def test_one_file_for_two_splits_is_noted(tmp_path):
    write(tmp_path, healthy())
    report = check(tmp_path, rows={"files": {"train": "rows.csv", "test": "./rows.csv"}})
    assert any("train and test are the same file" in note for note in report.notes)
    assert report.overlap["train/test"] == report.splits["train"].rows


def test_an_empty_class_is_named_and_cannot_be_drawn(tmp_path):
    write(tmp_path, healthy())
    labels = ["bad", "good", "none"]
    report = check(tmp_path, labels=labels)
    assert problems(report) == [("The label 'none' has no training row", ())]
    assert report.most_shots == 0
    task = make_task(tmp_path, labels=labels, rows={"files": {"train": "rows.csv"}})
    with pytest.raises(DataError, match="0 distinct training rows of the label 'none'"):
        draw(official_splits(task, load_examples(task)), task, shots=1, data_seed=0)


def test_a_hundred_labels_with_one_row_each(tmp_path):
    labels = [f"c{i}" for i in range(100)]
    write(tmp_path, "text,label\n" + "".join(f"sample {i},c{i}\n" for i in range(100)))
    report = check(tmp_path, labels=labels)
    missing = [w for w, n in report.splits["train"].labels.items() if n == 0]
    assert len(missing) == 100 - report.splits["train"].rows
    assert [p.what for p in report.problems] == [
        f"The label {word!r} has no training row" for word in missing
    ]


def test_rare_labels_are_noted(tmp_path):
    rows = "".join(f"sample {i},{int(i % 40 == 0)}\n" for i in range(400))
    write(tmp_path, "text,label\n" + rows)
    assert any("unbalanced" in n and "macro_f1" in n for n in check(tmp_path).notes)
    assert not any("macro_f1" in n for n in check(tmp_path, metrics=["macro_f1"]).notes)


def test_lengths_are_the_tokenizer_s(tmp_path):
    rows = "".join(f"{'one ' * (i + 1)},{i % 2}\n" for i in range(100))
    write(tmp_path, "text,label\n" + rows)
    lengths = check(tmp_path, reader(max_source_length=53)).lengths
    # [CLS] text: one ... one [SEP]
    assert lengths.quantiles == {"min": 4, "p50": 53, "p90": 93, "p99": 102, "max": 103}
    assert (lengths.limit, lengths.measured, lengths.truncated) == (53, 100, 0.5)
    assert lengths.label_tokens == {"bad": ["bad"], "good": ["good"]}
    task = make_task(tmp_path)
    assert lengths.prompt == len(task.description.split()) + 1, "its words and the end token"
    report = check(tmp_path, reader(max_source_length=53))
    assert any("50.0% of the texts are longer than 53 tokens" in n for n in report.notes)
    assert not any("longer" in n for n in check(tmp_path, reader(max_source_length=90)).notes)


def test_the_limit_leaves_room_for_prompt_and_answer(tmp_path):
    write(tmp_path, healthy())
    prompt = check(tmp_path, reader()).lengths.prompt
    assert check(tmp_path, reader(positions=64)).lengths.limit == 64 - prompt
    gpt = reader("gpt", "decoder-only", positions=64, max_target_length=10)
    assert check(tmp_path, gpt).lengths.limit == 64 - prompt - 10
    report = check(tmp_path, reader(positions=prompt + 4))
    assert any("shorten the description" in p.fix for p in report.problems)


def test_label_words_the_tokenizer_cannot_write(tmp_path):
    write(tmp_path, healthy())
    labels = ["bad", "marvellous"]
    for family, style in (("decoder-only", "gpt"), ("encoder-decoder", "t5")):
        report = check(tmp_path, reader(style, family), labels=labels)
        assert any("'marvellous'" in p.what and "unknown token" in p.what for p in report.problems)
    assert check(tmp_path, reader(), labels=labels).trains, "a head needs no words"
    long = check(tmp_path, reader("gpt", "decoder-only", max_target_length=2),
                 labels=["bad", "good one two"])  # fmt: skip
    assert any("'good one two' takes 4 tokens" in p.what for p in long.problems)
    removes = reader("gpt", "decoder-only")
    removes.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    nothing = check(tmp_path, removes, labels=["bad", "~"])
    assert any("'~'" in p.what and "no token" in p.what for p in nothing.problems)


def test_free_text_needs_a_base_that_writes(tmp_path):
    write(tmp_path, healthy())
    free = {"kind": "generation", "labels": [], "metrics": ["exact_match"]}
    assert not check(tmp_path, reader(), **free).trains
    assert check(tmp_path, reader("t5", "encoder-decoder"), **free).trains
    write(tmp_path, "text,label\n" + "".join(f"t {i},{'one ' * 9}\n" for i in range(20)))
    tight = reader("t5", "encoder-decoder", max_target_length=5)
    report = check(tmp_path, tight, **free)
    assert report.lengths.answers_truncated == 1
    assert any("raise max_target_length" in note for note in report.notes)


def test_regression_has_no_labels(tmp_path):
    write(tmp_path, healthy() + "x,7\n")
    score = {"kind": "regression", "labels": [], "metrics": ["pearson"], "score_range": [0, 5]}
    report = check(tmp_path, reader(), **score)
    assert report.splits["train"].labels == {}
    assert problems(report) == [
        ("'7' is not a score of task 'tiny'", (f"{tmp_path / 'rows.csv'}:32",))
    ]
