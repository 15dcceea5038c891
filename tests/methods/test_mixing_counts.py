"""Parameters of the methods over six experts on T5-base, by formula, on modules without storage."""

from __future__ import annotations

import pytest
import torch

from pemt.backbones import describe
from pemt.bases import Base
from pemt.methods import METHODS, Setting
from pemt.model import AdaptedModel, PemtConfig
from pemt.nn import ExpertBank
from tests import test_counts as t5
from tests import tiny

D, F, K, LAYERS, RANK, P = t5.WIDTH, 3072, t5.SOURCES, 24, 64, 30
EXPERTS = K * LAYERS * RANK * (F + D)
ADAPTER = 2 * D * (D // 16) + D // 16 + D
NORMS = 62 * D
GATE = (F + 1) * 48 + 2 * 49 * 48 + 49 * (K + 1)
COUNTS = {
    "fusion": 3 * D * D * LAYERS,
    "mixda": (GATE + ADAPTER) * LAYERS,
    "uniform": ADAPTER * LAYERS + NORMS + P * D,
    "pemt-no-mixture": ADAPTER * LAYERS + NORMS + P * D,
    "pemt-no-adapter": 12 * (F + D) * K + NORMS + P * D,
    "pemt-frozen-norms": ADAPTER * LAYERS + 12 * (F + D) * K + P * D,
    "pemt-task-gates": ADAPTER * LAYERS + 24 * D * K + NORMS + P * D,
}


@pytest.fixture(autouse=True)
def weightless(monkeypatch):
    monkeypatch.setattr(AdaptedModel, "base_fingerprint", lambda self: "0" * 64)
    prompt = torch.empty(P, D, device="meta")
    monkeypatch.setattr("pemt.methods.pemt.start_prompt", lambda *_, **__: prompt)


@pytest.mark.parametrize("method", COUNTS)
def test_trained_parameters_on_t5_base(tmp_path, method):
    model = t5.t5_base()
    base = Base(model, tiny.tokenizer("encoder-decoder"), describe("t5"), "t5-base")
    setting = Setting(
        base=base, task=tiny.task(tmp_path), experts=t5.experts(model, [20] * K), train=(),
        validation=(), config=PemtConfig(),
    )  # fmt: skip
    built = METHODS[method].build(setting)
    trained, total = built.parameter_counts()
    assert trained == COUNTS[method]
    frozen = EXPERTS if any(isinstance(m, ExpertBank) for m in built.modules()) else 0
    prompts = K * 20 * D if hasattr(built, "correlation_prompt") else 0
    assert total == t5.BASE + trained + frozen + prompts


def test_the_numbers():
    """AdapterFusion trains 42.5 M on T5-base, a fifth of the base, PEMT 0.95 % of it."""
    assert COUNTS["fusion"] == 42_467_328
    assert COUNTS["mixda"] == 5_450_280
    assert COUNTS["uniform"] == 1_789_056 + 47_616 + P * D
