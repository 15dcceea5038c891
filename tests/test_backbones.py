"""Every base of the table, on a tiny random configuration: attach, run, learn, answer, detach."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from pemt.backbones import (
    BACKBONES,
    Backbone,
    Stack,
    describe,
    down_projections,
    fingerprint,
    linear_paths,
    linear_site,
    max_positions,
    norms,
)
from pemt.errors import BackboneError
from pemt.model import PemtModel, SourceModel
from tests import tiny

NORMS = {
    "t5": 2 * 2 + 1 + 2 * 3 + 1,
    "t5-gated": 2 * 2 + 1 + 2 * 3 + 1,
    "mt5": 2 * 2 + 1 + 2 * 3 + 1,
    "bart": 2 * 2 + 1 + 2 * 3 + 1,
    "llama": 2 * 2 + 1,
    "mistral": 2 * 2 + 1,
    "qwen2": 2 * 2 + 1,
    "qwen3": 2 * 4 + 1,  # q_norm and k_norm too
    "gpt2": 2 * 2 + 1,
    "bert": 2 * 2 + 1,
    "roberta": 2 * 2 + 1,
    "modernbert": 1 + 2 + 2,  # the first layer's attn_norm is an Identity
}
ALL = pytest.mark.parametrize("name", tiny.CONFIGS)


def row(model) -> Backbone:
    return describe(model.config.model_type)


def test_every_row_of_the_table_is_tested():
    assert {tiny.CONFIGS[name]().model_type for name in tiny.CONFIGS} == set(BACKBONES)


@pytest.mark.parametrize("kind", ["pemt", "source"])
@ALL
def test_attach_run_learn_answer_detach(name, kind):
    base = tiny.base(name)
    before = {n: v.clone() for n, v in base.state_dict().items()}
    model = tiny.pemt(base) if kind == "pemt" else tiny.source(base)
    ids, mask = tiny.batch()
    labels = tiny.labels_for(model.family, ids, mask)
    first = model(ids, mask, labels).loss.item()
    tiny.train(model, steps=8)
    assert model(ids, mask, labels).loss.item() < first
    if model.family == "encoder-only":
        assert model(ids, mask).logits.shape == (3, 3)
    else:
        tokens = model.generate(ids, mask, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
        assert tokens.shape == (3, 4 if model.family == "encoder-decoder" else 3)
    after = model.detach().state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(v, before[n]) for n, v in after.items())


@ALL
def test_down_projections_are_those_of_every_layer(name):
    model = tiny.base(name)
    sites = down_projections(model, row(model))
    decoder, hidden = row(model).family == "encoder-decoder", 128 if name == "gpt2" else 64
    assert [s.index for s in sites] == list(range(4 if decoder else 2))
    assert [s.stack for s in sites] == (
        ["encoder", "encoder", "decoder", "decoder"] if decoder else [sites[0].stack] * 2
    )
    for site in sites:
        assert (site.hidden, site.width) == (hidden, 32)
        assert site.module is model.get_submodule(site.path)
        assert site.module(torch.randn(1, 1, hidden)).shape == (1, 1, 32)


@ALL
def test_all_norms_are_found(name):
    model = tiny.base(name)
    found = norms(model, row(model))
    assert len(found) == NORMS[name]
    paths = {path for path, _, _ in found}
    assert len(paths) == len(found)
    of_the_model = {
        path
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and list(module.parameters(recurse=False))
    }
    assert paths == of_the_model


def test_an_unknown_type_names_the_fields_to_give():
    with pytest.raises(BackboneError) as error:
        describe("opt")
    message = str(error.value)
    for field in (*dataclasses.fields(Backbone), *dataclasses.fields(Stack)):
        assert field.name in message
    assert "'opt'" in message
    assert "llama" in message


def opt():
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=97, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            word_embed_proj_dim=32, max_position_embeddings=128, dropout=0.0, pad_token_id=0,
        )
    ).eval()  # fmt: skip


OPT = Backbone(
    family="decoder-only",
    stacks=(
        Stack(
            name="decoder",
            layers="model.decoder.layers",
            down="fc2",
            norms=("self_attn_layer_norm", "final_layer_norm"),
            outer_norms=("model.decoder.final_layer_norm",),
        ),
    ),
)


def test_a_description_given_by_hand_makes_an_unknown_type_work():
    base = opt()
    with pytest.raises(BackboneError, match="'opt'"):
        SourceModel(base, prompt=tiny.prompt())
    model = SourceModel(base, prompt=tiny.prompt(), backbone=OPT)
    ids, mask = tiny.batch()
    model(ids, mask, tiny.labels_for("decoder-only", ids, mask)).loss.backward()
    assert all(b.B.grad.any() for b in model.branches)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": "model.layers"}, "field 'layers'"),
        ({"layers": "model.decoder"}, "expected a ModuleList"),
        ({"down": "mlp.down"}, "field 'down'"),
        ({"down": "final_layer_norm"}, "Linear or a Conv1D"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(change, words):
    wrong = dataclasses.replace(OPT, stacks=(dataclasses.replace(OPT.stacks[0], **change),))
    base = opt()
    with pytest.raises(BackboneError, match=words):
        SourceModel(base, prompt=tiny.prompt(), backbone=wrong)
    assert all(p.requires_grad for p in base.parameters())


def test_a_description_without_norms_is_refused():
    stack = dataclasses.replace(OPT.stacks[0], norms=("ln",), outer_norms=())
    with pytest.raises(BackboneError, match="field 'norms'"):
        norms(opt(), dataclasses.replace(OPT, stacks=(stack,)))


@ALL
def test_positions(name):
    config = tiny.CONFIGS[name]()
    wanted = {"t5": None, "t5-gated": None, "mt5": None, "roberta": 126}.get(name, 128)
    assert max_positions(config, describe(config.model_type)) == wanted


@ALL
def test_fingerprint_is_of_the_weights(name):
    model = tiny.base(name)
    print_ = fingerprint(model, row(model))
    assert len(print_) == 64
    assert fingerprint(tiny.base(name), row(model)) == print_
    assert fingerprint(tiny.base(name).bfloat16(), row(model)) == print_
    assert fingerprint(tiny.base(name, seed=1), row(model)) != print_
    source = tiny.source(model)
    assert source.base_fingerprint() == print_
    tiny.train(source)
    assert source.base_fingerprint() == print_
    source.detach()
    assert fingerprint(model, row(model)) == print_


@ALL
def test_fingerprint_sees_each_down_projection(name):
    model = tiny.base(name)
    sites, print_ = down_projections(model, row(model)), fingerprint(model, row(model))
    for site in sites:
        with torch.no_grad():
            kept = site.module.weight[0, 0].clone()
            site.module.weight[0, 0] += 1.0
            assert fingerprint(model, row(model)) != print_, site.path
            site.module.weight[0, 0] = kept
    assert fingerprint(model, row(model)) == print_


def test_fingerprints_of_attached_models_differ_between_bases():
    prints = {tiny.pemt(tiny.base(name)).base_fingerprint() for name in tiny.CONFIGS}
    assert len(prints) == len(tiny.CONFIGS)
    assert isinstance(tiny.pemt(tiny.base("t5")), PemtModel)


@ALL
def test_any_linear_map_of_the_layers_is_found_by_its_path(name):
    model = tiny.base(name)
    paths = linear_paths(model, row(model))
    downs = {site.path: site for site in down_projections(model, row(model))}
    inside = [
        n
        for n, m in model.named_modules()
        if type(m).__name__ in ("Linear", "Conv1D") and any(part.isdigit() for part in n.split("."))
    ]
    assert paths == inside
    for i, path in enumerate(paths):
        site = linear_site(model, row(model), path, i)
        assert (site.index, site.path) == (i, path)
        assert site.module is model.get_submodule(path)
        x = torch.randn(1, 1, site.hidden)
        assert site.module(x).shape == (1, 1, site.width)
        assert site.is_down == (path in downs)
        if site.is_down:
            assert site.label == downs[path].label == f"{site.stack} {site.layer}"
            assert (site.stack, site.layer) == (downs[path].stack, downs[path].layer)
        else:
            assert path.endswith(f".{site.layer}.{site.inner}")
            assert site.label == f"{site.stack} {site.layer} {site.inner}"
    stacks = {linear_site(model, row(model), p, 0).stack for p in paths}
    assert stacks == {stack.name for stack in row(model).stacks}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("lm_head", r"outside the layers.*\n.*model\.layers\.\*"),
        ("model.embed_tokens", "outside the layers"),
        ("model.layers.0.self_attn", "is a LlamaAttention"),
        ("model.layers.0.self_attn.query_proj", r"(?s)no module.*nearest.*self_attn\."),
        ("model.layers.7.mlp.up_proj", r"(?s)no module.*nearest.*mlp\.up_proj"),
        ("something", "(?s)no module.*nearest"),
    ],
)
def test_paths_without_a_linear_map_of_the_layers(path, words):
    model = tiny.base("llama")
    with pytest.raises(BackboneError, match=words):
        linear_site(model, row(model), path, 0)
