"""First values of prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pemt.errors import ConfigError


def description_ids(tokenizer: Any, description: str) -> list[int]:
    """A description's token ids, the end token included and no other special token."""
    ids: list[int] = tokenizer(description, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigError(f"The description {description!r} has no tokens", "write one sentence")
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return ids if end is None else [*ids, int(end)]


def description_prompt(model: Any, tokenizer: Any, description: str) -> Tensor:
    """Embeddings of a description's tokens, `[P, D]`, float32 (METHOD.md, stage 1).

    Args:
        model: the base.
        tokenizer: its tokenizer.
        description: "Given INPUT, the task is to GOAL", with input and output format.
    """
    embed = input_embeddings(model)
    ids = torch.tensor(description_ids(tokenizer, description), device=embed.weight.device)
    with torch.no_grad():
        embedded: Tensor = embed(ids)
    return embedded.float()


def random_prompt(length: int, width: int, *, seed: int = 0) -> Tensor:
    """N(0, 1) noise, `[length, width]`: what the released code's loading order leaves."""
    return torch.randn(length, width, generator=torch.Generator().manual_seed(seed))


def vocabulary_prompt(model: Any, length: int, *, seed: int = 0) -> Tensor:
    """Embeddings of tokens drawn from the whole vocabulary, `[length, D]`, float32.

    The start of prompt tuning (Lester et al. 2021, section 3.2; they draw from the 5,000 most
    common tokens, which a tokenizer does not tell in general). Equal seeds draw equal tokens,
    which makes prompts of several tasks comparable (Vu et al. 2022, section 3.1).
    """
    embed = input_embeddings(model)
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, embed.weight.shape[0], (length,), generator=draw)
    with torch.no_grad():
        embedded: Tensor = embed(ids.to(embed.weight.device))
    return embedded.float()


def input_embeddings(model: Any) -> Any:
    """The module that embeds the text a prompt is put into: the encoder's, where there is one."""
    owner = model.get_encoder() if _has_encoder(model) else model
    return owner.get_input_embeddings()


def _has_encoder(model: Any) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))
