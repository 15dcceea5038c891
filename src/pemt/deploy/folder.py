"""A folded model on disk, for plain PEFT.

adapter_config.json, adapter_model.safetensors   one LoRA, and the trained norms (modules_to_save)
prompt.safetensors, head.safetensors             encoder-only bases: the prompt and the head
prompt/                                          other bases: the prompt, as PEFT's prompt tuning
                                                 (a run of the method lora has no prompt)
fold.json                                        what was folded, how exactly, and file hashes
README.md                                        how to load it, and what is not in it
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pemt.deploy.folding import Folded
from pemt.errors import ConfigError
from pemt.experts.card import folded_card
from pemt.experts.peft_format import lora_to_peft
from pemt.experts.peft_prompt import prompt_to_peft
from pemt.model.storage import check_place, writing_to

FORMAT_VERSION = 1
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def check_free(folder: Path) -> None:
    """Refuse an output that exists, or cannot.

    Raises:
        ConfigError: it does, and is not an empty folder; a file or a broken link is in its way, or
            the system has no such name.
    """
    with writing_to(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists and is not empty", "give another --output")
        for place in (folder, *folder.parents):
            if place.is_symlink() or place.exists():
                if not place.is_dir():
                    raise ConfigError(
                        f"{folder} cannot be a folder: {place} is a file or a broken link",
                        "give another --output",
                    )
                break


def write_folded(
    folded: Folded, folder: str | Path, *, base_name: str,
    described: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a folded model; the folder is there whole or not at all.

    Args:
        folded: what `fold_mixture` or `fold_lora` gave.
        folder: to be made.
        base_name: what its readers load the base by.
        described: kept in fold.json beside the rest, such as the task and the scores.

    Raises:
        ConfigError: the folder exists and is not empty, is the current one, or cannot be written.
    """
    folder = Path(folder)
    check_free(folder)
    check_place(folder)
    with writing_to(folder):
        real = folder.resolve()  # a link to an empty folder stays
        real.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=real.parent, prefix=f".{real.name}-"))
        try:
            _write(folded, fresh, base_name, described or {}, real.name)
            fresh.chmod(0o755)
            if real.exists():
                real.rmdir()
            fresh.replace(real)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _write(
    folded: Folded, folder: Path, base_name: str, described: Mapping[str, Any], name: str
) -> None:
    info = replace(folded.expert.info, base=base_name)
    expert = replace(folded.expert, info=info)
    config, tensors = lora_to_peft(expert)
    if folded.norms:
        config["modules_to_save"] = list(folded.norms)
        for path, values in folded.norms.items():
            tensors |= {f"base_model.model.{path}.{k}": v for k, v in values.items()}
    _put(folder, ADAPTER[1], tensors)
    (folder / ADAPTER[0]).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if folded.head:
        _put(folder, "head.safetensors", folded.head)
    if folded.prompt is None:
        pass
    elif info.base_family == "encoder-only":  # PEFT would put it before the first token
        _put(folder, "prompt.safetensors", {"prompt": folded.prompt})
    else:
        prompt_config, rows = prompt_to_peft(replace(expert, prompt=folded.prompt))
        (folder / "prompt").mkdir()
        _put(folder / "prompt", ADAPTER[1], rows)
        (folder / "prompt" / ADAPTER[0]).write_text(
            json.dumps(prompt_config, indent=1) + "\n", encoding="utf-8"
        )
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    said = {
        "format_version": FORMAT_VERSION, "base": base_name,
        "base_fingerprint": info.base_fingerprint, "family": info.base_family,
        "prompt_rows": 0 if folded.prompt is None else len(folded.prompt),
        "norms": len(folded.norms), **folded.to_dict(), **described,
        "files": {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
                  for p in files},
    }  # fmt: skip
    (folder / "fold.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(folded_card(said, folder=name), encoding="utf-8")


def _put(folder: Path, name: str, tensors: Mapping[str, Any]) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name)
