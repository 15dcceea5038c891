"""Experts anywhere in the layers: the laws of the mixture hold beside every linear map."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.testing import assert_close

from pemt.errors import ConfigError, ExpertError
from pemt.experts import ExpertLibrary
from pemt.model import PemtModel, SourceModel
from pemt.model.storage import load_model
from pemt.nn import ExpertTensors, MixtureLayer
from tests import adapters, reference, tiny
from tests.laws.test_generation import CLOSE, SETTINGS, WAYS, argmax_loop, likelihood
from tests.laws.test_gradients import batches, naive_weights, run, same

MAKE = {"pair": adapters.pair, "mixed": adapters.mixed}


def build(name: str, which: str = "pair", **settings) -> PemtModel:
    base = tiny.base(name)
    return tiny.stir(tiny.pemt(base, MAKE[which](base), **settings))


def tensors_at(model, path: str) -> list[ExpertTensors | None]:
    found = []
    for expert in model.experts:
        layers = [y for y in expert.layers if y.module == path]
        y = layers[0] if layers else None
        found.append(None if y is None else ExpertTensors(A=y.A, B=y.B, scale=y.scale))
    return found


@pytest.mark.parametrize("gate", ["example", "task"])
@pytest.mark.parametrize("which", MAKE)
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_loss_and_gradients_equal_a_naive_model(name, which, gate, monkeypatch):
    """Each wrapped linear map replaced by the loop over the experts that are there."""
    model = build(name, which, gate=gate, sparsity_weight=0.5)
    (batch,) = batches(model)
    ours = model(*batch, output_gates=True)
    ours.loss.backward()
    got = tiny.gradients(model)
    for key, gradient in got.items():
        if key.endswith("gate.weight"):
            assert gradient.abs().max() > 0, f"{key} learns nothing"
    collected, seen = [], {}

    def naive(layer, x):
        context = layer.slot.current()
        experts = tensors_at(model, model.sites[layer.index].path)
        y = layer.down(x)
        if layer.gate is not None:
            if gate == "task":
                u = context.task_summary
            elif model.family == "encoder-decoder" and layer.stack == "decoder":
                u = context.summary
            else:
                first = 1 if model.family == "encoder-only" else 0
                u = x[:, first : first + len(tiny.prompt())].mean(1)
            gates = reference.gate(u, layer.gate.weight, layer.gate.tau)
            seen[layer.index] = gates.detach()
            y = y + reference.partial_mixture(experts, x, gates)
        if layer.adapter is None:
            return y
        a = layer.adapter
        y = reference.target_adapter(y, a.down.weight, a.down.bias, a.up.weight, a.up.bias)
        weights = naive_weights(model, layer, batch, x)
        collected.append(reference.partial_sparsity(experts, x, y, gates, weights))
        return y

    monkeypatch.setattr(MixtureLayer, "forward", naive)
    theirs = model(*batch)
    sparsity = torch.stack(collected).mean()
    loss = theirs.task_loss + 0.5 * sparsity
    loss.backward()
    assert_close(ours.sparsity, sparsity.detach(), atol=1e-5, rtol=1e-5)
    assert_close(ours.loss, loss, atol=1e-5, rtol=1e-5)
    same(got, tiny.gradients(model), atol=2e-5)
    for mine, (_, other) in zip(ours.gates, sorted(seen.items()), strict=True):
        assert_close(mine, other.expand_as(mine), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_checkpointing_gives_the_same_gradients(name, reentrant):
    model = build(name, "mixed", sparsity_weight=0.5).train()
    loss, wanted = run(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed, ours = run(model)
    assert_close(checkpointed, loss)
    same(ours, wanted, atol=2e-5)


@pytest.mark.parametrize("gate", ["example", "task"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_uncached_equals_cached_and_rows_do_not_meet(name, way, gate):
    model = build(name, "mixed", gate=gate)
    ids, mask = tiny.batch(side="left")
    cached = model.generate(ids, mask, **SETTINGS, **WAYS[way])
    uncached = model.generate(ids, mask, **SETTINGS, **WAYS[way], use_cache=False)
    assert torch.equal(uncached, cached)
    together = cached.view(len(ids), -1)
    for row in range(len(ids)):
        text = ids[row : row + 1, mask[row].bool()]
        alone = model.generate(text, **SETTINGS, **WAYS[way]).reshape(1, -1)
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("name", tiny.GENERATES)
def test_greedy_is_the_argmax_of_forward_and_scores_its_likelihoods(name):
    model = build(name)
    ids, mask = tiny.batch(side="left")
    assert torch.equal(model.generate(ids, mask, **SETTINGS), argmax_loop(model, ids, mask))
    answers = [[5, 9, 4, 1], [7, 1], [8]]
    scores = model.score_answers(ids, mask, answers)
    for row in range(len(ids)):
        text = ids[row : row + 1, mask[row].bool()]
        for column, answer in enumerate(answers):
            assert_close(scores[row, column], likelihood(model, text, answer), **CLOSE)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_padding_side_does_not_change_the_gates(name):
    model = build(name)
    right = tiny.batch(side="right")
    left = tiny.move_padding(*right)
    assert_close(model.gates(*right), model.gates(*left), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_disabled_and_detached_is_the_base_bit_for_bit(name):
    base = tiny.base(name)
    before = tiny.snapshot(base)
    model = tiny.train(tiny.pemt(base, adapters.mixed(base)))
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(base, len(ids))
    bare = tiny.base(name)
    with torch.no_grad(), model.disable():
        ours = model(ids, mask, **decode)
        wanted = bare(input_ids=ids, attention_mask=mask, **decode)
    assert torch.equal(ours[0], wanted[0])
    assert tiny.snapshot(model.detach()) == before


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_saved_and_read_is_the_same_model(name, tmp_path):
    model = tiny.train(build(name, "mixed"))
    model.save_pretrained(tmp_path / "model", base_name=name)
    again, base, _ = load_model(tmp_path / "model", base=tiny.loaded(name))
    assert [s.path for s in again.gated_sites()] == [s.path for s in model.gated_sites()]
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(base.model, len(ids))
    with torch.no_grad():
        assert torch.equal(again(ids, mask, **decode).logits, model(ids, mask, **decode).logits)
        assert torch.equal(again.gates(ids, mask), model.gates(ids, mask))


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_bfloat16_base(name):
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        experts = adapters.mixed(tiny.base(name))
        base = tiny.base(name).to(dtype)
        model = tiny.stir(tiny.pemt(base, experts, sparsity_weight=0.5), size=0.05)
        (batch,) = batches(model)
        output = model(*batch)
        output.loss.backward()
        assert all(
            g.isfinite().all() and g.dtype == torch.float32 for g in tiny.gradients(model).values()
        )
        losses.append(output.loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_read_with_the_experts_of_a_library(tmp_path):
    base = tiny.base("bert")
    library = ExpertLibrary(tmp_path / "library")
    for expert in adapters.mixed(base):
        library.add(expert)
    names = ["few", "down", "attention"]
    model = tiny.stir(tiny.pemt(base, library.load_many(names)))
    model.save_pretrained(tmp_path / "model", base_name="bert", include_experts=False)
    again = PemtModel.from_pretrained(tmp_path / "model", base=tiny.loaded("bert"), library=library)
    assert again.expert_names == names
    assert torch.equal(again.gates(*tiny.batch()), model.gates(*tiny.batch()))


# --- what is where ------------------------------------------------------------------------------


def test_down_projections_keep_their_numbers_and_names():
    base = tiny.base("t5")
    plain = tiny.pemt(base, [tiny.expert(base, "a")])
    names, sites = plain.trained_state().keys(), [(s.index, s.path) for s in plain.sites]
    assert all(layer.present is None for layer in plain.mixtures)
    plain.detach()
    wide = tiny.pemt(base, [tiny.expert(base, "a"), adapters.pair(base)[0]])
    assert [(s.index, s.path) for s in wide.sites][: len(sites)] == sites
    assert [s.index for s in wide.sites] == list(range(len(wide.sites)))
    assert wide.trained_state().keys() > names
    extra = [s.path for s in wide.sites[len(sites) :]]
    assert extra == adapters.attention_paths(tiny.base("t5"))
    for site, layer in zip(wide.sites, wide.mixtures, strict=True):
        assert (layer.adapter is not None) == site.is_down
        assert layer.sparsity == site.is_down


def test_a_down_projection_without_experts_has_an_adapter_and_no_gate():
    base = tiny.base("llama")
    attention = adapters.partial(base, "x", adapters.attention_paths(base))
    model = tiny.stir(tiny.pemt(base, [attention], sparsity_weight=0.5))
    (batch,) = batches(model)
    output = model(*batch, output_gates=True)
    assert output.sparsity is None
    assert output.loss is output.task_loss
    output.loss.backward()
    tiny.gradients(model)  # reach everything that trains, the adapters too
    assert not any(site.is_down for site in model.gated_sites())
    assert len(output.gates) == len(model.gated_sites()) == len(attention.layers)
    assert model.gates(*batch[:2]).shape == (len(attention.layers), 3, 1)
    assert sum("adapter" in name for name in model.trained_state()) == 2 * 4


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_all_weight_on_absent_experts_leaves_the_base(name):
    base = tiny.base(name)
    model = tiny.pemt(base, adapters.pair(base), target_adapter=False, prompt_fusion="none")
    if model.head is not None:
        torch.nn.init.normal_(model.head.weight)
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(base, len(ids))
    away = {
        site.index: torch.tensor([0.0, 1.0] if "ttn" in site.path or "ttention" in site.path
                                 else [1.0, 0.0])
        for site in model.sites
    }  # fmt: skip
    ours = model(ids, mask, fixed_gates=away, **decode).logits
    moved = model(ids, mask, **decode).logits
    for layer in model.mixtures:
        layer.bank = layer.gate = None
    assert_close(ours, model(ids, mask, **decode).logits, **CLOSE)
    assert (ours - moved).abs().max() > 1e-2


def test_the_wrapper_shows_what_modeling_code_may_read():
    base = tiny.base("bert")
    query = base.encoder.layer[0].attention.self.query
    model = tiny.pemt(base, adapters.pair(base))
    wrapped = model.base.encoder.layer[0].attention.self.query
    assert isinstance(wrapped, MixtureLayer)
    assert wrapped.weight is query.weight
    assert wrapped.bias is query.bias
    assert (wrapped.in_features, wrapped.out_features) == (32, 32)


def test_more_parameters_are_counted():
    base = tiny.base("bert")
    experts = adapters.pair(base)
    model = tiny.pemt(base, experts)
    trained, total = model.parameter_counts()
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    banks = sum(e.num_params + e.prompt.numel() for e in experts)
    assert total == trained + frozen + banks


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def base():
    """A base that must be unchanged when the test ends."""
    model = tiny.base("bert")
    before = tiny.snapshot(model)
    yield model
    assert tiny.snapshot(model) == before


def odd(model, module: str, **changes):
    expert = adapters.partial(model, "odd", adapters.every_path(model)[:1])
    layer = dataclasses.replace(expert.layers[0], module=module, **changes)
    return dataclasses.replace(expert, layers=(layer,))


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("pooler.dense", r"(?s)'odd'.*'pooler\.dense' is outside the layers.*encoder\.layer"),
        ("encoder.layer.0.attention.self.querry", r"(?s)no module.*nearest.*0.*self\.query'"),
        ("encoder.layer.2.output.dense", "(?s)no module.*nearest"),
        ("encoder.layer.0.output.LayerNorm", "is a LayerNorm"),
        ("encoder.layer.0.intermediate.dense", r"takes A \[R, 32\] and B \[64, R\]"),
    ],
)
def test_places_that_are_refused(base, module, why):
    with pytest.raises(ExpertError, match=why):
        tiny.pemt(base, [odd(base, module)])
    with pytest.raises(ExpertError, match=why):
        SourceModel.from_expert(base, odd(base, module), outputs=3)


def test_a_partial_expert_of_another_base_is_refused(base):
    other = tiny.base("bert", seed=1)
    with pytest.raises(ExpertError, match="was made for the base"):
        tiny.pemt(base, [adapters.pair(other)[0]])


def test_a_source_model_of_other_places_is_refused(base):
    model = tiny.source(base)
    with pytest.raises(ExpertError, match=r"(?s)differ in where.*from_expert"):
        model.load_expert(adapters.pair(tiny.base("bert"))[0])
    model.detach()


def test_a_bank_must_fit_its_columns():
    model = tiny.pemt(tiny.base("bert"))
    layer = model.mixtures[0]
    with pytest.raises(ConfigError, match=r"columns \[0, 1\]"):
        MixtureLayer(
            layer.down, layer.bank, layer.gate, None, layer.slot, index=0, stack="encoder",
            gate_input="hidden", present=[0, 1],
        )  # fmt: skip
    with pytest.raises(ConfigError, match="bank and no gate"):
        MixtureLayer(
            layer.down, layer.bank, None, None, layer.slot, index=0, stack="encoder",
            gate_input="hidden",
        )  # fmt: skip


def test_the_saved_description_names_the_experts(tmp_path):
    model = build("bert")
    model.save_pretrained(tmp_path / "model", base_name="bert")
    described = json.loads((tmp_path / "model" / "pemt.json").read_text())
    assert [e["name"] for e in described["experts"]] == ["attention", "feedforward"]
