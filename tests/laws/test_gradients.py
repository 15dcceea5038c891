"""Gradients do not depend on how they are computed: checkpointed, accumulated, or by naive code."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.testing import assert_close

from pemt.nn import MixtureLayer
from tests import reference, tiny

REENTRANT = [False, True]


def same(ours, theirs, *, atol=1e-5, rtol=1e-3):
    assert ours.keys() == theirs.keys()
    for key, gradient in ours.items():
        assert_close(gradient, theirs[key], atol=atol, rtol=rtol, msg=lambda m, k=key: f"{k}: {m}")


def batches(model, count: int = 1):
    for seed in range(count):
        ids, mask = tiny.batch(seed=seed)
        yield ids, mask, tiny.labels_for(model.family, ids, mask, seed=seed)


def run(model, count: int = 1):
    """Sum of `count` losses, one backward."""
    loss = sum(model(*batch).loss for batch in batches(model, count))
    loss.backward()
    return loss.detach(), tiny.gradients(model)


class Calls:
    """Counts how often a module runs."""

    def __init__(self, module) -> None:
        self.count = 0
        module.register_forward_hook(self)

    def __call__(self, *_) -> None:
        self.count += 1


@pytest.mark.parametrize("losses", [1, 2])
@pytest.mark.parametrize("gate", ["example", "task"])
@pytest.mark.parametrize("reentrant", REENTRANT)
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_checkpointing_gives_the_same_gradients(name, reentrant, gate, losses):
    model = tiny.stir(tiny.pemt(tiny.base(name), gate=gate, sparsity_weight=0.5)).train()
    calls = Calls(model.mixtures[0].down)
    loss, wanted = run(model, losses)
    assert calls.count == losses
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls.count = 0
    checkpointed, ours = run(model, losses)
    assert calls.count == 2 * losses, "nothing was recomputed"
    assert_close(checkpointed, loss)
    same(ours, wanted)
    model.gradient_checkpointing_disable()
    calls.count = 0
    same(run(model, losses)[1], wanted)
    assert calls.count == losses


@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize("reentrant", REENTRANT)
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_checkpointing_gives_a_source_model_the_same_gradients(name, reentrant, with_prompt):
    model = tiny.stir(tiny.source(tiny.base(name), with_prompt=with_prompt)).train()
    _, wanted = run(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    same(run(model)[1], wanted)


@pytest.mark.parametrize("reentrant", REENTRANT)
@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "bert"])
def test_checkpointing_recomputes_under_the_same_dropout(name, reentrant):
    model = tiny.stir(tiny.pemt(tiny.base(name), prompt_dropout=0.2, sparsity_weight=0.5)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2

    def drawn(seed: int):
        torch.manual_seed(seed)
        return run(model)[1]

    wanted, other = drawn(0), drawn(1)
    assert any((wanted[key] - other[key]).abs().max() > 1e-3 for key in wanted)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    same(drawn(0), wanted)


@pytest.mark.parametrize("reentrant", REENTRANT)
@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_a_second_pass_before_the_backward_of_the_first(name, reentrant):
    model = tiny.stir(tiny.pemt(tiny.base(name), sparsity_weight=0.5)).train()
    first, second = batches(model, 2)
    model(*first).loss.backward()
    wanted = tiny.gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    kept = model(*first).loss
    model(*second).loss.backward()
    tiny.gradients(model)
    with torch.no_grad():
        model(*second)
    kept.backward()
    same(tiny.gradients(model), wanted)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_the_sparsity_gradient_follows_the_scale_of_the_loss(name):
    model = tiny.stir(tiny.pemt(tiny.base(name), sparsity_weight=0.5))
    (batch,) = batches(model)
    model(*batch).loss.backward()
    wanted = {k: 64.0 * v for k, v in tiny.gradients(model).items()}
    (64.0 * model(*batch).loss).backward()
    same(tiny.gradients(model), wanted, atol=1e-4)


@pytest.mark.parametrize("averaging", ["example", "batch"])
@pytest.mark.parametrize("tokens", ["text", "all"])
@pytest.mark.parametrize("name", [*tiny.ONE_OF_EACH_FAMILY, "bart"])
def test_loss_and_gradients_equal_a_naive_model(name, tokens, averaging, monkeypatch):
    """Every layer replaced by the loop over experts; the layers' losses collected in a list."""
    settings = {
        "sparsity_weight": 0.5, "sparsity_tokens": tokens, "sparsity_averaging": averaging,
    }  # fmt: skip
    model = tiny.stir(tiny.pemt(tiny.base(name), **settings))
    (batch,) = batches(model)
    ours = model(*batch)
    ours.loss.backward()
    got = tiny.gradients(model)
    collected = []

    def naive(layer, x):
        context = layer.slot.current()
        experts = model_tensors(model, layer.index)
        gates = layer.gates(x, context)
        y = layer.down(x) + reference.mixture(experts, x, gates)
        a = layer.adapter
        y = reference.target_adapter(y, a.down.weight, a.down.bias, a.up.weight, a.up.bias)
        weights = naive_weights(model, layer, batch, x) if tokens == "text" else None
        collected.append(reference.sparsity(experts, x, y, gates, weights, averaging=averaging))
        return y

    monkeypatch.setattr(MixtureLayer, "forward", naive)
    theirs = model(*batch)
    sparsity = torch.stack(collected).mean()
    loss = theirs.task_loss + 0.5 * sparsity
    loss.backward()
    assert_close(ours.sparsity, sparsity.detach(), atol=1e-5, rtol=1e-5)
    assert_close(ours.loss, loss, atol=1e-5, rtol=1e-5)
    assert_close(ours.loss, ours.task_loss + 0.5 * ours.sparsity)
    same(got, tiny.gradients(model))


def model_tensors(model, index: int):
    from pemt.nn import ExpertTensors

    layers = [e.layers[index] for e in model.experts]
    return [ExpertTensors(A=layer.A, B=layer.B, scale=layer.scale) for layer in layers]


def naive_weights(model, layer, batch, x):
    """Real text and label positions, from the batch itself (right padding)."""
    _, mask, labels = batch
    if layer.stack == "decoder" and model.family == "encoder-decoder":
        return labels != -100
    P, first = len(tiny.prompt()), 1 if model.family == "encoder-only" else 0
    weights = torch.zeros(x.shape[:2])
    for row in range(len(mask)):
        for position in range(mask.shape[1]):
            moved = position + P if position >= first else position
            weights[row, moved] = mask[row, position]
    return weights


@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_accumulated_micro_batches_equal_the_full_batch(name, sizes, kind):
    base = tiny.base(name)
    built = tiny.pemt(base, sparsity_weight=0.5) if kind == "pemt" else tiny.source(base)
    model = tiny.stir(built).train()
    ids, mask = tiny.batch(rows=4)
    labels = tiny.labels_for(model.family, ids, mask)
    if model.family == "encoder-decoder":
        labels[0, 1:] = -100  # unequal label lengths
    full = model(ids, mask, labels)
    full.loss.backward()
    wanted = tiny.gradients(model)
    items = len(labels) if labels.ndim == 1 else int((labels != -100).sum())
    total, start = 0.0, 0
    for size in sizes:
        rows = slice(start, start + size)
        loss = model(
            ids[rows], mask[rows], labels[rows], num_items_in_batch=torch.tensor(items),
            num_examples_in_batch=len(ids),
        ).loss  # fmt: skip
        loss.backward()
        total, start = total + loss.detach(), start + size
    assert_close(total, full.loss.detach())
    same(tiny.gradients(model), wanted)


def test_regression_micro_batches_equal_the_full_batch():
    base = tiny.base("bert")
    model = tiny.PemtModel(base, [tiny.expert(base, "a")], prompt=tiny.prompt(), outputs=1).eval()
    tiny.stir(model)
    ids, mask = tiny.batch(rows=4)
    scores = torch.tensor([0.5, 1.0, -2.0, 3.0])
    full = model(ids, mask, scores)
    assert_close(full.task_loss, (full.logits[:, 0] - scores).square().mean())
    full.loss.backward()
    wanted = tiny.gradients(model)
    for rows in (slice(0, 1), slice(1, 4)):
        model(
            ids[rows], mask[rows], scores[rows], num_items_in_batch=4, num_examples_in_batch=4
        ).loss.backward()
    same(tiny.gradients(model), wanted)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_the_sparsity_loss_needs_labels_and_a_weight(name):
    model = tiny.stir(tiny.pemt(tiny.base(name)))
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(model.base, len(ids))
    quiet = model(ids, mask, **decode)
    assert quiet.loss is None
    assert quiet.sparsity is None
    off = tiny.stir(tiny.pemt(tiny.base(name), sparsity_weight=0.0))
    output = off(ids, mask, tiny.labels_for(off.family, ids, mask))
    assert output.sparsity is None
    assert output.loss is output.task_loss


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("gate", ["example", "task"])
@pytest.mark.parametrize("reentrant", [None, *REENTRANT])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_pass_is_forgotten(name, reentrant, gate, backward, monkeypatch):
    """No pass may keep itself alive: garbage collection does not see through autograd's graph."""
    model = tiny.stir(tiny.pemt(tiny.base(name), gate=gate, sparsity_weight=0.5)).train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    passes, begin = [], model._context

    def remembered(**given):
        context = begin(**given)
        passes.append(weakref.ref(context))
        return context

    monkeypatch.setattr(model, "_context", remembered)
    for batch in batches(model, 3):
        loss = model(*batch).loss
        if backward:
            loss.backward()
        del loss
    gc.collect()
    # the last backward pass may be asked for again
    assert [made() is None for made in passes] == [True, True, not backward]
