"""Tiny random bases of three families and experts that fit them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from pemt.experts import Expert, ExpertInfo, ExpertLayer

D, F, R, P = 32, 64, 4, 5
FAMILIES = {"bert": "encoder-only", "t5": "encoder-decoder", "gpt2": "decoder-only"}
MODULES = {
    "bert": [f"encoder.layer.{i}.output.dense" for i in range(2)],
    "t5": [f"encoder.block.{i}.layer.1.DenseReluDense.wo" for i in range(2)]
    + [f"decoder.block.{i}.layer.2.DenseReluDense.wo" for i in range(2)],
    "gpt2": [f"transformer.h.{i}.mlp.c_proj" for i in range(2)],
}


def make_base(family: str) -> torch.nn.Module:
    """A random base in evaluation mode, the same one each time."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 50}
    if family == "bert":
        config = BertConfig(
            hidden_size=D,
            intermediate_size=F,
            num_hidden_layers=2,
            num_attention_heads=2,
            **small,
        )
        return BertModel(config).eval()
    if family == "t5":
        t5 = T5Config(
            d_model=D, d_ff=F, d_kv=16, num_layers=2, num_heads=2, decoder_start_token_id=0, **small
        )
        return T5ForConditionalGeneration(t5).eval()
    gpt2 = GPT2Config(n_embd=D, n_inner=F, n_layer=2, n_head=2, n_positions=32, **small)
    return GPT2LMHeadModel(gpt2).eval()


def make_info(name: str = "film-reviews", **changes: Any) -> ExpertInfo:
    given: dict[str, Any] = {
        "name": name,
        "kind": "lora",
        "task": "film_reviews",
        "task_version": 2,
        "description": "Given a sentence, the task is to tell [good] from bad.",
        "label_words": ("negative", "positive"),
        "base": "tiny-bert",
        "base_family": "encoder-only",
        "base_fingerprint": "b" * 8,
        "tokenizer_fingerprint": "t" * 8,
        "width": D,
        "hidden": F,
        "rank": R,
        "alpha": 8.0,
        "data_fingerprint": "d" * 8,
        "settings": {"lr": 5e-4, "seeds": {"data": 0}},
        "metrics": {"accuracy": 0.875},
        "versions": {"pemt": "0.1.0"},
        "created": "2025-01-01T00:00:00+00:00",
    }
    return ExpertInfo(**{**given, **changes})


def make_expert(
    name: str = "film-reviews",
    *,
    family: str = "bert",
    kind: str = "lora",
    dtype: torch.dtype = torch.float32,
    head: bool = True,
    seed: int = 0,
    **changes: Any,
) -> Expert:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    info = make_info(
        name,
        kind=kind,
        base_family=FAMILIES[family],
        fan_in_fan_out=family == "gpt2",
        **changes,
    )
    bottleneck = kind == "bottleneck"
    layers = tuple(
        ExpertLayer(
            module=module,
            A=noise(R, F),
            B=noise(D, R),
            scale=1.0 if bottleneck else info.alpha / R,
            a=noise(R) if bottleneck else None,
            b=noise(D) if bottleneck else None,
        )
        for module in MODULES[family]
    )
    return Expert(
        name=name,
        kind=info.kind,
        activation="gelu_new" if bottleneck else None,
        layers=layers,
        prompt=noise(P, D),
        head={"weight": noise(2, D), "bias": noise(2)} if head else {},
        info=info,
    )
