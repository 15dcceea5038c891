"""Prompt tuning: PEFT's rows, from the vocabulary, in their place."""

from __future__ import annotations

import pytest
import torch
from peft import PromptEmbedding

from pemt.errors import ConfigError
from pemt.methods import METHODS, Setting
from pemt.model import PemtConfig, SourceConfig, SourceModel, vocabulary_prompt
from tests import tiny


def built(place, name, **config):
    base, task = tiny.loaded(name), tiny.task(place)
    setting = Setting(
        base=base, task=task, experts=[], train=[], validation=[],
        config=PemtConfig(**{"prompt_tokens": 6, **config}), init_seed=2,
    )  # fmt: skip
    return base, METHODS["prompt-tuning"].build(setting)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_it_is_the_base_with_these_rows_before_the_text(tmp_path, name):
    base, model = built(tmp_path, name)
    start = vocabulary_prompt(base.model, 6, seed=2)
    assert isinstance(model.prompt_embedding, PromptEmbedding)
    assert model.prompt().detach().equal(start)
    ids, mask = tiny.batch()
    given = tiny.decode_inputs(base.model, len(ids))
    head = None if model.head is None else model.head.state_dict()
    with torch.no_grad():
        found = model.eval()(ids, mask, **given).logits
        model.detach()
        config = SourceConfig(kind="prompt", prompt_tokens=6)
        outputs = 2 if name == "bert" else None
        other = SourceModel(base.model, config, prompt=start, outputs=outputs).eval()
        if head is not None:
            other.head.load_state_dict(head)
        assert found.equal(other(ids, mask, **given).logits)


def test_it_trains_the_rows_and_the_head(tmp_path):
    _, model = built(tmp_path, "bert")
    names = {n: tuple(p.shape) for n, p in model.trained_state().items()}
    assert names == {
        "prompt_embedding.embedding.weight": (6, 32), "head.weight": (2, 32), "head.bias": (2,),
    }  # fmt: skip


def test_a_bf16_base_has_a_float32_prompt(tmp_path):
    base, task = tiny.loaded("llama"), tiny.task(tmp_path)
    base.model.to(torch.bfloat16)
    setting = Setting(
        base=base,
        task=task,
        experts=[],
        train=[],
        validation=[],
        config=PemtConfig(prompt_tokens=6),
    )
    model = METHODS["prompt-tuning"].build(setting)
    assert {p.dtype for p in model.trained_state().values()} == {torch.float32}
    ids, mask = tiny.batch()
    model(ids, mask, tiny.labels_for("decoder-only", ids, mask)).loss.backward()
    assert model.prompt_embedding.embedding.weight.grad.abs().sum() > 0


def test_more_rows_than_the_base_has_positions_are_refused(tmp_path):
    _, model = built(tmp_path, "bert", prompt_tokens=125)
    ids, mask = tiny.batch()
    with pytest.raises(ConfigError, match="this base has 128"):
        model(ids, mask)
    model.detach()
    with pytest.raises(ConfigError, match="prompt_tokens=0"):
        PemtConfig(prompt_tokens=0)
