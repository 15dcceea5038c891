"""Adapters on tiny bases, anywhere in the layers: saved by PEFT itself, or experts at once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from pemt.backbones import describe, down_projections, linear_paths, linear_widths
from pemt.experts import Expert, ExpertLayer
from tests import tiny

ATTENTION = {
    "t5": ["q", "k", "v", "o"],
    "bart": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "gpt2": ["c_attn", "attn.c_proj"],
    "bert": ["query", "key", "value", "attention.output.dense"],
    "modernbert": ["Wqkv", "attn.Wo"],
}
ATTENTION |= {"mt5": ATTENTION["t5"], "roberta": ATTENTION["bert"]}
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj"]
FIRST = "q|q_proj|c_attn|query|Wqkv"  # the attention's first map, by every base's name for it
DOWN = r"wo|fc2|down_proj|mlp\.c_proj|output\.dense|mlp\.Wo"
KINDS = ("attention", "all-linear", "regex")


def settings_of(kind: str, model) -> dict[str, object]:
    """PEFT's settings for a kind of adapter on a base."""
    model_type = model.config.model_type
    if kind == "attention":
        return {"target_modules": ATTENTION.get(model_type, LLAMA), "r": 4, "lora_alpha": 6}
    if kind == "down":
        paths = [site.path for site in down_projections(model, describe(model_type))]
        return {"target_modules": paths, "r": 3, "lora_alpha": 6}
    if kind == "all-linear":
        return {"target_modules": "all-linear", "r": 3, "lora_alpha": 4}
    assert kind == "regex"
    return {
        "target_modules": rf".*\.({FIRST}|{DOWN})", "r": 4, "lora_alpha": 3, "use_rslora": True,
        "rank_pattern": {rf"({FIRST})": 2}, "alpha_pattern": {r"1\..*": 5},
    }  # fmt: skip


def trained(model, kind: str, *, seed: int = 3, **changes) -> PeftModel:
    """PEFT on `model`, which it changes; every B is random."""
    torch.manual_seed(seed)
    settings = {
        **settings_of(kind, model), "init_lora_weights": False,
        "fan_in_fan_out": model.config.model_type == "gpt2", **changes,
    }  # fmt: skip
    peft = get_peft_model(model, LoraConfig(**settings)).eval()
    with torch.no_grad():  # PEFT's own start is too small to show a mistake
        for name, parameter in peft.named_parameters():
            if ".lora_B." in name:
                parameter.mul_(2.0)
    return peft


def saved(model, folder: Path, kind: str, **changes) -> PeftModel:
    """Like `trained`, and saved in a folder."""
    peft = trained(model, kind, **changes)
    peft.save_pretrained(folder)
    return peft


def configure(folder: Path, **values: object) -> None:
    """Change adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def rewrite(folder: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, folder / "adapter_model.safetensors")


def partial(model, name: str, paths: list[str], *, rank: int = 4, seed: int = 1, prompt: int = 3):
    """A random expert beside the given linear maps of a base."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    layers = []
    for path in paths:
        hidden, width = linear_widths(model.get_submodule(path))
        A, B = normal(rank, hidden) / hidden**0.5, 0.3 * normal(width, rank)
        layers.append(ExpertLayer(module=path, A=A, B=B, scale=1.5))
    info = replace(
        tiny.info(model, name, rank=rank, alpha=1.5 * rank), coverage="linear",
        origin={"format": "test"},
    )  # fmt: skip
    return Expert(
        name=name, kind="lora", activation=None, layers=tuple(layers), prompt=normal(prompt, 32),
        head={}, info=info,
    )  # fmt: skip


def attention_paths(model) -> list[str]:
    return [p for p in every_path(model) if re.search(r"attn|attention|Attention", p)]


def other_paths(model) -> list[str]:
    """The feed-forward's linear maps."""
    return [p for p in every_path(model) if p not in attention_paths(model)]


def every_path(model) -> list[str]:
    return linear_paths(model, describe(model.config.model_type))


def pair(model) -> list[Expert]:
    """Two experts that are nowhere together: one on the attention, one on the feed-forward."""
    return [
        partial(model, "attention", attention_paths(model), rank=4, seed=1),
        partial(model, "feedforward", other_paths(model), rank=3, seed=2, prompt=2),
    ]


def mixed(model) -> list[Expert]:
    """Three experts: attention, down projections as trained here, and a few of everything."""
    few = [p for i, p in enumerate(every_path(model)) if i % 3 == 0]
    return [
        partial(model, "attention", attention_paths(model), rank=4, seed=1),
        tiny.expert(model, "down", rank=2, seed=2),
        partial(model, "few", few, rank=4, seed=3, prompt=5),
    ]
