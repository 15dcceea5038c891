"""Choosing by cross-validation over the labelled rows alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pemt.errors import ConfigError, DataError, DivergedError
from pemt.experts import ExpertLibrary
from pemt.model import PemtConfig
from pemt.tasks import draw
from pemt.tasks.encoding import fingerprint
from pemt.tasks.metrics import compute
from pemt.training import adapt, choosing, selecting
from pemt.training.selecting import (
    Choice,
    Selection,
    _Answers,
    _choice,
    _judge,
    cross_validate,
    settings_for,
)
from tests import tiny
from tests.guide.test_guide import experts

SMALL = PemtConfig(reduction=4)
DIVERGES = 1e30
"""A learning rate at which the loss of the second step is no number."""


def judged(
    folder, methods=("adapter",), count=12, *, kind="classification", rows=None, settings=None,
    **given,
):  # fmt: skip
    base, task = tiny.loaded("bert"), tiny.task(folder, kind=kind)
    before = tiny.snapshot(base.model)
    try:
        return cross_validate(
            base, task, experts(base), rows or tiny.splits(task).train[:count], methods, SMALL,
            settings or tiny.settings(), progress=False, **given,
        )  # fmt: skip
    finally:
        assert tiny.snapshot(base.model) == before


def choice_of(task, rows, held, *runs):
    """The choice among evaluations (share, answers, loss) of each fold's run."""
    everything = np.arange(len(rows))
    divided = [(np.setdiff1d(everything, own), np.array(own)) for own in held]
    return _choice(task, rows, divided, "adapter", 1e-3, [[_Answers(*e) for e in r] for r in runs])


def answering(monkeypatch, fine=0):
    """Runs that all answer right, but at one rate after so many; returns what they were given."""
    calls = []

    def judge(base, task, experts, inside, outside, name, config, settings, shared):
        rate = settings.learning_rate
        calls.append((rate, inside, outside))
        if rate == DIVERGES and [call[0] for call in calls].count(rate) > fine:
            raise DivergedError("The loss became nan at step 3", "lower it")
        return [_Answers(1.0, [e.label for e in outside], 0.5)]

    monkeypatch.setattr(selecting, "_judge", judge)
    return calls


def test_every_row_is_held_out_and_none_is_trained_on(tmp_path, monkeypatch):
    calls = answering(monkeypatch)
    judged(tmp_path, folds=3, repeats=2)
    seen = [[{e.id for e in part} for part in call[1:]] for call in calls]
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


@pytest.fixture
def task(tmp_path):
    return tiny.task(tmp_path)


@pytest.fixture
def rows(task):
    return tiny.splits(task).train[:8]


def test_the_best_score_of_all_folds_together_decides(task, rows):
    right = [e.label for e in rows]
    wrong = [1 - label for label in right]
    one = [(0.4, [*right[:2], *wrong[2:4]], 0.9), (0.8, [*right[:3], wrong[3]], 0.8),
           (1.0, [*right[:3], wrong[3]], 0.7)]  # fmt: skip
    two = [(0.4, [*right[4:6], *wrong[6:]], 0.9), (0.8, [*right[4:6], *wrong[6:]], 0.8),
           (1.0, [*right[4:6], *wrong[6:]], 0.9)]  # fmt: skip
    chosen = choice_of(task, rows, [range(4), range(4, 8)], one, two)
    assert chosen.share == 0.8  # tied scores: the lower loss, .80 and .80
    assert chosen.score == pytest.approx(5 / 8)
    assert chosen.loss == pytest.approx(0.8)
    assert chosen.folds == 2


def test_the_accuracy_of_equal_folds_is_the_mean_of_theirs(task, rows):
    generator = np.random.default_rng(0)
    said = generator.integers(0, 2, size=8).tolist()
    held = [range(i, i + 2) for i in range(0, 8, 2)]
    folds = [np.mean([said[n] == rows[n].label for n in own]) for own in held]
    chosen = choice_of(
        task, rows, held, *([(1.0, said[own[0] : own[-1] + 1], 0.5)] for own in held)
    )
    assert chosen.score == pytest.approx(np.mean(folds))


def test_the_standard_error_of_an_accuracy_is_binomial(task, rows):
    said = [rows[n].label if n < 6 else 1 - rows[n].label for n in range(8)]
    once = choice_of(
        task, rows, [range(4), range(4, 8)], [(1.0, said[:4], 1)], [(1.0, said[4:], 1)]
    )
    assert once.error == pytest.approx((0.75 * 0.25 / 8) ** 0.5, rel=0.1)
    parts = [(1.0, said[:4], 1), (1.0, said[4:], 1)] * 2
    twice = choice_of(task, rows, [range(4), range(4, 8)] * 2, *([one] for one in parts))
    assert (twice.score, twice.error, twice.folds) == (once.score, once.error, 4)


def test_a_correlation_is_that_of_all_rows(tmp_path):
    """Of two rows it would be 1 or -1."""
    task = tiny.task(tmp_path, kind="regression")
    rows = tiny.splits(task).train[:8]
    said = np.random.default_rng(0).normal(size=(2, 8)).round(2).tolist()
    held = [[3, 0], [1, 2], [6, 4], [5, 7]]
    runs = [[(1.0, [one[n] for n in own], 0.5)] for one in said for own in held]
    chosen = choice_of(task, rows, held * 2, *runs)
    alone = [compute(task, one, [e.label for e in rows])["pearson"] for one in said]
    assert chosen.score == pytest.approx(np.mean(alone))
    assert 0 < chosen.error < 1


def test_the_loss_is_the_mean_over_rows(task, rows):
    labels = [e.label for e in rows]
    held = [range(6), range(6, 8)]
    assert choice_of(
        task, rows, held, [(1.0, labels[:6], 1.0)], [(1.0, labels[6:], 0.2)]
    ).loss == pytest.approx(0.8)  # fmt: skip


def test_folds_evaluated_at_other_moments_are_taken_at_the_nearest(task, rows):
    right = [e.label for e in rows]
    wrong = [1 - label for label in right]
    one = [(0.5, right[:4], 1.0), (1.0, wrong[:4], 1.0)]
    two = [(0.25, wrong[4:], 1.0), (0.5, right[4:], 1.0), (0.75, wrong[4:], 1.0),
           (1.0, wrong[4:], 1.0)]  # fmt: skip
    chosen = choice_of(task, rows, [range(4), range(4, 8)], one, two)
    assert (chosen.share, chosen.score) == (0.5, 1.0)


def test_a_run_answers_at_every_evaluation(tmp_path, task):
    base, rows = tiny.loaded("bert"), tiny.splits(task).train
    made = _judge(
        base, task, [], rows[:8], rows[8:12], "adapter", SMALL,
        tiny.settings(max_steps=5, evaluations=3), {},
    )  # fmt: skip
    assert [one.share for one in made] == [0.4, 0.8, 1.0]
    assert all(len(one.values) == 4 and one.loss > 0 for one in made)


def test_patience_changes_no_choice(tmp_path):
    """A fold that stopped early would shorten all of them."""
    settings = tiny.settings(max_steps=12, evaluations=6, learning_rate=0.3)
    patient, hasty = (
        judged(tmp_path, folds=3, settings=settings.changed(patience=p)) for p in (None, 1)
    )
    assert hasty == patient


def test_a_regression_is_chosen_by_the_correlation_of_all_rows(tmp_path):
    made = judged(tmp_path, ("adapter", "instant"), kind="regression", folds=6)
    assert all(-1 < c.score < 1 and 0 < c.error < 1 for c in made.choices)


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
    assert replace(far, diverged=("LoRA at 10",)).verdict().endswith(
        "one standard error; diverged and left out: LoRA at 10."
    )  # fmt: skip


def test_the_verdict_claims_no_certainty_that_it_does_not_have():
    """All rows may be of one question, of which there is no standard error."""
    made = [
        Choice(
            method=m, learning_rate=None, share=1.0, score=s, error=float("nan"), loss=0.3, folds=4
        )
        for m, s in [("adapter", 0.8), ("lora", 0.75)]
    ]
    said = Selection(choices=tuple(made), metric="accuracy").verdict()
    assert "accuracy 0.800 over 4 folds" in said
    assert "next LoRA 0.750." in said


def test_a_selection_of_one_row_without_losses_is_json(task, rows):
    one = choice_of(task, rows[:1], [[0]], [(1.0, [rows[0].label], float("nan"))])
    assert np.isnan([one.error, one.loss]).all()
    shown = json.loads(
        json.dumps(
            Selection(choices=(one,), metric="acc", diverged=("a",)).to_dict(), allow_nan=False
        )
    )
    assert shown["metric"] == "acc"
    assert shown["diverged"] == ["a"]
    assert shown["choices"][0] | {"score": 1.0, "error": None, "loss": None} == shown["choices"][0]


def test_a_candidate_that_diverges_drops_out(tmp_path, monkeypatch):
    calls = answering(monkeypatch, fine=1)
    made = judged(tmp_path, folds=4, learning_rates=[1e-3, DIVERGES])
    rates = [call[0] for call in calls]
    assert rates.count(1e-3) == 4
    assert rates.count(DIVERGES) == 2, "after the fold it diverged in it is not trained again"
    assert [c.learning_rate for c in made.choices] == [1e-3]
    (named,) = made.diverged
    assert named.endswith(" at 1e+30")
    assert made.to_dict()["diverged"] == [named]
    assert f"diverged and left out: {named}." in made.verdict()


def test_all_candidates_diverge(tmp_path):
    with pytest.raises(DivergedError, match=r"Every candidate .* 1e\+30: The loss became nan"):
        judged(tmp_path, folds=2, learning_rates=[DIVERGES])


def test_a_rate_that_diverges_leaves_the_others(tmp_path):
    plain, mixed = (
        judged(tmp_path, folds=2, learning_rates=rates) for rates in ([1e-2], [DIVERGES, 1e-2])
    )
    assert mixed.choices == plain.choices
    assert len(mixed.diverged) == 1


def test_answers_that_are_no_numbers_diverge_too(tmp_path, monkeypatch):
    real = selecting.evaluate

    def evaluate(*args, **kwargs):
        metrics, made = real(*args, **kwargs)
        return {**metrics, "loss": float("nan")}, made

    monkeypatch.setattr(selecting, "evaluate", evaluate)
    with pytest.raises(DivergedError, match="The held-out loss became nan"):
        judged(tmp_path, folds=2)


def test_of_several_processes_none_goes_on_alone(tmp_path, monkeypatch):
    answering(monkeypatch)
    monkeypatch.setattr(selecting.processes, "world", lambda: 2)
    with pytest.raises(DivergedError, match="at step 3"):
        judged(tmp_path, learning_rates=[DIVERGES, 1e-3])


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


@pytest.mark.parametrize("methods", [("guided",), ("adapter",)])
@pytest.mark.parametrize(("count", "folds", "least"), [(1, 4, 3), (2, 4, 3), (2, 2, 4), (3, 2, 4)])
def test_too_few_scores(tmp_path, methods, count, folds, least):
    with pytest.raises(DataError, match=f"{count} scored rows .*\n.*at least {least}"):
        judged(tmp_path, methods, count, kind="regression", folds=folds)


@pytest.mark.parametrize(("folds", "least"), [(4, 3), (2, 4)])
def test_the_fewest_scores_there_are_folds_of(tmp_path, folds, least):
    made = judged(tmp_path, ("guided",), least, kind="regression", folds=folds)
    assert np.isfinite(made.best.score)


def test_groups_that_leave_too_little_to_train_on(tmp_path):
    scored = tiny.splits(tiny.task(tmp_path, kind="regression")).train[:4]
    scored = [replace(e, group="ab"[i > 0]) for i, e in enumerate(scored)]
    with pytest.raises(DataError, match="4 scored rows trains on 1: rows of one group"):
        judged(tmp_path, kind="regression", rows=scored)
    rows = tiny.splits(tiny.task(tmp_path)).train[:8]
    rows = [replace(e, group="one" if e.label else f"g{i}") for i, e in enumerate(rows)]
    with pytest.raises(DataError, match="none of the label 'good': rows of one group"):
        judged(tmp_path, rows=rows)


def test_one_row_of_a_label_cannot_be_trained_on_and_held_out(tmp_path):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    with pytest.raises(DataError, match="One row of the label 'bad'"):
        adapt(base, task, experts(base), shots=1, validation="cv", method="instant", progress=False)


def test_several_methods_need_cross_validation(tmp_path):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    with pytest.raises(ConfigError, match="'cv' chooses"):
        adapt(base, task, experts(base), shots=4, method="instant,guided", progress=False)


def test_the_held_out_rows_choose_no_experts(tmp_path, monkeypatch):
    """`auto:1` ranks in every fold, on its training rows alone; all rows rank for the final run."""
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    seen, used = [], []

    def best(base, task, experts, asked, rows, **given):
        seen.append([e.id for e in rows])
        return choosing.best_experts(base, task, experts, asked, rows, **given)

    def judge(base, task, experts, inside, outside, *rest):
        used.append(([e.name for e in experts], [e.id for e in inside]))
        return _judge(base, task, experts, inside, outside, *rest)

    monkeypatch.setattr(selecting, "best_experts", best)
    monkeypatch.setattr(selecting, "_judge", judge)
    library = ExpertLibrary(tmp_path / "experts")
    for seed, name in enumerate("abc", 1):
        made = tiny.expert(base.model, name, seed=seed)
        info = replace(made.info, tokenizer_fingerprint=fingerprint(base.tokenizer))
        library.add(replace(made, info=info))
    result = adapt(
        base, task, library, names="auto:1", shots=4, validation="cv", method="instant,adapter",
        settings=tiny.settings(), progress=False,
    )  # fmt: skip
    assert len(seen) == 4
    assert seen == [inside for _, inside in used[::2]]
    assert [len(names) for names, _ in used] == [1] * 8
    assert len(result.notes["ranking"]["ranks"]) == 3
    result.model.detach()
