"""An expert is copied into a model that it fits, or refused by name."""

from __future__ import annotations

import pytest
import torch

from pemt.errors import ExpertError, PemtError
from pemt.model import SourceConfig, SourceModel
from tests import tiny


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 1}, r"(?s)'small' at .*A \[1, 64\].*A \[4, 64\]"),
        ({"prompt": 1}, r"(?s)'small' has a prompt of 1 rows.*3"),
        ({"prompt": 0}, r"(?s)'small' has a prompt of 0 rows.*3"),
        ({"kind": "bottleneck"}, "(?s)'small' is of kind 'bottleneck'.*'lora'"),
    ],
)
def test_an_expert_of_other_shapes_is_not_stretched_into_a_model(settings, words):
    base = tiny.base("llama")
    small = tiny.expert(base, "small", **{"rank": 4, **settings})
    model = tiny.source(base)
    before = {k: v.clone() for k, v in model.trained_state().items()}
    with pytest.raises(ExpertError, match=words):
        model.load_expert(small)
    for name, value in model.trained_state().items():
        assert torch.equal(value, before[name])


def test_a_head_of_other_outputs_is_refused_and_the_base_is_clean():
    base = tiny.base("bert")
    before = tiny.snapshot(base)
    expert = tiny.with_head(tiny.expert(base, "a"), 3)
    with pytest.raises(ExpertError, match=r"(?s)'a' has a head of 3 outputs.*2"):
        SourceModel.from_expert(base, expert, outputs=2)
    assert tiny.snapshot(base) == before


@pytest.mark.parametrize(
    ("activation", "words"),
    [("gelu_nwe", "Did you mean: gelu_new"), ("prelu", "trains weights of its own")],
)
def test_an_activation_that_an_expert_cannot_hold_is_refused(activation, words):
    base = tiny.base("bert")
    before = tiny.snapshot(base)
    config = SourceConfig(kind="bottleneck", rank=4, activation=activation, prompt="random")
    with pytest.raises(PemtError, match=words):
        SourceModel(base, config, prompt=tiny.prompt(), outputs=3)
    assert tiny.snapshot(base) == before
