"""Intervals cover, per-class scores are scikit-learn's, and invalid answers are seen."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from pemt.errors import ConfigError, DataError
from pemt.tasks.metrics import compute
from pemt.tasks.reporting import confusion_matrix, constant_answer, interval, report
from tests import tiny
from tests.tasks.builders import make_task


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def three(tmp_path, *metrics):
    return make_task(tmp_path, labels=["a", "b", "c"], metrics=list(metrics or ("accuracy",)))


def multirc(tmp_path, metric):
    return make_task(tmp_path, labels=["False", "True"], metrics=[metric])


def some_rows(rows, classes=3, seed=0, right=0.6):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    said = np.where(rng.random(rows) < right, truth, rng.integers(0, classes, rows))
    return said.tolist(), truth.tolist()


def coverage(task, rate, rows, draws=300):
    covered = 0
    for draw in range(draws):
        right = np.random.default_rng(draw).random(rows) < rate
        said = right.astype(int).tolist()
        found = interval(task, "accuracy", said, [1] * rows, resamples=400, seed=draw)
        covered += found.low <= rate <= found.high
    return covered / draws


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
def test_intervals_cover(tmp_path, rate):
    """Of 28 rows, as many as CB tests on; at .95 every fourth draw has no mistake at all."""
    assert 0.90 <= coverage(make_task(tmp_path), rate, 28) <= 0.98


def test_intervals_of_questions_cover_where_rows_would_not(tmp_path):
    """Options of a question share its luck: rows taken one by one would seem too sure."""
    task = make_task(tmp_path)
    questions = [f"q{i // 10}" for i in range(400)]
    truth = [1] * 400
    covered = {"question": 0, "row": 0}
    for draw in range(100):
        rng = np.random.default_rng(draw)
        luck = rng.beta(0.8 * 2, 0.2 * 2, 40).repeat(10)
        said = (rng.random(400) < luck).astype(int).tolist()
        for unit, of in (("question", questions), ("row", None)):
            found = interval(task, "accuracy", said, truth, of, resamples=300, seed=draw)
            assert found.unit == unit
            assert found.units == (40 if of else 400)
            covered[unit] += found.low <= 0.8 <= found.high
    assert covered["question"] >= 86
    assert covered["row"] <= 80


@pytest.mark.parametrize(
    "metric", ["accuracy", "macro_f1", "balanced_accuracy", "matthews", "f1", "question_f1"]
)
def test_the_interval_is_scipys_bootstrap_of_the_metric(tmp_path, metric):
    """Counting pairs once gives what the metric on resampled rows gives."""
    task = multirc(tmp_path, metric)
    said, truth = some_rows(60, classes=2)

    def of_rows(drawn):
        rows = drawn.astype(int)
        return compute(task, np.array(said)[rows].tolist(), np.array(truth)[rows].tolist())[metric]

    wanted = stats.bootstrap(
        (np.arange(60),), of_rows, vectorized=False, n_resamples=400, method="BCa",
        random_state=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    found = interval(task, metric, said, truth, resamples=400, seed=5)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.method == "bca"
    assert found.low < compute(task, said, truth)[metric] < found.high


def test_intervals_narrow_with_rows_and_equal_seeds_agree(tmp_path):
    task = three(tmp_path)
    widths = [interval(task, "accuracy", *some_rows(n)).width for n in (28, 280, 2800)]
    assert widths[0] > 2 * widths[1] > 4 * widths[2]
    rows = some_rows(28)
    assert interval(task, "accuracy", *rows, seed=1) == interval(task, "accuracy", *rows, seed=1)


def test_no_mistake_is_not_certainty(tmp_path):
    """Clopper and Pearson: 28 of 28 right leaves (0.025)^(1/28) possible."""
    task = three(tmp_path)
    found = interval(task, "accuracy", [1] * 28, [1] * 28)
    assert found.method == "exact"
    assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / 28)), 1.0)
    assert interval(task, "accuracy", [0] * 28, [1] * 28).high == pytest.approx(1 - found.low)
    assert interval(task, "accuracy", [1], [1]).low == pytest.approx(0.025)


def test_where_no_resample_changes_the_metric_there_is_no_interval(tmp_path):
    task = three(tmp_path)
    assert interval(task, "macro_f1", [0, 1, 2] * 9, [0, 1, 2] * 9) is None
    assert interval(task, "matthews", [1] * 9, [0, 1, 2] * 3) is None
    assert interval(task, "macro_f1", [0], [1]) is None


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_correlations_have_intervals(tmp_path, metric):
    task = make_task(tmp_path, kind="regression", labels=[], metrics=[metric], score_range=[0, 5])
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 5, 150)
    said = truth + rng.normal(size=150)
    found = interval(task, metric, [None, *said[1:]], truth.tolist())
    assert 0.6 < found.low < found.high < 0.95


def test_answers_have_intervals(tmp_path):
    task = make_task(tmp_path, kind="generation", labels=[], metrics=["token_f1"])
    said = ["red cat", "dog", None, "blue dog"] * 8
    found = interval(task, "token_f1", said, [["cat", "red fox"], "dog", "x", "dog"] * 8)
    assert found.low < (2 / 3 + 1 + 0 + 2 / 3) / 4 < found.high


def test_many_rows_are_quick(tmp_path):
    said, truth = some_rows(40_000)
    start = time.process_time()
    for metric in ("accuracy", "macro_f1"):
        assert interval(three(tmp_path), metric, said, truth).width < 0.02
    assert time.process_time() - start < 10


def test_per_class_scores_are_scikit_learns(tmp_path):
    task = three(tmp_path)
    said, truth = some_rows(90)
    made = report(task, said, truth, [task.labels[i] for i in said])
    wanted = sk.precision_recall_fscore_support(truth, said)
    for i, word in enumerate(task.labels):
        scores = made.per_class[word]
        ours = (scores.precision, scores.recall, scores.f1, scores.support)
        assert ours == pytest.approx([column[i] for column in wanted])
    assert [row[:3] for row in made.confusion] == sk.confusion_matrix(truth, said).tolist()
    assert [row[3] for row in made.confusion] == [0, 0, 0]
    assert (made.metric, made.n, made.invalid) == ("accuracy", 90, 0)
    assert made.value == sk.accuracy_score(truth, said)
    assert json.loads(json.dumps(made.to_dict()))["interval"]["low"] == made.interval.low


def test_invalid_answers_have_their_own_column(tmp_path):
    task = make_task(tmp_path)
    said = [1, None, None, 0, None, None, None]
    texts = ["good", "maybe", "", "bad", "maybe", "?", "so so"]
    truth = [1, 1, 0, 0, 0, 1, 1]
    made = report(task, said, truth, texts)
    assert made.confusion == [[1, 0, 2], [0, 1, 3]]
    assert confusion_matrix(task, said, truth).sum() == 7
    assert made.invalid == 5
    assert made.invalid_texts[0] == ("maybe", 2)
    assert len(made.invalid_texts) == 3
    assert made.per_class["good"].recall == 1 / 4
    assert made.per_class["good"].precision == 1.0
    assert made.value == 2 / 7


def test_a_report_is_said_in_two_sentences(tmp_path):
    task = three(tmp_path)
    said, texts = [None, None, 2, 1], ["x" * 99, "x" * 99, "c", "b"]
    sure, wrong = report(task, said, [0, 1, 2, 1], texts).lines()
    assert sure.startswith("accuracy 0.500, 95 % interval 0.")
    assert sure.endswith(" wide on 4 test rows.")
    assert wrong == f"2 of 4 answers were invalid; the commonest: '{'x' * 37}...' (2)."
    unsure, none = report(three(tmp_path, "macro_f1"), [0, 1], [0, 1], ["a", "b"]).lines()
    assert unsure == "No interval of macro_f1: no resample of 2 rows changes it."
    assert none == "0 of 2 answers were invalid."


def test_a_class_nobody_has_or_says_scores_nothing(tmp_path):
    made = report(three(tmp_path), [0, 1, 0], [0, 1, 1], ["a", "b", "a"])
    scores = made.per_class["c"]
    assert (scores.precision, scores.recall, scores.f1, scores.support) == (0, 0, 0, 0)


def test_multirc_is_reported_by_question(tmp_path):
    task = multirc(tmp_path, "question_exact_match")
    said, truth = some_rows(80, classes=2, right=0.9)
    questions = [f"q{i // 4}" for i in range(80)]
    made = report(task, said, truth, ["x"] * 80, questions)
    assert made.interval.unit == "question"
    assert made.interval.units == 20
    assert made.interval.low < made.value < made.interval.high
    with pytest.raises(DataError, match="without questions"):
        report(task, said, truth, ["x"] * 80)


def test_tasks_without_classes_report_none(tmp_path):
    task = make_task(tmp_path, kind="generation", labels=[], metrics=["exact_match"])
    made = report(task, ["a b", "c"], ["a b", "d"], ["a b", "c"])
    assert made.per_class is None
    assert made.confusion is None
    assert made.value == 0.5


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_fraction(tmp_path, level):
    with pytest.raises(ConfigError, match=f"level={level}"):
        interval(three(tmp_path), "accuracy", [0, 1], [0, 1], level=level)


# -- one answer to everything ----------------------------------------------------------------------


def test_the_best_constant_answer_is_that_of_every_label_tried(tmp_path):
    """Accuracy wants the commonest label, F1 the second one, whatever is common."""
    task = tiny.task(tmp_path)
    truth = [0, 0, 0, 1]
    best = constant_answer(task, truth)
    assert (best.label, best.metrics) == ("bad", {"accuracy": 0.75})
    f1 = constant_answer(replace(task, metrics=("f1", "accuracy")), truth)
    assert (f1.label, f1.metrics) == ("good", {"f1": 0.4, "accuracy": 0.25})


def test_no_constant_answer_without_a_choice(tmp_path):
    assert constant_answer(tiny.task(tmp_path), [1, 1]) is None
    assert constant_answer(tiny.task(tmp_path), []) is None
    assert constant_answer(tiny.task(tmp_path, kind="regression"), [1.0, 2.0]) is None
