"""Writing into a library: copies, new names, several writers, readers meanwhile, a full disk."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

import pemt.experts
from pemt.errors import ConfigError, ExpertError, UnknownNameError
from pemt.experts import ExpertLibrary, folder, load_expert
from pemt.experts import library as library_module
from pemt.experts.folder import hidden_sibling

from .builders import make_expert

WRITES = {
    "add": lambda library, other: library.add(make_expert("third", seed=3)),
    "overwrite": lambda library, other: library.add(make_expert("films", seed=3), overwrite=True),
    "copy": lambda library, other: library.add_from(other, overwrite=True),
    "rename": lambda library, other: library.rename("films", "renamed"),
    "remove": lambda library, other: library.remove("films"),
    "card": lambda library, other: library.write_card("films", "# By hand\n"),
}


@pytest.fixture
def library(tmp_path: Path) -> ExpertLibrary:
    library = ExpertLibrary(tmp_path / "experts")
    library.add(make_expert("questions", seed=1))
    library.add(make_expert("films", seed=2))
    return library


@pytest.fixture
def other(tmp_path: Path) -> ExpertLibrary:
    other = ExpertLibrary(tmp_path / "other")
    other.add(make_expert("films", seed=5))
    other.add(make_expert("news", seed=6))
    return other


def state(library: ExpertLibrary) -> dict[str, str]:
    return {name: library.info(name).content_hash for name in library.names()}


def hidden(library: ExpertLibrary) -> list[str]:
    return [p.name for p in library.root.iterdir() if p.name.startswith(".") and p.name != ".lock"]


def link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


# --- copying, renaming --------------------------------------------------------------------------


def test_add_from_copies_byte_for_byte_and_in_the_order_asked_for(library, other):
    infos = library.add_from(other, ["news"])
    assert [info.name for info in infos] == ["news"]
    for path in (other.root / "news").iterdir():
        assert (library.root / "news" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ExpertError, match=r"'films' .*exists already"):
        library.add_from(other)
    assert [i.name for i in library.add_from(other, ["news", "films"], overwrite=True)] == [
        "news",
        "films",
    ]
    assert state(library)["films"] == state(other)["films"]
    assert library.add_from(other) == [other.info("films"), other.info("news")]  # all there already
    assert hidden(library) == []


def test_add_from_adds_nothing_when_one_is_bad(library, other):
    before = state(library)
    prompt = other.root / "news" / "prompt.safetensors"
    content = prompt.read_bytes()
    for spoil, why in [
        (lambda: prompt.write_bytes(content[:-1] + bytes([content[-1] ^ 1])), "is altered"),
        (lambda: prompt.unlink(), "is missing"),
        (lambda: link(prompt, other.root / "films" / "prompt.safetensors"), "symbolic link"),
        (lambda: prompt.with_name("x.pkl").write_bytes(pickle.dumps({})), "may hold a pickle"),
        (lambda: prompt.with_name("notes.txt").write_text(""), "notes.txt is not recorded"),
    ]:
        spoil()
        with pytest.raises(ExpertError, match=why):
            library.add_from(other, overwrite=True)
        assert state(library) == before
        assert hidden(library) == []
        for path in prompt.parent.glob("*"):
            if path.suffix in (".pkl", ".txt"):
                path.unlink()
        prompt.unlink(missing_ok=True)
        prompt.write_bytes(content)
    assert library.verify() == []


def test_add_from_refuses_what_names_nothing(library, other, tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean: news"):
        library.add_from(other, ["new"])
    with pytest.raises(ConfigError, match="each once"):
        library.add_from(ExpertLibrary(tmp_path / "empty"))


def test_rename_keeps_the_tensors_and_makes_a_new_identity(library):
    before = library.load("films")
    info = library.rename("films", "film-reviews")
    assert library.names() == ["film-reviews", "questions"]
    after = library.load("film-reviews")
    assert after.info == info
    assert info.content_hash != before.info.content_hash
    same = dataclasses.replace(info, name="films", content_hash=before.info.content_hash)
    assert same == before.info
    assert torch.equal(after.prompt, before.prompt)
    assert torch.equal(after.layers[0].A, before.layers[0].A)
    again = library.rename("film-reviews", "films")
    assert again == before.info  # the same content under the same name
    assert "# films" in (library.root / "films" / "README.md").read_text()


def test_rename_refuses_names_that_are_taken_or_none(library):
    with pytest.raises(ExpertError, match="exists already"):
        library.rename("films", "questions")
    with pytest.raises(ExpertError, match="exists already"):
        library.rename("films", "films")
    for name in ("../films", "a/b", "", ".hidden", "x" * 65):
        with pytest.raises(ConfigError, match="cannot be an expert's name"):
            library.rename("films", name)
    prompt = library.root / "films" / "prompt.safetensors"
    prompt.write_bytes(prompt.read_bytes()[:-1] + b"?")
    with pytest.raises(ExpertError, match="is altered"):
        library.rename("films", "spoilt")
    assert library.names() == ["films", "questions"]


def test_a_card_is_no_part_of_the_hash_and_other_files_are_errors(library):
    before = library.info("films")
    assert "# films" in (library.root / "films" / "README.md").read_text()
    library.write_card("films", "# Mine\n")
    (library.root / "films" / ".DS_Store").write_bytes(b"")
    assert library.load("films").info == before
    (library.root / "films" / "run.py").write_text("import os")
    with pytest.raises(ExpertError, match=r"run\.py is not recorded in expert\.json"):
        library.load("films")


def test_swapped_experts_are_refused(library):
    films, questions = library.root / "films", library.root / "questions"
    for name in ("adapter_model.safetensors", "prompt.safetensors"):
        one, two = (films / name).read_bytes(), (questions / name).read_bytes()
        (films / name).write_bytes(two)
        (questions / name).write_bytes(one)
        for expert in library.names():
            with pytest.raises(ExpertError, match=rf"{expert}.*{name} is altered"):
                library.load(expert)
        (films / name).write_bytes(one)
        (questions / name).write_bytes(two)
    films.rename(films.with_name("x"))
    questions.rename(films)
    films.with_name("x").rename(questions)
    for expert in library.names():
        with pytest.raises(ExpertError, match="the folder was renamed"):
            library.load(expert)
    assert len(library.verify()) == 2


# --- readers and writers ------------------------------------------------------------------------


def test_a_reader_that_is_overtaken_starts_again(library, monkeypatch):
    """The expert is replaced after its manifest was read and before its tensors are."""
    real, calls = folder.check_listing, []

    def slow(*arguments):
        real(*arguments)
        calls.append(arguments)
        if len(calls) == 1:
            monkeypatch.setattr(folder, "check_listing", real)
            library.add(make_expert("films", seed=9), overwrite=True)

    monkeypatch.setattr(folder, "check_listing", slow)
    for verify in (True, False):
        loaded = library.load("films", verify=verify)
        assert torch.equal(loaded.prompt, make_expert("films", seed=9).prompt)
    assert len(calls) == 1


def test_a_reader_that_is_overtaken_without_end_says_so(library, monkeypatch):
    def restless(place, **_):
        os.utime(place)
        raise ExpertError("half of two", "")

    monkeypatch.setattr(library_module, "load_expert", restless)
    with pytest.raises(ExpertError, match="replaced again and again"):
        library.load("films")


def test_a_reader_waits_for_an_expert_that_is_parked(library):
    """Where names cannot be swapped, the old folder is moved aside for a moment."""
    aside = (library.root / "films").rename(hidden_sibling(library.root / "films", "old"))
    timer = threading.Timer(0.1, lambda: aside.rename(library.root / "films"))
    timer.start()
    assert library.load("films").name == "films"
    timer.join()
    (library.root / "films").rename(aside)
    with pytest.raises(ExpertError, match="replaced again and again"):
        library.info("films")


@pytest.mark.parametrize("name", [".films.mine.old", f".films.2.{'0' * 32}.old"])
def test_other_hidden_files_are_no_parked_expert(library, name):
    """A reader does not wait for what no writer has put there."""
    (library.root / "films").rename(library.root / name)
    with pytest.raises(UnknownNameError, match="'films'"):
        library.load("films")


def test_no_card_is_written_through_a_link(library, tmp_path):
    outside = (library.root / "films").rename(tmp_path / "films")
    (library.root / "z").symlink_to(outside)
    before = (outside / "README.md").read_bytes()
    with pytest.raises(ExpertError, match=r"'z' .*is a symbolic link"):
        library.write_card("z", "# Not here\n")
    assert (outside / "README.md").read_bytes() == before
    assert hidden(library) == []


def test_another_writers_folder_is_gone_before_it_is_looked_at(library, monkeypatch):
    """Folders are prepared without the lock, so one that was just listed may be in its place."""
    listed = Path.glob

    def glob(self, pattern):
        yield from listed(self, pattern)
        if pattern.endswith(".tmp"):
            yield hidden_sibling(self / "films", "tmp")

    monkeypatch.setattr(Path, "glob", glob)
    library.add(make_expert("more"))
    assert "more" in library.names()


def test_two_processes_overwrite_while_this_one_reads(library):
    """Every read gives one of the experts written, whole; nothing is left over."""
    script = """
        import sys
        from pemt.experts import ExpertLibrary
        from tests.experts.builders import make_expert
        library = ExpertLibrary(sys.argv[1])
        experts = [make_expert("films", seed=s) for s in (20, 21)]
        print("ready", flush=True)
        sys.stdin.readline()
        for i in range(40):
            library.add(experts[i % 2], overwrite=True)
            if i % 10 == 0:
                library.add(make_expert(f"{sys.argv[2]}-{i}"))
                library.rename(f"{sys.argv[2]}-{i}", f"{sys.argv[2]}-{i}-renamed")
                if i:
                    library.remove(f"{sys.argv[2]}-{i}-renamed")
    """
    here = Path(__file__).parents[2]
    source = Path(pemt.experts.__file__).parents[2]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(library.root), me],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(here)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n", writer.stderr.read()
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    prompts = [make_expert("films", seed=s).prompt for s in (2, 20, 21)]
    reads, seen = 0, set()
    while any(writer.poll() is None for writer in writers):
        found = library.load("films")
        matching = [i for i, p in enumerate(prompts) if torch.equal(found.prompt, p)]
        assert matching
        assert torch.equal(
            found.layers[0].A, make_expert("films", seed=(2, 20, 21)[matching[0]]).layers[0].A
        )
        seen.update(matching)
        reads += 1
    assert [writer.wait() for writer in writers] == [0, 0], [w.stderr.read() for w in writers]
    assert reads > 5
    assert library.names() == ["a-0-renamed", "b-0-renamed", "films", "questions"]
    assert library.verify() == []
    assert hidden(library) == []


# --- a full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITES)
def test_a_disk_that_is_full_at_any_moment_loses_nothing(tmp_path, write, monkeypatch):
    """Each flush to the disk fails in turn; the last round gets through."""
    real = os.fsync
    for failing in range(40):
        library = ExpertLibrary(tmp_path / str(failing))
        library.add(make_expert("questions", seed=1))
        library.add(make_expert("films", seed=2))
        other = ExpertLibrary(tmp_path / f"other-{failing}")
        other.add(make_expert("films", seed=5))
        before, count = state(library), iter(range(1000))

        def fsync(descriptor, failing=failing, count=count):
            if next(count) == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        try:
            WRITES[write](library, other)
        except ExpertError as error:
            assert "No space left on device" in str(error)  # noqa: PT017
            assert "free some disk space" in str(error)  # noqa: PT017
            done = False
        else:
            done = True
        monkeypatch.setattr(os, "fsync", real)
        after = state(library)
        assert library.verify() == []
        assert hidden(library) == []
        for name, content in before.items():  # nothing is lost, whatever was being done
            gone = name == "films" and (write != "card")
            assert name in after or gone
            if not gone:
                assert after[name] == content
        if done:
            return
    pytest.fail("it never got through")


def test_a_full_disk_names_the_file(library, monkeypatch):
    real = Path.open

    def full(path, mode="r", *arguments, **settings):
        if path.name == "head.safetensors" and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, *arguments, **settings)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ExpertError, match=r"'third'.*No space left.*\.third\..*/head\.safetensors"):
        library.add(make_expert("third"))
    assert library.names() == ["films", "questions"]
    assert hidden(library) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the system")
def test_a_limit_of_the_system_is_met_as_a_full_disk_is(tmp_path):
    """The kernel itself refuses the bytes, in the middle of a file."""
    script = """
        import resource, signal, sys
        from pemt.errors import ExpertError
        from pemt.experts import ExpertLibrary
        from tests.experts.builders import make_expert
        library = ExpertLibrary(sys.argv[1])
        library.add(make_expert("small", head=False))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        try:
            library.add(make_expert("large"))
        except ExpertError as error:
            print(error)
        assert library.names() == ["small"] and library.verify() == [], library.names()
    """
    here = Path(__file__).parents[2]
    source = Path(pemt.experts.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(here)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "File too large, at the file" in done.stdout
    assert "/adapter_model.safetensors" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} <= {"small", ".lock"}


def test_a_library_that_may_not_be_written_says_so(library, monkeypatch):
    def refused(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(ExpertError, match=r"Read-only file system, at the file .*\n.*the right"):
        library.add(make_expert("third"))


# --- scale --------------------------------------------------------------------------------------


def test_looking_one_up_does_not_look_at_all(library, monkeypatch):
    """With a thousand experts, loading K of them must not list the folder K times."""
    looks = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looks.append(str(path)) or real(path))
    library.load_many(["films", "questions"])
    assert "films" in library
    library.info("films")
    assert str(library.root) not in looks


def test_a_thousand_experts_list_in_a_second(tmp_path, library):
    manifest = json.loads((library.root / "films" / "expert.json").read_bytes())
    from pemt.experts.manifest import content_hash, readable

    many = ExpertLibrary(tmp_path / "many")
    for i in range(1000):
        manifest["info"]["name"] = f"expert-{i}"
        manifest["info"]["content_hash"] = content_hash(manifest)
        place = many.root / f"expert-{i}"
        place.mkdir(parents=True)
        (place / "expert.json").write_bytes(readable(manifest))
    started = time.process_time()
    infos = list(many.infos())
    assert time.process_time() - started < 1.0
    assert len(infos) == 1000
    assert all(isinstance(info, pemt.experts.ExpertInfo) for _, info in infos)


def test_loading_without_the_library_still_works(library):
    assert load_expert(library.root / "films").name == "films"
