"""What is measured of a mixture's layers, against loops over experts and tokens."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pemt.analysis.mixture import measure_mixture
from pemt.tasks.encoding import Collator, encode_prompts_only
from pemt.training.evaluating import lengths, side_of
from tests import tiny


def made(name, tmp_path, experts=None, **config):
    base = tiny.loaded(name)
    model = tiny.stir(tiny.pemt(base.model, experts, **config), size=0.3)
    task = tiny.task(tmp_path)
    return base, model, task, tiny.splits(task).test


def looked(base, model, task, rows, **settings):
    return measure_mixture(model, task, base, rows, tiny.settings(**settings))


@torch.no_grad()
def naive(base, model, task, rows):
    """Every layer's input caught, every token and expert on its own."""
    encoded = encode_prompts_only(
        rows, task, base.tokenizer, model.family, **lengths(model, tiny.settings())
    )
    batch = Collator(base.tokenizer, model.family, side=side_of(model.family))(encoded)
    seen = {}
    hooks = [
        layer.register_forward_hook(
            lambda module, given, _: seen.update(
                {module.index: (given[0], dict(module.slot.current().gates),
                                module.slot.current().token_weights.get(module.stack))}
            )
        )
        for layer in model.mixtures
    ]  # fmt: skip
    gates = model.gates(batch["input_ids"], batch["attention_mask"])
    for hook in hooks:
        hook.remove()
    mixture, adapter, cosines = [], [], []
    for layer in model.mixtures:
        x, kept, weights = seen[layer.index]
        lengths_m, lengths_a, pairs = [], [], []
        for b in range(x.shape[0]):
            for t in range(x.shape[1]):
                if weights is not None and not weights[b, t]:
                    continue
                outputs = torch.stack([layer.bank.one(x[b, t], k) for k in range(3)])
                mixed = (kept[layer.index][b].unsqueeze(-1) * outputs).sum(0)
                f = layer.down(x[b, t]) + mixed
                lengths_m.append(mixed.norm())
                beside = model.pemt_config.target_adapter == "lora"
                change = layer.adapter(x[b, t]) if beside else layer.adapter(f) - f
                lengths_a.append(change.norm())
                pairs.append(
                    torch.stack([
                        F.cosine_similarity(o.expand_as(outputs), outputs, dim=-1) for o in outputs
                    ]).abs()
                )  # fmt: skip
        mixture.append(torch.stack(lengths_m).mean())
        adapter.append(torch.stack(lengths_a).mean())
        cosines.append(torch.stack(pairs).mean(0))
    return gates, torch.stack(mixture), torch.stack(adapter), torch.stack(cosines).mean(0)


@pytest.mark.parametrize("adapter", [True, "lora"])
@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_numbers_equal_a_loop_over_tokens_and_experts(name, adapter, tmp_path):
    base, model, task, rows = made(name, tmp_path, target_adapter=adapter)
    rows = rows[:4]  # all tokens of a layer fit in the comparison
    found = looked(base, model, task, rows)
    gates, mixture, adapter, cosines = naive(base, model, task, rows)
    torch.testing.assert_close(found.gates, gates.mean(1))
    torch.testing.assert_close(found.moved, (gates - 1 / 3).abs().sum(-1).mean(1) / 2)
    torch.testing.assert_close(found.mixture, mixture, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.adapter, adapter, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cosines, cosines, rtol=1e-4, atol=1e-4)


def test_batches_do_not_matter(tmp_path):
    base, model, task, rows = made("bert", tmp_path)
    one, many = (looked(base, model, task, rows, eval_batch_size=n) for n in (64, 3))
    torch.testing.assert_close(one.gates, many.gates)
    torch.testing.assert_close(one.mixture, many.mixture)
    torch.testing.assert_close(one.adapter, many.adapter)


def test_nothing_is_drawn_or_changed(tmp_path):
    base, model, task, rows = made("bert", tmp_path, prompt_dropout=0.5)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    looked(base, model, task, rows)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model.mixtures)


def test_hooks_go_when_the_pass_fails(tmp_path, monkeypatch):
    base, model, task, rows = made("bert", tmp_path)
    monkeypatch.setattr(model, "gates", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        looked(base, model, task, rows)
    assert not any(layer._forward_hooks for layer in model.mixtures)


def test_equal_experts_have_cosine_one_and_first_gates_do_not_move(tmp_path):
    base = tiny.loaded("bert")
    twins = [tiny.expert(base.model, name, seed=1) for name in "ab"]
    model = tiny.pemt(base.model, twins)
    task = tiny.task(tmp_path)
    found = looked(base, model, task, tiny.splits(task).test)
    torch.testing.assert_close(found.cosines, torch.ones(2, 2))
    torch.testing.assert_close(found.moved, torch.zeros(len(found.moved)))


def test_an_expert_without_effect_is_like_no_other(tmp_path):
    base = tiny.loaded("bert")
    experts = [tiny.expert(base.model, "a"), tiny.expert(base.model, "nothing", zero=True)]
    task = tiny.task(tmp_path)
    found = looked(base, tiny.pemt(base.model, experts), task, tiny.splits(task).test)
    assert float(found.cosines[0, 1]) == 0


def test_no_mixture_no_measures(tmp_path):
    base, model, task, rows = made("bert", tmp_path, mixture=False)
    assert looked(base, model, task, rows) is None
    base, model, task, rows = made("bert", tmp_path)
    assert looked(base, model, task, []) is None
    base, model, task, rows = made("bert", tmp_path, target_adapter=False)
    assert len(looked(base, model, task, rows).adapter) == 0


def test_few_tokens_stand_for_many(tmp_path, monkeypatch):
    """More experts than fit at once are compared on fewer tokens."""
    from pemt.analysis import mixture

    base, model, task, rows = made("bert", tmp_path)
    monkeypatch.setattr(mixture, "NUMBERS", 1)
    assert looked(base, model, task, rows).cosines.isfinite().all()
