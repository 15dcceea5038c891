"""SPoT: the start is the source prompt whose task is most like the target's."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pemt.methods import METHODS, Setting, spot
from pemt.model import PemtConfig, vocabulary_prompt
from tests import tiny


@pytest.fixture
def setting(tmp_path):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    rows = tiny.splits(task)
    experts = [tiny.source_prompt(base.model, n, seed=i) for i, n in enumerate("abc")]
    return Setting(
        base=base, task=task, experts=experts, train=rows.train, validation=[],
        config=PemtConfig(), max_source_length=24,
    )  # fmt: skip


def test_similarity_is_the_cosine_of_the_mean_rows():
    one = torch.tensor([[1.0, 0.0], [3.0, 2.0]])  # mean (2, 1)
    other = torch.tensor([[1.0, 1.0]])
    assert spot.similarity(one, other) == pytest.approx(3 / math.sqrt(5 * 2))


def test_the_most_similar_source_is_the_start(setting, monkeypatch):
    monkeypatch.setattr(
        spot, "task_prompt", lambda s, _: s.experts[2].prompt + 0.1 * torch.randn(4, 32)
    )
    model = METHODS["spot"].build(setting)
    assert model.prompt().detach().equal(setting.experts[2].prompt)
    assert setting.notes["source"] == "c"
    assert max(setting.notes["similarities"], key=setting.notes["similarities"].get) == "c"
    assert model.options()["sources"] == [["c", setting.experts[2].info.content_hash]]


def test_the_targets_prompt_is_tuned_on_the_training_rows(setting, monkeypatch):
    monkeypatch.setattr(spot, "SHORT_STEPS", 3)
    before = tiny.snapshot(setting.base.model)
    start = vocabulary_prompt(setting.base.model, 4, seed=0)
    tuned = spot.task_prompt(setting, setting.experts)
    assert tiny.snapshot(setting.base.model) == before
    assert tuned.shape == start.shape
    assert float((tuned - start).abs().max()) > 0
    assert tuned.equal(spot.task_prompt(setting, setting.experts))
    fewer = dataclasses.replace(setting, train=setting.train[:4])
    assert not tuned.equal(spot.task_prompt(fewer, setting.experts))


def test_one_source_needs_no_comparison(setting, monkeypatch):
    monkeypatch.setattr(spot, "task_prompt", None)  # calling it would fail
    alone = dataclasses.replace(setting, experts=setting.experts[1:2])
    METHODS["spot"].build(alone)
    assert alone.notes == {"source": "b"}


def test_it_starts_where_the_sources_started(setting):
    def trained(seed):
        info = dataclasses.replace(setting.experts[0].info, settings={"train": {"init_seed": seed}})
        return dataclasses.replace(setting.experts[0], info=info)

    assert spot.common_start(setting, [trained(7), trained(7)]) == (4, 7)
    assert spot.common_start(setting, [trained(7), trained(8)]) == (4, 0)
    assert spot.common_start(setting, setting.experts) == (4, 0)


def test_a_failing_short_run_gives_the_base_back(setting, monkeypatch):
    def fit(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(spot, "fit", fit)
    before = tiny.snapshot(setting.base.model)
    with pytest.raises(KeyboardInterrupt):
        METHODS["spot"].build(setting)
    assert tiny.snapshot(setting.base.model) == before
