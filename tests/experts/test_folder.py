from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pemt.experts
from pemt.errors import ExpertError
from pemt.experts import Expert, folder, load_expert, read_info, save_expert

from .builders import make_expert

LORA_FILES = ["adapter_config.json", "adapter_model.safetensors", "prompt.safetensors"]
BOTTLENECK_FILES = ["bottleneck.safetensors", "prompt.safetensors"]


def assert_same(one: Expert, other: Expert) -> None:
    assert (one.name, one.kind, one.activation) == (other.name, other.kind, other.activation)
    assert len(one.layers) == len(other.layers)
    for x, y in zip(one.layers, other.layers, strict=True):
        assert (x.module, x.scale) == (y.module, y.scale)
        for letter in ("A", "B", "a", "b"):
            t, u = getattr(x, letter), getattr(y, letter)
            assert (t is None) == (u is None)
            if t is not None:
                assert t.dtype == u.dtype
                assert torch.equal(t, u)
    assert torch.equal(one.prompt, other.prompt)
    assert one.head.keys() == other.head.keys()
    assert all(torch.equal(one.head[key], other.head[key]) for key in one.head)
    assert one.info == dataclasses.replace(other.info, content_hash=one.info.content_hash)


VERSION_1 = Path(__file__).parent / "version1" / "films"


def test_a_folder_of_version_1_is_read_and_written_again_as_it_was(tmp_path):
    expert = load_expert(VERSION_1)
    assert expert.info.format_version == 1
    assert (expert.info.coverage, expert.info.origin) == ("down", {})
    assert expert.info.content_hash == (
        "5eb4004b4655bc1470cc71018280be21878fd5b117a54f7360725eb8e7d3c7e4"
    )
    assert [y.module for y in expert.layers] == [
        f"encoder.layer.{i}.output.dense" for i in range(2)
    ]
    assert expert.layers[0].scale == 2.0
    assert torch.equal(expert.layers[1].A[0], torch.arange(1, 7) / 8)
    save_expert(expert, tmp_path / "films")
    written = {p.name: p.read_bytes() for p in (tmp_path / "films").iterdir()}
    assert written == {p.name: p.read_bytes() for p in VERSION_1.iterdir()}


def test_what_version_1_cannot_hold_is_written_as_version_2(tmp_path):
    expert = load_expert(VERSION_1)
    wide = dataclasses.replace(
        expert.layers[0], module="encoder.layer.0.attention.self.query", A=torch.ones(3, 4),
        B=torch.ones(5, 3),
    )  # fmt: skip
    info = dataclasses.replace(expert.info, coverage="linear", origin={"format": "peft"})
    other = dataclasses.replace(expert, layers=(wide, *expert.layers), info=info)
    assert save_expert(other, tmp_path / "films").format_version == 2
    manifest = json.loads((tmp_path / "films" / "expert.json").read_text())
    assert manifest["info"]["format_version"] == 2
    loaded = load_expert(tmp_path / "films")
    assert_same(loaded, other)
    assert loaded.info.origin == {"format": "peft"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    place = tmp_path / "film-reviews"
    save_expert(make_expert(), place)
    return place


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_then_load_gives_the_same_expert(tmp_path, kind, family, dtype):
    expert = make_expert(kind=kind, family=family, dtype=dtype, head=family == "bert")
    info = save_expert(expert, tmp_path / expert.name)
    loaded = load_expert(tmp_path / expert.name)
    assert_same(loaded, expert)
    assert loaded.info == info == read_info(tmp_path / expert.name)
    assert len(info.content_hash) == 64
    files = LORA_FILES if kind == "lora" else BOTTLENECK_FILES
    head = ["head.safetensors"] if family == "bert" else []
    assert sorted(p.name for p in (tmp_path / expert.name).iterdir()) == sorted(
        [*files, *head, "expert.json"]
    )
    assert [p.name for p in tmp_path.iterdir()] == [expert.name]


def test_ranks_and_scales_may_differ_by_layer(tmp_path):
    expert = make_expert()
    first, second = expert.layers
    odd = dataclasses.replace(second, A=second.A[:3], B=second.B[:, :3], scale=0.1)
    expert = dataclasses.replace(expert, layers=(first, odd))
    save_expert(expert, tmp_path / expert.name)
    assert_same(load_expert(tmp_path / expert.name), expert)


def test_tensors_that_share_memory_are_saved(tmp_path):
    expert = make_expert()
    first, second = expert.layers
    tied = dataclasses.replace(second, A=first.A, B=first.B)
    expert = dataclasses.replace(expert, layers=(first, tied))
    save_expert(expert, tmp_path / expert.name)
    assert_same(load_expert(tmp_path / expert.name), expert)


def test_the_content_hash_covers_tensors_and_provenance(tmp_path):
    hashes = set()
    for i, change in enumerate([{}, {"seed": 1}, {"task": "other"}, {"alpha": 4.0}]):
        info = save_expert(make_expert(**change), tmp_path / str(i) / "film-reviews")
        again = save_expert(make_expert(**change), tmp_path / str(i) / "again" / "film-reviews")
        assert again.content_hash == info.content_hash
        hashes.add(info.content_hash)
    assert len(hashes) == 4


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_a_flipped_byte_in_any_file_is_refused(tmp_path, kind):
    place = tmp_path / "film-reviews"
    save_expert(make_expert(kind=kind), place)
    for path in sorted(place.iterdir()):
        content = path.read_bytes()
        for position in (len(content) // 2, len(content) - 3):
            altered = bytearray(content)
            altered[position] ^= 0xFF
            path.write_bytes(altered)
            with pytest.raises(ExpertError, match=path.name):
                load_expert(place)
        path.write_bytes(content)
    load_expert(place)


def test_an_edited_description_is_refused(saved):
    manifest = saved / "expert.json"
    manifest.write_text(manifest.read_text().replace("0.875", "0.999"))
    for read in (load_expert, read_info):
        with pytest.raises(ExpertError, match=r"expert\.json.*content hash"):
            read(saved)


@pytest.mark.parametrize("name", [*LORA_FILES, "head.safetensors", "expert.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ExpertError, match=f"{name} is missing"):
        load_expert(saved)


def test_tensors_are_checked_without_hashes_too(saved):
    prompt = saved / "prompt.safetensors"
    good = load_file(prompt)
    for tensors, why in [
        ({}, "lacks the tensor 'prompt'"),
        ({**good, "extra": torch.zeros(1)}, "unrecorded tensor 'extra'"),
        ({"prompt": good["prompt"][:2].clone()}, r"'prompt' as float32\[2, 32\]"),
        ({"prompt": good["prompt"].half()}, r"'prompt' as float16\[5, 32\]"),
        ({"prompt": torch.full_like(good["prompt"], torch.nan)}, "NaN or infinity in 'prompt'"),
    ]:
        save_file(tensors, prompt)
        with pytest.raises(ExpertError, match=rf"prompt\.safetensors .*{why}"):
            load_expert(saved, verify=False)
        with pytest.raises(ExpertError, match=r"prompt\.safetensors is altered"):
            load_expert(saved)
    prompt.write_bytes(b"not tensors")
    with pytest.raises(ExpertError, match=r"prompt\.safetensors is not a safetensors file"):
        load_expert(saved, verify=False)


def test_another_scale_in_the_adapter_configuration_is_refused(saved):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 80}))
    with pytest.raises(ExpertError, match=r"adapter_config\.json gives encoder.* the scale 20"):
        load_expert(saved, verify=False)


@pytest.mark.parametrize("where", ["A", "prompt", "head"])
def test_values_that_are_not_finite_are_not_saved(tmp_path, where):
    expert = make_expert()
    tensor = {"A": expert.layers[1].A, "prompt": expert.prompt, "head": expert.head["weight"]}[
        where
    ]
    tensor[0, 0] = torch.inf
    with pytest.raises(ExpertError, match="NaN or infinity"):
        save_expert(expert, tmp_path / expert.name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "sub/x.PKL"])
def test_a_pickle_beside_is_refused(saved, name):
    (saved / name).parent.mkdir(exist_ok=True)
    (saved / name).write_bytes(pickle.dumps({}))
    with pytest.raises(ExpertError, match=f"{name} may hold a pickle"):
        load_expert(saved)


def test_an_unrecorded_tensor_file_is_refused_and_a_card_is_not(saved):
    (saved / "README.md").write_text("a card")
    load_expert(saved)
    (saved / "more.safetensors").write_bytes(b"")
    with pytest.raises(ExpertError, match=r"more\.safetensors is not recorded"):
        load_expert(saved)


def test_links_are_refused(saved, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = elsewhere / "film-reviews"
    link.symlink_to(saved)
    with pytest.raises(ExpertError, match="is a symbolic link"):
        load_expert(link)
    (saved / "prompt.safetensors").rename(tmp_path / "prompt.safetensors")
    (saved / "prompt.safetensors").symlink_to(tmp_path / "prompt.safetensors")
    with pytest.raises(ExpertError, match=r"prompt\.safetensors is a symbolic link"):
        load_expert(saved)


def test_a_renamed_folder_is_refused(saved):
    renamed = saved.rename(saved.with_name("questions"))
    with pytest.raises(ExpertError, match="'film-reviews'"):
        load_expert(renamed)


def test_a_newer_format_is_refused(saved):
    path = saved / "expert.json"
    manifest = json.loads(path.read_text())
    manifest["info"]["format_version"] = 4
    path.write_text(json.dumps(manifest))
    with pytest.raises(ExpertError, match=r"expert\.json.*format 4"):
        load_expert(saved)


@pytest.mark.parametrize("content", ["[]", "{}", '{"info": 3}', "no json"])
def test_a_description_of_another_form_is_refused(saved, content):
    (saved / "expert.json").write_text(content)
    with pytest.raises(ExpertError, match=r"expert\.json"):
        load_expert(saved)


def test_saving_under_another_name_is_refused(tmp_path):
    with pytest.raises(ExpertError, match="another name"):
        save_expert(make_expert(), tmp_path / "questions")


@pytest.mark.parametrize("atomic_swap", [True, False])
def test_overwriting_is_refused_unless_asked_for(saved, monkeypatch, atomic_swap):
    if not atomic_swap:
        monkeypatch.setattr(folder, "_exchange", lambda one, other: False)
    new = make_expert(seed=1, head=False)
    with pytest.raises(ExpertError, match="exists already"):
        save_expert(new, saved)
    assert_same(load_expert(saved), make_expert())
    save_expert(new, saved, overwrite=True)
    assert_same(load_expert(saved), new)
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_is_no_expert_is_never_overwritten(tmp_path):
    mine = tmp_path / "film-reviews" / "thesis.tex"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(ExpertError, match="is no expert"):
        save_expert(make_expert(), mine.parent, overwrite=True)
    assert mine.read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failing_rename_leaves_what_was_there(tmp_path, monkeypatch, overwrite):
    place = tmp_path / "film-reviews"
    if overwrite:
        save_expert(make_expert(), place)
    monkeypatch.setattr(folder, "_exchange", lambda one, other: False)
    real = os.rename

    def rename(source, target):
        if str(source).endswith(".tmp"):
            raise OSError("disk gone")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="disk gone"):
        save_expert(make_expert(seed=1), place, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == (["film-reviews"] if overwrite else [])
    if overwrite:
        assert_same(load_expert(place), make_expert())


def test_a_kill_before_the_last_step_leaves_no_expert(tmp_path):
    """The process dies with no chance to clean up: only a hidden folder may remain."""
    script = """
        import os, sys
        from pathlib import Path
        from pemt.experts import ExpertLibrary, folder
        from tests.experts.builders import make_expert
        folder._sync = lambda path: os._exit(9)
        ExpertLibrary(sys.argv[1]).add(make_expert())
    """
    root = Path(__file__).parents[2]
    src = Path(pemt.experts.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(src), str(root)])},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 9, done.stderr.decode()
    assert pemt.experts.ExpertLibrary(tmp_path).names() == []
    assert any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
    with pytest.raises(ExpertError, match="is no folder"):
        load_expert(tmp_path / "film-reviews")


def test_a_copied_folder_loads(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy" / saved.name)
    assert_same(load_expert(tmp_path / "copy" / saved.name), make_expert())


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_linux_swaps_folders_in_one_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    assert folder._exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "who").read_text() for name in ("a", "b")] == ["b", "a"]
    assert not folder._exchange(tmp_path / "a", tmp_path / "nowhere")
