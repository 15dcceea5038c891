"""A PEFT adapter's two files, from a folder or the Hub: read as bytes, nothing ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pemt.errors import ConfigError, ExpertError
from pemt.experts.address import HubAddress, is_hub_address
from pemt.experts.hub_files import HubFiles
from pemt.experts.manifest import ADAPTER, ADAPTER_CONFIG

if TYPE_CHECKING:
    from torch import Tensor

_FILES = (ADAPTER_CONFIG, ADAPTER)
_PICKLE = "adapter_model.bin"
_DTYPES = {"torch.float32", "torch.float16", "torch.bfloat16", "torch.float64"}


def refuse_adapter(where: str, why: str, fix: str) -> NoReturn:
    """Say which adapter cannot be used, why, and what to do."""
    raise ExpertError(f"The adapter in {where}: {why}.", fix)


def adapter_files(source: str | Path) -> tuple[str, dict[str, bytes], str]:
    """The bytes of configuration and tensors, from a folder or a Hub repository at one commit.

    Args:
        source: a folder; or "user/name", "user/name@revision", "hf://user/name/folder@revision".

    Returns:
        What to call the place in a message, the content by file name, and the source to write down:
        as given, on the Hub with its commit.

    Raises:
        ConfigError: no such folder, or nothing the Hub could have.
        ExpertError: one of the two files is missing, pickled, cannot be read, or is not what the
            Hub lists; no such repository or revision; no connection.
    """
    try:
        place = Path(source).expanduser()
        there, is_folder = place.exists(), place.is_dir()
    except (OSError, RuntimeError):  # a name too long, or the home of nobody
        there = is_folder = False
    if is_folder:
        try:
            for file in _FILES:
                if not (place / file).is_file():
                    _missing(str(source), file, {p.name for p in place.iterdir()}, _inside(place))
            content = {file: (place / file).read_bytes() for file in _FILES}
        except OSError as error:
            refuse_adapter(
                str(source),
                f"{error.filename} cannot be read ({error.strerror})",
                "check its permissions",
            )
        return str(source), content, str(source)
    address = None if there else _address(str(source))
    if address is None:
        raise ConfigError(
            f"There is no adapter folder {str(source)!r}.",
            f"give a folder with {ADAPTER_CONFIG} and {ADAPTER}, or one on the Hub: someone/name, "
            "someone/name@revision, hf://someone/name/folder",
        )
    return _from_hub(address)


def _address(asked: str) -> HubAddress | None:
    """Where on the Hub; None for what cannot be there, or looks more like a folder."""
    if not is_hub_address(asked) and asked.partition("@")[0].count("/") != 1:
        return None
    try:
        return HubAddress.parse(asked)
    except ConfigError:
        return None


def _from_hub(address: HubAddress) -> tuple[str, dict[str, bytes], str]:
    files = HubFiles(address)
    pinned = address.at(files.commit)
    inside = {
        path[len(address.prefix) :] for path in files.files if path.startswith(address.prefix)
    }
    for file in _FILES:
        if file not in inside:
            folders = {path.rpartition("/")[0] for path in inside if path.endswith(f"/{file}")}
            _missing(pinned, file, inside, sorted(folders))
    places = files.download(address.prefix + file for file in _FILES)
    content = {file: places[address.prefix + file].read_bytes() for file in _FILES}
    return pinned, content, pinned


def _inside(place: Path) -> list[str]:
    """Folders inside that hold an adapter: PEFT saves one that is not called "default" so."""
    return sorted(p.parent.name for p in place.glob(f"*/{ADAPTER_CONFIG}"))


def _missing(where: str, file: str, listed: Collection[str], inside: list[str]) -> NoReturn:
    if inside:
        refuse_adapter(where, f"{file} is missing", f"give one of its folders: {', '.join(inside)}")
    if file == ADAPTER and _PICKLE in listed:
        refuse_adapter(
            where,
            f"{_PICKLE} is a pickle, which is never opened",
            f"save it as {ADAPTER}: load it with PEFT where you trust it, then "
            "save_pretrained(..., safe_serialization=True)",
        )
    refuse_adapter(where, f"{file} is missing", "give the folder that PEFT's save_pretrained wrote")


def adapter_config(where: str, content: bytes) -> dict[str, Any]:
    """The settings of `adapter_config.json`.

    Raises:
        ExpertError: not readable, or of another peft_type than LORA.
    """
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        refuse_adapter(where, f"{ADAPTER_CONFIG} is not JSON ({error})", "get a fresh copy of it")
    if not isinstance(config, dict):
        refuse_adapter(where, f"{ADAPTER_CONFIG} holds no settings", "get a fresh copy of it")
    if config.get("peft_type") != "LORA":
        refuse_adapter(
            where,
            f"peft_type is {config.get('peft_type')!r}",
            "an expert comes from peft_type 'LORA': low-rank branches beside linear maps",
        )
    return config


def adapter_tensors(where: str, content: bytes) -> dict[str, Tensor]:
    """The tensors of `adapter_model.safetensors`, in the type they were saved in.

    Raises:
        ExpertError: not readable, of another type, empty, or with NaN or infinity.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state: dict[str, Tensor] = load(content)
    except (SafetensorError, ValueError) as error:
        refuse_adapter(
            where, f"{ADAPTER} is not a safetensors file ({error})", "get a fresh copy of it"
        )
    except KeyError as error:  # a type of the format's that torch does not have
        refuse_adapter(
            where,
            f"{ADAPTER} holds tensors of type {error}",
            f"save it as one of {sorted(_DTYPES)}",
        )
    for key, tensor in state.items():
        if str(tensor.dtype) not in _DTYPES:
            refuse_adapter(
                where, f"{key!r} is {tensor.dtype}", f"save it as one of {sorted(_DTYPES)}"
            )
        if tensor.numel() == 0:
            refuse_adapter(
                where,
                f"{key!r} is empty, {list(tensor.shape)}",
                "sharded training (ZeRO-3, FSDP) must gather the weights before it saves them",
            )
        if not tensor.isfinite().all():
            refuse_adapter(
                where, f"NaN or infinity in {key!r}", "a run that diverged gives no expert"
            )
    return state
