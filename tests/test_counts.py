"""The parameter counts of METHOD.md for T5-base with six sources, on modules without storage."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from pemt.backbones import describe
from pemt.bases import Base
from pemt.experts import Expert, ExpertInfo, ExpertLayer, PromptFactors
from pemt.methods import METHODS, Setting
from pemt.model import AdaptedModel, PemtConfig, PemtModel, SourceConfig, SourceModel
from pemt.nn import PromptGate, TargetAdapter, TaskPrompt, TrainedNorm
from tests import tiny

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


def source_prompts(rows=100) -> list[Expert]:
    """Six of 100 rows, as if tuned together."""
    made = []
    for k in range(SOURCES):
        info = ExpertInfo(
            name=f"p{k}", kind="prompt", task=f"p{k}", base="t5-base",
            base_family="encoder-decoder", base_fingerprint="0" * 64,
            tokenizer_fingerprint="none", width=WIDTH, hidden=3072, rank=0, alpha=0.0,
        )  # fmt: skip
        factors = PromptFactors(
            shared=torch.zeros(rows, WIDTH), u=torch.ones(rows), v=torch.ones(WIDTH)
        )
        made.append(
            Expert(
                name=info.name, kind="prompt", activation=None, layers=(), head={}, info=info,
                prompt=factors.prompt(), factors=factors,
            )
        )  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("method", "published", "exact"),
    [
        ("prompt-tuning", "76.8 K", 76_800),
        ("mpt", "77.6 K", 76_800 + 100 + 768),
        ("attempt", "232 K", 76_800 + 2 * 76_800 + 1_536),
    ],
)
def test_methods_that_tune_prompts_train_as_much_as_published(
    tmp_path, monkeypatch, method, published, exact
):
    """100 rows of T5-base: MPT adds u and v, ATTEMPT two maps of rank 100 and a layer norm."""
    monkeypatch.setattr("pemt.methods.source_prompts.fingerprint", lambda *_: "0" * 64)
    base = Base(t5_base(), None, describe("t5"), "t5-base")
    setting = Setting(
        base=base, task=tiny.task(tmp_path), experts=source_prompts(), train=[], validation=[],
        config=PemtConfig(),
    )  # fmt: skip
    model = METHODS[method].build(setting)
    trained, total = model.parameter_counts()
    assert trained == exact
    number, unit = published.split()
    assert unit == "K"
    assert abs(trained / 1000 - float(number)) < (0.1 if "." in number else 1)
    frozen = SOURCES * 76_800 if method == "attempt" else 0
    assert total == BASE + trained + frozen


def test_a_source_prompt():
    prompt = torch.empty(100, WIDTH, device="meta")
    model = SourceModel(t5_base(), SourceConfig(kind="prompt"), prompt=prompt)
    assert model.parameter_counts() == (76_800, BASE + 76_800)
