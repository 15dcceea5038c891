"""Answers of many rows: those of one row at a time, in order, with few rows alive."""

from __future__ import annotations

import gc
import weakref

import pytest

from pemt.errors import DataError
from pemt.tasks import Example
from pemt.training import predict, predict_stream
from tests import tiny


@pytest.fixture(scope="module", params=tiny.ONE_OF_EACH_FAMILY)
def setting(request, tmp_path_factory):
    base = tiny.loaded(request.param)
    model = tiny.stir(tiny.pemt(base.model))
    return base, model, tiny.task(tmp_path_factory.mktemp("task"))


def examples(task, count, seed=0):
    rows = tiny.rows("classification", count, seed)
    return [Example(str(i), task.render(row), None, "") for i, row in enumerate(rows)]


@pytest.mark.parametrize("window", [1, 5, 100])
def test_a_stream_answers_as_each_row_alone(setting, window):
    base, model, task = setting
    task = task if model.family != "encoder-only" else tiny_three(task)
    rows = examples(task, 13)
    settings = tiny.settings()
    streamed = list(
        predict_stream(model, task, base.tokenizer, iter(rows), settings, window=window)
    )
    assert [a.example for a in streamed] == rows
    for row, answer in zip(rows, streamed, strict=True):
        alone = predict(model, task, base.tokenizer, [row], settings)
        chances = alone.log_probabilities[0].softmax(-1).tolist()
        assert list(answer.probabilities.values()) == pytest.approx(chances, abs=1e-5)
        assert (answer.text, answer.value) == (alone.texts[0], alone.values[0])


def tiny_three(task):
    """The head of the tiny models has three outputs."""
    from dataclasses import replace

    return replace(task, labels=("bad", "good", "other"), label_values={}, label_bins={})


class Counted(Example):
    """Examples are frozen and slotted or not: a subclass can be referred to weakly."""


def test_at_most_a_window_of_rows_is_alive(setting):
    base, model, task = setting
    task = task if model.family != "encoder-only" else tiny_three(task)
    alive, most, read = weakref.WeakSet(), 0, 0

    def rows():
        nonlocal read
        for row in examples(task, 60):
            made = Counted(row.id, row.text, None, "")
            alive.add(made)
            read += 1
            yield made

    given = 0
    for answer in predict_stream(
        model, task, base.tokenizer, rows(), tiny.settings(eval_batch_size=8), window=10
    ):
        given += 1
        assert read <= given + 10  # never further ahead than a window
        del answer
        gc.collect()
        most = max(most, len(alive))
    assert given == 60
    assert most <= 21  # a window, the one that was answered, and the row in hand


def test_rows_that_cannot_be_read_end_the_stream(setting):
    base, model, task = setting
    task = task if model.family != "encoder-only" else tiny_three(task)

    def rows():
        yield from examples(task, 4)
        raise DataError("rows.csv:6: broken")

    stream = predict_stream(model, task, base.tokenizer, rows(), tiny.settings(), window=3)
    assert [next(stream).example.id for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"rows\.csv:6"):
        next(stream)
