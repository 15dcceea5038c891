from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import pemt.experts
from pemt.errors import ConfigError, ExpertError, UnknownNameError
from pemt.experts import ExpertLibrary

from .builders import make_expert


@pytest.fixture
def library(tmp_path: Path) -> ExpertLibrary:
    library = ExpertLibrary(tmp_path / "experts")
    library.add(make_expert("questions", seed=1))
    library.add(make_expert("film-reviews", seed=2))
    return library


def test_names_are_sorted_and_counted(library):
    assert library.names() == ["film-reviews", "questions"]
    assert len(library) == 2
    assert "questions" in library
    assert "question" not in library
    assert len(ExpertLibrary(library.root / "nowhere")) == 0


def test_info_reads_no_tensors(library):
    for path in (library.root / "questions").glob("*.safetensors"):
        path.unlink()
    assert library.info("questions").name == "questions"
    with pytest.raises(ExpertError, match="is missing"):
        library.load("questions")


def test_many_are_loaded_in_the_order_asked_for(library):
    for names in (["questions", "film-reviews"], ["film-reviews", "questions"]):
        assert [expert.name for expert in library.load_many(names)] == names
    for names in ([], ["questions", "questions"]):
        with pytest.raises(ConfigError, match="each once"):
            library.load_many(names)


@pytest.mark.parametrize("method", ["info", "load", "remove", "verify"])
def test_an_unknown_name_gets_a_suggestion(library, method):
    with pytest.raises(UnknownNameError, match="Did you mean: film-reviews") as caught:
        getattr(library, method)("film-review")
    assert "known: film-reviews, questions" in str(caught.value)


@pytest.mark.parametrize("name", ["../experts/questions", "..", "", ".lock"])
def test_a_path_is_no_name(library, name):
    with pytest.raises(UnknownNameError):
        library.load(name)


def test_taken_names_stay_unless_overwritten(library):
    before = library.load("questions")
    with pytest.raises(ExpertError, match="exists already"):
        library.add(make_expert("questions", seed=3))
    assert torch.equal(library.load("questions").prompt, before.prompt)
    library.add(make_expert("questions", seed=3), overwrite=True)
    assert not torch.equal(library.load("questions").prompt, before.prompt)


def test_remove(library):
    library.remove("questions")
    assert library.names() == ["film-reviews"]
    assert {path.name for path in library.root.iterdir()} <= {"film-reviews", ".lock"}


def test_verify_names_what_is_wrong(library):
    assert library.verify() == []
    prompt = library.root / "questions" / "prompt.safetensors"
    prompt.write_bytes(prompt.read_bytes()[:-1])
    (library.root / "film-reviews" / "expert.json").unlink()
    problems = library.verify()
    assert len(problems) == 2
    assert "film-reviews" in problems[0]
    assert "expert.json is missing" in problems[0]
    assert "questions" in problems[1]
    assert "prompt.safetensors is altered" in problems[1]
    assert library.verify("questions") == problems[1:]


def test_a_linked_expert_is_reported_not_followed(library, tmp_path):
    outside = (library.root / "questions").rename(tmp_path / "questions")
    (library.root / "questions").symlink_to(outside)
    with pytest.raises(ExpertError, match="symbolic link"):
        library.load("questions")
    assert len(library.verify()) == 1
    library.remove("questions")
    assert outside.is_dir()
    assert library.names() == ["film-reviews"]


def test_leftovers_of_killed_writers_go_with_the_next_write(library):
    old, young = library.root / ".a.1.tmp", library.root / ".b.2.tmp"
    for path in (old, young):
        path.mkdir()
        (path / "expert.json").write_text("{}")
    os.utime(old, (time.time() - 7200,) * 2)
    parked = library.root / ".questions.3.old"
    (library.root / "questions").rename(parked)
    assert library.names() == ["film-reviews"]
    library.add(make_expert("third"))
    assert not old.exists()
    assert young.exists()
    assert library.names() == ["film-reviews", "questions", "third"]
    assert library.verify() == []


def test_a_file_is_no_library(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        ExpertLibrary(tmp_path / "file")


def test_two_processes_adding_at_once_both_land(tmp_path):
    """Each adds ten of its own, and both try one name: exactly one of them gets it."""
    script = """
        import sys, time
        from pathlib import Path
        from pemt.errors import ExpertError
        from pemt.experts import ExpertLibrary
        from tests.experts.builders import make_expert
        root, me = Path(sys.argv[1]), sys.argv[2]
        experts = [make_expert(f"{me}-{i}") for i in range(10)] + [make_expert("both")]
        (root.parent / me).touch()
        while not ((root.parent / "a").exists() and (root.parent / "b").exists()):
            time.sleep(0.001)
        for expert in experts:
            try:
                ExpertLibrary(root).add(expert)
            except ExpertError as error:
                assert expert.name == "both" and "exists already" in str(error), error
                print("lost")
    """
    root = Path(__file__).parents[2]
    src = Path(pemt.experts.__file__).parents[2]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "experts"), me],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(src), str(root)])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in ("a", "b")
    ]
    results = [writer.communicate(timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], results
    assert sorted(out for out, _ in results) == ["", "lost\n"]
    library = ExpertLibrary(tmp_path / "experts")
    assert set(library.names()) == {f"{me}-{i}" for me in "ab" for i in range(10)} | {"both"}
    assert library.verify() == []


def test_writers_take_turns(library, monkeypatch):
    monkeypatch.setattr("pemt.experts.writing.LOCK_SECONDS", 0.1)
    with FileLock(library.root / ".lock"):
        with pytest.raises(ExpertError, match="being written by another process"):
            library.add(make_expert("third"))
        with pytest.raises(ExpertError, match="being written by another process"):
            library.remove("questions")
        assert library.names() == ["film-reviews", "questions"]
        assert library.verify() == []
    library.add(make_expert("third"))
    assert "third" in library
