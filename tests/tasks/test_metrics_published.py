"""Metrics against scikit-learn, the published SQuAD script, and MultiRC worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from pemt.errors import DataError
from pemt.tasks.metrics import _normalise, compute
from tests.tasks.builders import make_task

SQUAD = json.loads((Path(__file__).parent / "data" / "squad_scores.json").read_text("utf-8"))
OF_MANY = ["accuracy", "macro_f1", "balanced_accuracy", "matthews"]


def by_sklearn(truth, said):
    seen = sorted({*truth, *said})
    return {
        "accuracy": sk.accuracy_score(truth, said),
        "macro_f1": sk.f1_score(truth, said, labels=seen, average="macro", zero_division=0.0),
        "balanced_accuracy": sk.recall_score(
            truth, said, labels=sorted(set(truth)), average="macro", zero_division=0.0
        ),
        "matthews": sk.matthews_corrcoef(truth, said),
    }


def draws(classes, rng):
    """Random rows; some draws lack a class, some say one thing only."""
    for rows in (1, 2, 5, 28, 300):
        for _ in range(8):
            kept = rng.permutation(classes)[: rng.integers(1, classes + 1)]
            truth = rng.choice(kept, rows)
            said = rng.choice(classes, rows)
            yield truth, np.where(rng.random(rows) < 0.6, truth, said)
        yield rng.choice(classes, rows), np.full(rows, rng.integers(classes))


@pytest.mark.filterwarnings("ignore:A single label was found")  # of the oracle
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classification_is_scikit_learns(tmp_path, classes):
    task = make_task(tmp_path, labels=list("abcde")[:classes], metrics=OF_MANY)
    for truth, said in draws(classes, np.random.default_rng(classes)):
        assert compute(task, said.tolist(), truth.tolist()) == pytest.approx(
            by_sklearn(truth.tolist(), said.tolist())
        )


@pytest.mark.filterwarnings("error")
def test_f1_of_two_labels_is_scikit_learns(tmp_path):
    task = make_task(tmp_path, metrics=["f1", "question_f1"])
    for truth, said in draws(2, np.random.default_rng(7)):
        wanted = sk.f1_score(truth, said, zero_division=0.0)
        scores = compute(task, said.tolist(), truth.tolist())
        assert scores == pytest.approx({"f1": wanted, "question_f1": wanted})


def test_correlations_are_scipys(tmp_path):
    metrics = ["pearson", "spearman"]
    task = make_task(tmp_path, kind="regression", labels=[], metrics=metrics, score_range=[0, 5])
    rng = np.random.default_rng(0)
    truth, said = rng.uniform(0, 5, 90).round(1), rng.uniform(0, 5, 90).round(1)
    scores = compute(task, said.tolist(), truth.tolist())
    assert scores["pearson"] == pytest.approx(np.corrcoef(said, truth)[0, 1])
    ranks = np.corrcoef(stats.rankdata(said), stats.rankdata(truth))[0, 1]
    assert scores["spearman"] == pytest.approx(ranks)


@pytest.fixture
def answers(tmp_path):
    metrics = ["exact_match", "token_f1"]
    return make_task(tmp_path, "answers", kind="generation", labels=[], metrics=metrics)


def test_squad_scores_are_those_of_the_published_script(answers):
    """What the script says of edge cases and random strings was recorded; see the file's head."""
    assert len(SQUAD["pairs"]) >= 90
    for pair in SQUAD["pairs"]:
        said, truth = pair["prediction"], pair["reference"]
        assert _normalise(said) == pair["normalised"], said
        scores = compute(answers, [said], [truth])
        wanted = {name: pair[name] for name in ("exact_match", "token_f1")}
        assert scores == pytest.approx(wanted), (said, truth)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Cat.", "cat"),
        ("a.", ""),  # punctuation goes first, then the article
        ("the-man", "theman"),  # so a hyphen joins
        ("the \u2013 man", "\u2013 man"),  # a dash outside ASCII is a word of its own
        ("the\u2013man", "\u2013man"),  # and a word boundary
        ("anthem of a theme", "anthem of theme"),
        ("l'an deux", "lan deux"),
        ("\u00c9t\u00e9\u00a0a", "\u00e9t\u00e9"),
    ],
)
def test_the_order_of_normalisation(text, normalised):
    assert _normalise(text) == normalised


def test_each_metric_takes_its_own_best_answer(answers):
    """ReCoRD: entities of one mention; EM and F1 each take their maximum over the answers."""
    accepted = ["United States", "the US", "United States of America"]
    scores = compute(answers, ["States of America"], [accepted])
    # with the first: 2 * 1 / (3 + 2); with the third: 2 * 3 / (3 + 4)
    assert scores == pytest.approx({"exact_match": 0.0, "token_f1": 6 / 7})
    assert compute(answers, ["U.S."], [accepted]) == {"exact_match": 1.0, "token_f1": 1.0}
    both = compute(answers, ["U.S.", "nobody"], [accepted, ("someone", "no one")])
    assert both == {"exact_match": 0.5, "token_f1": 0.5}


def multirc(tmp_path):
    return make_task(
        tmp_path, labels=["False", "True"], metrics=["question_f1", "question_exact_match"]
    )


def test_multirc_by_hand(tmp_path):
    task = multirc(tmp_path)
    questions = ["p0/q0", "p0/q1", "p0/q0", "p0/q1", "p1/q0", "p1/q1", "p1/q1"]
    truth = [1, 0, 0, 1, 1, 0, 1]
    said = [1, 1, 0, 1, 0, 0, 1]
    # tp 3, fp 1, fn 1; the questions p0/q0 and p1/q1 are right in every option
    assert compute(task, said, truth, questions) == pytest.approx(
        {"question_f1": 6 / 8, "question_exact_match": 2 / 4}
    )
    said[2] = None  # an answer that is none spoils its question and is a false positive
    assert compute(task, said, truth, questions) == pytest.approx(
        {"question_f1": 6 / 9, "question_exact_match": 1 / 4}
    )


def test_questions_may_come_in_any_order(tmp_path):
    task, rng = multirc(tmp_path), np.random.default_rng(3)
    questions = [f"q{i // 4}" for i in range(40)]
    truth, said = rng.integers(0, 2, (2, 40)).tolist()
    said = [t if i // 4 % 2 else s for i, (t, s) in enumerate(zip(truth, said, strict=True))]
    wanted = compute(task, said, truth, questions)
    right = [said[i : i + 4] == truth[i : i + 4] for i in range(0, 40, 4)]
    assert wanted["question_exact_match"] == pytest.approx(np.mean(right))
    order = rng.permutation(40).tolist()
    shuffled = [[column[i] for i in order] for column in (said, truth, questions)]
    assert compute(task, *shuffled) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("questions", "words"),
    [
        (None, "question_exact_match without questions"),
        (["q"], "1 questions for 3 references"),
        (["q", "", "q"], "Row 1 belongs to no question"),
    ],
)
def test_rows_without_questions_are_refused(tmp_path, questions, words):
    with pytest.raises(DataError, match=words):
        compute(multirc(tmp_path), [0, 1, 1], [0, 1, 1], questions)


def test_f1_of_questions_needs_two_labels(tmp_path):
    from pemt.errors import ConfigError

    with pytest.raises(ConfigError, match="metric question_f1 with more than two labels"):
        make_task(tmp_path, labels=["a", "b", "c"], metrics=["question_f1"])
