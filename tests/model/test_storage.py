"""An adapted model on disk: what is refused, and what a kill leaves."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from pemt.errors import ConfigError, ExpertError, UnknownNameError
from pemt.experts import ExpertLibrary
from pemt.model import PemtModel, storage
from pemt.model.storage import load_model, read_description
from tests import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that nobody changes."""
    base = tiny.base("bert")
    model = tiny.stir(tiny.pemt(base))
    return model.save_pretrained(tmp_path_factory.mktemp("saved") / "model", base_name="tiny-bert")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def base():
    """A base that must be clean when the test ends."""
    loaded = tiny.loaded("bert")
    before = tiny.snapshot(loaded.model)
    yield loaded
    assert tiny.snapshot(loaded.model) == before


def change(folder: Path, **values: object) -> None:
    path = folder / storage.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def logits(model) -> torch.Tensor:
    ids, mask = tiny.batch()
    with torch.no_grad():
        return model(ids, mask).logits


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_saved_and_read_is_the_same_model(name, tmp_path):
    model = tiny.stir(tiny.pemt(tiny.base(name)))
    model.save_pretrained(tmp_path / "model", base_name=name, extra={"task": {"name": "x"}})
    again, base, described = load_model(tmp_path / "model", base=tiny.loaded(name))
    assert again.pemt_config == model.pemt_config
    assert again.expert_names == ["a", "b", "c"]
    assert base.name == f"tiny-{name}"
    assert described["extra"] == {"task": {"name": "x"}}
    ids, mask = tiny.batch()
    more = tiny.decode_inputs(base.model, len(ids))
    with torch.no_grad():
        wanted, got = model(ids, mask, **more).logits, again(ids, mask, **more).logits
    assert torch.equal(got, wanted)
    plain = tiny.stir(tiny.pemt(tiny.base(name)), seed=14)
    with torch.no_grad():
        assert not torch.equal(plain(ids, mask, **more).logits, wanted)


def test_no_weights_of_the_base_are_written(saved):
    files = sorted(str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file())
    assert files.pop(0) == "README.md"
    assert files[0] == "experts/a/adapter_config.json"
    assert files[-2:] == ["model.safetensors", "pemt.json"]
    model = tiny.pemt(tiny.base("bert"))
    assert storage.load_file(saved / "model.safetensors").keys() == model.trained_state().keys()


def test_altered_weights_are_refused(folder, base):
    flip(folder / storage.WEIGHTS)
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing or altered"):
        PemtModel.from_pretrained(folder, base=base)


def test_missing_weights_are_refused(folder, base):
    (folder / storage.WEIGHTS).unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing or altered"):
        PemtModel.from_pretrained(folder, base=base)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "prompt.safetensors"])
def test_an_altered_expert_is_refused(folder, base, file):
    flip(folder / "experts" / "b" / file)
    with pytest.raises(ExpertError, match="b"):
        PemtModel.from_pretrained(folder, base=base)


@pytest.mark.parametrize(
    "files",
    [
        {}, [], None, 5, ["model.safetensors"], {"README.md": "0"},
        {"../model.safetensors": "0"},
    ],
)  # fmt: skip
def test_files_that_verify_something_else_are_refused(folder, base, files):
    """Whatever pemt.json says, the weights are verified."""
    flip(folder / storage.WEIGHTS)
    change(folder, files=files)
    with pytest.raises(ConfigError, match=r"pemt\.json lists .*files"):
        PemtModel.from_pretrained(folder, base=base)


@pytest.mark.parametrize("more", [storage.INSTANT, "README.md", "../x"])
def test_files_beside_the_weights_are_refused(folder, base, more):
    (folder / more).write_text("x")
    files = {**read_description(folder)["files"], more: storage._sha256(folder / more)}
    change(folder, files=files)
    with pytest.raises(ConfigError, match=r"pemt\.json lists .*files"):
        PemtModel.from_pretrained(folder, base=base)


def test_files_of_a_run_without_experts_are_checked_too(folder):
    """Runs of other methods are read through `verify_files` alone."""
    described = read_description(folder)
    storage.verify_files(folder, described)
    with pytest.raises(ConfigError, match=r"pemt\.json lists .*files"):
        storage.verify_files(folder, {**described, "format_version": 3, "files": {}})


def test_the_instant_file_may_be_absent_but_not_unverified(folder):
    described = {**read_description(folder), "instant": {}}
    storage.verify_files(folder, described)  # a mixture without numbers writes no such file
    (folder / storage.INSTANT).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"instant\.safetensors is not recorded"):
        storage.verify_files(folder, described)
    files = {**described["files"], storage.INSTANT: storage._sha256(folder / storage.INSTANT)}
    storage.verify_files(folder, {**described, "files": files})


@pytest.mark.parametrize("name", ["../../a", "/a", "..", "", "a/../a", ".a", 5, None])
def test_an_expert_outside_the_folder_is_not_read(folder, base, name):
    shutil.copytree(folder / "experts" / "a", folder.parent / "a")
    if name == "/a":
        name = str(folder.parent / "a")
    first, *rest = read_description(folder)["experts"]
    change(folder, experts=[{**first, "name": name}, *rest])
    with pytest.raises(ConfigError, match=r"pemt\.json .*cannot be an expert's name"):
        PemtModel.from_pretrained(folder, base=base)


@pytest.mark.parametrize("experts", [{}, None, "ab", [1], ["a"], [{"name": "a"}], [{}]])
def test_experts_of_another_form_are_refused(folder, base, experts):
    change(folder, experts=experts)
    with pytest.raises(ConfigError, match=r"pemt\.json lists .*experts"):
        PemtModel.from_pretrained(folder, base=base)


@pytest.mark.parametrize("name", ["pemt.json", "model.safetensors", "experts", "experts/b"])
@pytest.mark.parametrize("dangling", [False, True])
def test_links_inside_are_refused(folder, base, name, dangling):
    outside = folder.parent / "outside" / Path(name).name
    outside.parent.mkdir()
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    if dangling:
        outside.rename(outside.with_name("gone"))
    library = ExpertLibrary(folder.parent / "outside")
    with pytest.raises((ConfigError, ExpertError), match="is a symbolic link"):
        PemtModel.from_pretrained(folder, base=base, library=library)


def test_a_linked_folder_is_read(saved, base, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    PemtModel.from_pretrained(tmp_path / "link", base=base).detach()


def test_a_missing_expert_is_refused(folder, base):
    shutil.rmtree(folder / "experts" / "b")
    with pytest.raises(ExpertError, match="Expert 'b' is not in"):
        PemtModel.from_pretrained(folder, base=base)


def test_a_renamed_expert_is_refused(folder, base):
    (folder / "experts" / "b").rename(folder / "experts" / "z")
    with pytest.raises(ExpertError, match="Expert 'b' is not in"):
        PemtModel.from_pretrained(folder, base=base)
    described = read_description(folder)["experts"]
    change(
        folder, experts=[{**e, "name": "z" if e["name"] == "b" else e["name"]} for e in described]
    )
    with pytest.raises(ExpertError, match="z"):
        PemtModel.from_pretrained(folder, base=base)


def test_experts_in_another_order_are_refused(folder, base):
    described = read_description(folder)["experts"]
    hashes = [e["content_hash"] for e in described]
    swapped = [hashes[1], hashes[0], hashes[2]]
    change(
        folder,
        experts=[{**e, "content_hash": h} for e, h in zip(described, swapped, strict=True)],
    )
    with pytest.raises(ExpertError, match="'a' is not the one this model was adapted with"):
        PemtModel.from_pretrained(folder, base=base)


def test_experts_of_a_library(base, tmp_path):
    """Left out of the folder, they come from the library: those very ones, or none."""
    library = ExpertLibrary(tmp_path / "library")
    for seed, name in enumerate(["a", "b"], 1):
        library.add(tiny.expert(base.model, name, seed=seed))
    model = tiny.stir(tiny.pemt(base.model, library.load_many(["a", "b"])))
    wanted = logits(model)
    place = model.save_pretrained(tmp_path / "model", base_name="x", include_experts=False)
    model.detach()
    assert not (place / "experts").exists()
    again = PemtModel.from_pretrained(place, base=base, library=library)
    assert torch.equal(logits(again), wanted)
    again.detach()
    with pytest.raises(ExpertError, match="pass the library"):
        PemtModel.from_pretrained(place, base=base)
    library.add(tiny.expert(base.model, "b", seed=9), overwrite=True)
    with pytest.raises(ExpertError, match="'b' is not the one"):
        PemtModel.from_pretrained(place, base=base, library=library)
    with pytest.raises(UnknownNameError, match="'a'"):
        PemtModel.from_pretrained(place, base=base, library=ExpertLibrary(tmp_path / "empty"))


def test_another_base_is_refused(folder):
    other = tiny.loaded("bert", 1)
    before = tiny.snapshot(other.model)
    with pytest.raises(ExpertError, match="made for the base"):
        PemtModel.from_pretrained(folder, base=other)
    assert tiny.snapshot(other.model) == before


def test_a_base_that_the_description_does_not_name_is_refused(folder, base):
    change(folder, base_fingerprint="0" * 64)
    with pytest.raises(ExpertError, match="'tiny-bert' is not the one this model was adapted on"):
        PemtModel.from_pretrained(folder, base=base)


def test_a_model_without_a_guide_is_written_as_before(saved):
    """What reads version 1 goes on reading it."""
    described = read_description(saved)
    assert described["format_version"] == 1
    assert not {"guide", "instant"} & described.keys()


def test_a_newer_format_is_refused(folder, base):
    change(folder, format_version=4)
    with pytest.raises(ConfigError, match=r"format version 4\n.*reads 1 to 3"):
        PemtModel.from_pretrained(folder, base=base)


def test_an_unknown_setting_is_refused(folder, base):
    change(folder, config={**read_description(folder)["config"], "taus": 2.0})
    with pytest.raises(UnknownNameError, match="Did you mean: tau"):
        PemtModel.from_pretrained(folder, base=base)


def test_parameters_of_another_shape_are_refused(folder, base):
    change(folder, prompt_rows=4)
    with pytest.raises(ConfigError, match=r"is \(3, 32\) in the file\n.*expected \(4, 32\)"):
        PemtModel.from_pretrained(folder, base=base)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"format_version": 1}', "[" * 200_000])
def test_a_description_that_is_none_is_refused(folder, base, content):
    (folder / storage.CONFIG).write_text(content)
    with pytest.raises(ConfigError, match=r"pemt\.json"):
        PemtModel.from_pretrained(folder, base=base)


def test_no_model_there(tmp_path, base):
    with pytest.raises(ConfigError, match="No adapted model in"):
        PemtModel.from_pretrained(tmp_path, base=base)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no adapted model"):
        tiny.pemt(tiny.base("bert")).save_pretrained(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "name", ["notes.txt", "weights.bak/model.pt", "experts/notes.txt", "experts/a/results.csv"]
)
def test_saving_again_does_not_lose_what_others_put_there(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("years of work")
    before = everything(folder.parent)
    with pytest.raises(ConfigError, match=rf"{name}.*\n.*move them elsewhere"):
        tiny.pemt(tiny.base("bert")).save_pretrained(folder)
    assert everything(folder.parent) == before


def test_saving_again_over_what_is_ours_or_the_systems(folder):
    shutil.copytree(folder / "experts" / "a", folder / "experts" / "z")
    for name in (".gitattributes", ".cache/x", "instant.safetensors", "desktop.ini"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    (folder / storage.WEIGHTS).unlink()  # a damaged model is replaced too
    tiny.pemt(tiny.base("bert")).save_pretrained(folder)
    assert sorted(p.name for p in (folder / "experts").iterdir()) == ["a", "b", "c"]
    assert (folder / storage.WEIGHTS).is_file()


@pytest.mark.parametrize(
    "where", [".", "", "..", "here", "file", "file/model", "link", "n" * 250, "n" * 300]
)
def test_a_place_that_cannot_be_a_folder_is_named(tmp_path, monkeypatch, where):
    here = tmp_path / "here"
    here.mkdir()
    (here / "file").write_text("mine")
    (here / "link").symlink_to("nowhere")
    monkeypatch.chdir(here)
    place = here if where == "here" else Path(where)
    before = everything(tmp_path)
    said = str(place)[:200]
    with pytest.raises(ConfigError) as caught:
        tiny.pemt(tiny.base("bert")).save_pretrained(place)
    assert said in str(caught.value)
    assert caught.value.fix
    assert everything(tmp_path) == before
    with pytest.raises(ConfigError):
        storage.check_place(place)  # before the work as well


@pytest.mark.parametrize("model_there", [True, False])
def test_the_current_folder_is_not_replaced(folder, monkeypatch, model_there):
    if not model_there:
        shutil.rmtree(folder)
        folder.mkdir()
    monkeypatch.chdir(folder)
    before = everything(folder)
    with pytest.raises(ConfigError, match="current folder"):
        tiny.pemt(tiny.base("bert")).save_pretrained(".")
    assert everything(folder) == before


def test_a_place_that_the_system_refuses_is_named(tmp_path, monkeypatch):
    def busy(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(storage, "_swap", busy)
    with pytest.raises(ConfigError, match=r"mounted cannot be written: Device or resource busy"):
        tiny.pemt(tiny.base("bert")).save_pretrained(tmp_path / "mounted")
    assert not list(tmp_path.iterdir())


def test_the_longest_name(tmp_path):
    """A name that passes the check before the work does not fail after it."""
    place = tmp_path / ("n" * storage.NAME_BYTES)
    for _ in range(2):
        assert tiny.pemt(tiny.base("bert")).save_pretrained(place).is_dir()


def test_files_are_utf8_whatever_the_locale(tmp_path, monkeypatch):
    told = io.text_encoding
    monkeypatch.setattr(  # what open() makes of no encoding where the locale is Windows'
        io, "text_encoding", lambda e, level=2: "cp1252" if e is None else told(e, level)
    )
    extra = {"task": {"name": "Größe"}}
    place = tiny.pemt(tiny.base("bert")).save_pretrained(tmp_path / "model", extra=extra)
    for name in (storage.CONFIG, "README.md"):
        assert "\ufffd" not in (place / name).read_bytes().decode()
    assert read_description(place)["extra"] == extra


def test_saving_again_replaces(folder):
    model = tiny.stir(tiny.pemt(tiny.base("bert")), seed=99)
    model.save_pretrained(folder, base_name="again")
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    again = PemtModel.from_pretrained(folder, base=tiny.loaded("bert"))
    assert torch.equal(logits(again), logits(model))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Killed(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize("moment", ["weights", "expert", "description", "swap"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_save_leaves_what_was_there(folder, monkeypatch, moment, exists):
    if not exists:
        shutil.rmtree(folder)
    before = everything(folder.parent)
    model = tiny.stir(tiny.pemt(tiny.base("bert")), seed=99)

    def fail(*args, **kwargs):
        raise Killed

    if moment == "weights":
        monkeypatch.setattr(storage, "save_file", fail)
    elif moment == "expert":
        real, count = storage.save_expert, []

        def second(*args, **kwargs):
            count.append(1)
            return fail() if len(count) == 2 else real(*args, **kwargs)

        monkeypatch.setattr(storage, "save_expert", second)
    elif moment == "description":
        monkeypatch.setattr(storage.json, "dumps", fail)
    else:
        move = Path.replace
        # the new folder comes to its place last
        monkeypatch.setattr(
            Path, "replace", lambda p, t: fail() if (p / storage.CONFIG).is_file()
            and p != folder and "old" not in str(p) else move(p, t),
        )  # fmt: skip
    with pytest.raises(Killed):
        model.save_pretrained(folder, base_name="x")
    assert everything(folder.parent) == before
    assert [p.name for p in folder.parent.iterdir()] == (["model"] if exists else [])
