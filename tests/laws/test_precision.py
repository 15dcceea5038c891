"""A bfloat16 base under float32 trained parameters."""

from __future__ import annotations

import pytest
import torch

from tests import tiny


def build(name: str, kind: str, dtype=torch.bfloat16):
    base = tiny.base(name).to(dtype)
    return tiny.stir(tiny.pemt(base) if kind == "pemt" else tiny.source(base), size=0.05)


@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_forward_and_backward_are_finite_and_what_trains_stays_float32(name, kind):
    model = build(name, kind).train()
    ids, mask = tiny.batch()
    output = model(ids, mask, tiny.labels_for(model.family, ids, mask))
    assert output.loss.isfinite()
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    gradients = tiny.gradients(model)
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients.values())
    assert all(v.dtype == torch.float32 for v in model.trained_state().values())
    assert all(g.abs().max() > 0 for n, g in gradients.items() if "k_proj" not in n)


@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_the_loss_is_near_that_of_a_float32_base(name, kind):
    ids, mask = tiny.batch()
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = build(name, kind, dtype)
        losses.append(model(ids, mask, tiny.labels_for(model.family, ids, mask)).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_checkpointing_gives_the_same_gradients(name, reentrant):
    model = build(name, "pemt").train()
    # a bare bfloat16 T5 under sdpa changes its gradients by a third when it is checkpointed
    model.base.set_attn_implementation("eager")
    ids, mask = tiny.batch()
    labels = tiny.labels_for(model.family, ids, mask)
    model(ids, mask, labels).loss.backward()
    wanted = tiny.gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(ids, mask, labels).loss.backward()
    for key, gradient in tiny.gradients(model).items():
        scale = wanted[key].abs().max()
        assert (gradient - wanted[key]).abs().max() <= 0.05 * scale + 1e-6, key


@pytest.mark.parametrize("name", tiny.GENERATES)
def test_uncached_generation_equals_cached(name):
    model = build(name, "pemt")
    ids, mask = tiny.batch(side="left")
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(ids, mask, **settings)
    assert torch.equal(model.generate(ids, mask, **settings, use_cache=False), cached)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_disabled_is_the_base_bit_for_bit(name):
    ids, mask = tiny.batch()
    base = tiny.base(name).bfloat16()
    decode = tiny.decode_inputs(base, len(ids))
    with torch.no_grad():
        wanted = base(input_ids=ids, attention_mask=mask, **decode)[0]
    model = tiny.train(tiny.pemt(base))
    with torch.no_grad(), model.disable():
        assert torch.equal(model(ids, mask, **decode)[0], wanted)
