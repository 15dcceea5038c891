"""The record of a run."""

from __future__ import annotations

import json
import platform
import subprocess

import pytest
import torch

from pemt.training import record
from pemt.training.record import git_state, run_record, versions, write_json


def git(folder, *arguments):
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x", *arguments],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The package's file is a file of this folder."""
    (tmp_path / "record.py").write_text("x = 1\n")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def test_outside_a_checkout_there_is_no_git_state(here):
    assert git_state() is None


def test_a_file_that_git_does_not_track_is_outside(here):
    """An environment installed inside somebody's checkout is not that checkout's code."""
    git(here, "init")
    assert git_state() is None


def test_in_a_checkout_the_commit_and_whether_it_was_changed(here):
    git(here, "init")
    git(here, "add", "record.py")
    git(here, "commit", "-m", "one")
    state = git_state()
    assert len(state["commit"]) == 40
    assert state["changed"] is False
    (here / "record.py").write_text("x = 2\n")
    assert git_state() == {"commit": state["commit"], "changed": True}


def test_no_git_is_no_error(here, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state() is None


def test_versions():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert "not installed" not in found.values()


def test_a_record_keeps_its_parts():
    made = run_record(stage="adapt", experts=["a"])
    assert made["stage"] == "adapt"
    assert made["experts"] == ["a"]
    assert made.keys() == {"stage", "experts", "versions", "git", "command", "created"}


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_json(path, {"ä": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, {"much": "x" * 100_000, "bad": endless})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
