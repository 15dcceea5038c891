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
    embed = (
        model.get_encoder().get_input_embeddings()
        if _has_encoder(model)
        else model.get_input_embeddings()
    )
    ids = torch.tensor(description_ids(tokenizer, description), device=embed.weight.device)
    with torch.no_grad():
        embedded: Tensor = embed(ids)
    return embedded.float()


def random_prompt(length: int, width: int, *, seed: int = 0) -> Tensor:
    """N(0, 1) noise, `[length, width]`: what the released code's loading order leaves."""
    return torch.randn(length, width, generator=torch.Generator().manual_seed(seed))


def _has_encoder(model: Any) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))
