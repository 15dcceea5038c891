"""Rows of Hub repositories: real reads of folders laid out like one, and what each failure says."""

from __future__ import annotations

import hashlib
import json
import types

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pemt.errors import DataError
from pemt.tasks import hub as hub_module
from pemt.tasks.hub import read_hub
from pemt.tasks.hub_errors import CONVERTED, no_network
from pemt.tasks.rows import load_examples
from pemt.tasks.sources import HubRows
from pemt.tasks.task import Task
from tests.tasks.builders import make_task

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.delenv("PEMT_DATA_DIR", raising=False)
    datasets.disable_progress_bars()


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def numbered(count, split="train"):
    return [{"text": f"{split} {i}", "label": i % 2} for i in range(count)]


@pytest.fixture
def plain(tmp_path):
    """A folder of Parquet files as most repositories have it."""
    write(tmp_path / "plain" / "data" / "train-00000-of-00002.parquet", numbered(1500))
    write(tmp_path / "plain" / "data" / "train-00001-of-00002.parquet", numbered(3, "more"))
    write(tmp_path / "plain" / "data" / "test-00000-of-00001.parquet", numbered(4, "test"))
    return str(tmp_path / "plain")


@pytest.fixture
def converted(tmp_path):
    """A folder laid out as the Hub's converted branch."""
    root = tmp_path / "converted"
    write(root / "mnli" / "train" / "0000.parquet", numbered(5))
    write(root / "mnli" / "train" / "0001.parquet", numbered(2, "second"))
    write(root / "mnli" / "validation_matched" / "0000.parquet", numbered(3, "matched"))
    write(root / "mnli" / "validation_mismatched" / "0000.parquet", numbered(4, "mismatched"))
    write(root / "rte" / "partial-train" / "0000.parquet", numbered(2, "part"))
    return str(root)


# -- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_every_row_in_order_and_numbered_from_one(plain, streaming):
    hub = HubRows(path=plain, splits={"validation": "test"})
    made = read_hub(hub, ["train", "validation"], streaming=streaming)
    assert [row for _, row in made.rows["train"]] == numbered(1500) + numbered(3, "more")
    assert [number for number, _ in made.rows["train"]] == list(range(1, 1504))
    assert [row for _, row in made.rows["validation"]] == numbered(4, "test")
    assert (made.revision, made.notes) == (None, ())


def test_the_converted_layout_keeps_splits_with_a_common_word_apart(converted):
    theirs = {"validation": "validation_matched", "other": "validation_mismatched"}
    hub = HubRows(path=converted, name="mnli", revision=CONVERTED, splits=theirs)
    made = read_hub(hub, ["train", "validation", "other"])
    assert [row for _, row in made.rows["train"]] == numbered(5) + numbered(2, "second")
    assert [row for _, row in made.rows["validation"]] == numbered(3, "matched")
    assert [row for _, row in made.rows["other"]] == numbered(4, "mismatched")


def test_splits_are_joined_and_rows_chosen_by_value(plain, converted):
    theirs = {"all": "train+test", "two": "train+validation_matched"}
    both = read_hub(HubRows(path=plain, splits=theirs), ["all"]).rows["all"]
    assert [r for _, r in both] == numbered(1500) + numbered(3, "more") + numbered(4, "test")
    two = HubRows(path=converted, name="mnli", revision=CONVERTED, splits=theirs)
    made = [row for _, row in read_hub(two, ["two"]).rows["two"]]
    assert made == numbered(5) + numbered(2, "second") + numbered(3, "matched")
    some = HubRows(path=plain, splits=theirs, keep={"label": "1"})
    (first, second) = read_hub(some, ["test"]).rows["test"]
    assert (first, second) == ((2, numbered(4, "test")[1]), (4, numbered(4, "test")[3]))
    with pytest.raises(DataError, match=r"has no rows with .*'7'.*\n.*rows.hub.keep"):
        read_hub(HubRows(path=plain, splits={}, keep={"label": "7"}), ["test"])


def test_a_user_s_yaml_can_name_a_data_set(tmp_path, plain):
    rows = {"hub": {"path": plain, "splits": {"train": "train", "test": "test"}}}
    task = make_task(tmp_path, rows=rows, split={"rule": "halve_validation"})
    with pytest.raises(DataError, match=r"no split 'validation'\n.*rows.hub.splits: test, train"):
        load_examples(task)
    rows["hub"]["splits"]["validation"] = "test"
    task = make_task(tmp_path, rows=rows, split={"rule": "halve_validation"})
    assert load_examples(task)["validation"][3].text == "text: test 3"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_limit_keeps_the_rows_with_the_smallest_hash_wherever_they_lie(
    tmp_path, plain, streaming
):
    def key(row):
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()

    everything = numbered(1500) + numbered(3, "more")
    smallest = sorted(everything, key=key)[:50]
    hub = HubRows(path=plain, splits={})
    made = read_hub(hub, ["train", "test"], limit={"train": 50}, streaming=streaming)
    kept = made.rows["train"]
    assert [row for _, row in kept] == [row for row in everything if row in smallest]
    assert [everything[number - 1] for number, _ in kept] == [row for _, row in kept]
    assert len(made.rows["test"]) == 4
    write(tmp_path / "turned" / "train.parquet", everything[::-1])
    turned = read_hub(
        HubRows(path=str(tmp_path / "turned"), splits={}), ["train"], limit={"train": 50}
    )
    assert [row for _, row in turned.rows["train"]][::-1] == [row for _, row in kept]
    assert len(read_hub(hub, ["test"], limit={"test": 9}).rows["test"]) == 4
    with pytest.raises(DataError, match="A limit of 0 rows"):
        read_hub(hub, ["test"], limit={"test": 0})


# -- which commit, and scripts -------------------------------------------------------------------


class FakeHub:
    """Answers what the Hub's API would; `load_dataset` calls are recorded."""

    def __init__(self, monkeypatch, branches, loads=None, checksums=None):
        self.asked = []

        def dataset_info(api, path, *, revision=None, timeout=None):
            answer = branches[revision or "main"]
            if isinstance(answer, Exception):
                raise answer
            sha, files = answer
            siblings = [types.SimpleNamespace(rfilename=name) for name in files]
            return types.SimpleNamespace(sha=sha, siblings=siblings)

        def load_dataset(path, name=None, **options):
            self.asked.append({"path": path, "name": name, **options})
            if loads is not None:
                raise loads
            table = datasets.Dataset.from_list([{"text": "x", "label": 1}])
            table.info.download_checksums = checksums
            return table

        monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def response(error, status):
    """An error as the Hub's client raises it; its response class differs between versions."""
    return error("refused", response=types.SimpleNamespace(
        status_code=status, headers={}, request=None
    ))  # fmt: skip


def test_the_commit_is_fixed_before_reading_and_recorded(monkeypatch):
    fake = FakeHub(monkeypatch, {"main": (COMMIT, ["README.md", "data/train.parquet"])})
    made = read_hub(HubRows(path="a/b", name="c", splits={"train": "t"}), ["train"])
    assert (made.revision, made.notes) == (COMMIT, ())
    assert fake.asked == [
        {"path": "a/b", "name": "c", "split": "t", "revision": COMMIT, "streaming": False}
    ]


def test_a_repository_with_a_script_is_read_from_the_hub_s_conversion_and_says_so(monkeypatch):
    files = ["c/t/0000.parquet", "c/t/0001.parquet", "d/t/0000.parquet", ".gitattributes"]
    branches = {"main": (COMMIT, ["b.py"]), CONVERTED: (OTHER, files)}
    fake = FakeHub(monkeypatch, branches)
    made = read_hub(HubRows(path="a/b", name="c", splits={"train": "t"}), ["train"])
    assert made.revision == OTHER
    (note,) = made.notes
    assert "holds a loading script" in note
    assert OTHER in note
    (asked,) = fake.asked
    assert asked["data_files"] == {"rows": ["c/t/0000.parquet", "c/t/0001.parquet"]}
    assert (asked["revision"], asked["name"]) == (OTHER, None)
    named = read_hub(
        HubRows(path="a/b", name="c", splits={"train": "t"}, revision=CONVERTED), ["train"]
    )
    assert named.notes == ()


def test_a_script_without_a_conversion_is_an_error(monkeypatch):
    missing = response(RevisionNotFoundError, 404)
    FakeHub(monkeypatch, {"main": (COMMIT, ["b.py"]), CONVERTED: missing})
    with pytest.raises(DataError, match=r"loading script.*no conversion"):
        read_hub(HubRows(path="a/b", splits={}), ["train"])
    FakeHub(monkeypatch, {"main": (COMMIT, ["b.py"]), CONVERTED: (OTHER, ["README.md"])})
    with pytest.raises(DataError, match="no Parquet conversion of a/b"):
        read_hub(HubRows(path="a/b", splits={}), ["train"])


def test_without_the_hub_a_copy_is_used_only_if_it_can_be_the_one_asked_for(monkeypatch):
    checksums = {f"hf://datasets/a/b@{COMMIT}/data/train.parquet": {"num_bytes": 1}}
    FakeHub(monkeypatch, {"main": ConnectionError("no route"), COMMIT: ConnectionError(),
                          OTHER: ConnectionError()}, checksums=checksums)  # fmt: skip
    with pytest.raises(DataError, match="the Hub did not answer"):
        read_hub(HubRows(path="a/b", splits={}), ["train"])
    (datasets.config.HF_DATASETS_CACHE / "a___b").mkdir()
    made = read_hub(HubRows(path="a/b", splits={}), ["train"])
    assert made.revision == COMMIT
    assert "own cache" in made.notes[0]
    assert read_hub(HubRows(path="a/b", splits={}, revision=COMMIT), ["train"]).revision == COMMIT
    with pytest.raises(DataError, match=f"is of commit {COMMIT}, not of {OTHER}"):
        read_hub(HubRows(path="a/b", splits={}, revision=OTHER), ["train"])


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ConnectionError("no route"), r"did not answer \(ConnectionError: no route\)\n.*PEMT_DATA"),
        (TimeoutError("late"), r"did not answer"),
        (response(HfHubHTTPError, 503), "did not answer"),
        (response(GatedRepoError, 403), r"gated data set.*\n.*datasets/a/b.*`hf auth login`"),
        (response(RepositoryNotFoundError, 404), r"no data set 'a/b'.*\n.*`hf auth login`"),
        (response(RevisionNotFoundError, 404), r"no revision 'r' on the Hub"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, raised, message):
    FakeHub(monkeypatch, {"r": raised})
    with pytest.raises(DataError, match=message):
        read_hub(HubRows(path="a/b", splits={}, revision="r"), ["train"])


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            ValueError("BuilderConfig 'c' not found. Available: ['x', 'y']"),
            r"a/b c has no configuration 'c'\n.*rows.hub.name: x, y",
        ),
        (
            ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['x']"
            ),
            r"a/b c has no configuration 'c'\n.*: x",
        ),
        (
            ValueError("Unknown split \"t\". Should be one of ['dev', 'train']."),
            r"no split 't'\n.*rows.hub.splits: dev, train",
        ),
        (ValueError("Bad split: t. Available splits: ['dev']"), r"no split 't'\n.*: dev"),
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."), "hf auth login"),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist"), "There is no data set 'a/b'"),
        (RuntimeError("a strange one"), r"split 't' of a/b c.*RuntimeError: a strange one"),
    ],
)
def test_what_datasets_raises(monkeypatch, raised, message):
    FakeHub(monkeypatch, {"main": (COMMIT, ["data/x.parquet"])}, raised)
    with pytest.raises(DataError, match=message):
        read_hub(HubRows(path="a/b", name="c", splits={"train": "t"}), ["train"])


def test_errors_of_the_converted_layout(converted):
    def read(split, name=None):
        hub = HubRows(path=converted, name=name, revision=CONVERTED, splits={})
        read_hub(hub, [split])

    with pytest.raises(DataError, match=r"more than one configuration\n.*: mnli, rte"):
        read("train")
    with pytest.raises(DataError, match=r"no configuration 'cola'\n.*: mnli, rte"):
        read("train", "cola")
    with pytest.raises(
        DataError, match=r"no split 'test'\n.*: train, validation_matched, validation_mis"
    ):
        read("test", "mnli")
    with pytest.raises(DataError, match=r"only the first part of the split 'train'"):
        read("train", "rte")


def test_a_folder_that_is_not_there_or_hides_a_repository(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="does not exist"):
        read_hub(HubRows(path="./none", splits={}), ["train"])
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"also a folder in .*\n.*\./a/b"):
        read_hub(HubRows(path="a/b", splits={}), ["train"])


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match=r"(?s)split 'train' of .*Parquet"):
        read_hub(HubRows(path=str(tmp_path), splits={}), ["train"])


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    def dataset_info(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    with pytest.raises(DataError, match=r"no route\)\n.*PEMT_DATA_DIR"):
        load_examples(Task.named("rte"))


@pytest.mark.hub
def test_a_real_repository_with_a_script():
    try:
        hub_module._listing("aps/super_glue", None)
    except Exception as error:
        if not no_network(error):
            raise
        pytest.skip("the Hub does not answer")
    made = read_hub(HubRows(path="aps/super_glue", name="cb", splits={}), ["train", "validation"])
    assert {split: len(rows) for split, rows in made.rows.items()} == {
        "train": 250,
        "validation": 56,
    }
    assert made.revision is not None
    assert len(made.revision) == 40
    plain = read_hub(HubRows(path="nyu-mll/glue", name="rte", splits={}), ["validation"])
    assert len(plain.rows["validation"]) == 277
