from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

import pemt.experts
from pemt.errors import ConfigError, ExpertError, UnknownNameError
from pemt.experts import ExpertLibrary
from pemt.experts.folder import hidden_sibling
from pemt.experts.manifest import content_hash, sha256

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


DEEP = "[" * 200_000


def _forge(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change `expert.json` and give it the content hash of what it now says."""
    manifest = json.loads((place / "expert.json").read_text())
    change(manifest)
    manifest["info"]["content_hash"] = content_hash(manifest)
    (place / "expert.json").write_text(json.dumps(manifest))


def _forge_config(place: Path, content: str) -> None:
    (place / "adapter_config.json").write_text(content)
    digest = sha256(content.encode())
    _forge(place, lambda m: m["files"].update({"adapter_config.json": digest}))


def _pattern(place: Path, **said: Any) -> None:
    config = json.loads((place / "adapter_config.json").read_text())
    _forge_config(place, json.dumps({**config, **said}))


def _no_rank(place: Path) -> None:
    """Branches of rank 0, which everything there agrees on."""
    file = place / "adapter_model.safetensors"
    tensors = load_file(file)
    empty = {k: t[:0].clone() if "lora_A" in k else t[:, :0].clone() for k, t in tensors.items()}
    save_file(empty, file)
    shapes = {k: f"float32{list(t.shape)}" for k, t in sorted(empty.items())}
    digest = sha256(file.read_bytes())
    _forge(place, lambda m: m["files"].update({file.name: digest}))
    _forge(place, lambda m: m["tensors"].update({file.name: shapes}))
    _pattern(place, r=0)


MALFORMED: dict[str, Callable[[Path], object]] = {
    "deep manifest": lambda place: (place / "expert.json").write_text(DEEP),
    "nested info": lambda place: (place / "expert.json").write_text(
        '{"info": {"settings": ' + '{"a": ' * 700 + "1" + "}" * 700 + "}}"
    ),
    "text that no terminal takes": lambda place: _forge(
        place, lambda m: m["info"].update(task="\ud800")
    ),
    "deep configuration": lambda place: _forge_config(place, DEEP),
    "configuration is a list": lambda place: _forge_config(place, "[]"),
    "pattern is no expression": lambda place: _pattern(place, rank_pattern={"(": 4}),
    "pattern is a list": lambda place: _pattern(place, rank_pattern=[1]),
    "alpha beyond a float": lambda place: _pattern(place, lora_alpha=10**400),
    "alpha is text": lambda place: _pattern(place, lora_alpha="x"),
    "no rank": _no_rank,
    "tensors of a file is a number": lambda place: _forge(
        place, lambda m: m["tensors"].update({"prompt.safetensors": 5})
    ),
    "layers are numbers": lambda place: _forge(place, lambda m: m.update(layers=[1, 2])),
    "scale is text": lambda place: _forge(place, lambda m: m["layers"][0].update(scale="x")),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_expert_is_one_problem_among_many(library, case):
    MALFORMED[case](library.root / "film-reviews")
    assert [name for name, _ in library.infos()] == ["film-reviews", "questions"]
    problems = library.verify()
    assert len(problems) == 1
    assert "film-reviews" in problems[0]
    "".join([*problems, *(str(info) for _, info in library.infos())]).encode()  # can be shown
    with pytest.raises(ExpertError, match="film-reviews"):
        library.load("film-reviews")


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
    old, young = (hidden_sibling(library.root / name, "tmp") for name in ("a", "b"))
    for path in (old, young):
        path.mkdir()
        (path / "expert.json").write_text("{}")
    os.utime(old, (time.time() - 7200,) * 2)
    parked = hidden_sibling(library.root / "questions", "old")
    (library.root / "questions").rename(parked)
    assert library.names() == ["film-reviews"]
    library.add(make_expert("third"))
    assert not old.exists()
    assert young.exists()
    assert library.names() == ["film-reviews", "questions", "third"]
    assert library.verify() == []


@pytest.mark.parametrize(
    "name",
    [
        ".questions.old", ".notes.old", ".notes.2024.old", ".a.b.tmp", ".draft.tmp",
        f".a.{'F' * 32}.tmp", f".a.{'0' * 31}.tmp", f".a.{'0' * 33}.old", f".a b.{'0' * 32}.old",
        f"..{'0' * 32}.old", f".a.{'0' * 32}.tmp.old",
    ],
)  # fmt: skip
@pytest.mark.parametrize("home", [True, False])
def test_hidden_files_of_the_user_stay(library, name, home):
    """Only names that `hidden_sibling` gives are ours to remove or to put back."""
    mine = library.root / name
    mine.write_text("years of work")
    os.utime(mine, (time.time() - 7200,) * 2)
    taken = library.root / name[1:].rsplit(".", 2)[0]
    if home and not taken.exists():
        taken.mkdir()
    library.add(make_expert("third"))
    assert mine.read_text() == "years of work"
    if not home:
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
