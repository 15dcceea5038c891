"""Libraries on the Hub: huggingface_hub's own client against a stand-in of the Hub's API."""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from pemt.cli import main
from pemt.errors import ConfigError, ExpertError, UnknownNameError
from pemt.experts import Expert, ExpertLibrary, HubLibrary, pull, push, save_expert
from pemt.experts.address import HubAddress

from .builders import make_expert
from .fake_hub import FakeHub

REPO = "team/experts"
NAMES = ["films", "questions"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> dict[str, bytes]:
    """The files of two experts."""
    folder = tmp_path_factory.mktemp("source")
    for seed, name in enumerate(NAMES):
        save_expert(make_expert(name, seed=seed), folder / name)
    return files_of(folder)


@pytest.fixture
def hub(contents, monkeypatch, tmp_path):
    """The stand-in with one repository; the client finds it by its environment."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        hub.commit(REPO, {**contents, ".gitattributes": b"", "train.py": b"import os"})
        yield hub


def same(one: Expert, other: Expert) -> bool:
    pairs = zip(one.layers, other.layers, strict=True)
    equal = all(torch.equal(x.A, y.A) and torch.equal(x.B, y.B) for x, y in pairs)
    return equal and torch.equal(one.prompt, other.prompt)


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "repo", "folder", "revision"),
    [
        ("hf://user/repo", "user/repo", "", None),
        ("hf://user/repo@v1.0", "user/repo", "", "v1.0"),
        ("hf://user/repo/a/b@refs/pr/1", "user/repo", "a/b", "refs/pr/1"),
        ("user/repo", "user/repo", "", None),
        (Path("hf://user/repo@main"), "user/repo", "", "main"),
    ],
)
def test_addresses(text, repo, folder, revision):
    address = HubAddress.parse(text)
    assert (address.repo, address.folder, address.revision) == (repo, folder, revision)


@pytest.mark.parametrize(
    "text",
    ["hf://repo", "hf://user/../x", "hf://user/repo/../x", "hf://user/repo@", "hf://user/repo@../x",
     "hf:///etc/passwd", "hf://user/re po", "hf://user/repo@-x", "hf://user/my--repo",
     "hf://user/repo.", "hf://user/repo.git", "hf://user/" + "x" * 97],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="is no library on the Hub"):
        ExpertLibrary(text)


# --- reading ------------------------------------------------------------------------------------


def test_a_library_on_the_hub_reads_like_a_folder(hub):
    library = ExpertLibrary(f"hf://{REPO}")
    assert isinstance(library, HubLibrary)
    assert library.names() == NAMES
    assert len(library) == 2
    assert "films" in library
    assert "film" not in library
    assert library.info("films").task == "film_reviews"
    assert [e.name for e in library.load_many(["questions", "films"])] == ["questions", "films"]
    assert same(library.load("questions"), make_expert("questions", seed=1))
    assert library.verify() == []
    assert dict(library.infos())["films"] == library.info("films")
    with pytest.raises(UnknownNameError, match="Did you mean: films"):
        library.load("film")
    with pytest.raises(ConfigError, match="each once"):
        library.load_many([])


def test_listing_is_one_call_and_only_what_is_used_is_downloaded(hub, tmp_path):
    library = ExpertLibrary(f"hf://{REPO}")
    library.names()
    assert len(hub.requests) == 1
    library.info("films")
    assert hub.asked("GET", "resolve") == [f"/{REPO}/resolve/{library.commit}/films/expert.json"]
    library.load("films")
    assert not hub.asked("GET", "questions")
    assert not hub.asked("GET", "train.py")
    downloads = len(hub.asked("GET", "resolve"))
    library.load("films")
    assert len(hub.asked("GET", "resolve")) == downloads
    assert not list(Path(tmp_path).glob("pemt-*"))


def test_a_folder_of_a_repository_is_a_library(hub, contents):
    nested = {f"for/t5/{path}": content for path, content in contents.items()}
    hub.commit("team/many", nested)
    library = ExpertLibrary("hf://team/many/for/t5")
    assert library.names() == NAMES
    assert library.load("films").name == "films"
    assert str(library) == f"hf://team/many/for/t5@{library.commit}"
    assert ExpertLibrary("hf://team/many").names() == []
    with pytest.raises(ExpertError, match="has no folder 'for/bert'"):
        ExpertLibrary("hf://team/many/for/bert")
    with pytest.raises(ExpertError, match="is one expert"):
        ExpertLibrary("hf://team/many/for/t5/films")


def test_a_branch_that_moves_changes_nothing(hub, contents):
    library = ExpertLibrary(f"hf://{REPO}@main")
    first = hub.branches[REPO]["main"]
    assert (library.revision, library.commit) == ("main", first)
    assert first in repr(library)
    before = library.info("films")
    kept = {p: c for p, c in contents.items() if p.startswith("questions")}
    second = hub.commit(REPO, kept)
    assert library.names() == NAMES
    assert library.info("films") == before
    assert same(library.load("films"), make_expert("films", seed=0))
    moved = ExpertLibrary(f"hf://{REPO}@main")
    assert (moved.commit, moved.names()) == (second, ["questions"])
    pinned = ExpertLibrary(f"hf://{REPO}@{first}")
    assert (pinned.commit, pinned.names()) == (first, NAMES)


def test_a_pinned_commit_works_without_the_network(hub, monkeypatch):
    library = ExpertLibrary(f"hf://{REPO}")
    library.load("films")
    hub.stop()
    pinned = ExpertLibrary(f"hf://{REPO}@{library.commit}")
    assert pinned.names() == NAMES
    assert same(pinned.load("films"), make_expert("films", seed=0))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client tries again and again
    with pytest.raises(ExpertError, match=r"questions/.* cannot be fetched"):
        pinned.load("questions")
    with pytest.raises(ExpertError, match="cannot be fetched") as caught:
        ExpertLibrary(f"hf://{REPO}@main")
    for part in ("pemt doctor", "HF_ENDPOINT", f"usable offline: hf://{REPO}@{library.commit}"):
        assert part in str(caught.value)


def test_no_network_and_nothing_in_the_cache(tmp_path):
    with socket.socket() as closed:  # a port that nobody listens on
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ExpertError, match=r"cannot be fetched.*\n.*check the connection"):
            HubLibrary(f"hf://{REPO}", endpoint=url, cache_dir=tmp_path)


def test_what_the_hub_does_not_have_is_named(hub):
    with pytest.raises(ExpertError, match=f"{REPO} has no revision 'v9'"):
        ExpertLibrary(f"hf://{REPO}@v9")
    with pytest.raises(ExpertError, match="no repository 'team/nothing' that you may read"):
        ExpertLibrary("hf://team/nothing")


def test_a_view_cannot_be_written_to(hub, tmp_path):
    library = ExpertLibrary(f"hf://{REPO}")
    for change in (
        lambda: library.add(make_expert("new")),
        lambda: library.remove("films"),
        lambda: library.rename("films", "new"),
        lambda: library.write_card("films", ""),
        lambda: library.add_from(ExpertLibrary(tmp_path)),
        library.require_writable,
    ):
        with pytest.raises(ConfigError, match=r"cannot be written to.*\n.*pemt experts push"):
            change()


# --- what cannot be trusted ---------------------------------------------------------------------


@pytest.mark.parametrize("file", ["films/adapter_model.safetensors", "films/expert.json"])
def test_other_bytes_than_listed_are_refused_and_not_kept(hub, file):
    hub.faults.altered = {file}
    library = ExpertLibrary(f"hf://{REPO}")
    with pytest.raises(ExpertError, match=rf"{file} .*has another (sha256|git hash)"):
        library.load("films")
    hub.faults.altered = set()
    assert same(library.load("films"), make_expert("films", seed=0))


def test_a_damaged_cache_is_noticed_and_mended(hub, tmp_path):
    library = ExpertLibrary(f"hf://{REPO}")
    library.load("films")
    for blob in (tmp_path / "cache").rglob("blobs/*"):
        content = blob.read_bytes()
        blob.chmod(0o644)
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    while True:  # every damaged file is reported once
        with pytest.raises(ExpertError, match="removed from the cache") as caught:
            library.load("films")
        if "expert.json" not in str(caught.value):
            break
    problems = library.verify("films")
    while problems:
        assert "removed from the cache" in problems[0]
        problems = library.verify("films")
    assert same(library.load("films"), make_expert("films", seed=0))


def test_a_download_that_breaks_off_is_resumed(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 250)
    hub.faults.cut_after = {"films/adapter_model.safetensors": 1000}
    assert same(ExpertLibrary(f"hf://{REPO}").load("films"), make_expert("films", seed=0))
    assert hub.ranges == ["bytes=1000-"]


def test_a_wrong_size_is_refused(hub, monkeypatch):
    library = ExpertLibrary(f"hf://{REPO}")
    path = "films/prompt.safetensors"
    library.load("films")
    listed = library.files.files[path]
    library.files.files[path] = type(listed)(size=1, sha256=listed.sha256, blob=None)
    with pytest.raises(ExpertError, match=r"prompt.safetensors .* bytes, and 1 are listed"):
        library.load("films")


@pytest.mark.parametrize(
    "path",
    ["../evil/expert.json", "a/../../evil", "/etc/passwd", "films\\..\\evil", "C:/x", "./x", "a//b",
     "films/ex\npert.json"],
)  # fmt: skip
def test_a_listing_that_leads_out_of_the_repository_is_refused(hub, path):
    hub.faults.listed = [{"rfilename": path, "size": 1, "blobId": "0" * 40}]
    with pytest.raises(ExpertError, match="leads out of the repository"):
        ExpertLibrary(f"hf://{REPO}")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "sub/x.PKL"])
def test_a_pickle_beside_an_expert_is_refused_before_anything_is_downloaded(hub, contents, file):
    hub.commit(REPO, {**contents, f"films/{file}": pickle.dumps({}), "other.bin": b"x"})
    library = ExpertLibrary(f"hf://{REPO}")
    with pytest.raises(ExpertError, match=f"{file} may hold a pickle.*\n.*ever unpickled"):
        library.load("films")
    assert not hub.asked("GET", "resolve")
    assert library.load("questions").name == "questions"
    assert [problem for problem in library.verify() if "films" in problem]
    assert not hub.asked("GET", "bin")
    assert not hub.asked("HEAD", "bin")


def test_files_missing_or_unrecorded_are_refused(hub, contents):
    fewer = {p: c for p, c in contents.items() if p != "films/prompt.safetensors"}
    hub.commit(REPO, {**fewer, "questions/more.safetensors": b"x"})
    library = ExpertLibrary(f"hf://{REPO}")
    with pytest.raises(ExpertError, match=rf"hf://{REPO}@.*prompt.safetensors is missing"):
        library.load("films")
    with pytest.raises(ExpertError, match=r"more.safetensors is not recorded"):
        library.load("questions")
    assert not hub.asked("GET", "more.safetensors")


def test_swapped_experts_and_newer_formats_are_refused(hub, contents):
    swapped = {
        "questions" + p.removeprefix("films") if p.startswith("films") else p: c
        for p, c in contents.items()
        if not p.startswith("questions")
    }
    manifest = json.loads(contents["films/expert.json"])
    manifest["info"]["format_version"] = 99
    hub.commit(REPO, {**swapped, "films/expert.json": json.dumps(manifest).encode()})
    library = ExpertLibrary(f"hf://{REPO}")
    with pytest.raises(ExpertError, match=rf"in hf://{REPO}@.*renamed.*'films'"):
        library.load("questions")
    with pytest.raises(ExpertError, match="format 99"):
        library.info("films")
    found = dict(library.infos())
    assert isinstance(found["films"], ExpertError)


def test_folders_whose_names_are_none_are_no_experts(hub, contents):
    odd = {p.replace("films", "fi lms", 1): c for p, c in contents.items() if "films" in p}
    hub.commit(REPO, {**contents, **odd, "docs/readme.txt": b""})
    assert ExpertLibrary(f"hf://{REPO}").names() == NAMES


# --- pulling and pushing ------------------------------------------------------------------------


def test_pull_copies_byte_for_byte(hub, contents, tmp_path):
    address, infos = pull(f"hf://{REPO}", tmp_path / "mine", names=["questions"])
    assert address == f"hf://{REPO}@{hub.branches[REPO]['main']}"
    mine = ExpertLibrary(tmp_path / "mine")
    assert mine.names() == ["questions"] == [info.name for info in infos]
    copied = files_of(tmp_path / "mine")
    for path, content in contents.items():
        assert copied.get(path) == (content if path.startswith("questions") else None)
    pull(f"hf://{REPO}", tmp_path / "mine")  # the one that is there is the same: no clash
    assert mine.names() == NAMES
    assert mine.verify() == []


def test_a_failed_pull_adds_nothing(hub, tmp_path):
    hub.faults.altered = {"questions/prompt.safetensors"}
    with pytest.raises(ExpertError, match="another sha256"):
        pull(f"hf://{REPO}", tmp_path / "mine")
    assert ExpertLibrary(tmp_path / "mine").names() == []
    hub.faults.altered = set()
    ExpertLibrary(tmp_path / "mine").add(make_expert("questions", seed=9))
    with pytest.raises(ExpertError, match="exists already"):
        pull(f"hf://{REPO}", tmp_path / "mine")
    assert ExpertLibrary(tmp_path / "mine").names() == ["questions"]
    pull(f"hf://{REPO}", tmp_path / "mine", overwrite=True)
    assert same(
        ExpertLibrary(tmp_path / "mine").load("questions"), make_expert("questions", seed=1)
    )


@pytest.fixture
def local(tmp_path) -> ExpertLibrary:
    library = ExpertLibrary(tmp_path / "local")
    for seed, name in enumerate(["films", "news", "tweets"]):
        library.add(make_expert(name, seed=seed + 10))
    return library


def test_push_makes_one_commit_that_reads_back(hub, local):
    address = push(local, "team/new", private=True, commit_message="First")
    assert hub.private["team/new"] == "private"
    assert hub.messages == ["First"]
    assert len(hub.asked("POST", "/commit/")) == 1
    assert re.fullmatch(r"hf://team/new@[0-9a-f]{40}", address)
    there = ExpertLibrary(address)
    assert there.names() == local.names()
    for name in local.names():
        assert there.info(name) == local.info(name)
        assert same(there.load(name), local.load(name))
    assert {"README.md", "films/README.md"} <= set(hub.head("team/new"))


def test_push_replaces_an_expert_whole_and_leaves_the_others(hub, local):
    push(local, REPO, names=["films", "news"])
    assert ExpertLibrary(f"hf://{REPO}").names() == ["films", "news", "questions"]
    card = hub.head(REPO)["README.md"].decode()
    for name in ("films", "news", "questions"):
        assert f"[{name}]({name}/README.md)" in card
    headless = make_expert("films", seed=11, head=False)
    push(headless, REPO)
    assert "films/head.safetensors" not in hub.head(REPO)
    assert same(ExpertLibrary(f"hf://{REPO}").load("films"), headless)
    assert hub.head(REPO)["train.py"] == b"import os"


def test_push_to_a_branch_and_a_folder(hub, local):
    before = hub.branches[REPO]["main"]
    address = push(local.root / "films", f"{REPO}/for/bert", revision="dev")
    assert hub.branches[REPO]["main"] == before
    assert ExpertLibrary(f"hf://{REPO}/for/bert@dev").names() == ["films"]
    assert ExpertLibrary(address).commit == hub.branches[REPO]["dev"]
    with pytest.raises(ConfigError, match="is a commit, which does not change"):
        push(local, f"{REPO}@{before}")
    with pytest.raises(ConfigError, match="give one of them"):
        push(local, f"{REPO}@dev", revision="main")


def test_a_card_that_somebody_wrote_is_kept(hub, local, contents):
    hub.commit(REPO, {**contents, "README.md": b"# Ours\n"})
    local.write_card("news", "# By hand\n")
    push(local, REPO)
    assert hub.head(REPO)["README.md"] == b"# Ours\n"
    assert hub.head(REPO)["news/README.md"] == b"# By hand\n"
    assert f"ExpertLibrary('hf://{REPO}')" in hub.head(REPO)["films/README.md"].decode()


def test_one_experts_folder_is_pushed_as_it_is(hub, local):
    local.write_card("films", "# By hand\n")
    push(local.root / "films", "team/new")
    assert hub.head("team/new")["films/README.md"] == b"# By hand\n"
    for file in ("expert.json", "adapter_model.safetensors"):
        assert hub.head("team/new")[f"films/{file}"] == (local.root / "films" / file).read_bytes()
    with pytest.raises(ConfigError, match=r"Experts \['news'\] of one expert"):
        push(local.root / "films", "team/new", names=["news"])
    assert ExpertLibrary("hf://team/new").names() == ["films"]


def test_a_card_in_another_encoding_is_kept(hub, local):
    card = "# Gefällt mir\n".encode("latin-1")
    (local.root / "films" / "README.md").write_bytes(card)
    push(local, "team/new")
    assert hub.head("team/new")["films/README.md"] == card


def test_two_who_push_at_once_do_not_undo_each_other(hub, local):
    hub.race = True
    with pytest.raises(ExpertError, match=r"answered 412.*\n.*somebody else.*run it again"):
        push(local, REPO)
    assert hub.head(REPO)["other"] == b"1"
    push(local, REPO)
    assert "other" in hub.head(REPO)


def test_an_altered_expert_is_not_pushed_and_a_refusal_is_explained(hub, local):
    prompt = local.root / "news" / "prompt.safetensors"
    content = prompt.read_bytes()
    prompt.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ExpertError, match=r"prompt.safetensors is altered"):
        push(local, "team/new")
    assert "team/new" not in hub.commits
    prompt.write_bytes(content)
    hub.faults.full_storage = True
    with pytest.raises(ExpertError, match=r"answered 403.*\n.*hf auth login"):
        push(local, "team/new")
    assert "films/expert.json" not in hub.head("team/new")


# --- commands -----------------------------------------------------------------------------------


def test_the_commands_share_a_library(hub, local, tmp_path, capsys):
    assert main(["experts", "push", str(local.root), "team/new", "--names", '["news"]']) == 0
    pushed = capsys.readouterr().out.split()[-1]
    assert pushed == f"hf://team/new@{hub.branches['team/new']['main']}"
    assert main(["experts", "list", "hf://team/new", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["news"]
    assert main(["experts", "pull", pushed, str(tmp_path / "mine"), "--json"]) == 0
    pulled = json.loads(capsys.readouterr().out)
    assert pulled == {
        "address": pushed, "experts": {"news": local.info("news").content_hash}
    }  # fmt: skip
    assert main(["experts", "verify", "hf://team/new"]) == 0
    assert main(["experts", "card", "hf://team/new", "--name", "news"]) == 0
    assert pushed in capsys.readouterr().out
    assert main(["experts", "remove", "hf://team/new", "news"]) == 1
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.hub
def test_the_real_hub_is_read(tmp_path):
    """A public repository with no experts in it, at a commit that never changes."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        pytest.skip("HF_HUB_OFFLINE is set")
    try:
        library = HubLibrary("hf://hf-internal-testing/tiny-random-bert", cache_dir=tmp_path)
    except ExpertError as error:
        if "cannot be fetched" not in str(error):
            raise
        pytest.skip("the Hub is not reachable")
    assert re.fullmatch(r"[0-9a-f]{40}", library.commit)
    assert "config.json" in library.files.files
    assert library.names() == []
    again = HubLibrary(
        f"hf://hf-internal-testing/tiny-random-bert@{library.commit}", cache_dir=tmp_path
    )
    assert again.files.files == library.files.files
