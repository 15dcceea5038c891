"""What is refused, with what words, and that the base is then what it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pemt.errors import BackboneError, ConfigError, ExpertError
from pemt.model import PemtConfig, PemtModel, SourceConfig, SourceModel
from tests import tiny

BOTH = pytest.mark.parametrize("kind", ["pemt", "source"])


def attach(base, kind):
    return tiny.pemt(base) if kind == "pemt" else tiny.source(base)


def state(base):
    return (
        dict(base.named_modules()),
        {n: p.requires_grad for n, p in base.named_parameters()},
        {n: m.training for n, m in base.named_modules()},
    )


@pytest.fixture
def base():
    """A base that must be unchanged when the test ends."""
    model = tiny.base("llama")
    before = state(model)
    yield model
    assert state(model) == before


@pytest.mark.parametrize("second", ["pemt", "source"])
@BOTH
def test_attaching_twice(base, kind, second):
    experts = [tiny.expert(base, "a")]
    first = attach(base, kind)
    ids, mask = tiny.batch()
    wanted = first(ids, mask).logits
    with pytest.raises(BackboneError, match="already attached"):
        tiny.pemt(base, experts) if second == "pemt" else tiny.source(base)
    assert torch.equal(first(ids, mask).logits, wanted)
    first.detach()


def test_an_expert_of_another_base(base):
    other = tiny.expert(tiny.base("llama", seed=1), "stranger")
    with pytest.raises(ExpertError, match="'stranger' was made for the base 'tiny'"):
        tiny.pemt(base, [tiny.expert(base, "a"), other])


def test_an_expert_of_another_width(base):
    good = tiny.expert(base, "a")
    layers = tuple(dataclasses.replace(x, A=x.A[:, :48]) for x in good.layers)
    odd = dataclasses.replace(good, layers=layers, info=dataclasses.replace(good.info, hidden=48))
    with pytest.raises(ExpertError, match=r"takes A \[R, 64\]"):
        tiny.pemt(base, [odd])


def test_an_expert_that_lacks_a_layer(base):
    good = tiny.expert(base, "a")
    odd = dataclasses.replace(good, layers=good.layers[:1])
    with pytest.raises(ExpertError, match=r"does not cover.*model\.layers\.1"):
        tiny.pemt(base, [odd])


def test_no_experts_and_equal_names(base):
    with pytest.raises(ConfigError, match="at least one expert"):
        tiny.pemt(base, [])
    with pytest.raises(ConfigError, match="each name once"):
        tiny.pemt(base, [tiny.expert(base, "a"), tiny.expert(base, "a", seed=2)])


def test_a_reduction_wider_than_the_base(base):
    with pytest.raises(ConfigError, match="reduction 33"):
        tiny.pemt(base, reduction=33)


@pytest.mark.parametrize("rows", [(0, 32), (2, 31)])
@BOTH
def test_a_prompt_of_another_shape(base, kind, rows):
    experts = [[tiny.expert(base, "a", prompt=0)]] if kind == "pemt" else []
    model = PemtModel if kind == "pemt" else SourceModel
    with pytest.raises(ConfigError, match=r"prompt of shape.*\n.*\[P, 32\]"):
        model(base, *experts, prompt=torch.zeros(rows))


@pytest.mark.parametrize("asked", ["none", "random"])
def test_a_prompt_that_contradicts_the_settings(base, asked):
    given = tiny.prompt() if asked == "none" else None
    with pytest.raises(ConfigError, match=r"config\.prompt="):
        SourceModel(base, SourceConfig(prompt=asked), prompt=given)


def test_an_encoder_only_base_without_outputs():
    base = tiny.base("bert")
    with pytest.raises(ConfigError, match="outputs=number of classes"):
        PemtModel(base, [tiny.expert(base, "a")], prompt=tiny.prompt())
    assert all(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize("name", ["bart", "llama", "gpt2", "bert", "roberta", "modernbert"])
def test_a_sequence_longer_than_the_base_allows(name, with_prompt):
    used, limit = (3 if with_prompt else 0), 126 if name == "roberta" else 128
    model = tiny.source(tiny.base(name), with_prompt=with_prompt)
    ids = torch.full((1, limit - used), 9)
    decode = tiny.decode_inputs(model.base)
    assert model(ids, **decode).logits.isfinite().all()
    longer = torch.full((1, limit - used + 1), 9)
    with pytest.raises(ConfigError, match=f"shorten the text to {limit - used} tokens"):
        model(longer, **decode)
    if model.family != "encoder-only":
        with pytest.raises(ConfigError, match="shorten the text"):
            model.generate(longer, max_new_tokens=1)
    assert model.slot.current() is None


def test_an_answer_longer_than_the_base_allows():
    model = tiny.pemt(tiny.base("bart"))
    ids = torch.tensor([[9]])
    assert model(ids, labels=torch.full((1, 128), 9)).loss.isfinite()
    with pytest.raises(ConfigError, match="An answer of 129 tokens"):
        model(ids, labels=torch.full((1, 129), 9))


def test_t5_has_no_such_limit():
    model = tiny.pemt(tiny.base("t5"))
    ids = torch.full((1, 600), 9)
    assert model(ids, **tiny.decode_inputs(model.base)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tau": 0.0}, "tau=0.0"),
        ({"sparsity_weight": -1.0}, "sparsity_weight=-1.0"),
        ({"prompt_dropout": 1.0}, "prompt_dropout=1.0"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words):
        PemtConfig(**settings)
