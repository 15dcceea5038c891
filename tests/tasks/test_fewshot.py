"""Few-shot draws: counts, seeds, disjointness, the manifest, and what is refused."""

from __future__ import annotations

import collections
import json

import pytest

from pemt.errors import ConfigError, DataError
from pemt.tasks.fewshot import draw
from pemt.tasks.rows import Example
from pemt.tasks.splits import Splits
from tests.tasks.builders import make_examples, make_task, mirror, real_splits


@pytest.fixture
def task(tmp_path):
    return make_task(tmp_path)


@pytest.fixture
def splits():
    return Splits(make_examples(40), make_examples(6, "validation"), make_examples(5, "test"))


def test_k_per_label_from_the_training_rows_only(task, splits):
    few = draw(splits, task, shots=4, data_seed=0)
    for part in (few.train, few.validation):
        assert collections.Counter(e.target for e in part) == {"bad": 4, "good": 4}
        assert {e.id for e in part} <= {e.id for e in splits.train}
    assert not {e.id for e in few.train} & {e.id for e in few.validation}
    assert few.test is splits.test


def test_full_validation_keeps_the_draw(task, splits):
    full = draw(splits, task, shots=4, data_seed=0, validation="full")
    assert full.validation == splits.validation
    assert full.train == draw(splits, task, shots=4, data_seed=0).train


def test_seeds(task, splits):
    first, again, other = (draw(splits, task, shots=4, data_seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert {e.id for e in first.train} != {e.id for e in other.train}


def test_a_draw_is_the_same_for_ever(task, splits):
    # Written down: a change here changes every published result.
    few = draw(splits, task, shots=3, data_seed=0)
    assert [e.id for e in few.train] == [f"train:{i}" for i in (30, 13, 23, 10, 16, 31)]
    assert [e.id for e in few.validation] == [f"train:{i}" for i in (22, 2, 38, 27, 3, 35)]


def test_rows_with_their_own_options_are_drawn_by_label(tmp_path):
    task = make_task(tmp_path, labels=["1", "2"], option_columns=["first", "second"])
    rows = [
        Example(f"train:{i}", f"text: {i}", i % 2, f"word {i}", options=(f"word {i}", f"no {i}"))
        for i in range(12)
    ]
    few = draw(Splits(rows, [], []), task, shots=3, data_seed=0)
    for part in (few.train, few.validation):
        assert collections.Counter(e.label for e in part) == {0: 3, 1: 3}


def test_the_order_of_rows_does_not_matter(task, splits):
    turned = Splits(splits.train[::-1], splits.validation, splits.test)
    assert draw(turned, task, shots=4, data_seed=0) == draw(splits, task, shots=4, data_seed=0)


def test_more_shots_contain_fewer(task, splits):
    four, eight = (draw(splits, task, shots=k, data_seed=0).train for k in (4, 8))
    assert {e.id for e in four} < {e.id for e in eight}


def test_a_text_is_drawn_once(task):
    rows = [Example(f"train:{i}", f"text {i // 2}", i // 2 % 2, ["bad", "good"][i // 2 % 2])
            for i in range(40)]  # fmt: skip
    few = draw(Splits(rows, rows, rows), task, shots=5, data_seed=0)
    texts = [e.text for e in [*few.train, *few.validation]]
    assert len(set(texts)) == len(texts) == 20


def test_regression_and_generation_draw_in_total(tmp_path, splits):
    score = make_task(tmp_path, kind="regression", labels=[], metrics=["pearson"])
    few = draw(splits, score, shots=4, data_seed=0)
    assert (len(few.train), len(few.validation)) == (4, 4)


def test_fewer_rows_than_shots(task, splits):
    with pytest.raises(DataError, match="20 distinct training rows of the label 'bad': want 21"):
        draw(splits, task, shots=21, data_seed=0)
    with pytest.raises(DataError, match=r"want 11 for validation after 11 .*\n.*validation='full'"):
        draw(splits, task, shots=11, data_seed=0)
    assert len(draw(splits, task, shots=20, data_seed=0, validation="full").train) == 40


def test_bad_settings(task, splits):
    with pytest.raises(ConfigError, match="shots is 0"):
        draw(splits, task, shots=0, data_seed=0)
    with pytest.raises(ConfigError, match="'half'"):
        draw(splits, task, shots=1, data_seed=0, validation="half")


def test_the_manifest_names_and_hashes_what_was_drawn(task, splits, tmp_path):
    few = draw(splits, task, shots=2, data_seed=3)
    path = tmp_path / "new" / "draw.json"
    few.save_manifest(path)
    saved = json.loads(path.read_text())
    assert saved == few.manifest
    assert saved["train_ids"] == [e.id for e in few.train]
    assert (saved["task"], saved["version"], saved["shots"], saved["data_seed"]) == (
        "tiny",
        1,
        2,
        3,
    )
    assert [p.name for p in path.parent.iterdir()] == ["draw.json"]

    changed = [Example(e.id, e.text, e.label, e.target + "!") for e in splits.validation]
    again = Splits(splits.train, changed, splits.test)
    full = [draw(s, task, shots=2, data_seed=3, validation="full") for s in (splits, again)]
    assert full[0].manifest["sha256"] != full[1].manifest["sha256"]


@pytest.mark.mirror
def test_cb_at_sixteen_shots_needs_the_full_validation_split():
    from pemt.tasks.task import Task

    splits, task = real_splits("cb", mirror()), Task.named("cb")
    assert len(draw(splits, task, shots=16, data_seed=0, validation="full").train) == 48
    with pytest.raises(DataError, match="'neutral'"):
        draw(splits, task, shots=16, data_seed=0)
