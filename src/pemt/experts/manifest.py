"""`expert.json`: what an expert's folder holds, and a hash over all of it.

    info         where the expert came from (`ExpertInfo`), the content hash among it
    activation   the bottleneck's non-linearity, null for LoRA
    layers       modules and scales, in the base's order
    tensors      dtype and shape of each tensor, by file
    files        sha256 of each file

Whatever disagrees with it is refused, by the name of the file. The one file beside it that is not
recorded is the card, README.md: prose for people, which nothing reads back, so it may be edited.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pemt.errors import ExpertError, PemtError
from pemt.experts.expert import ExpertInfo

MANIFEST = "expert.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
BOTTLENECK = "bottleneck.safetensors"
PROMPT = "prompt.safetensors"
HEAD = "head.safetensors"
CARD = "README.md"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
SYSTEM_FILES = {".DS_Store", ".gitattributes", "desktop.ini", "Thumbs.db"}
_PARTS: dict[str, type] = {"files": dict, "info": dict, "layers": list, "tensors": dict}
BROKEN = "get a fresh copy of the expert, or train it again"
# what Python raises over content of another form; RuntimeError is also JSON nested too deep
MALFORMED = (
    ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, re.error,
)  # fmt: skip


def read_manifest(place: Path) -> tuple[ExpertInfo, dict[str, Any]]:
    """An expert's provenance and the whole of its `expert.json`.

    Raises:
        ExpertError: no expert there, or its `expert.json` is altered, of a newer format, or of
            another folder.
    """
    if place.is_symlink():
        refuse(place, "is a symbolic link", "copy the expert itself into the library")
    if not place.is_dir():
        refuse(place, "is no folder", "an expert is a folder with expert.json inside")
    try:
        manifest = json.loads(read_file(place, MANIFEST))
    except (ValueError, RecursionError) as error:
        refuse(place, f"{MANIFEST} is not JSON ({error})", BROKEN)
    try:
        if not isinstance(manifest, dict) or not isinstance(manifest.get("info"), dict):
            raise ExpertError("It holds no info.", BROKEN)
        info = ExpertInfo.from_json(manifest["info"])  # first: it refuses newer formats
        if set(manifest) != {"activation", *_PARTS}:
            raise ExpertError(f"Its keys are {sorted(manifest)}.", BROKEN)
        for part, form in _PARTS.items():
            if not isinstance(manifest[part], form):
                raise ExpertError(f"Its {part} is no {form.__name__}.", BROKEN)
        if content_hash(manifest) != info.content_hash:
            raise ExpertError("It is altered: its content hash is not the recorded one.", BROKEN)
        readable(manifest)  # JSON can name half a character, which can be neither shown nor written
    except PemtError as error:
        refuse(place, f"{MANIFEST} cannot be used: {error.what}", error.fix)
    except MALFORMED as error:
        refuse(place, f"{MANIFEST} cannot be used: {error!r}", BROKEN)
    if info.name != place.name:
        refuse(
            place,
            f"the folder was renamed: {MANIFEST} says {info.name!r}",
            f"names are identity: rename the folder back to {info.name!r}",
        )
    return info, manifest


def check_listing(place: Path, info: ExpertInfo, recorded: Mapping[str, str]) -> None:
    """Nothing of ours missing or unexpected, no links, nothing that would have to be unpickled."""
    required = required_files(info)
    if not required <= set(recorded) <= required | {HEAD}:
        refuse(place, f"{MANIFEST} lists {sorted(recorded)}", f"it lists {sorted(required)}")
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_symlink():
            refuse(place, f"{name} is a symbolic link", "copy the file itself")
        if may_hold_pickle(name):
            refuse(place, f"{name} may hold a pickle", "remove it: nothing is ever unpickled")
        known = name in recorded or name in (MANIFEST, CARD, *SYSTEM_FILES)
        if not known and not path.is_dir():
            refuse(place, f"{name} is not recorded in {MANIFEST}", "remove it")


def required_files(info: ExpertInfo) -> set[str]:
    """What the folder of such an expert holds beside the manifest and, perhaps, a head."""
    if info.kind == "bottleneck":
        return {BOTTLENECK, PROMPT}
    if info.kind == "prompt" and info.base_family == "encoder-only":
        # PEFT would put the prompt before the first special token: another model
        return {PROMPT}
    return {ADAPTER_CONFIG, ADAPTER, PROMPT}


def may_hold_pickle(name: str) -> bool:
    """Whether a file of this name is of a kind that is read by unpickling."""
    return Path(name).suffix.lower() in _PICKLES


def read_file(place: Path, name: str) -> bytes:
    """One file's bytes; a missing, linked or unreadable one is refused by name."""
    path = place / name
    if path.is_symlink():
        refuse(place, f"{name} is a symbolic link", "copy the file itself")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        refuse(place, f"{name} is missing", BROKEN)
    except OSError as error:
        refuse(place, f"{name} cannot be read ({error})", "check its permissions")


def copy_file(place: Path, name: str, target: Path) -> None:
    """Copy one file of an expert; a linked or missing one is refused by name."""
    path = place / name
    if path.is_symlink():
        refuse(place, f"{name} is a symbolic link", "copy the file itself")
    try:
        shutil.copyfile(path, target / name)
    except FileNotFoundError:
        refuse(place, f"{name} is missing", BROKEN)


def content_hash(manifest: Mapping[str, Any]) -> str:
    """sha256 over the manifest, file hashes included, its own hash left out."""
    info = {key: value for key, value in manifest["info"].items() if key != "content_hash"}
    body = json.dumps({**manifest, "info": info}, sort_keys=True, separators=(",", ":"))
    return sha256(body.encode())


def sha256(content: bytes) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(content).hexdigest()


def readable(data: Mapping[str, Any]) -> bytes:
    """JSON for people to read, in UTF-8."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def refuse(place: Path, why: str, fix: str) -> NoReturn:
    """Say which expert cannot be used, why, and what to do."""
    raise ExpertError(f"Expert {place.name!r} in {place.parent}: {why}.", fix)
