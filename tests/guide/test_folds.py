"""How labelled rows are divided: each is held out once, and nothing of its group is trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold

from pemt.errors import DataError
from pemt.guide.probes import folds_of
from tests import tiny

KINDS = ("classification", "regression", "generation")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return {kind: tiny.task(tmp_path_factory.mktemp(kind), kind=kind) for kind in KINDS}


def some(task, labels, *, groups=None, texts=None):
    """Rows of these labels; without groups and texts each is its own."""
    first = tiny.splits(task).train[0]
    return [
        replace(
            first, id=str(i), label=label, group=groups[i] if groups else "",
            text=texts[i] if texts else f"text {i}",
        )
        for i, label in enumerate(labels)
    ]  # fmt: skip


def same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def check(folds, keys, repeats=2):
    """Each row is held out once in each repeat, and none of its group is trained on there."""
    held = np.concatenate([outside for _, outside in folds])
    assert (np.bincount(held, minlength=len(keys)) == repeats).all()
    for inside, outside in folds:
        assert len(inside)
        assert len(outside)
        assert sorted([*inside, *outside]) == list(range(len(keys)))
        assert not {keys[i] for i in inside} & {keys[i] for i in outside}


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(("rows", "count"), [(2, 8), (9, 4), (24, 8)])
def test_rows_of_their_own_are_divided_as_scikit_learn_does(tasks, kind, rows, count):
    wanted = RepeatedKFold(n_splits=min(rows, count), n_repeats=2, random_state=0)
    made = folds_of(tasks[kind], some(tasks[kind], [1.0] * rows), count=count)
    same(made, list(wanted.split(np.zeros(rows))))


@pytest.mark.parametrize("own", [False, True])
def test_labels_of_their_own_rows_are_divided_as_scikit_learn_does(tasks, own):
    truth = np.array([0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1])
    groups = [f"g{i}" for i in range(len(truth))] if own else None
    wanted = RepeatedStratifiedKFold(n_splits=4, n_repeats=2, random_state=0)
    rows = some(tasks["classification"], truth.tolist(), groups=groups)
    same(folds_of(tasks["classification"], rows), list(wanted.split(truth, truth)))


def test_a_label_of_one_row_is_divided_as_ever(tasks):
    rows = some(tasks["classification"], [0, 1, 0, 0, 0, 0])
    held = [outside.tolist() for _, outside in folds_of(tasks["classification"], rows)]
    assert held == [[3, 4], [0, 2], [1, 5], [0, 4], [3, 5], [1, 2]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["groups", "texts"])
def test_what_knows_one_another_stays_on_one_side(tasks, kind, by):
    keys = [f"passage {i // 3}" for i in range(24)]
    rows = some(tasks[kind], [i % 2 for i in range(24)], **{by: keys})
    check(folds_of(tasks[kind], rows), keys)


def test_groups_and_texts_connect(tasks):
    """Row 1 has the group of row 0 and the text of row 2, but for spacing and case."""
    groups = ["a", "a", "b", "b", *(f"g{i}" for i in range(8))]
    texts = ["one", "two", " Two", "four", *(f"t{i}" for i in range(8))]
    rows = some(tasks["classification"], [0, 1] * 6, groups=groups, texts=texts)
    check(folds_of(tasks["classification"], rows), ["a"] * 4 + groups[4:])


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_groups_than_folds(tasks, kind):
    keys = list("aaabbbccc")
    rows = some(tasks[kind], [i % 2 for i in range(9)], groups=keys)
    folds = folds_of(tasks[kind], rows, count=8, repeats=1)
    assert len(folds) == 3
    check(folds, keys, repeats=1)


def test_a_label_of_one_group_is_held_out_whole(tasks):
    keys = list("aabbccddee")
    rows = some(tasks["classification"], [0] * 8 + [1] * 2, groups=keys)
    check(folds_of(tasks["classification"], rows), keys)


@pytest.mark.parametrize("kind", KINDS)
def test_one_group_alone_is_divided_by_rows(tasks, kind):
    labels = [i % 2 for i in range(12)]
    together = folds_of(tasks[kind], some(tasks[kind], labels, groups=["a"] * 12))
    same(together, folds_of(tasks[kind], some(tasks[kind], labels)))


def test_groups_of_any_size_leave_no_fold_empty(tasks):
    generator = np.random.default_rng(0)
    for _ in range(40):
        size = int(generator.integers(4, 30))
        keys = [str(n) for n in generator.integers(0, int(generator.integers(2, size)), size)]
        if len(set(keys)) > 1:
            for kind in KINDS:
                labels = [0, 1, *generator.integers(0, 2, size - 2).tolist()]
                check(folds_of(tasks[kind], some(tasks[kind], labels, groups=keys)), keys)


def test_too_little_to_divide(tasks):
    with pytest.raises(DataError, match="1 labelled rows"):
        folds_of(tasks["regression"], some(tasks["regression"], [1.0]))
    with pytest.raises(DataError, match="bad: 0, good: 2"):
        folds_of(tasks["classification"], some(tasks["classification"], [1, 1], groups=["a", "a"]))
