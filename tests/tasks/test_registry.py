"""The registry: formats and sizes of METHOD.md, real rows, and the page that lists the tasks."""

from __future__ import annotations

import collections
import functools
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from pemt import assets
from pemt.errors import AssetError, DataError
from pemt.tasks.definition import METRICS
from pemt.tasks.fewshot import draw
from pemt.tasks.rows import load_examples, locate
from pemt.tasks.splits import Splits, official_splits
from pemt.tasks.task import Task, task_names
from tests.tasks.builders import mirror

DOCS = Path(__file__).parents[2] / "docs"

# METHOD.md, "Text formats"; a column is written ".."
NLI = "premise: .. hypothesis: .."
PAIR = "sentence1: .. sentence2: .."
READING = "question: .. context: .."
FORMATS = {
    "mnli": (NLI, "entailment neutral contradiction"),
    "qnli": ("question: .. sentence: ..", "entailment not_entailment"),
    "qqp": ("question1: .. question2: ..", "not_duplicate duplicate"),
    "sst2": ("sentence: ..", "negative positive"),
    "cola": ("sentence: ..", "unacceptable acceptable"),
    "mrpc": (PAIR, "not_equivalent equivalent"),
    "stsb": (PAIR, ""),
    "rte": (PAIR, "entailment not_entailment"),
    "cb": (NLI, "entailment contradiction neutral"),
    "wic": ("sentence1: .. sentence2: .. word: ..", "False True"),
    "wsc": ("text: ..", "False True"),
    "boolq": ("question: .. passage: ..", "False True"),
    "multirc": ("question: .. answer: .. paragraph: ..", "False True"),
    "record": ("record query: .. entities: .. passage: ..", ""),
    "squad": (READING, ""),
    "nq": (READING, ""),
    "hotpotqa": (READING, ""),
    "searchqa": (READING, ""),
    "newsqa": (READING, ""),
    "scitail": (NLI, "entailment neutral"),
    "winogrande": ("sentence: .. option1: .. option2: ..", "1 2"),
    "paws": (PAIR, "0 1"),
    "yelp_polarity": ("sentence: ..", "0 1"),
}

# METHOD.md, "Splits"; squad and record are not in its list
PAPER_SIZES = {
    "mnli": (392_702, 9_832, 9_815),
    "qqp": (362_846, 1_000, 40_431),
    "qnli": (103_743, 1_000, 5_463),
    "sst2": (66_349, 1_000, 872),
    "stsb": (5_749, 750, 750),
    "mrpc": (3_668, 204, 204),
    "rte": (2_490, 138, 139),
    "cola": (8_551, 521, 522),
    "multirc": (27_243, 2_424, 2_424),
    "boolq": (9_427, 1_635, 1_635),
    "wic": (5_428, 319, 319),
    "wsc": (554, 52, 52),
    "cb": (250, 28, 28),
    "nq": (103_071, 1_000, 12_836),
    "hotpotqa": (71_928, 1_000, 5_901),
    "searchqa": (116_384, 1_000, 16_980),
    "newsqa": (73_160, 1_000, 4_212),
    "winogrande": (39_398, 1_000, 1_267),
    "yelp_polarity": (100_000, 1_000, 38_000),
    "scitail": (23_596, 652, 652),
    "paws": (49_401, 8_000, 8_000),
}
SIZES = {
    **PAPER_SIZES,
    # the Hub serves one validation row fewer than the paper counted
    "qqp": (362_846, 1_000, 40_430),
    "squad": (86_599, 1_000, 10_570),
    "record": (99_730, 1_000, 10_000),
}

COMPLETE = ("rte", "cb", "mrpc", "cola", "stsb", "wic", "wsc", "multirc", "boolq")
PARTIAL = {
    "mnli": (20_000, 1_000, 9_815),
    "qnli": (17_869, 1_000, 5_463),
    "qqp": (19_000, 1_000, 8_404),
    "sst2": (19_000, 1_000, 872),
    "squad": (19_000, 1_000, 10_570),
    "record": (52, 12, 123),
    "winogrande": (9_234, 1_000, 1_267),
    "yelp_polarity": (943, 235, 199),
    "paws": (358, 8_000, 8_000),
    "snli": (19_000, 1_000, 996),
    "subj": (7_000, 1_000, 2_000),
    "ag_news": (3_200, 800, 7_600),
    "imdb": (1_965, 491, 199),
    "rotten_tomatoes": (8_530, 1_066, 1_066),
}
WHEEL_TASKS = [name for name in task_names() if Task.named(name).rows.wheel]
AT_HAND = sorted({*COMPLETE, *PARTIAL, *WHEEL_TASKS})

# rows as the Hub serves them, in our words
ROWS = {
    "wsc": (
        {
            "text": "Ann told Joan that she had lost her key.",
            "span1_text": "Ann",
            "span1_index": 0,
            "span2_text": "she",
            "span2_index": 4,
            "label": 1,
        },
        "text: * Ann * told Joan that # she # had lost her key.",
        "True",
    ),
    "winogrande": (
        {
            "sentence": "The lid did not fit the pot: the _ was too wide.",
            "option1": "lid",
            "option2": "pot",
            "answer": "1",
        },
        "sentence: The lid did not fit the pot: the _ was too wide. option1: lid option2: pot",
        "lid",
    ),
    "record": (
        {
            "query": "@placeholder won the cup.",
            "entities": ["Ada", "Rome"],
            "passage": "Ada raced in Rome\n@highlight\nShe came first",
            "answers": ["Ada"],
        },
        "record query: @placeholder won the cup. entities: Ada, Rome "
        "passage: Ada raced in Rome. She came first",
        "Ada",
    ),
    "multirc": (
        {
            "question": "Who ran?",
            "answer": "the dog",
            "paragraph": "<b>Sent 1: </b>The dog ran.<br>",
            "idx": {"paragraph": 0, "question": 0, "answer": 0},
            "label": 1,
        },
        "question: Who ran? answer: the dog paragraph: Sent 1: The dog ran.",
        "True",
    ),
    "squad": (
        {
            "question": "Who?",
            "context": "Ada did.",
            "answers": {"text": ["Ada", "Ada did"], "answer_start": [0, 0]},
        },
        "question: Who? context: Ada did.",
        "Ada",
    ),
    "newsqa": (
        {"question": "Who?", "context": "Ada did.", "answers": ["Ada"], "subset": "NewsQA"},
        "question: Who? context: Ada did.",
        "Ada",
    ),
    "scitail": (
        {"sentence1": "Ice is cold.", "sentence2": "Ice melts.", "gold_label": "neutral"},
        "premise: Ice is cold. hypothesis: Ice melts.",
        "neutral",
    ),
    "paws-named": (
        {"id": 1, "sentence1": "A to B .", "sentence2": "B to A .", "label": 0},
        "sentence1: A to B . sentence2: B to A .",
        "different",
    ),
    "copa": (
        {"premise": "It rained.", "question": "effect", "choice1": "Wet.", "choice2": "Dry.",
         "label": 0},
        "premise: It rained. question: effect choice1: Wet. choice2: Dry.",
        "choice1",
    ),
    "commonsenseqa": (
        {"question": "Where do boats go?", "options": "\nA. sea\nB. sky", "choice": "A"},
        "question: Where do boats go? options: A. sea B. sky",
        "A",
    ),
    "trec": (
        {"text": "Who am I ?", "coarse_label": 3, "fine_label": 30},
        "question: Who am I ?",
        "human",
    ),
    "sick": (
        {"sentence_A": "A man runs", "sentence_B": "A man moves", "label": 0},
        "premise: A man runs hypothesis: A man moves",
        "entailment",
    ),
}  # fmt: skip


@functools.cache
def make_tasks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tasks", DOCS / "make_tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def splits_of(name: str) -> Splits:
    """A task's splits from the mirror or its wheel, read once."""
    task = Task.named(name)
    folder = None if name in WHEEL_TASKS else mirror()
    try:
        return official_splits(task, load_examples(task, data_dir=folder))
    except AssetError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("name", task_names())
def test_every_task_is_complete(name):
    task = Task.named(name)
    assert task.name == name
    assert task.version >= 1
    assert task.licence
    assert task.citation
    assert set(task.metrics) <= set(METRICS[task.kind])
    assert json.loads(json.dumps(task.to_dict()))["name"] == name
    assert task.rows.mirror or task.rows.wheel or task.rows.hub
    assert task.split.rule != "auto"
    one = task.description
    assert one.startswith("Given ")
    assert "the task is to " in one
    assert one.endswith(".")
    assert not re.search(r"[.?!]\s", one), "more than one sentence"


def test_descriptions_differ():
    descriptions = [Task.named(name).description for name in task_names()]
    assert len(set(descriptions)) == len(descriptions) >= 59


def test_the_paper_s_tasks_are_there():
    page = make_tasks()
    assert {*page.SOURCES, *page.TARGETS} == set(FORMATS)
    assert len(page.SOURCES) == 6
    assert len(page.TARGETS) == 17


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_the_paper_s(name):
    task = Task.named(name)
    template, labels = FORMATS[name]
    assert re.sub(r"\{\w+\}", "..", task.template) == template
    assert " ".join(task.labels) == labels


@pytest.mark.parametrize("name", ROWS)
def test_rows_read_as_they_should(name):
    task = Task.named(name)
    row, text, target = ROWS[name]
    assert task.render(row) == text
    assert task.answer(task.label_of(row), task.options_of(row)) == target


@pytest.mark.parametrize("name", ["paws", "yelp_polarity"])
def test_named_words_replace_the_paper_s(name):
    plain, named = Task.named(name), Task.named(f"{name}-named")
    assert named.labels == plain.label_variants["named"]
    assert all(word in named.description for word in named.labels)
    assert not re.search(r"\b[01]\b", named.description)
    assert named.label_of({"label": 1}) == 1


@pytest.mark.offline_assets
def test_label_words_are_distinct_for_smollm2():
    from transformers import AutoTokenizer

    try:
        folder = assets.base_path("smollm2")
    except AssetError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=assets.base_gguf("smollm2"))
    for name in task_names():
        task = Task.named(name)
        for words in (task.labels, *task.label_variants.values()):
            ids = [tuple(tokenizer(word)["input_ids"]) for word in words]
            assert all(ids), name
            clash = [(a, b) for a in ids for b in ids if a is not b and b[: len(a)] == a]
            assert not clash, f"{name}: a label word is another's beginning"


@pytest.mark.parametrize("name", SIZES)
def test_official_rows_give_the_paper_s_sizes(name):
    sizes = make_tasks().official_sizes(name)
    assert tuple(sizes.values()) == SIZES[name]


@pytest.mark.mirror
@pytest.mark.parametrize("name", COMPLETE)
def test_the_paper_s_sizes_from_real_rows(name):
    assert tuple(splits_of(name).sizes.values()) == PAPER_SIZES[name]


@pytest.mark.mirror
@pytest.mark.parametrize("name", PARTIAL)
def test_a_partial_mirror_loads(name):
    assert tuple(splits_of(name).sizes.values()) == PARTIAL[name]


@pytest.mark.mirror
def test_no_multirc_question_is_on_two_sides():
    splits = splits_of("multirc")
    sides = [{e.group for e in part} for part in (splits.validation, splits.test)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 953


@pytest.mark.mirror
@pytest.mark.offline_assets
@pytest.mark.parametrize("name", AT_HAND)
def test_real_rows(name):
    task, splits = Task.named(name), splits_of(name)
    parts = (splits.train, splits.validation, splits.test)
    assert len({e.id for part in parts for e in part}) == sum(map(len, parts))
    lead = task.template.partition("{")[0]
    for part in parts:
        assert all(e.text.startswith(lead) and e.target for e in part)
        if task.option_columns:
            assert all(e.options[int(e.label)] == e.target for e in part)
        elif task.kind == "classification":
            assert {e.target for e in part} <= set(task.labels)
        elif task.kind == "generation":
            assert all(e.accepted[0] == e.target for e in part)
    counts = collections.Counter(e.label for e in splits.train)
    if task.kind == "classification":
        assert set(counts) == set(range(len(task.labels)))


@pytest.mark.mirror
@pytest.mark.offline_assets
@pytest.mark.parametrize("name", AT_HAND)
def test_draws(name):
    task, splits = Task.named(name), splits_of(name)
    classes = task.kind == "classification"
    texts = {(e.label if classes else 0, e.text) for e in splits.train}
    smallest = min(collections.Counter(label for label, _ in texts).values())
    for shots in (4, 16):
        if smallest < 2 * shots:
            with pytest.raises(DataError, match="distinct training rows") as short:
                draw(splits, task, shots=shots, data_seed=0)
            found = re.search(r"has (\d+) distinct", str(short.value))
            assert smallest <= int(found[1]) < 2 * shots
            continue
        few = draw(splits, task, shots=shots, data_seed=0)
        assert few == draw(splits, task, shots=shots, data_seed=0)
        assert not {e.id for e in few.train} & {e.id for e in few.validation}
        for part in (few.train, few.validation):
            drawn = collections.Counter(e.label if classes else 0 for e in part)
            assert set(drawn.values()) == {shots}
            assert len(drawn) == (len(task.labels) if classes else 1)


@pytest.mark.offline_assets
def test_draws_of_a_wheel_task_are_the_same_for_ever():
    # Written down: a change here changes every published result.
    few = draw(splits_of("siqa"), Task.named("siqa"), shots=2, data_seed=0)
    assert few.manifest["train_ids"] == [f"all:{i}" for i in (1543, 1160, 1916, 1596, 1191, 991)]


@pytest.mark.mirror
def test_draws_of_a_mirror_task_are_the_same_for_ever():
    few = draw(splits_of("winogrande"), Task.named("winogrande"), shots=2, data_seed=0)
    assert few.manifest["train_ids"] == [f"train:{i}" for i in (8398, 406, 1814, 2026)]


def test_what_is_only_on_the_hub_says_so():
    for name in sorted(set(task_names()) - set(WHEEL_TASKS)):
        task = Task.named(name)
        assert task.rows.hub is not None
        without = Path(__file__).parent  # a mirror without this task
        origin = locate(task, data_dir=without)
        assert (origin.kind, origin.at_hand) == ("hub", False)


def test_every_task_is_in_the_docs():
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    missing = [name for name in task_names() if f"| `{name}` |" not in text]
    assert not missing, f"run {make_tasks().COMMAND}: {missing}"
