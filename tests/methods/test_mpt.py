"""MPT's target stage: PEFT's module, from the shared prompt and the mean of the factors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding

from pemt.errors import ExpertError
from pemt.methods import METHODS, Setting
from pemt.model import PemtConfig
from tests import tiny


@pytest.fixture
def setting(tmp_path):
    base = tiny.loaded("bert")
    experts = [
        tiny.source_prompt(base.model, n, seed=i, together=True) for i, n in enumerate("abc")
    ]
    return Setting(
        base=base, task=tiny.task(tmp_path), experts=experts, train=[], validation=[],
        config=PemtConfig(),
    )  # fmt: skip


def test_it_starts_from_the_shared_prompt_and_the_mean_factors(setting):
    model = METHODS["mpt"].build(setting)
    assert isinstance(model.embedding, MultitaskPromptEmbedding)
    factors = [e.factors for e in setting.experts]
    u = sum(f.u for f in factors) / 3
    v = sum(f.v for f in factors) / 3
    torch.testing.assert_close(model.prompt().detach(), factors[0].shared * torch.outer(u, v))


def test_it_trains_the_shared_prompt_and_both_factors(setting):
    model = METHODS["mpt"].build(setting)
    before = {k: v.clone() for k, v in model.trained_state().items()}
    ids, mask = tiny.batch()
    model.train()(ids, mask, torch.tensor([0, 1, 1])).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
    moved = {k for k, v in model.trained_state().items() if not v.equal(before[k])}
    assert moved == {
        "embedding.embedding.weight", "embedding.prefix_task_cols", "embedding.prefix_task_rows",
        "head.weight", "head.bias",
    }  # fmt: skip
    assert model.prompt().equal(model.prompt()), "asking for the prompt changed it"


def test_prompts_that_were_tuned_alone_are_refused(setting):
    alone = tiny.source_prompt(setting.base.model, "d")
    before = tiny.snapshot(setting.base.model)
    with pytest.raises(ExpertError, match=r"(?s)'d' was tuned alone.*train-shared-prompt"):
        METHODS["mpt"].build(dataclasses.replace(setting, experts=[*setting.experts, alone]))
    assert tiny.snapshot(setting.base.model) == before


def test_prompts_of_two_runs_are_refused(setting):
    one = setting.experts[0]
    moved = dataclasses.replace(one.factors, shared=one.factors.shared + 1)
    other = dataclasses.replace(setting.experts[1], factors=moved)
    with pytest.raises(ExpertError, match="'a' and 'b' share no prompt"):
        METHODS["mpt"].build(dataclasses.replace(setting, experts=[one, other]))
