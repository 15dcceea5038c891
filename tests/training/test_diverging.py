"""A learning rate at which the loss is no number, among others that train."""

from __future__ import annotations

import gc
import json

import pytest
import torch

from pemt.errors import DivergedError, TrainingError
from pemt.model import PemtConfig
from pemt.training import adapt
from tests import tiny
from tests.guide.test_guide import experts

DIVERGES = 1e30
SMALL = PemtConfig(reduction=4)


@pytest.fixture
def base():
    return tiny.loaded("bert")


def adapted(base, place, rates, *, name="run", report_to="none"):
    return adapt(
        base, tiny.task(place), experts(base), shots=4, method="adapter", config=SMALL,
        learning_rates=rates, settings=tiny.settings(report_to=report_to), folder=place / name,
        progress=False,
    )  # fmt: skip


def test_it_is_a_training_error():
    assert issubclass(DivergedError, TrainingError)


@pytest.mark.parametrize("rates", [[DIVERGES, 1e-3, 1e-2], [1e-3, DIVERGES, 1e-2],
                                   [1e-3, 1e-2, DIVERGES]])  # fmt: skip
def test_the_others_go_on_as_if_it_were_not_there(base, tmp_path, rates):
    made = []
    for name, own in (("mixed", rates), ("plain", [1e-3, 1e-2])):
        result = adapted(base, tmp_path, own, name=name)
        state = {k: v.clone() for k, v in result.model.trained_state().items()}
        made.append((state, result.metrics, result.tried, result.settings, result.validation))
        result.model.detach()
        if name == "mixed":
            assert result.notes["diverged"] == {"1e+30": "The loss became nan at step 2"}
            said = "The learning rate 1e+30 was left out: The loss became nan at step 2."
            assert said in result.verdicts()
        else:
            assert "diverged" not in result.notes
    (state, *mixed), (wanted, *plain) = made
    assert mixed == plain
    assert all(torch.equal(state[k], wanted[k]) for k in wanted)


def test_nothing_of_it_stays_but_the_note(base, tmp_path):
    adapted(base, tmp_path, [1e-3, DIVERGES], report_to="tensorboard").model.detach()
    gc.collect()
    assert sorted(p.name for p in (tmp_path / "run").glob("lr-*")) == ["lr-0.001"]
    noted = json.loads((tmp_path / "run" / "results.json").read_text())
    assert noted["notes"]["diverged"] == {"1e+30": "The loss became nan at step 2"}
    assert noted["tried"].keys() == {"0.001"}


def test_all_of_them_diverge(base, tmp_path):
    before = tiny.snapshot(base.model)
    with pytest.raises(DivergedError, match=r"Every .* 1e\+30: The loss became nan .*; 1e\+31: "):
        adapted(base, tmp_path, [DIVERGES, 10 * DIVERGES])
    assert tiny.snapshot(base.model) == before
    assert not list((tmp_path / "run").glob("*"))


def test_a_rate_alone_says_what_happened(base, tmp_path):
    before = tiny.snapshot(base.model)
    with pytest.raises(DivergedError, match="The loss became nan at step 2"):
        adapted(base, tmp_path, [DIVERGES])
    assert tiny.snapshot(base.model) == before
