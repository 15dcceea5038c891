"""Views, evidence and the weights that follow from it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pemt.errors import ConfigError, DataError
from pemt.guide import NONE, Guide, gather, guide_from, helpful
from pemt.guide.evidence import Candidate, Evidence, losses_of
from pemt.guide.guide import ROWS, looked_at, mixture_weights
from pemt.guide.probes import fit_probe, folds_of, held_out, truth_of
from pemt.guide.views import alone, matched, renamed, views_of
from pemt.methods import METHODS, Setting
from pemt.model import PemtConfig
from pemt.tasks.encoding import label_word_ids
from pemt.training.evaluating import lengths
from pemt.training.sourcing import some
from tests import tiny

FAMILIES = pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)


def setting(folder, name="bert", kind="classification", **changes):
    task = tiny.task(folder, kind=kind)
    return Setting(
        **{
            "base": tiny.loaded(name), "task": task, "experts": [],
            "train": tiny.splits(task).train[:24], "validation": [], "config": PemtConfig(),
            "max_source_length": 24, **changes,
        }
    )  # fmt: skip


def worded(expert, words=("good", "bad")):
    """The same expert with answers of its own."""
    expert = replace(expert, info=replace(expert.info, label_words=words))
    return tiny.with_head(expert, len(words), seed=3)


def experts(base, names="ab"):
    return [worded(tiny.expert(base.model, n, seed=i)) for i, n in enumerate(names, 1)]


def made(rows=24, **losses):
    """Evidence of these mean losses, each row off by the same pattern."""
    wave = 0.05 * np.cos(np.arange(rows))
    found = [
        Candidate(expert=name, view="features", losses=np.full(rows, value) + wave * (i + 1))
        for i, (name, value) in enumerate(losses.items())
    ]  # fmt: skip
    names = tuple(n for n in losses if n != NONE)
    return Evidence(
        experts=names, candidates=tuple(found), rows=rows, kind="classification",
        truth=np.zeros(rows), descriptions=dict.fromkeys(names),
    )  # fmt: skip


# -- views ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", "classification"), ("gpt2", "generation"), ("bert", "regression"),
     ("bart", "generation")],
)  # fmt: skip
def test_a_text_that_training_takes_is_not_too_long_to_be_looked_at(tmp_path, name, kind):
    """Short answers leave the text more room than the usual ones; an expert's prompt leaves less.

    Of 128 positions the target's prompt takes 6 and an answer 3.
    """
    given = setting(tmp_path, name, kind, max_source_length=119)
    own = [tiny.expert(given.base.model, "a"), tiny.expert(given.base.model, "b", prompt=20)]
    long = [replace(row, text=" ".join([row.text] * 40)) for row in given.train]
    given = replace(given, train=long, experts=own)
    model = METHODS["pemt"].build(given)
    asked = tiny.settings(max_source_length=119, max_target_length=3)
    assert lengths(model, asked)["max_source_length"] == 119
    model.detach()
    found = gather(given, own)
    assert found.experts == ("a", "b")
    assert all(np.isfinite(found.losses(e)).all() for e in ("a", "b", NONE))


def test_a_prompt_as_long_as_the_base_is_refused(tmp_path):
    given = setting(tmp_path, "bert")
    with pytest.raises(ConfigError, match="A prompt of 125 tokens on a base of 128 positions"):
        gather(given, [tiny.expert(given.base.model, "a", prompt=125)])


@FAMILIES
def test_every_family_has_features_answers_and_named_answers(tmp_path, name):
    given = setting(tmp_path, name)
    expert = experts(given.base)[0]
    with alone(given, expert) as model:
        seen = views_of(model, given, expert, given.train)
        singly = [views_of(model, given, expert, [e]) for e in given.train[:3]]
    writes = {}  # its words are the target's, so they are looked at once
    assert {k: v.shape for k, v in seen.items()} == {
        "features": (24, 32), "answers": (24, 2), "named": (24, 2), **writes
    }  # fmt: skip
    for view in seen.keys() - {"features"}:
        np.testing.assert_allclose(np.exp(seen[view]).sum(1), 1, atol=1e-9)
    # the target says bad, good; the expert good, bad
    np.testing.assert_allclose(seen["named"], seen["answers"][:, ::-1], atol=1e-12)
    for i, row in enumerate(singly):  # whoever shares the batch
        for view, values in row.items():
            np.testing.assert_allclose(values[0], seen[view][i], atol=1e-5)


@FAMILIES
def test_other_words_are_looked_at_beside_the_targets(tmp_path, name):
    given = setting(tmp_path, name)
    expert = worded(tiny.expert(given.base.model, "a", seed=1), (tiny.GOOD[1], tiny.BAD[1]))
    with alone(given, expert) as model:
        seen = views_of(model, given, expert, given.train)
    assert seen.keys() == {"features", "answers"} | ({"words"} if name != "bert" else set())
    assert "words" not in seen or not np.allclose(seen["words"], seen["answers"])


def test_answers_are_those_of_the_experts_head(tmp_path):
    given = setting(tmp_path)
    expert = experts(given.base)[0]
    with alone(given, expert) as model:
        seen = views_of(model, given, expert, given.train)
    logits = seen["features"] @ expert.head["weight"].double().numpy().T
    logits = logits + expert.head["bias"].double().numpy()
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(seen["answers"], expected, atol=1e-9)


@FAMILIES
def test_an_expert_without_answers_has_features(tmp_path, name):
    """An imported LoRA brings neither head nor words; nor has the base any."""
    given = setting(tmp_path, name)
    for expert in (tiny.expert(given.base.model, "a", seed=1), None):
        with alone(given, expert) as model:
            seen = views_of(model, given, expert, given.train)
        assert seen.keys() == {"features"} | ({"words"} if name != "bert" else set())
        if name != "bert":  # against the likelihood of each word by itself
            wanted = label_word_ids(given.task, given.base.tokenizer, model.family)
            text = given.base.tokenizer(
                f"{given.train[0].text}\nanswer:" if name == "llama" else given.train[0].text,
                return_tensors="pt",
            )  # fmt: skip
            with alone(given, expert) as model:
                scores = torch.stack(
                    [model.score_answers(text["input_ids"], None, [w])[0, 0] for w in wanted]
                )
            expected = scores.double().log_softmax(0).numpy()
            np.testing.assert_allclose(seen["words"][0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("source", "target", "columns"),
    [
        (("entailment", "neutral", "contradiction"), ("contradiction", "entailment", "neutral"),
         [[2], [0], [1]]),
        (("Entailment", "not entailment"), ("entailment", "not_entailment"), [[0], [1]]),
        (("entailment", "neutral", "contradiction"), ("entailment", "not_entailment"),
         [[0], [1, 2]]),
        (("negative", "neutral", "positive"), ("negative", "positive"), [[0], [2]]),
        (("no", "yes"), ("no", "yes", "maybe"), None),  # nothing is left for "maybe"
        (("True", "False"), ("0", "1"), None),
        (("a", "b"), ("a", "c", "d"), None),
        ((), ("a", "b"), None),
        (("a", "A"), ("a", "b"), None),
    ],
)  # fmt: skip
def test_words_agree_but_for_their_writing(source, target, columns):
    assert matched(source, target) == columns


def test_renamed_adds_what_one_label_stands_for():
    logs = np.log([[0.2, 0.3, 0.5]])
    np.testing.assert_allclose(np.exp(renamed(logs, [[0], [1, 2]])), [[0.2, 0.8]])
    np.testing.assert_allclose(np.exp(renamed(logs, [[0], [2]])), [[2 / 7, 5 / 7]])


# -- probes --------------------------------------------------------------------------------------


def test_held_out_never_sees_its_own_row(tmp_path):
    """Labels of pure chance: a probe that saw a row would know it."""
    given = setting(tmp_path)
    generator = np.random.default_rng(0)
    values, truth = generator.normal(size=(24, 200)), np.arange(24) % 2
    rows = [replace(e, label=int(t)) for e, t in zip(given.train, truth, strict=True)]
    folds = folds_of(given.task, rows)
    seen = np.concatenate([outside for _, outside in folds])
    assert (np.bincount(seen) == 2).all(), "every row is held out once in each repeat"
    said = held_out(values, truth_of(rows), folds, 10.0, 2)
    assert losses_of(said, truth.astype(float), 2).mean() > 0.6
    inside = fit_probe(values, truth, 10.0, 2).scores(values)
    assert (inside.argmax(1) == truth).all(), "it could have learnt them"


def test_a_probe_of_unseen_classes_and_of_one(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 3))
    of_three = fit_probe(values, np.array([0, 2, 0, 2, 0, 2]), 1.0, 3)
    assert (of_three.scores(values)[:, 1] == -30).all()
    alone_ = fit_probe(values, np.full(6, 1.0), 1.0, 3)
    assert (alone_.scores(values).argmax(1) == 1).all()


@pytest.mark.parametrize("counts", [[1, 1], [3, 1], [1, 1, 1, 0], [2, 1, 5, 0]])
def test_a_class_that_a_fold_lacks_is_unlikely_and_not_impossible(tmp_path, counts):
    """Nothing fitted can know it: it has the share of a class not seen among n rows."""
    given = setting(tmp_path)
    task = replace(given.task, labels=tuple("abcd"[: len(counts)]), label_values={})
    truth = np.repeat(np.arange(len(counts)), counts)
    rows = [replace(e, label=int(t)) for e, t in zip(given.train, truth, strict=False)]
    values = np.random.default_rng(0).normal(size=(len(rows), 5))
    folds = folds_of(task, rows)
    said = np.exp(held_out(values, truth, folds, 0.3, len(counts)))
    np.testing.assert_allclose(said.sum(1), 1)
    alone_in_class = np.flatnonzero(np.bincount(truth)[truth] == 1)
    for row in alone_in_class:
        shares = [1 / (len(i) + len(counts)) for i, o in folds if row in o]
        assert said[row, truth[row]] == pytest.approx(np.mean(shares))
    for k in np.flatnonzero(np.array(counts) == 0):
        assert said[:, k].max() < 1e-5, "a class without any row stays at the floor"


# -- weights -------------------------------------------------------------------------------------


def test_weights_are_the_optimum_of_the_posterior():
    """Against a general optimiser on the same function."""
    generator = np.random.default_rng(1)
    logs, prior = generator.normal(size=(4, 30)), np.array([0.1, 0.2, 0.3, 0.4])

    def negative(free):
        weights = np.exp(free - free.max())
        weights /= weights.sum()
        mixed = np.log((weights[:, None] * np.exp(logs)).sum(0)).sum()
        return -mixed - 5 * (prior * np.log(weights)).sum()

    free = minimize(negative, np.zeros(4), tol=1e-12).x
    expected = np.exp(free - free.max())
    expected /= expected.sum()
    np.testing.assert_allclose(mixture_weights(logs, prior, 5.0), expected, atol=1e-4)


def test_no_difference_gives_the_prior():
    even = np.full((3, 20), -0.7)
    prior = np.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(mixture_weights(even, prior, 8.0), prior)
    assert np.isfinite(mixture_weights(np.full((3, 20), -2000.0), prior, 8.0)).all()


def test_more_evidence_more_weight():
    few, many = (made(n, none=0.7, a=0.4, b=0.7) for n in (8, 200))
    weights = [guide_from(e, prior="uniform").weights for e in (few, many)]
    assert 1 / 3 < weights[0]["a"] < weights[1]["a"]
    assert sum(weights[0].values()) == pytest.approx(1)
    assert weights[0].keys() == {NONE, "a", "b"}


def test_none_can_be_left_out():
    guide = guide_from(made(none=0.1, a=0.7, b=0.7), prior="uniform", none=False)
    assert guide.weights[NONE] == 0
    assert guide.weights["a"] + guide.weights["b"] == pytest.approx(1)


def test_the_description_prior_favours_its_like():
    evidence = replace(made(none=0.7, a=0.7, b=0.7), descriptions={"a": 0.9, "b": 0.1})
    plain = guide_from(evidence, prior="uniform").weights
    drawn = guide_from(evidence, prior="description").weights
    assert drawn["a"] > plain["a"] > 0.2
    assert drawn["b"] < plain["b"]
    assert drawn["a"] > drawn[NONE] > drawn["b"], "none is as likely as the mean of the others"
    sharper = guide_from(evidence, prior="description", temperature=0.05).weights
    assert sharper["a"] > drawn["a"]


def test_the_verdict_says_what_helps_and_when_nothing_does():
    assert "help beyond noise: a" in guide_from(made(none=0.9, a=0.3, b=0.9)).verdict()
    sole = guide_from(made(200, none=0.2, a=0.9, b=0.9)).verdict()
    assert "you do not need experts here" in sole
    assert "no single expert helps" in guide_from(made(none=0.7, a=0.7, b=0.7)).verdict()


@pytest.mark.parametrize("rows", [4, 16, 64])
def test_the_best_of_many_useless_experts_is_not_said_to_help(rows):
    """Twenty coin throws: one in twenty draws may mistake the luckiest for more, not most."""
    generator, said = np.random.default_rng(0), 0
    draws = 300
    for _ in range(draws):
        noise = generator.normal(0, 0.1, size=(20, rows))
        errors = noise.std(1, ddof=1) / rows**0.5
        names = [f"e{i}" for i in range(20)]
        gains = dict(zip(names, noise.mean(1), strict=True))
        said += bool(helpful(gains, dict(zip(names, errors, strict=True)), rows))
    assert 0.02 < said / draws < 0.08
    assert helpful({"good": 0.5, "bad": 0.01}, {"good": 0.05, "bad": 0.05}, rows) == ["good"]


def test_the_best_two_of_many_useless_experts_are_not_said_to_help():
    """`auto:2` of 24: those left out were looked at too, and count."""
    generator, said = np.random.default_rng(0), 0
    names, draws, rows = tuple(f"e{i}" for i in range(24)), 300, 32
    for _ in range(draws):
        noise = generator.normal(0, 0.1, size=(24, rows))
        losses = {NONE: np.full(rows, 0.7), **dict(zip(names, 0.7 + noise, strict=True))}
        found = [Candidate(expert=n, view="features", losses=v) for n, v in losses.items()]
        evidence = Evidence(
            experts=names, candidates=tuple(found), rows=rows, kind="classification",
            truth=np.zeros(rows), descriptions=dict.fromkeys(names), prompts=dict.fromkeys(names),
        )  # fmt: skip
        best = sorted(names, key=lambda name: evidence.losses(name).mean())[:2]
        guide = guide_from(evidence.among(best))
        assert guide.weights.keys() == {NONE, *best}
        assert guide.judged == evidence.among(best).among(best[:1]).judged == 24
        again = Guide.from_dict(json.loads(json.dumps(guide.to_dict())))
        assert again.helpful == guide.helpful
        said += "help beyond noise:" in guide.verdict()
    assert 0.02 < said / draws < 0.08


def test_a_guide_saved_before_counts_its_experts():
    guide = guide_from(made(none=0.9, a=0.3, b=0.9))
    before = {k: v for k, v in guide.to_dict().items() if k != "judged"}
    assert Guide.from_dict(before) == guide
    assert guide.judged == 2


def test_a_guide_of_one_row_is_json():
    """One row has no standard error, and JSON no nan."""
    guide = guide_from(made(rows=1, none=0.7, a=0.5))
    assert np.isnan(guide.errors["a"])
    assert guide.helpful == []
    shown = json.dumps(guide.to_dict(), allow_nan=False)
    again = Guide.from_dict(json.loads(shown))
    assert again.verdict() == guide.verdict()
    assert json.dumps(again.to_dict(), allow_nan=False) == shown


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"strength": -1.0}])
def test_refused_options(changes):
    with pytest.raises(ConfigError, match="above 0"):
        guide_from(made(none=0.7, a=0.7), **changes)


def test_useless_experts_leave_the_good_one_most_of_the_weight():
    names = {f"useless{i}": 0.75 for i in range(10)}
    guide = guide_from(made(48, none=0.7, good=0.3, **names), prior="uniform")
    assert guide.weights["good"] > 0.5
    assert max(guide.weights[n] for n in names) < 0.1


# -- hard input ----------------------------------------------------------------------------------


def rows_of(given, labels):
    pools = {k: [e for e in given.train if e.label == k] for k in (0, 1)}
    return [pools[label].pop() for label in labels]


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_answers_that_are_not_finite_refuse_their_expert(tmp_path, name, value):
    """Its features are as good as any: it is a head, or words, that nothing can be fitted on."""
    given = setting(tmp_path, name)
    good, bad = experts(given.base)
    if name == "bert":
        bad = replace(bad, head={**bad.head, "weight": torch.full((2, 32), value)})
    else:
        layer = replace(bad.layers[-1], B=torch.full_like(bad.layers[-1].B, value))
        bad = replace(bad, layers=(*bad.layers[:-1], layer))
    evidence = gather(given, [good, bad])
    assert evidence.experts == ("a",)
    assert "Expert 'b' gives values that are not finite" in evidence.refused["b"]
    with alone(given, bad) as model, pytest.raises(DataError, match=r"'b'.*not finite"):
        views_of(model, given, bad, given.train)


def test_every_view_is_checked(tmp_path, monkeypatch):
    given = setting(tmp_path, "llama")
    bad = worded(tiny.expert(given.base.model, "a", seed=1), (tiny.GOOD[1], tiny.BAD[1]))
    with alone(given, bad) as model:
        real = model.score_and_read
        for column in (0, 2):  # of its own words, of the target's

            def broken(ids, mask, words, column=column):
                scores, features = real(ids, mask, words)
                scores[0, column] = float("-inf")
                return scores, features

            monkeypatch.setattr(model, "score_and_read", broken)
            with pytest.raises(DataError, match=r"'a'.*not finite"):
                views_of(model, given, bad, given.train)


@pytest.mark.parametrize("kind", ["regression", "generation"])
def test_scores_and_losses_that_are_not_finite_refuse_their_expert(tmp_path, kind):
    given = setting(tmp_path, "bert" if kind == "regression" else "llama", kind)
    good, bad = (tiny.expert(given.base.model, n, seed=i) for i, n in enumerate("ab"))
    if kind == "regression":
        bad = tiny.with_head(bad, 1)
        bad = replace(bad, head={**bad.head, "bias": torch.full((1,), float("nan"))})
    else:
        layer = replace(bad.layers[-1], B=torch.full_like(bad.layers[-1].B, float("nan")))
        bad = replace(bad, layers=(*bad.layers[:-1], layer))
    evidence = gather(given, [good, bad])
    assert evidence.experts == ("a",)
    assert "not finite" in evidence.refused["b"]


def labelled(given, labels, groups=None):
    """Rows of these labels, all of one text."""
    groups = groups or [""] * len(labels)
    return [
        replace(given.train[0], id=str(i), label=label, group=group)
        for i, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]


def counted(rows, classes):
    return np.bincount([e.label for e in rows], minlength=classes).tolist()


@pytest.mark.parametrize("rare", [1, 2, 5])
@pytest.mark.parametrize("grouped", [False, True])
def test_no_class_is_lost_to_the_draw(tmp_path, rare, grouped):
    """Two rows of a rare class are looked at, or all it has."""
    given = setting(tmp_path)
    lost = 0
    for seed in range(20):
        labels = np.random.default_rng(seed).permutation([*[1] * rare, *[0] * 3000])
        groups = [f"g{i // 3}" for i in range(len(labels))] if grouped else None
        rows = labelled(given, labels.tolist(), groups)
        before, after = counted(some(rows, ROWS, 0), 2), counted(looked_at(given.task, rows), 2)
        lost += before[1] < min(2, rare)
        assert ROWS - 2 <= sum(after) <= ROWS
        assert after[1] >= min(2, rare)
    assert lost > 5, "the plain draw loses it"


def test_more_classes_than_rows_can_hold_twice(tmp_path):
    given = setting(tmp_path)
    for classes, least in ((300, 1), (600, 0)):
        task = replace(given.task, labels=tuple(f"l{i}" for i in range(classes)), label_values={})
        rows = labelled(given, [i % classes for i in range(3 * classes)])
        found = counted(looked_at(task, rows), classes)
        assert sum(found) == ROWS
        assert min(found) == least
        assert max(found) <= 2


@pytest.mark.parametrize("groups", [None, [f"g{i // 3}" for i in range(2000)]])
@pytest.mark.parametrize("kind", ["classification", "regression", "generation"])
def test_a_draw_that_loses_no_class_is_as_it_was(tmp_path, kind, groups):
    given = setting(tmp_path, kind=kind)
    generator = np.random.default_rng(0)
    for count in (3, ROWS, 2000):
        labels = generator.integers(0, 2, size=count).tolist()
        rows = labelled(given, labels, groups and groups[:count])
        assert looked_at(given.task, rows) == some(rows, ROWS, 0)
    if kind != "classification":  # no classes to lose
        rows = labelled(given, [1, *[0] * 3000])
        assert looked_at(given.task, rows) == some(rows, ROWS, 0)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1]])
def test_few_rows_are_still_judged(tmp_path, labels):
    """Two rows in all; one of a label: weights near the prior, and errors that say how little."""
    given = setting(tmp_path)
    given = replace(given, train=rows_of(given, labels))
    guide = guide_from(gather(given, experts(given.base)))
    assert sum(guide.weights.values()) == pytest.approx(1)
    assert max(guide.weights.values()) < 0.6
    assert guide.rows == len(labels)
    assert guide.helpful == []


def test_one_row_a_label_does_not_speak_for_who_needs_no_fit(tmp_path):
    """No fit can foretell a class it has not seen; that is no merit of an expert that fits none."""
    given = setting(tmp_path)
    evidence = gather(replace(given, train=rows_of(given, [0, 1])), experts(given.base))
    fitted = [c for c in evidence.candidates if c.view != "named"]
    assert fitted[0].losses == pytest.approx(np.log(3))
    assert all(c.loss < 2 for c in fitted)


@pytest.mark.parametrize("labels", [[], [1], [1, 1, 1]])
def test_rows_of_one_answer_are_refused_by_name(tmp_path, labels):
    given = setting(tmp_path)
    given = replace(given, train=rows_of(given, labels))
    with pytest.raises(DataError, match=f"bad: 0, good: {len(labels)}"):
        gather(given, experts(given.base))


def test_equal_texts_with_different_labels(tmp_path):
    """Nobody can foretell them: no expert gains, and nothing breaks."""
    given = setting(tmp_path)
    twice = [replace(given.train[0], id=str(i), label=i % 2) for i in range(16)]
    guide = guide_from(gather(replace(given, train=twice), experts(given.base)))
    assert all(abs(gain) < 0.5 for gain in guide.gains.values())


def test_a_hundred_classes(tmp_path):
    given = setting(tmp_path)
    words = tuple(f"label{i}" for i in range(100))
    task = replace(given.task, labels=words, label_values={})
    rows = [replace(e, label=i % 100) for i, e in enumerate(tiny.splits(given.task).train * 5)]
    assert len({e.label for e in rows}) == 100
    guide = guide_from(gather(replace(given, task=task, train=rows), experts(given.base)))
    assert np.isfinite(list(guide.gains.values())).all()


def test_scores(tmp_path):
    """A squared error has no scale of its own: it becomes a Gaussian's log-loss."""
    given = setting(tmp_path, kind="regression")
    evidence = gather(given, [tiny.expert(given.base.model, "a", seed=1)])
    assert "Gaussian" in evidence.measure
    said, truth = evidence.candidates[0].said, evidence.truth
    assert said.shape == (24, 1)
    squares = (said[:, 0] - truth) ** 2
    expected = 0.5 * np.log(2 * np.pi * squares.mean()) + 0.5
    assert evidence.candidates[0].loss == pytest.approx(expected)
    assert sum(guide_from(evidence).weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("names", [["none"], ["a", "a"]])
def test_names_that_would_be_mistaken(tmp_path, names):
    given = setting(tmp_path)
    with pytest.raises(ConfigError, match="rename"):
        gather(given, [tiny.expert(given.base.model, n, seed=1) for n in names])
