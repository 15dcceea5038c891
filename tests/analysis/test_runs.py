"""A run's folder read back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pemt.analysis.history import HISTORY
from pemt.analysis.runs import read_run, scored_rows
from pemt.errors import ConfigError
from tests import tiny
from tests.training.test_watching import line


def folder(path, *, results=None, record=None, ids=()):
    path.mkdir(parents=True, exist_ok=True)
    (path / "results.json").write_text(json.dumps({"method": "lora", **(results or {})}))
    if record is not None:
        (path / "run.json").write_text(json.dumps(record))
    if ids:
        (path / "predictions.json").write_text(json.dumps([{"id": name} for name in ids]))
    return path


def test_the_history_is_that_of_the_chosen_learning_rate(tmp_path):
    path = folder(
        tmp_path, record={"settings": {"learning_rate": 0.002}}, results={"fit": {"best_step": 4}}
    )
    assert read_run(path).history() is None
    for rate, step in [("0.001", 2), ("0.002", 4)]:
        (tmp_path / f"lr-{rate}").mkdir()
        (tmp_path / f"lr-{rate}" / HISTORY).write_text(line(step))
    history = read_run(path).history()
    assert [s.step for s in history.steps] == [4]
    assert history.kept == 4
    (tmp_path / HISTORY).write_text(line(9))  # of a run with one rate
    single = replace(read_run(path), record={})
    assert [s.step for s in single.history().steps] == [9]


def test_the_rows_are_those_that_were_scored_in_their_order(tmp_path):
    task = tiny.task(tmp_path)
    test = tiny.splits(task).test
    ids = [test[i].id for i in (5, 2, 9)]
    run = read_run(folder(tmp_path / "run", ids=ids))
    rows, said = scored_rows(run, task)
    assert [r.id for r in rows] == ids
    assert said == []
    assert len(scored_rows(run, task, rows=2)[0]) == 2
    every, none = scored_rows(replace(run, ids=()), task)
    assert [r.id for r in every] == [r.id for r in test]
    assert none == []
    other, said = scored_rows(replace(run, ids=("gone",)), task)
    assert len(other) == len(test)
    assert "no row gone" in said[0]


def test_recorded_gates_or_what_there_is_instead(tmp_path):
    gates = {"by_layer": {"encoder 0": {"a": 0.25, "b": 0.75}}}
    assert read_run(folder(tmp_path / "a", results={"gates": gates})).recorded().rows is None
    bare = read_run(folder(tmp_path / "b", results={"metrics": {"accuracy": 0.5, "n": 9}}))
    with pytest.raises(ConfigError, match=r"\(LoRA\) has no gates") as error:
        bare.recorded()
    assert "accuracy 0.500" in str(error.value)


@pytest.mark.parametrize("name", ["results.json", "run.json", "predictions.json"])
def test_damaged_files_are_named(tmp_path, name):
    path = folder(tmp_path)
    for content, words in [("{", "is not JSON"), ('"text"', "something else")]:
        (path / name).write_text(content)
        with pytest.raises(ConfigError, match=words):
            read_run(path)
