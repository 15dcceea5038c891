"""LoraHub: one weight per expert, the composed LoRA, and the search for the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close

from pemt.errors import ConfigError, DataError
from pemt.methods import METHODS
from pemt.methods.lorahub import BUDGET, PENALTY, search
from pemt.training import adapt
from tests import adapters, tiny
from tests.methods.mixing import CLOSE, given, logits, promptless, single

FAMILIES = pytest.mark.parametrize("name", ["t5", "llama"])


def alike(model):
    return promptless(model, rank=4)


def setting_on(folder, name, **changes):
    return given(folder, name, **{"experts": alike, **changes})


def build(folder, name, **changes):
    return METHODS["lorahub"].build(setting_on(folder, name, **changes)).eval()


# -- the search --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
def test_search_finds_a_minimum_within_its_budget_and_bounds(count):
    centre = np.linspace(-1.0, 1.2, count) if count > 1 else np.array([0.8])
    seen = []

    def loss(weights):
        seen.append(weights.copy())
        return 10 * float(np.square(weights - centre).sum())

    weights, value = search(loss, count)
    assert len(seen) <= BUDGET
    assert np.array_equal(seen[0], np.zeros(count))
    assert np.abs(np.array(seen)).max() <= 1.5
    # the penalty moves the minimum towards 0 by 0.05 / (2 * 10)
    assert_close(weights, centre - np.sign(centre) * 0.0025, atol=0.05, rtol=0)
    assert value == pytest.approx(loss(weights) + PENALTY * np.abs(weights).sum())


def test_search_leaves_a_minimum_at_zero_that_small_steps_cannot():
    """Near 0 the loss falls with w^2 and the penalty rises with |w|."""
    weights, value = search(lambda w: float(1 - w[0] ** 2 + 0.5 * w[0] ** 4), 2)
    assert abs(weights[0]) == pytest.approx(1, abs=0.1)
    assert abs(weights[1]) < 0.05
    assert value < 0.6


def test_search_stays_at_zero_where_nothing_helps():
    weights, value = search(lambda w: 1 + float(np.abs(w).sum()), 3)
    assert np.array_equal(weights, np.zeros(3))
    assert value == 1


def test_search_keeps_to_a_budget_of_one():
    seen = []
    search(lambda w: seen.append(w) or 1.0, 3, budget=1)
    assert len(seen) == 1


# -- the composed LoRA -------------------------------------------------------------------------


@FAMILIES
def test_the_composed_lora_is_the_product_of_the_sums(tmp_path, name):
    model = build(tmp_path, name)
    w = [0.7, -1.1, 0.4]
    model.compose(np.array(w))
    x = torch.randn(2, 3, model.sites[0].hidden)
    tables = [{y.module: y for y in e.layers} for e in model.experts]
    assert len(model.layers) == len(model.sites)
    for site, layer in zip(model.sites, model.layers, strict=True):
        here = [table[site.path] for table in tables]
        A = sum(weight * y.A for weight, y in zip(w, here, strict=True))
        B = sum(weight * y.scale * y.B for weight, y in zip(w, here, strict=True))
        model.slot.active = object()
        got = layer(x)
        model.slot.active = None
        assert_close(got, layer.down(x) + x @ A.T @ B.T, **CLOSE)


@FAMILIES
@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_weight_of_one_is_that_expert(tmp_path, name, chosen):
    model = build(tmp_path, name)
    for sign in (1, -1):
        model.compose(sign * np.eye(3)[chosen])
        assert_close(logits(model), single(name, alike(tiny.base(name))[chosen]), **CLOSE)


@FAMILIES
def test_weights_of_zero_are_the_base(tmp_path, name):
    model = build(tmp_path, name)
    model.compose(np.zeros(3))
    ids = tiny.batch(rows=2)[0][:, :4]  # no padding: the base numbers its positions by itself
    more = tiny.decode_inputs(model.base, len(ids))
    with torch.no_grad():
        got = model(ids, **more).logits
        with model.disable():
            assert torch.equal(got, model(ids, **more).logits)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_experts_beside_other_maps_are_composed_there(tmp_path, name):
    def everywhere(model):
        paths = adapters.every_path(model)
        return [adapters.partial(model, n, paths, seed=i, prompt=0) for i, n in enumerate("ab")]

    plain = tiny.base(name)
    model = build(tmp_path, name, experts=everywhere)
    assert len(model.layers) == len(adapters.every_path(plain)) > 4
    model.compose(np.array([0.0, 1.0]))
    assert_close(logits(model), single(name, everywhere(plain)[1]), atol=1e-4, rtol=1e-3)


# -- building ----------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_the_loss_is_the_mean_over_all_answer_tokens(tmp_path, name, kind, monkeypatch):
    monkeypatch.setattr("pemt.methods.lorahub.BATCH", 5)
    setting = setting_on(tmp_path, name, kind=kind)
    model = METHODS["lorahub"].build(setting)
    w = np.array([0.9, -0.4, 0.2])
    with torch.no_grad():
        got = model.loss_on(setting)(w)
    token = setting.base.tokenizer
    losses = []
    for row in setting.train:
        answer = token(row.target, add_special_tokens=False)["input_ids"] + [token.eos_token_id]
        if name == "t5":
            ids, labels = torch.tensor([token(row.text)["input_ids"]]), torch.tensor([answer])
            with torch.no_grad():
                scores = model(ids, labels=labels).logits[0]
        else:
            text = token(f"{row.text} answer:")["input_ids"]
            ids = torch.tensor([text + answer])
            with torch.no_grad():
                scores = model(ids).logits[0, len(text) - 1 : -1]
        losses.append(F.cross_entropy(scores, torch.tensor(answer), reduction="none"))
    assert got == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)


@FAMILIES
def test_chosen_weights_are_noted_and_no_worse_than_the_base(tmp_path, name):
    setting = setting_on(tmp_path, name)
    model = METHODS["lorahub"].build(setting)
    assert list(setting.notes["weights"]) == ["a", "b", "c"]
    w = np.array(list(setting.notes["weights"].values()))
    assert_close(model.weights, torch.tensor(w, dtype=torch.float32))
    kept = logits(model)
    with torch.no_grad():
        loss = model.loss_on(setting)
        assert setting.notes["objective"] == pytest.approx(
            loss(w) + PENALTY * np.abs(w).sum(), rel=1e-5
        )
        assert setting.notes["objective"] < loss(np.zeros(3))
    model.compose(w)
    assert torch.equal(logits(model), kept), "the chosen weights are in place"


def test_validation_rows_are_not_read(tmp_path):
    setting, other = setting_on(tmp_path, "llama"), setting_on(tmp_path, "llama", validation=())
    for given_ in (setting, other):
        METHODS["lorahub"].build(given_)
    assert setting.notes == other.notes


def test_training_rows_are_read(tmp_path):
    setting = setting_on(tmp_path, "llama")
    METHODS["lorahub"].build(setting)
    flipped = [replace(e, target={"good": "bad", "bad": "good"}[e.target]) for e in setting.train]
    other = setting_on(tmp_path, "llama", train=flipped)
    METHODS["lorahub"].build(other)
    assert setting.notes != other.notes


def test_nothing_trains_and_the_weights_are_the_state(tmp_path):
    model = build(tmp_path, "llama")
    assert not any(p.requires_grad for p in model.parameters())
    assert model.prompt() is None
    model.compose(np.array([0.5, 1.0, -1.5]))
    state, wanted = model.trained_state(), logits(model)
    assert torch.equal(state["weights"], torch.tensor([0.5, 1.0, -1.5]))
    model.compose(np.zeros(3))
    assert not torch.equal(logits(model), wanted)
    model.load_trained_state(state)
    assert torch.equal(logits(model), wanted)
    with pytest.raises(ConfigError, match="the weights of 3 experts"):
        model.load_trained_state({"weights": torch.zeros(2)})
    trained, total = model.parameter_counts()
    base = sum(p.numel() for p in model.base.parameters())
    frozen = sum(y.A.numel() + y.B.numel() for e in model.experts for y in e.layers)
    assert (trained, total) == (3, base + frozen + 3)


@FAMILIES
def test_adapt_answers_with_it(tmp_path, name):
    setting = setting_on(tmp_path, name)
    result = adapt(
        setting.base, setting.task, setting.experts, method="lorahub",
        settings=tiny.settings(), folder=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert result.fit is None
    assert result.gates is None
    assert list(result.notes["weights"]) == ["a", "b", "c"]
    assert (tmp_path / "run" / "results.json").is_file()
    result.model.detach()


# -- refusals ----------------------------------------------------------------------------------

REFUSED = {
    "ranks": (lambda m: promptless(m), "of one rank; at .* 'a' has rank 4 and 'b' has rank 2"),
    "kinds": (
        lambda m: [*alike(m), tiny.expert(m, "d", kind="bottleneck", prompt=0)],
        "expert 'd' is of kind 'bottleneck'",
    ),
    "places": (
        lambda m: [*alike(m), adapters.partial(m, "d", adapters.attention_paths(m))],
        "at the same places; 'a' and 'd' differ at",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_experts_that_cannot_be_added_up_are_refused(tmp_path, why):
    experts, message = REFUSED[why]
    setting = setting_on(tmp_path, "llama", experts=experts)
    before = tiny.snapshot(setting.base.model)
    with pytest.raises(ConfigError, match=message):
        METHODS["lorahub"].build(setting)
    assert tiny.snapshot(setting.base.model) == before


def test_no_rows_and_encoder_only_bases_are_refused(tmp_path):
    with pytest.raises(DataError, match="No training rows"):
        METHODS["lorahub"].build(setting_on(tmp_path, "llama", train=()))
    with pytest.raises(ConfigError, match="not defined on encoder-only bases"):
        METHODS["lorahub"].build(setting_on(tmp_path, "bert"))


def test_a_loss_that_is_not_finite_is_refused_and_the_base_is_clean(tmp_path):
    def broken(model):
        experts = alike(model)
        layer = experts[0].layers[0]
        bad = replace(layer, B=torch.full_like(layer.B, float("inf")))
        return [replace(experts[0], layers=(bad, *experts[0].layers[1:])), *experts[1:]]

    setting = setting_on(tmp_path, "llama", experts=broken)
    before = tiny.snapshot(setting.base.model)
    with pytest.raises(DataError, match="is not finite"):
        METHODS["lorahub"].build(setting)
    assert tiny.snapshot(setting.base.model) == before
