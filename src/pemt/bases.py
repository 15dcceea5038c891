"""Loading a base and its tokenizer: by the name of an offline default, a folder, or a Hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pemt.backbones import Backbone, describe, max_positions
from pemt.errors import BackboneError, UnknownNameError

Attention = Literal["auto", "eager", "sdpa"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Base:
    """A loaded base: model, tokenizer, row of the table, and the name it was asked by."""

    model: Any
    tokenizer: Any
    backbone: Backbone
    name: str


@dataclass(frozen=True)
class BaseTokenizer:
    """A base's tokenizer, its row of the table and the positions it has (None: no limit)."""

    tokenizer: Any
    backbone: Backbone
    positions: int | None
    name: str


def load_base(
    name: str | Path,
    *,
    precision: Precision = "auto",
    attention: Attention = "auto",
    device: str | None = None,
    backbone: Backbone | None = None,
) -> Base:
    """Load a base model and tokenizer.

    Args:
        name: "minilm" or "smollm2" (offline defaults, see pemt.assets), a local folder, or a Hub id
            such as "google-t5/t5-base".
        precision: of the frozen weights; what trains is kept in float32 either way. "auto" takes
            bfloat16 where the hardware multiplies it fast (CPUs with AMX or AVX512-BF16, recent
            GPUs).
        attention: transformers' implementation. "auto" takes its default, except on a CPU in
            bfloat16: there eager attention trains twice as fast, and evaluation switches to the
            fused one.
        device: where to put it; by default a GPU where there is one.
        backbone: describes a model type that is not in the table.

    Raises:
        UnknownNameError: neither an offline default, a folder, nor something the Hub could have.
        BackboneError: a type without a description, or files that transformers cannot read.
    """
    import transformers
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
    )

    asked = str(name)
    source, gguf = _place(asked)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(precision, device)
    if attention == "auto" and device == "cpu" and dtype == torch.bfloat16:
        attention = "eager"
    files: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    config = _config(asked, source, files)
    backbone = backbone or describe(config.model_type)
    options = dict(files)
    if attention != "auto":
        options["attn_implementation"] = attention
    # releases that have it keep the weights packed by default
    if gguf and hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    auto = {
        "encoder-decoder": AutoModelForSeq2SeqLM,
        "decoder-only": AutoModelForCausalLM,
        "encoder-only": AutoModel,
    }[backbone.family]
    try:
        model = auto.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True if not gguf else None,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **files)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"Cannot load the base {asked!r}: {error}",
            "the folder needs safetensors weights and a tokenizer (pickled weights are not read)",
        ) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if gguf:  # dequantised weights are ordinary ones from here on
        model.to(dtype)
    model.to(device)
    model.eval()
    return Base(model, tokenizer, backbone, asked)


def load_tokenizer(name: str | Path, *, backbone: Backbone | None = None) -> BaseTokenizer:
    """The tokenizer of a base, without its weights.

    Args:
        name: as for ``load_base``.
        backbone: describes a model type that is not in the table.

    Raises:
        UnknownNameError: neither an offline default, a folder, nor something the Hub could have.
        BackboneError: a type without a description, or files that transformers cannot read.
    """
    from transformers import AutoTokenizer

    asked = str(name)
    source, gguf = _place(asked)
    files: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    config = _config(asked, source, files)
    backbone = backbone or describe(config.model_type)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **files)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"Cannot load the tokenizer of {asked!r}: {error}", "the folder needs a tokenizer"
        ) from None
    return BaseTokenizer(tokenizer, backbone, max_positions(config, backbone), asked)


def _place(asked: str) -> tuple[str, str | None]:
    """What transformers is asked for, and the GGUF file in it where it is one."""
    from pemt import assets

    if asked in assets.OFFLINE_BASES:
        return str(assets.base_path(asked)), assets.base_gguf(asked)
    if not Path(asked).is_dir() and (asked.count("/") != 1 or asked.startswith((".", "/"))):
        raise UnknownNameError(
            "base",
            asked,
            assets.OFFLINE_BASES,
            "or give a folder, or a Hub id such as google-t5/t5-base",
        )
    return asked, None


def _config(asked: str, source: str, files: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    from pemt import assets

    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **files)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"Cannot read a base from {asked!r}: {error}",
            f"give one of {', '.join(assets.OFFLINE_BASES)}, a folder with config.json, or a Hub "
            "id (the Hub must be reachable: see `pemt doctor`)",
        ) from None


def _dtype(precision: Precision, device: str) -> torch.dtype:
    if precision == "auto":
        if device.startswith("cuda"):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device == "cpu" and (
                torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
            )
        return torch.bfloat16 if fast else torch.float32
    if precision not in ("float32", "bfloat16"):
        raise UnknownNameError("precision", precision, ["auto", "float32", "bfloat16"])
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
