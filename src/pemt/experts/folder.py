"""An expert as a folder: written all at once or not at all, read with every byte accounted for.

    <name>/adapter_config.json        LoRA, and a prompt for text to text: what plain PEFT loads
           adapter_model.safetensors
           bottleneck.safetensors     bottleneck: our own tensors instead of the two above
           prompt.safetensors         the prompt, [P, D]; MPT's also its factors shared, u and v
           head.safetensors           an encoder-only task's head, if it has one
           expert.json                provenance, layers, sha256 of each file, hash over it all

A folder is prepared under a hidden name beside its place and moved there in one step.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pemt.errors import ExpertError, PemtError
from pemt.experts.expert import Expert, ExpertInfo, ExpertLayer, PromptFactors
from pemt.experts.manifest import (
    ADAPTER,
    ADAPTER_CONFIG,
    BOTTLENECK,
    BROKEN,
    HEAD,
    MALFORMED,
    MANIFEST,
    PROMPT,
    check_listing,
    content_hash,
    read_file,
    read_manifest,
    readable,
    refuse,
    required_files,
    sha256,
)
from pemt.experts.peft_format import lora_from_peft, lora_to_peft
from pemt.experts.peft_prompt import prompt_from_peft, prompt_to_peft

if TYPE_CHECKING:
    from torch import Tensor


_FACTORS = ("shared", "u", "v")
_HIDDEN = re.compile(r"\.(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\.[0-9a-f]{32}\.(?P<role>old|tmp)")

# --- writing ------------------------------------------------------------------------------------


def save_expert(expert: Expert, folder: str | Path, *, overwrite: bool = False) -> ExpertInfo:
    """Write an expert; a kill at any moment leaves the old folder, the new one, or none.

    Args:
        expert: what to write.
        folder: where; its last part is the expert's name.
        overwrite: replace the expert that is there.

    Returns:
        The expert's info with its content hash.

    Raises:
        ExpertError: the folder is taken or has another name, or a tensor holds NaN or infinity.
    """
    target = Path(folder).absolute()
    if target.name != expert.name:
        refuse(target, "has another name than the expert", f"save it as {expert.name!r}")
    taken = target.exists() or target.is_symlink()
    if taken and not overwrite:
        refuse(target, "exists already", "choose another name, or overwrite it on purpose")
    if taken and not (target / MANIFEST).exists():
        refuse(target, "is no expert, so it is not overwritten", "choose another name or folder")
    info, files = _render(expert)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = hidden_sibling(target, "tmp")
    try:
        fresh.mkdir()
        for name, content in files.items():
            _write(fresh / name, content)
        _sync(fresh)
        if taken:
            _replace(target, fresh)
        else:
            _move(fresh, target)
        _sync(target.parent)
    finally:
        discard(fresh)
    return info


def hidden_sibling(folder: Path, role: str) -> Path:
    """A name beside `folder` that no expert can have: `.<name>.<unique>.<role>`."""
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.{role}")


def hidden_of(path: Path, role: str) -> str | None:
    """The name that `hidden_sibling` hid in this role; None of any other file, the user's own."""
    match = _HIDDEN.fullmatch(path.name)
    return match["name"] if match is not None and match["role"] == role else None


def discard(path: Path) -> None:
    """Remove a folder, or a link without following it; nothing there is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _render(expert: Expert) -> tuple[ExpertInfo, dict[str, bytes]]:
    """Every file's bytes, the manifest last."""
    from safetensors.torch import save

    prompt = {"prompt": expert.prompt}
    if expert.factors is not None:
        prompt |= {name: getattr(expert.factors, name) for name in _FACTORS}
    stores: dict[str, Mapping[str, Tensor]] = {PROMPT: prompt}
    files: dict[str, bytes] = {}
    if ADAPTER_CONFIG in required_files(expert.info):
        to_peft = lora_to_peft if expert.kind == "lora" else prompt_to_peft
        config, stores[ADAPTER] = to_peft(expert)
        files[ADAPTER_CONFIG] = readable(config)
    if expert.kind == "bottleneck":
        stores[BOTTLENECK] = {
            f"{layer.module}.{letter}": getattr(layer, letter)
            for layer in expert.layers
            for letter in ("A", "a", "B", "b")
        }
    if expert.head:
        stores[HEAD] = expert.head
    for name, tensors in stores.items():
        _check_finite(f"Expert {expert.name!r}", name, tensors)
        # clones: safetensors refuses tensors that share memory
        plain = {key: t.detach().cpu().clone().contiguous() for key, t in tensors.items()}
        files[name] = save(plain, metadata={"format": "pt"})
    manifest: dict[str, Any] = {
        "info": dataclasses.replace(expert.info, content_hash="").to_json(),
        "activation": expert.activation,
        "layers": [{"module": y.module, "scale": y.scale} for y in expert.layers],
        "tensors": {name: _shapes(tensors) for name, tensors in sorted(stores.items())},
        "files": {name: sha256(content) for name, content in sorted(files.items())},
    }
    manifest["info"]["content_hash"] = content_hash(manifest)
    files[MANIFEST] = readable(manifest)
    return ExpertInfo.from_json(manifest["info"]), files


def _write(path: Path, content: bytes) -> None:
    try:
        with path.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
    except OSError as error:  # a full disk does not say which file it was
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


def _sync(folder: Path) -> None:
    """Make renames inside a folder survive a power cut; only POSIX opens folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(fresh: Path, target: Path) -> None:
    try:
        fresh.rename(target)
    except OSError:
        if target.exists():  # another writer was faster
            refuse(target, "exists already", "choose another name, or overwrite it on purpose")
        raise


def _replace(target: Path, fresh: Path) -> None:
    """Put `fresh` in the place of `target`; without an atomic swap the old one is parked."""
    if _exchange(fresh, target):
        return  # `fresh` now names the old expert, which the caller discards
    parked = hidden_sibling(target, "old")
    target.rename(parked)
    try:
        fresh.rename(target)
    except BaseException:
        parked.rename(target)
        raise
    discard(parked)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in a single step; False where the system has no such step."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


# --- reading ------------------------------------------------------------------------------------


def read_info(folder: str | Path) -> ExpertInfo:
    """An expert's provenance, from its `expert.json` alone.

    Raises:
        ExpertError: no expert there, or its `expert.json` is altered or of a newer format.
    """
    return read_manifest(Path(folder).absolute())[0]


def load_expert(folder: str | Path, *, verify: bool = True) -> Expert:
    """Read an expert and check it.

    Args:
        folder: the expert's folder.
        verify: compare each file's sha256 with the one recorded. Names, shapes and finiteness of
            the tensors are checked either way.

    Returns:
        The expert, its tensors on the CPU in the dtype they were saved in.

    Raises:
        ExpertError: a file is missing, unknown, altered, a link or a pickle, tensors differ from
            what `expert.json` records, or the folder was renamed. The message names the file.
    """
    place = Path(folder).absolute()
    info, manifest = read_manifest(place)
    check_listing(place, info, manifest["files"])
    files = {name: read_file(place, name) for name in manifest["files"]}
    for name, content in files.items():
        if verify and sha256(content) != manifest["files"][name]:
            refuse(place, f"{name} is altered: its sha256 is not the recorded one", BROKEN)
    try:
        stores = {name: _tensors(place, name, content) for name, content in files.items()}
        for name, tensors in stores.items():
            _check_tensors(place, name, tensors, manifest["tensors"].get(name, {}))
    except MALFORMED as error:
        refuse(place, f"its tensors do not fit {MANIFEST}: {error!r}", BROKEN)
    try:
        layers = _layers(info, manifest["layers"], files, stores)
        return Expert(
            name=info.name,
            kind=info.kind,
            activation=manifest["activation"],
            layers=layers,
            prompt=stores[PROMPT]["prompt"],
            head=stores.get(HEAD, {}),
            info=info,
            factors=_factors(stores[PROMPT]),
        )
    except PemtError as error:
        refuse(place, f"its parts contradict each other: {error.what}", error.fix)
    except MALFORMED as error:
        refuse(place, f"its files do not fit {MANIFEST}: {error!r}", BROKEN)


def _tensors(place: Path, name: str, content: bytes) -> dict[str, Tensor]:
    if not name.endswith(".safetensors"):
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(content)
    except (SafetensorError, ValueError) as error:
        refuse(place, f"{name} is not a safetensors file ({error})", BROKEN)
    return tensors


def _check_tensors(
    place: Path, name: str, tensors: Mapping[str, Tensor], recorded: Mapping[str, Any]
) -> None:
    found = _shapes(tensors)
    for key in sorted({*found, *recorded}):
        if key not in found:
            refuse(place, f"{name} lacks the tensor {key!r}", BROKEN)
        if key not in recorded:
            refuse(place, f"{name} holds the unrecorded tensor {key!r}", BROKEN)
        if found[key] != recorded[key]:
            refuse(place, f"{name} has {key!r} as {found[key]}, not {recorded[key]}", BROKEN)
    _check_finite(str(place), name, tensors)


def _layers(
    info: ExpertInfo,
    recorded: list[dict[str, Any]],
    files: Mapping[str, bytes],
    stores: Mapping[str, Mapping[str, Tensor]],
) -> tuple[ExpertLayer, ...]:
    if info.kind == "prompt":
        if recorded:
            raise ExpertError(f"{MANIFEST} lists branches of a prompt.", BROKEN)
        if ADAPTER in stores:
            prompt_from_peft(_peft_config(files), stores[ADAPTER], stores[PROMPT])
        return ()
    if info.kind == "bottleneck":
        own = stores[BOTTLENECK]
        return tuple(
            ExpertLayer(
                module=y["module"],
                scale=y["scale"],
                **{letter: own[f"{y['module']}.{letter}"] for letter in ("A", "a", "B", "b")},
            )
            for y in recorded
        )
    modules = [y["module"] for y in recorded]
    layers = lora_from_peft(_peft_config(files), stores[ADAPTER], modules=modules)
    for layer, y in zip(layers, recorded, strict=True):
        if not math.isclose(layer.scale, y["scale"], rel_tol=1e-9):
            raise ExpertError(
                f"{ADAPTER_CONFIG} gives {layer.module} the scale {layer.scale}.",
                f"{MANIFEST} says {y['scale']}",
            )
    # the recorded scale is the one that was trained with, to the last bit
    return tuple(
        dataclasses.replace(layer, scale=y["scale"])
        for layer, y in zip(layers, recorded, strict=True)
    )


def _peft_config(files: Mapping[str, bytes]) -> dict[str, Any]:
    config = json.loads(files[ADAPTER_CONFIG])
    if not isinstance(config, dict):
        raise ExpertError(f"{ADAPTER_CONFIG} holds no settings.", BROKEN)
    return config


def _factors(stored: Mapping[str, Tensor]) -> PromptFactors | None:
    found = {name: stored[name] for name in _FACTORS if name in stored}
    if set(stored) != {"prompt", *found} or len(found) not in (0, len(_FACTORS)):
        raise ExpertError(f"{PROMPT} holds {sorted(stored)}.", BROKEN)
    return PromptFactors(**found) if found else None


# --- shared by both -----------------------------------------------------------------------------


def _check_finite(owner: str, name: str, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ExpertError(
                f"{owner}: {name} has NaN or infinity in {key!r}.",
                "a training run that diverged gives no expert: lower the learning rate",
            )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Like `float32[64, 3072]`, by tensor name."""
    return {
        key: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}"
        for key, t in sorted(tensors.items())
    }
