"""Splits: the paper's rules and sizes, no row on two sides, the same on every machine."""

from __future__ import annotations

import collections
import json

import pytest

from pemt.errors import DataError
from pemt.tasks.hub import HubRead
from pemt.tasks.rows import Example, load_examples
from pemt.tasks.splits import load_splits, official_splits
from pemt.tasks.task import Task, task_names
from pemt.training.adapting import target_rows
from tests.tasks.builders import make_examples, make_task, real_splits

FROZEN_TEST_IDS = ["all:1", "all:10", "all:13", "all:16"]

OFFLINE = [name for name in task_names() if Task.named(name).rows.wheel]

WHEEL_SIZES = {
    "boolq": (9427, 1635, 1635),
    "film_reviews": (7070, 1000, 2000),
    "question_types": (3767, 538, 1076),
    "sarcasm": (25498, 1000, 2000),
    "sms_spam": (3620, 517, 1034),
}


def ids(splits):
    return [{e.id for e in part} for part in (splits.train, splits.validation, splits.test)]


def disjoint(splits):
    train, validation, test = ids(splits)
    return not (train & validation or train & test or validation & test)


def by_rule(tmp_path, rule, **raw):
    return official_splits(make_task(tmp_path, split={"rule": rule}), raw)


def test_halves(tmp_path):
    raw = {"train": make_examples(10), "validation": make_examples(277, "validation")}
    splits = by_rule(tmp_path, "halve_validation", **raw)
    assert splits.sizes == {"train": 10, "validation": 138, "test": 139}
    assert disjoint(splits)
    assert ids(splits)[1] != {e.id for e in raw["validation"][:138]}, "not shuffled"


def test_hold_out(tmp_path):
    raw = {"train": make_examples(6000), "validation": make_examples(30, "validation")}
    splits = by_rule(tmp_path, "hold_out_1000", **raw)
    assert splits.sizes == {"train": 5000, "validation": 1000, "test": 30}
    assert disjoint(splits)
    assert splits.test == raw["validation"]
    raw["train"] = raw["train"][:1000]
    assert by_rule(tmp_path, "hold_out_1000", **raw).sizes["validation"] == 200


def test_mnli_and_own(tmp_path):
    train, matched = make_examples(4), make_examples(3, "validation")
    mismatched, test = make_examples(2, "validation_mismatched"), make_examples(5, "test")
    parts = {"train": train, "validation": matched, "validation_mismatched": mismatched}
    splits = by_rule(tmp_path, "mnli", **parts)
    assert (splits.validation, splits.test) == (mismatched, matched)
    splits = by_rule(tmp_path, "own", train=train, validation=matched, test=test)
    assert (splits.train, splits.validation, splits.test) == (train, matched, test)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (("train",), (70, 10, 20)),
        (("train", "test"), (90, 10, 100)),
        (("train", "validation"), (100, 50, 50)),
        (("train", "validation", "test"), (100, 100, 100)),
    ],
)
def test_auto_fills_what_a_user_did_not_give(tmp_path, given, sizes):
    splits = by_rule(tmp_path, "auto", **{split: make_examples(100, split) for split in given})
    assert tuple(splits.sizes.values()) == sizes
    assert disjoint(splits)


def test_a_missing_or_empty_split_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no 'validation' rows"):
        by_rule(tmp_path, "halve_validation", train=make_examples(4))
    with pytest.raises(DataError, match="validation split is empty"):
        by_rule(tmp_path, "auto", train=make_examples(3))


def test_splits_do_not_depend_on_row_order_or_ids(tmp_path):
    rows = make_examples(200, "all")
    renamed = [Example(f"x:{i}", e.text, e.label, e.target) for i, e in enumerate(reversed(rows))]
    first = by_rule(tmp_path, "random", all=rows)
    second = by_rule(tmp_path, "random", all=renamed)
    assert {e.text for e in first.test} == {e.text for e in second.test}
    assert [e.text for e in first.train] == [e.text for e in reversed(second.train)]


def test_a_split_is_the_same_for_ever(tmp_path):
    # Written down: a change here changes every published result.
    splits = by_rule(tmp_path, "random", all=make_examples(20, "all"))
    assert [e.id for e in splits.test] == FROZEN_TEST_IDS


def test_equal_texts_and_groups_stay_on_one_side(tmp_path):
    rows = [
        Example(f"all:{i}", f"{'Same  TEXT' if i % 2 else 'same text'} {i % 40}", 0, "bad", group)
        for i, group in enumerate(["", "g1", "g2", "g3"] * 50)
    ]
    splits = by_rule(tmp_path, "random", all=rows)
    side = collections.defaultdict(set)
    for name, part in (("a", splits.train), ("b", splits.validation), ("c", splits.test)):
        for e in part:
            side["text", " ".join(e.text.lower().split())].add(name)
            if e.group:
                side["group", e.group].add(name)
    assert all(len(names) == 1 for names in side.values())


@pytest.mark.offline_assets
@pytest.mark.parametrize("name", OFFLINE)
def test_offline_tasks(name):
    task, splits = Task.named(name), real_splits(name)
    if name in WHEEL_SIZES:
        assert tuple(splits.sizes.values()) == WHEEL_SIZES[name]
    assert disjoint(splits)
    if task.split.rule == "random":
        texts = [{e.text for e in p} for p in (splits.train, splits.validation, splits.test)]
        assert not texts[0] & texts[2]
        assert not texts[0] & texts[1]
        assert not texts[1] & texts[2]
        groups = [{e.group for e in p} - {""} for p in (splits.train, splits.test)]
        assert not groups[0] & groups[1]
    counts = collections.Counter(e.target for e in splits.train)
    assert set(counts) == set(task.labels)
    assert min(counts.values()) >= 16
    assert {e.target for e in splits.test} == set(task.labels)
    assert not any("\r" in e.text or "&amp;" in e.text for e in splits.test)


@pytest.mark.offline_assets
def test_the_wheel_gives_boolq_s_official_validation_rows():
    splits = real_splits("boolq")
    counts = collections.Counter(e.target for e in [*splits.validation, *splits.test])
    assert counts == {"False": 1237, "True": 2033}


@pytest.mark.offline_assets
def test_the_sms_collection_is_restored():
    from pemt.tasks.wheels import read_wheel

    spec = Task.named("sms_spam").rows.wheel
    real_splits("sms_spam")
    rows = read_wheel(spec)["all"]
    assert collections.Counter(row["label"] for _, row in rows) == {"ham": 4827, "spam": 747}


def test_a_record_names_the_place_but_no_path(tmp_path):
    """What a run or an expert says about its rows travels with it."""
    rows = "\n".join(json.dumps({"text": f"t{i}", "label": i % 2}) for i in range(40))
    (tmp_path / "mine.jsonl").write_text(rows, encoding="utf-8")
    task = make_task(tmp_path, rows={"files": {"train": "mine.jsonl"}})
    splits = load_splits(task)
    assert splits.origin == f"files {tmp_path.name}"
    assert splits.sizes == official_splits(task, load_examples(task)).sizes
    drawn = target_rows(task, shots=2, data_seed=0)
    assert drawn.manifest["origin"] == splits.origin
    assert target_rows(task, shots=None, data_seed=0).manifest["origin"] == splits.origin


def test_a_hub_set_is_recorded_with_its_commit(tmp_path, monkeypatch):
    read = HubRead({"train": [(i, {"text": f"t{i}", "label": i % 2}) for i in range(40)]}, "c0ffee",
                   ("it came from the converted branch",))  # fmt: skip
    asked = {}

    def fake(hub, splits, *, limit=None):
        asked.update(hub=hub.path, splits=splits, limit=limit)
        return read

    monkeypatch.setattr("pemt.tasks.rows.read_hub", fake)
    hub = {"path": "someone/set", "splits": {"train": "train"}}
    task = make_task(tmp_path, rows={"hub": hub})
    assert load_splits(task).origin == (
        "hub someone/set at c0ffee; it came from the converted branch"
    )
    assert asked["limit"] == {}
    capped = {"rule": "hold_out_1000", "evaluation": "train", "train_cap": 7}
    splits = load_splits(make_task(tmp_path, rows={"hub": hub}, split=capped))
    assert asked["limit"] == {"train": 1007}, "the cap, and what validation takes"
    assert len(splits.train) == 7
