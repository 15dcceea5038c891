"""Metrics against values worked out by hand, and generated text back to answers."""

from __future__ import annotations

import math
import warnings

import pytest

from pemt.errors import DataError, UnknownNameError
from pemt.tasks.definition import METRICS
from pemt.tasks.metrics import compute, parse_answer
from pemt.tasks.task import Task
from tests.tasks.builders import make_task

GROUPED = "question_exact_match"


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def binary(tmp_path):
    return make_task(tmp_path, metrics=[m for m in METRICS["classification"] if m != GROUPED])


@pytest.fixture
def three(tmp_path):
    metrics = ["accuracy", "macro_f1", "balanced_accuracy", "matthews"]
    return make_task(tmp_path, "three", labels=["a", "b", "c"], metrics=metrics)


@pytest.fixture
def answers(tmp_path):
    settings = {"kind": "generation", "labels": [], "metrics": ["exact_match", "token_f1"]}
    return make_task(tmp_path, "answers", **settings)


def test_binary_by_hand(tmp_path):
    binary = make_task(tmp_path, metrics=list(METRICS["classification"]))
    # tp 2, fp 1, fn 1, tn 1
    scores = compute(binary, [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], ["p", "p", "q", "r", "r"])
    assert scores == pytest.approx(
        {
            "accuracy": 3 / 5,
            "f1": 2 / 3,
            "macro_f1": (2 / 3 + 1 / 2) / 2,
            "balanced_accuracy": (2 / 3 + 1 / 2) / 2,
            "matthews": (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2),
            "question_f1": 2 / 3,
            "question_exact_match": 1 / 3,  # p is all right, q and r are not
        }
    )
    assert list(scores) == list(binary.metrics)


def test_three_labels_by_hand(three):
    scores = compute(three, [0, 0, 1, 1], [0, 1, 1, 2])
    f1 = (2 / 3 + 1 / 2 + 0) / 3
    assert scores["macro_f1"] == pytest.approx(f1)
    assert scores["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_a_label_nobody_has_or_says_does_not_count(three):
    assert compute(three, [0, 1], [0, 1])["macro_f1"] == 1.0


@pytest.mark.parametrize("invalid", [None, "text", -1, 7])
def test_invalid_predictions_are_wrong(binary, three, invalid):
    assert compute(binary, [invalid, 1], [0, 1]) == compute(binary, [1, 1], [0, 1])
    assert compute(binary, [invalid, 0], [1, 0]) == compute(binary, [0, 0], [1, 0])
    scores = compute(three, [invalid, 1, 2], [0, 1, 2])
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["macro_f1"] == pytest.approx(2 / 3)
    assert scores["balanced_accuracy"] == pytest.approx(2 / 3)


def test_invalid_scores_are_as_wrong_as_can_be():
    task = Task.named("stsb")
    truth = [0.5, 4.5, 2.0, 3.0]
    assert compute(task, [None, 4.5, 2.0, 3.0], truth) == compute(task, [5.0, 4.5, 2, 3], truth)
    assert compute(task, [0.5, math.nan, 2, 3], truth) == compute(task, [0.5, 0.0, 2, 3], truth)


def test_correlations_by_hand():
    scores = compute(Task.named("stsb"), [1.0, 2.0, 4.0], [1.0, 2.0, 3.0])
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(3 / math.sqrt(2 * 14 / 3))


def test_constant_predictions_are_zero_without_a_warning(binary):
    assert compute(binary, [1, 1, 1], [0, 1, 1])["matthews"] == 0.0
    assert compute(Task.named("stsb"), [2.0, 2.0], [1.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert compute(Task.named("stsb"), [2.0], [1.0])["pearson"] == 0.0


def test_answers_are_normalised_and_the_best_reference_counts(answers):
    scores = compute(answers, ["The Eiffel Tower!", "big red dog"], ["eiffel tower", "red cat"])
    assert scores["exact_match"] == 0.5
    assert scores["token_f1"] == pytest.approx((1 + 2 * 1 / (3 + 2)) / 2)
    best = compute(answers, ["red cat", None], [["dog", "the red cat"], "none"])
    assert best == {"exact_match": 0.5, "token_f1": 0.5}


def test_bad_calls(binary):
    with pytest.raises(DataError, match="1 predictions for 2 references"):
        compute(binary, [1], [1, 0])
    with pytest.raises(DataError, match="0 predictions"):
        compute(binary, [], [])
    fields = {name: getattr(binary, name) for name in binary.to_dict()}
    with pytest.raises(UnknownNameError, match="Did you mean: matthews"):
        Task(**{**fields, "metrics": ("mathews",)})


@pytest.mark.parametrize(
    ("text", "label"),
    [("good", 1), (" Good.\n", 1), ("BAD", 0), ("goodness", None), ("", None), ("good bad", None)],
)
def test_label_words_from_text(binary, text, label):
    assert parse_answer(binary, text) == label


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("3.8", 3.8),
        (" 0 ", 0.0),
        ("5.0.", 5.0),
        ("5.2", None),
        ("-1", None),
        ("x", None),
        ("", None),
    ],
)
def test_scores_from_text(text, score):
    assert parse_answer(Task.named("stsb"), text) == score


@pytest.mark.parametrize("given", [(0.7, 4.9, 0.2), (0.5, 5.0, 0.2), (1.0, 10.0, 0.25), (-3, 3, 2)])
def test_what_a_task_writes_for_a_score_is_an_answer_to_it(tmp_path, given):
    """The ends too, where they are no multiples of the step; and no row scores as the worst."""
    low, high, step = given
    task = make_task(
        tmp_path, "scores", kind="regression", labels=[], metrics=["pearson", "spearman"],
        score_range=[low, high], score_step=step,
    )  # fmt: skip
    truth = [low + (high - low) * i / 90 for i in range(91)]
    read = [parse_answer(task, task.answer(score)) for score in truth]
    assert all(r is not None and low <= r <= high for r in read)
    assert max(abs(r - t) for r, t in zip(read, truth, strict=True)) <= step / 2 + 1e-9
    assert compute(task, read, truth)["pearson"] > 0.9
    assert parse_answer(task, f"{high + step:.2f}") is None


def test_a_written_score_has_the_decimals_of_its_step(tmp_path):
    task = make_task(
        tmp_path, "quarters", kind="regression", labels=[], metrics=["pearson"],
        score_range=[0, 1], score_step=0.25,
    )  # fmt: skip
    assert [task.answer(s) for s in (0, 0.26, 0.5, 0.7, 1)] == [
        "0.00",
        "0.25",
        "0.50",
        "0.75",
        "1.00",
    ]


def test_case_decides_between_words_that_differ_in_case_only(tmp_path):
    task = make_task(tmp_path, labels=["true", "True"])
    assert parse_answer(task, "True") == 1
    assert parse_answer(task, "TRUE") is None


def test_free_text_has_no_label(answers):
    assert parse_answer(answers, "Paris") is None
