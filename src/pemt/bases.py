"""Loading a base and its tokenizer: by the name of an offline default, a folder, or a Hub id."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
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
        device: where to put it, as torch names it; by default a GPU where there is one.
        backbone: describes a model type that is not in the table.

    Raises:
        UnknownNameError: neither an offline default, a folder, nor something the Hub could have.
        BackboneError: a type without a description, files that transformers cannot read, weights
            that are not safetensors, or not all of them, a device that is not there.
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
    device = _device(device)
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
    needs = "the folder needs safetensors weights and a tokenizer (pickled weights are not read)"
    try:
        if not gguf:
            _check_index(source, config)
        model, read = auto.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True if not gguf else None,
            output_loading_info=True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **files)
    except Exception as error:  # each reader has kinds of its own for what it cannot read
        raise BackboneError(
            f"Cannot load the base {asked!r}: {_said(error)}", _remedy(error, needs)
        ) from error
    _check_whole(model, backbone, read["missing_keys"], asked)
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
    except Exception as error:  # each reader has kinds of its own for what it cannot read
        raise BackboneError(
            f"Cannot load the tokenizer of {asked!r}: {_said(error)}",
            _remedy(error, "the folder needs a tokenizer"),
        ) from error
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
    except Exception as error:  # each reader has kinds of its own for what it cannot read
        raise BackboneError(
            f"Cannot read a base from {asked!r}: {_said(error)}",
            f"give one of {', '.join(assets.OFFLINE_BASES)}, a folder with config.json, or a Hub "
            "id (the Hub must be reachable: see `pemt doctor`)",
        ) from error


def _check_index(source: str, config: Any) -> None:
    """Look at the files that an index of weights names: transformers would open any of them.

    Raises:
        ValueError: one that is not safetensors, or not in the base's own folder.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

    name = getattr(config, "transformers_weights", None) or SAFE_WEIGHTS_INDEX_NAME
    if not name.endswith(".index.json"):
        name = SAFE_WEIGHTS_INDEX_NAME
    index = cached_file(
        source, name, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False, _raise_exceptions_for_gated_repo=False,
    )  # fmt: skip
    if index is None:
        return
    for file in set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()):
        path = PurePosixPath(file)
        if path.suffix != ".safetensors" or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name} names {file!r}, which is not safetensors beside it")


def _check_whole(model: Any, backbone: Backbone, missing: Collection[str], asked: str) -> None:
    """Refuse a base of which transformers has drawn some weights at random.

    Raises:
        BackboneError: weights that its files do not hold; the pooler, which is not used, may lack.
    """
    if getattr(model, "hf_quantizer", None) is not None:  # its weights go by other names
        return
    unused = "pooler." if backbone.family == "encoder-only" else None
    lacking = [
        name
        for name, _ in model.named_parameters()
        if name in missing and not (unused and name.startswith(unused))
    ]
    if lacking:
        raise BackboneError(
            f"The files of the base {asked!r} lack {len(lacking)} of its weights, such as "
            f"{lacking[0]}",
            f"take a checkpoint of the whole {type(model).__name__}, not of a part of it",
        )


def _said(error: Exception) -> str:
    """What an error says; with its kind where a reader came upon what it did not look for."""
    unexpected = isinstance(error, (LookupError, TypeError, AttributeError))
    return f"{type(error).__name__}: {error}" if unexpected else str(error)


def _remedy(error: Exception, otherwise: str) -> str:
    if isinstance(error, ImportError):
        return "install what it asks for, or take a base that does without"
    return otherwise


def _device(asked: str | None) -> str:
    """The device asked for, tried out; before the weights are read."""
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackboneError(
            f"No device {str(asked)!r} here ({str(error).splitlines()[0]})",
            "give 'cpu', or 'cuda' or 'cuda:0' where `pemt doctor` lists a GPU; without it a GPU "
            "is taken where there is one",
        ) from None
    return str(asked)


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
