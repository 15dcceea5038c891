"""`pemt predict` on files: every format, bad rows, several tasks at once."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet
import pytest

from pemt.cli import main
from pemt.cli import predict as command
from pemt.errors import DataError
from pemt.experts import ExpertLibrary
from pemt.model import PemtConfig, PemtModel, TaskPart, TaskRouter
from pemt.tasks import Example
from pemt.tasks.encoding import fingerprint
from pemt.tasks.rows import _example as as_learnt
from pemt.training import adapt, predict_routed, predict_stream, streaming
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, and two tasks adapted on it with the same experts (the second with other labels)."""
    folder = tmp_path_factory.mktemp("predict")
    made = tiny.loaded("bert")
    made.model.save_pretrained(folder / "bert")
    made.tokenizer.save_pretrained(folder / "bert")
    from pemt.bases import load_base

    base = load_base(folder / "bert", precision="float32")
    library = ExpertLibrary(folder / "experts")
    for i, name in enumerate("abc"):
        made = tiny.expert(base.model, name, seed=i)
        known = fingerprint(base.tokenizer)
        library.add(replace(made, info=replace(made.info, tokenizer_fingerprint=known)))
    settings = tiny.settings(max_steps=6, evaluations=1, checkpoints=False, max_target_length=4)
    for name, kind, experts in (
        ("first", "classification", ["a", "b"]), ("second", "regression", ["b", "a"]),
        ("third", "classification", ["a", "c"]),
    ):  # fmt: skip
        result = adapt(
            base, tiny.task(folder, name, kind=kind), library, names=experts, shots=4,
            method="pemt", settings=settings, folder=folder / name, progress=False,
        )  # fmt: skip
        result.model.detach()
    return folder


def texts(count):
    return [row["text"] for row in tiny.rows("classification", count, 5)]


def write(path, rows):
    """Rows in the format of the suffix."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            lines.writeheader()
            lines.writerows(rows)
    return path


def run(capsys, *arguments, code=0):
    assert main([str(a) for a in ("predict", *arguments, "--precision", "float32")]) == code
    return capsys.readouterr()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_what_single_texts_give(place, tmp_path, capsys, monkeypatch, suffix):
    monkeypatch.setattr(streaming.predict_stream, "__kwdefaults__", {"window": 4})
    rows = write(tmp_path / f"rows{suffix}", [{"text": t} for t in texts(11)])
    out = tmp_path / "answers.jsonl"
    shown = run(capsys, place / "first", "--input", rows, "--output", out)
    assert shown.out.strip() == f"11 answers in {out}"
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    alone = run(capsys, place / "first", "--text", json.dumps(texts(11)), "--json").out
    for made, wanted in zip(answers, map(json.loads, alone.splitlines()), strict=True):
        assert (made["text"], made["answer"]) == (wanted["text"], wanted["answer"])
        assert made["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
    printed = run(capsys, place / "first", "--input", rows).out.split()
    assert printed == [a["answer"] for a in answers]


def test_a_missing_value_reads_as_where_it_was_learnt(tmp_path):
    """As an empty one, not as the word None; a row of nothing else ends the run."""
    task = replace(tiny.task(tmp_path), template="title: {title} text: {text}")
    row = {"title": None, "text": "w1 w2", "label": "good"}
    learnt = as_learnt(task, row, "0", "there")
    assert command._example(row, task, "there", 0).text == learnt.text == "title:  text: w1 w2"
    with pytest.raises(DataError, match="there: blank text"):
        command._example({"title": None, "text": " "}, task, "there", 0)


def test_places_for_answers(place, tmp_path, capsys):
    """A folder that is not there is made; a place that cannot be one is said."""
    rows = write(tmp_path / "rows.jsonl", [{"text": t} for t in texts(3)])
    run(capsys, place / "first", "--input", rows, "--output", tmp_path / "new" / "far" / "a.jsonl")
    assert len((tmp_path / "new" / "far" / "a.jsonl").read_text().splitlines()) == 3
    for bad, said in ((tmp_path / "new", "is a folder"), (rows / "a.jsonl", "cannot be written")):
        error = run(capsys, place / "first", "--input", rows, "--output", bad, code=1).err
        assert f"{bad} {said}" in error


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"texto": "w1"}', ":9: no column 'text'"),
        ("{", ":9: not JSON"),
        ("[1]", ":9: a list, not an object"),
    ],
)
def test_a_bad_row_in_the_middle(place, tmp_path, capsys, monkeypatch, bad, said):
    monkeypatch.setattr(streaming.predict_stream, "__kwdefaults__", {"window": 3})
    lines = [json.dumps({"text": t}) for t in texts(12)]
    lines[8] = bad
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "out" / "answers.jsonl"
    out.parent.mkdir()
    error = run(capsys, place / "first", "--input", rows, "--output", out, code=1).err
    assert f"{rows}{said}" in error
    assert not list(out.parent.iterdir())
    out.write_text("from before")
    run(capsys, place / "first", "--input", rows, "--output", out, code=1)
    assert [p.read_text() for p in out.parent.iterdir()] == ["from before"]
    # to stdout, what was answered before the bad row's window stands
    assert len(run(capsys, place / "first", "--input", rows, code=1).out.split()) == 6


def test_several_tasks_in_one_file(place, tmp_path, capsys):
    names = ["first", "points", "points", "first", "first", "points", "first"]
    mixed = [{"text": t, "what": n} for t, n in zip(texts(7), names, strict=True)]
    rows = write(tmp_path / "mixed.csv", mixed)
    runs = f"{place / 'first'},points={place / 'second'}"
    shown = run(capsys, runs, "--input", rows, "--task-column", "what", "--json").out
    answers = [json.loads(line) for line in shown.splitlines()]
    assert [a["task"] for a in answers] == names
    for name, folder in (("first", "first"), ("points", "second")):
        own = [t for t, n in zip(texts(7), names, strict=True) if n == name]
        alone = run(capsys, place / folder, "--text", json.dumps(own), "--json").out
        wanted = [json.loads(line) for line in alone.splitlines()]
        for made, one in zip([a for a in answers if a["task"] == name], wanted, strict=True):
            assert (made["text"], made["answer"]) == (one["text"], one["answer"])
            assert made.get("probabilities") == pytest.approx(one.get("probabilities"), abs=1e-5)


def test_scores_of_several_tasks_are_as_fine_as_those_of_one(tmp_path, monkeypatch):
    base = tiny.loaded("bert")
    task = replace(tiny.task(tmp_path, kind="regression"), score_step=0.005)
    model = PemtModel(
        base.model, [tiny.expert(base.model, "a")], PemtConfig(reduction=4), prompt=tiny.prompt(),
        outputs=1,
    ).eval()  # fmt: skip
    rows = [Example(str(i), f"text: {t}", None, "") for i, t in enumerate(texts(3))]
    alone = [a.text for a in predict_stream(model, task, base.tokenizer, rows)]
    assert all(len(text.partition(".")[2]) == 4 for text in alone)
    parts = [TaskPart.of("one", model)]
    model.detach()
    router = TaskRouter(base.model, parts)
    routed = predict_routed(router, {"one": task}, base.tokenizer, [("one", e) for e in rows])
    assert [a.text for a in routed] == alone


def test_a_column_that_a_template_reads_twice_is_one(tmp_path):
    task = replace(tiny.task(tmp_path), template="text: {text} again: {text}")
    assert [e.text for e in command._texts(["w1"], task)] == ["text: w1 again: w1"]


def test_scores_are_given_as_numbers_too(place, tmp_path, capsys):
    rows, out = write(tmp_path / "rows.csv", [{"text": t} for t in texts(4)]), tmp_path / "a.jsonl"
    run(capsys, place / "second", "--input", rows, "--output", out)
    shown = run(capsys, place / "second", "--input", rows, "--json").out
    assert shown == out.read_text()
    for answer in map(json.loads, shown.splitlines()):
        assert answer["answer"] == f"{answer['value']:.2f}"
        assert answer["value"] != float(answer["answer"])
    shown = run(capsys, place / "first", "--input", rows, "--json").out
    assert not any("value" in json.loads(line) for line in shown.splitlines())


def test_half_a_character_is_refused(place, tmp_path, capsys):
    rows = write(tmp_path / "rows.jsonl", [{"text": "w1"}, {"text": "cut \ud83d"}])
    error = run(capsys, place / "first", "--input", rows, code=1).err
    assert f"{rows}:2: \\ud83d is half a character" in error


def test_refusals(place, tmp_path, capsys):
    both = f"{place / 'first'},{place / 'second'}"
    rows = write(tmp_path / "rows.csv", [{"text": "w1", "task": "firts"}])
    error = run(capsys, both, "--input", rows, code=1).err
    assert f"{rows}:2: task 'firts'" in error
    assert "first, second" in error
    bare = write(tmp_path / "bare.csv", [{"text": "w1"}])
    assert "no column 'task'" in run(capsys, both, "--input", bare, code=1).err
    assert "--text for 2 runs" in run(capsys, both, "--text", '["w1"]', code=1).err
    other = f"{place / 'first'},{place / 'third'}"
    assert "mix different experts" in run(capsys, other, "--input", rows, code=1).err
    twice = f"{place / 'first'},{place / 'first'}"
    assert "Two runs of a task 'first'" in run(capsys, twice, "--input", rows, code=1).err
    asked = (place / "first", "--text", '["w1"]', "--output")
    for folder in (".", "/", place):
        assert "is a folder" in run(capsys, *asked, folder, code=1).err


def test_a_file_that_nobody_finishes_is_taken_away(tmp_path):
    def interrupted():
        with command._whole(tmp_path / "answers.jsonl") as write_line:
            write_line("half")
            assert (tmp_path / ".answers.jsonl.part").is_file()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
