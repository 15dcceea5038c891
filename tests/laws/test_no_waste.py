"""Nothing is computed twice: laws that count calls, so that a slow machine cannot fail them."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from pemt.model import PemtModel, coverage
from pemt.nn import CorrelationPrompt, ExpertBank, PromptGate
from tests import tiny
from tests.laws.test_generation import SETTINGS, WAYS

GATED = {"gate": ["example", "task"], "top_k": [None, 2]}


@pytest.fixture
def calls(monkeypatch):
    """How often each of the costly things ran."""
    counted: Counter[str] = Counter()

    def count(owner, name, key=None):
        whole = getattr(owner, name)

        def counting(*args, **kwargs):
            counted[key or name] += 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(ExpertBank, "__init__", "stacked")
    count(ExpertBank, "cosines")
    count(ExpertBank, "subset")
    count(CorrelationPrompt, "attend")
    count(PromptGate, "scores", "gates")
    return counted


def forward(model, **more):
    ids, mask = tiny.batch()
    with torch.no_grad():
        return model(ids, mask, **tiny.decode_inputs(model.base, len(ids)), **more)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_experts_are_stacked_once_when_the_model_is_built(name, calls):
    model = tiny.pemt(tiny.base(name))
    assert calls["stacked"] == len(model.sites)
    constants = {n: b.data_ptr() for n, b in model.named_buffers() if "gram" in n}
    assert len(constants) >= len(model.sites)
    tiny.train(model)
    forward(model)
    assert calls["stacked"] == len(model.sites)
    assert {n: b.data_ptr() for n, b in model.named_buffers() if "gram" in n} == constants


def test_gram_matrices_are_products_of_the_load_alone(monkeypatch):
    """A Gram matrix contracts the model width away: no later product has that shape."""
    model = tiny.stir(tiny.pemt(tiny.base("bert"))).train()
    layer = model.mixtures[0]
    made = [b for n, b in layer.bank.named_buffers() if n.startswith("gram")]
    ids, mask = tiny.batch()
    model(ids, mask, tiny.labels_for(model.family, ids, mask)).loss.backward()
    again = [b for n, b in layer.bank.named_buffers() if n.startswith("gram")]
    assert all(a is b for a, b in zip(made, again, strict=True))
    assert all(b._version == 0 for b in made)


@pytest.mark.parametrize("top_k", GATED["top_k"])
@pytest.mark.parametrize("gate", GATED["gate"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_gates_are_computed_once_for_all_steps_and_beams(name, way, gate, top_k, calls):
    model = tiny.stir(tiny.pemt(tiny.base(name), gate=gate, top_k=top_k))
    ids, mask = tiny.batch(side="left")
    for settings in ({}, {"use_cache": False}):
        calls.clear()
        model.generate(ids, mask, **SETTINGS, **WAYS[way], **settings)
        assert calls["gates"] == len(model.sites)
        assert calls["subset"] == (0 if top_k is None else len(model.sites))


@pytest.mark.parametrize("name", tiny.GENERATES)
def test_gates_are_computed_once_for_all_answers_that_are_scored(name, calls):
    model = tiny.stir(tiny.pemt(tiny.base(name), top_k=2))
    ids, mask = tiny.batch(side="left")
    model.score_answers(ids, mask, [[5, 9, 4, 1], [7, 1], [8, 3]])
    assert calls["gates"] == calls["subset"] == len(model.sites)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_the_fused_prompt_is_made_once_in_evaluation(name, calls):
    model = tiny.stir(tiny.pemt(tiny.base(name)))
    calls.clear()
    wanted = forward(model).logits
    for _ in range(3):
        assert torch.equal(forward(model).logits, wanted)
    if model.family != "encoder-only":
        model.generate(*tiny.batch(side="left"), **SETTINGS)
    assert calls["attend"] == 1
    model.prompt_rows()
    assert calls["attend"] == 1


@pytest.mark.parametrize("how", ["in place", "data", "exchanged"])
def test_the_fused_prompt_is_made_again_when_its_prompt_changed(how, calls):
    model = tiny.stir(tiny.pemt(tiny.base("bert")))
    before = forward(model).logits
    calls.clear()
    target = model.correlation_prompt.target
    with torch.no_grad():
        if how == "in place":
            target.embedding.add_(1.0)
        elif how == "data":
            target.embedding.data += 1.0  # what some optimisers and averages do, unseen by torch
        else:
            target.embedding = nn.Parameter(target.embedding + 1.0)
    after = forward(model).logits
    assert calls["attend"] == 1
    assert not torch.allclose(after, before)
    fresh = tiny.stir(tiny.pemt(tiny.base("bert")))
    with torch.no_grad():
        fresh.correlation_prompt.target.embedding.copy_(target.embedding)
        assert torch.equal(after, fresh(*tiny.batch()).logits)


def test_the_fused_prompt_is_live_in_training_and_wherever_gradients_are_wanted(calls):
    model = tiny.stir(tiny.pemt(tiny.base("bert")))
    forward(model)
    calls.clear()
    ids, mask = tiny.batch()
    for step in range(1, 4):  # evaluation mode, with gradients
        model(ids, mask, torch.tensor([0, 1, 2])).loss.backward()
        assert calls["attend"] == step
    assert model.correlation_prompt.target.embedding.grad.abs().sum() > 0
    model.train()
    with torch.no_grad():  # dropout is drawn anew
        model(ids, mask)
        model(ids, mask)
    assert calls["attend"] == 5
    model.eval()
    forward(model)
    forward(model)
    assert calls["attend"] == 6


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_the_loss_is_made_with_labels_and_a_weight_and_never_else(name, calls):
    ids, mask = tiny.batch()
    model = tiny.pemt(tiny.base(name))
    labels = tiny.labels_for(model.family, ids, mask)
    forward(model)
    model.gates(ids, mask)
    model.features(ids, mask)
    model.label_scores(ids, mask, [[3, 1], [4, 1]])
    if model.family != "encoder-only":
        model.generate(ids, mask, **SETTINGS)
    assert calls["cosines"] == 0
    model(ids, mask, labels)
    assert calls["cosines"] == len(model.sites)
    calls.clear()
    off = tiny.pemt(tiny.base(name), sparsity_weight=0.0)
    off.train()(ids, mask, labels).loss.backward()
    assert calls["cosines"] == 0


def test_experts_are_not_copied_for_each_task():
    """Two tasks' models on one set of loaded experts share what was loaded, and its stacks."""
    experts = [tiny.expert(tiny.base("bert"), n, seed=i + 1) for i, n in enumerate("ab")]
    models = [tiny.pemt(tiny.base("bert"), experts) for _ in range(2)]
    for one, other in zip(*(m.experts for m in models), strict=True):
        assert one is other
        assert one.layers[0].A is other.layers[0].A
    first, second = (m.mixtures[0].bank for m in models)
    assert first.A.data_ptr() == second.A.data_ptr()
    models[0].to(torch.float64)  # and are still two models
    assert second.A.dtype == torch.float32
    alone = forward(tiny.pemt(tiny.base("bert"), experts)).logits
    assert torch.equal(forward(models[1]).logits, alone)


def test_stacks_are_made_again_for_other_values_and_types():
    base = tiny.base("bert")
    expert = tiny.expert(base, "a")
    first = tiny.pemt(base, [expert])
    stack = first.mixtures[0].bank.A.clone()
    first.detach()
    with torch.no_grad():
        expert.layers[0].A.mul_(2)
    second = tiny.pemt(base, [expert])
    assert torch.equal(second.mixtures[0].bank.A, 2 * stack)
    second.detach()
    curved = tiny.expert(base, "a", kind="bottleneck")
    tiny.pemt(base, [curved]).detach()
    other = tiny.pemt(base, [replace(curved, activation="relu")])
    assert other.mixtures[0].bank.groups[0].activation == "relu"
    other.detach()
    half = tiny.pemt(base.bfloat16(), [expert])
    assert half.mixtures[0].bank.A.dtype == torch.bfloat16


def test_stacks_go_when_the_last_model_that_uses_them_goes():
    base = tiny.base("bert")
    model = tiny.pemt(base, [tiny.expert(base, "a")])
    stack = model.mixtures[0].bank
    assert isinstance(stack, ExpertBank)
    kept = len(coverage.STACKS)
    assert kept
    model.detach()
    del model, stack
    gc.collect()
    assert len(coverage.STACKS) < kept
    assert isinstance(tiny.pemt(base, [tiny.expert(base, "a")]), PemtModel)
