"""AdapterFusion: the paper's attention, and nothing beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from pemt.errors import BackboneError, ConfigError, ExpertError
from pemt.methods import METHODS
from pemt.methods.fusion import PENALTY, FusionLayer
from pemt.nn import ExpertBank, ForwardContext, Slot
from tests import adapters, reference, tiny
from tests.methods.mixing import CLOSE, given, logits, promptless, single
from tests.nn import draws

FAMILIES = pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)


def build(folder, name, **changes):
    return METHODS["fusion"].build(given(folder, name, **changes)).eval()


def layer_of(kinds, dtype=torch.float32):
    torch.manual_seed(3)
    experts = draws.experts(kinds)
    slot = Slot()
    slot.active = ForwardContext()
    down = torch.nn.Linear(draws.HIDDEN, draws.WIDTH, dtype=dtype)
    layer = FusionLayer(down, ExpertBank(experts, dtype=dtype), slot)
    tiny.stir(layer, size=0.3)
    return layer, experts


def by_the_paper(layer, experts, x):
    """Token by token: queries, keys and values of every expert's output."""
    f = layer.down(x)
    rows = []
    for row, inputs in zip(f.flatten(0, 1), x.flatten(0, 1), strict=True):
        e = [reference.expert_output(k, inputs[None, None])[0, 0] for k in experts]
        scores = torch.stack([(layer.query @ row) @ (layer.key @ k) for k in e])
        values = torch.stack([layer.value @ k for k in e])
        rows.append(row + scores.softmax(0) @ values)
    return torch.stack(rows).view_as(f)


@pytest.mark.parametrize("shape", draws.SHAPES)
@pytest.mark.parametrize("kinds", draws.MIXES)
def test_the_layer_is_the_papers(kinds, shape):
    layer, experts = layer_of(kinds)
    x = draws.inputs(*shape, 1)[0]
    got, wanted = layer(x), by_the_paper(layer, experts, x)
    assert_close(got, wanted, **CLOSE)
    trained = [x, layer.query, layer.key, layer.value]
    weights = torch.randn_like(got)
    for mine, theirs in zip(
        torch.autograd.grad((got * weights).sum(), trained),
        torch.autograd.grad((wanted * weights).sum(), trained),
        strict=True,
    ):
        assert_close(mine, theirs, atol=2e-4, rtol=1e-3)


def test_the_layer_in_bfloat16():
    layer, experts = layer_of("l4 g2 l4", torch.bfloat16)
    x = draws.inputs(2, 3, 1)[0].to(torch.bfloat16)
    wanted = by_the_paper(layer.float(), experts, x.float())
    layer.down.to(torch.bfloat16)
    layer.bank.to(torch.bfloat16)
    got = layer(x)
    assert got.dtype == torch.bfloat16
    assert_close(got.float(), wanted, atol=0.15, rtol=0.05)


def test_values_start_at_the_identity_and_the_rest_near_zero(tmp_path):
    for layer in build(tmp_path, "t5").layers:
        away = layer.value - torch.eye(32)
        assert 0 < away.abs().max() < 1e-5
        for matrix in (layer.query, layer.key):
            assert 0.015 < matrix.std() < 0.025


@FAMILIES
@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_attention_on_one_expert_is_that_expert(tmp_path, monkeypatch, name, chosen):
    """One-hot attention and W_v = I leave one plain expert beside the frozen base."""
    model = build(tmp_path, name)

    def one_hot(layer, f, z):
        weights = f.new_zeros(*f.shape[:-1], 3, dtype=torch.float32)
        weights[..., chosen] = 1
        return weights

    monkeypatch.setattr(FusionLayer, "attention", one_hot)
    for layer in model.layers:
        layer.value.data = torch.eye(32)
    if model.head is not None:
        tiny.stir(model.head)
    wanted = single(name, promptless(tiny.base(name))[chosen], model.outputs, model.head)
    assert_close(logits(model), wanted, **CLOSE)


@FAMILIES
def test_queries_keys_values_and_the_head_train_alone(tmp_path, name):
    model = tiny.stir(build(tmp_path, name))
    names = set(model.trained_state())
    head = {n for n in names if n.startswith("head.")}
    assert len(head) == (2 if name == "bert" else 0)
    assert len(names - head) == 3 * len(model.sites)
    assert {n.rpartition(".")[2] for n in names - head} == {"query", "key", "value"}
    assert model.prompt() is None
    ids, mask = tiny.batch()
    model(ids, mask, tiny.labels_for(model.family, ids, mask, classes=2)).loss.backward()
    got = tiny.gradients(model)
    assert all(g.abs().max() > 0 for g in got.values())


def test_the_loss_has_the_penalty_on_values_in_proportion_to_rows(tmp_path):
    model = tiny.stir(build(tmp_path, "bert"))
    ids, mask = tiny.batch(rows=4)
    labels = tiny.labels_for("encoder-only", ids, mask, classes=2)
    whole = model(ids, mask, labels)
    far = sum(float((m.value.detach() - torch.eye(32)).square().sum()) for m in model.layers)
    assert far > 1
    assert (whole.loss - whole.task_loss).item() == pytest.approx(PENALTY * far, rel=1e-4)
    parts = [
        model(ids[rows], mask[rows], labels[rows], num_items_in_batch=4, num_examples_in_batch=4)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert sum(p.loss.item() for p in parts) == pytest.approx(whole.loss.item(), rel=1e-4)
    with torch.no_grad():
        assert model(ids, mask).loss is None


@FAMILIES
def test_padding_changes_nothing(tmp_path, name):
    model = tiny.stir(build(tmp_path, name))
    ids, mask = tiny.batch()
    moved = tiny.move_padding(ids, mask)
    answers = [[5, 1], [7, 9, 1]]
    with torch.no_grad():
        wanted, got = (model.label_scores(*given, answers) for given in ((ids, mask), moved))
    assert_close(got, wanted, **CLOSE)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_cached_and_uncached_generation_agree(tmp_path, name):
    model = tiny.stir(build(tmp_path, name))
    ids, mask = tiny.batch()
    settings = {"max_new_tokens": 5, "do_sample": False}
    cached, plain = (model.generate(ids, mask, use_cache=c, **settings) for c in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_experts_beside_other_maps_are_attended_to_there(tmp_path, name):
    model = build(tmp_path, name, experts=adapters.mixed)
    covered = {layer.module for e in model.experts for layer in e.layers}
    assert len(model.layers) == len(covered) > len([s for s in model.sites if s.is_down])
    before = logits(model)
    tiny.stir(model)
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("method", ["fusion", "mixda"])
def test_float32_trains_on_a_bfloat16_base(tmp_path, method):
    setting = given(tmp_path, "llama")
    base = setting.base.model.to(torch.bfloat16)
    model = METHODS[method].build(replace(setting, experts=promptless(base)))
    assert {v.dtype for v in model.trained_state().values()} == {torch.float32}
    before = {k: v.clone() for k, v in model.trained_state().items()}
    tiny.train(model)
    assert all(not torch.equal(v, before[k]) for k, v in model.trained_state().items())


@pytest.mark.parametrize("method", ["fusion", "mixda", "lorahub"])
def test_no_experts_or_others_experts_are_refused_and_the_base_is_clean(tmp_path, method):
    setting = given(tmp_path, "llama", experts=lambda _: [])
    before = tiny.snapshot(setting.base.model)
    with pytest.raises(ConfigError, match="give at least one expert"):
        METHODS[method].build(setting)
    other = given(tmp_path, "llama", experts=lambda _: promptless(tiny.base("llama", 1), rank=4))
    before = tiny.snapshot(other.base.model)
    with pytest.raises(ExpertError, match="was made for the base"):
        METHODS[method].build(other)
    assert tiny.snapshot(other.base.model) == before


@pytest.mark.parametrize("method", ["fusion", "mixda", "lorahub"])
def test_a_base_with_experts_on_takes_nothing_more(tmp_path, method):
    setting = given(tmp_path, "llama", experts=lambda m: promptless(m, rank=4))
    METHODS[method].build(setting)
    with pytest.raises(BackboneError, match="already attached"):
        METHODS["probe"].build(setting)
