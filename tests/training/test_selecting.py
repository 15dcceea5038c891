"""Choosing by cross-validation over the labelled rows alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt.errors import ConfigError, DataError
from pemt.model import PemtConfig
from pemt.tasks import draw
from pemt.training import adapt
from pemt.training.selecting import Choice, Selection, _choice, cross_validate, settings_for
from tests import tiny
from tests.guide.test_guide import experts

SMALL = PemtConfig(reduction=4)


def judged(folder, methods=("adapter",), count=12, **given):
    base, task = tiny.loaded("bert"), tiny.task(folder)
    before = tiny.snapshot(base.model)
    made = cross_validate(
        base, task, experts(base), tiny.splits(task).train[:count], methods, SMALL,
        tiny.settings(), progress=False, **given,
    )  # fmt: skip
    assert tiny.snapshot(base.model) == before
    return made


def test_every_row_is_held_out_and_none_is_trained_on(tmp_path, monkeypatch):
    from pemt.training import selecting

    seen = []

    def judge(base, task, experts, inside, outside, *rest):
        seen.append(({e.id for e in inside}, {e.id for e in outside}))
        return [{"accuracy": 0.5, "loss": 1.0}]

    monkeypatch.setattr(selecting, "_judge", judge)
    judged(tmp_path, folds=3, repeats=2)
    assert len(seen) == 6
    held = [i for _, outside in seen for i in outside]
    assert all(held.count(i) == 2 for i in held)
    assert len(set(held)) == 12
    assert all(not inside & outside for inside, outside in seen)


def test_methods_and_rates_are_all_judged(tmp_path):
    made = judged(tmp_path, ("adapter", "instant", "guided"), learning_rates=[1e-3, 1e-2], folds=2)
    found = {(c.method, c.learning_rate) for c in made.choices}
    wanted = {(m, r) for m in ("adapter", "guided") for r in (1e-3, 1e-2)} | {("instant", None)}
    assert found == wanted
    assert [c.key for c in made.choices] == sorted((c.key for c in made.choices), reverse=True)
    assert made.best is made.choices[0]
    assert "over 2 folds" in made.verdict()


def test_the_best_mean_over_folds_decides():
    one = [{"acc": 0.5, "loss": 0.9}, {"acc": 0.75, "loss": 0.8}, {"acc": 0.75, "loss": 0.7}]
    two = [{"acc": 0.5, "loss": 0.9}, {"acc": 0.5, "loss": 0.8}, {"acc": 0.5, "loss": 0.9}]
    chosen = _choice("adapter", 1e-3, [one, two], "acc")
    assert chosen.share == pytest.approx(2 / 3)  # tied scores: the lower loss, .80 and .80
    assert chosen.score == pytest.approx(0.625)
    assert chosen.error == pytest.approx(np.std([0.75, 0.5], ddof=1) / 2**0.5)


def test_the_whole_run_trains_for_the_share_that_was_best():
    choice = Choice(
        method="adapter", learning_rate=1e-3, share=0.5, score=0.7, error=0.1, loss=0.6, folds=4
    )
    settings = tiny.settings(max_steps=-1, epochs=10, batch_size=8)
    chosen = settings_for(choice, 32, settings)
    assert chosen.max_steps == 20
    assert chosen.learning_rate == 1e-3


def test_the_verdict_says_when_it_is_close():
    def choice(method, score):
        return Choice(
            method=method, learning_rate=None, share=1.0, score=score, error=0.05, loss=0.5, folds=4
        )

    near = Selection(choices=(choice("instant", 0.8), choice("adapter", 0.78)), metric="accuracy")
    assert "within one standard error" in near.verdict()
    far = Selection(choices=(choice("instant", 0.8), choice("adapter", 0.5)), metric="accuracy")
    assert "beyond one standard error" in far.verdict()


def test_a_selection_of_one_fold_without_losses_is_json():
    one = _choice("instant", None, [[{"acc": 0.5}]], "acc")
    assert np.isnan([one.error, one.loss]).all()
    shown = json.loads(
        json.dumps(Selection(choices=(one,), metric="acc").to_dict(), allow_nan=False)
    )
    assert shown["metric"] == "acc"
    assert shown["choices"][0] | {"score": 0.5, "error": None, "loss": None} == shown["choices"][0]


def test_adapt_on_the_training_labels_alone(tmp_path):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    result = adapt(
        base, task, experts(base), shots=4, validation="cv", method="instant,guided,adapter",
        cv_folds=2, config=SMALL, settings=tiny.settings(), folder=tmp_path / "run",
        progress=False,
    )  # fmt: skip
    assert result.manifest["validation"] == "cv"
    assert result.manifest["validation_ids"] == []
    best = result.notes["selection"]["choices"][0]
    assert result.method == best["method"]
    assert result.validation == pytest.approx(best["score"])
    assert any("cross-validation" in line for line in result.verdicts())
    result.model.detach()


def test_a_draw_without_validation_is_the_same_training_rows(tmp_path):
    task = tiny.task(tmp_path)
    rows = [
        draw(tiny.splits(task), task, shots=4, data_seed=1, validation=v) for v in ("shots", "cv")
    ]
    assert [e.id for e in rows[0].train] == [e.id for e in rows[1].train]
    assert rows[1].validation == []


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"folds": 1}, "1 folds"),
        ({"repeats": 0}, "0 repeats"),
        ({"methods": ()}, "No methods"),
        ({"methods": ("zero-shot",)}, "not defined"),
    ],
)
def test_what_cannot_be_chosen_from(tmp_path, given, match):
    with pytest.raises(ConfigError, match=match):
        judged(tmp_path, **given)


def test_too_few_rows(tmp_path):
    with pytest.raises(DataError, match="at least two"):
        judged(tmp_path, count=1)


def test_one_row_of_a_label_cannot_be_trained_on_and_held_out(tmp_path):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    with pytest.raises(DataError, match="One row of the label 'bad'"):
        adapt(base, task, experts(base), shots=1, validation="cv", method="instant", progress=False)


def test_several_methods_need_cross_validation(tmp_path):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    with pytest.raises(ConfigError, match="'cv' chooses"):
        adapt(base, task, experts(base), shots=4, method="instant,guided", progress=False)
