"""The parameter counts of METHOD.md for T5-base with six sources, on modules without storage."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from pemt.experts import Expert, ExpertInfo, ExpertLayer
from pemt.model import AdaptedModel, PemtModel, SourceModel
from pemt.nn import PromptGate, TargetAdapter, TaskPrompt, TrainedNorm

BASE = 222_903_552
WIDTH, PROMPT, SOURCES = 768, 30, 6


@pytest.fixture(autouse=True)
def weightless(monkeypatch):
    """A base on the meta device has no weights to take a fingerprint of."""
    monkeypatch.setattr(AdaptedModel, "base_fingerprint", lambda self: "0" * 64)


def t5_base():
    config = T5Config(
        vocab_size=32128, d_model=WIDTH, d_kv=64, d_ff=3072, num_layers=12, num_heads=12,
        decoder_start_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        return T5ForConditionalGeneration(config)


def count(model, kind) -> int:
    modules = [m for m in model.modules() if isinstance(m, kind)]
    return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)


def experts(base, lengths) -> list[Expert]:
    from pemt.backbones import describe, down_projections

    sites = down_projections(base, describe("t5"))
    made = []
    for k, length in enumerate(lengths):
        info = ExpertInfo(
            name=f"e{k}", kind="lora", task=f"e{k}", base="t5-base", base_family="encoder-decoder",
            base_fingerprint="0" * 64, tokenizer_fingerprint="none", width=WIDTH, hidden=3072,
            rank=64, alpha=64.0,
        )  # fmt: skip
        with torch.device("meta"):
            layers = tuple(
                ExpertLayer(
                    module=s.path, A=torch.empty(64, 3072), B=torch.empty(WIDTH, 64), scale=1.0
                )
                for s in sites
            )
            prompt = torch.empty(length, WIDTH)
        made.append(
            Expert(
                name=info.name, kind="lora", activation=None, layers=layers, prompt=prompt,
                head={}, info=info,
            )
        )  # fmt: skip
    return made


def test_an_expert_of_stage_one():
    base = t5_base()
    assert sum(p.numel() for p in base.parameters()) == BASE
    model = SourceModel(base, prompt=torch.empty(PROMPT, WIDTH, device="meta"))
    assert sum(p.numel() for p in model.branches.parameters()) == 5_898_240
    trained, total = model.parameter_counts()
    assert trained == 5_898_240 + WIDTH * PROMPT
    assert total == BASE + trained


def test_stage_two_trains_about_one_percent():
    base = t5_base()
    lengths = [20, 21, 22, 23, 24, 25]
    prompt = torch.empty(PROMPT, WIDTH, device="meta")
    model = PemtModel(base, experts(base, lengths), prompt=prompt)
    assert count(model, TargetAdapter) == 1_789_056
    assert count(model, PromptGate) == 276_480
    assert count(model, TrainedNorm) == 47_616
    assert count(model, TaskPrompt) == WIDTH * PROMPT
    trained, total = model.parameter_counts()
    assert trained == 1_789_056 + 276_480 + 47_616 + WIDTH * PROMPT
    # without the prompt, as METHOD.md counts it
    assert round(100 * (trained - WIDTH * PROMPT) / BASE, 2) == 0.95
    frozen = SOURCES * 5_898_240 + WIDTH * sum(lengths)
    assert total == BASE + trained + frozen
