"""Which base the cells of a grid are made on, told apart from every other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pemt.backbones import fingerprint
from pemt.bases import Base
from pemt.bench.cell import Cell
from pemt.tasks.encoding import fingerprint as tokenizer_fingerprint

# of a base's configuration, what says where it came from and how it is held, not what it computes;
# the Trainer sets use_cache
_DECIDES_NOT = ("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True, kw_only=True)
class BaseIdentity:
    """Which base the cells are made on: the same weights in the same precision everywhere.

    Attributes:
        asked: as `load_base` takes it.
        name: for people; of a folder its last part.
        precision: "float32" or "bfloat16".
        weights: fingerprint of the weights.
        tokenizer: fingerprint of the tokenizer.
        exact: "weights", "configuration" and "tokenizer" -> digest of the whole, where the
            fingerprints see a part. It is in no key, which would lose the cells of earlier
            releases; cells that it tells apart are refused.
    """

    asked: str
    name: str
    precision: str
    weights: str
    tokenizer: str
    exact: dict[str, str]

    @classmethod
    def of(cls, base: Base, asked: str) -> BaseIdentity:
        """The identity of a loaded base with nothing attached."""
        return cls(
            asked=asked, name=Path(asked).name if Path(asked).is_dir() else asked,
            precision=str(base.model.dtype).removeprefix("torch."),
            weights=fingerprint(base.model, base.backbone),
            tokenizer=tokenizer_fingerprint(base.tokenizer),
            exact={
                "weights": _weights(base.model),
                "configuration": _configuration(base.model.config),
                "tokenizer": _tokenizer(base.tokenizer),
            },
        )  # fmt: skip

    def differs(self, cell: Cell) -> list[str]:
        """What of the base a cell was made on is another one; a cell without digests passes."""
        base = cell.config.get("base")
        made = base.get("exact") if isinstance(base, dict) else None
        if not isinstance(made, dict):
            return []
        return [part for part, digest in self.exact.items() if made.get(part, digest) != digest]


def _weights(model: torch.nn.Module) -> str:
    """Of names, shapes, types and bytes of all that a checkpoint holds.

    Buffers that no checkpoint holds follow from the configuration, and their last bits depend on
    the machine. Of quantised weights in tensors of their own kind the bytes are left out.
    """
    digest = hashlib.sha256()
    for name, tensor in _held(model):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        plain = tensor.detach()
        if type(plain) is not torch.Tensor:
            continue
        try:
            content = plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        except RuntimeError:  # no plain bytes: quantised, sparse, or on no device
            continue
        digest.update(content)
    return digest.hexdigest()


def _held(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", buffer


def _configuration(config: Any) -> str:
    told = config.to_diff_dict()
    return _json_digest(
        {k: v for k, v in told.items() if not k.startswith("_") and k not in _DECIDES_NOT}
    )


def _tokenizer(tokenizer: Any) -> str:
    """Of how it cuts, but for padding and truncation, which every call sets; and of its chats."""
    to_str = getattr(getattr(tokenizer, "backend_tokenizer", None), "to_str", None)
    cuts = {} if to_str is None else json.loads(to_str())  # a slow one tells nothing
    return _json_digest({
        **cuts, "padding": None, "truncation": None,
        "chat_template": getattr(tokenizer, "chat_template", None),
    })  # fmt: skip


def _json_digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
