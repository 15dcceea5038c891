"""Cached rows are the uncached rows: what changes them changes the key; a bad file is no file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizer

from pemt import assets
from pemt.errors import ConfigError, DataError, PemtWarning
from pemt.tasks import cache
from pemt.tasks.cache import EncodedRows, encode_cached, key_of, lengths_of, prune
from pemt.tasks.encoding import BATCH, encode, encode_prompts_only
from pemt.tasks.rows import Example
from pemt.training import fitting
from pemt.training.fitting import fit
from tests import tiny
from tests.tasks.builders import WORDS, make_task, make_tokenizer

STYLES = [("t5", "encoder-decoder"), ("llama", "decoder-only"), ("bert", "encoder-only")]
LENGTHS = {"max_source_length": 12, "max_target_length": 4}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of its own, used for any number of rows."""
    monkeypatch.setenv("PEMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cache.LIMIT_VARIABLE, raising=False)
    monkeypatch.setattr(cache, "THRESHOLD", 1)
    monkeypatch.setattr(cache, "_warned", set())
    return tmp_path / "cache" / "encoded"


def examples(count=40, labels=("bad", "good")):
    made = []
    for i in range(count):
        words = [WORDS[(7 * i + j) % len(WORDS)] for j in range(i % 17)]
        made.append(Example(f"train:{i}", " ".join(["text:", *words]), i % 2, labels[i % 2]))
    return made


def files(folder):
    return sorted(folder.glob("*.arrow")) if folder.is_dir() else []


# -- equal to what is not cached -----------------------------------------------------------------


@pytest.mark.parametrize(("style", "family"), STYLES)
def test_cached_rows_are_the_uncached_rows(tmp_path, folder, monkeypatch, style, family):
    monkeypatch.setattr(cache, "BATCH", 7)  # many batches, the last one short
    task, tokenizer = make_task(tmp_path), make_tokenizer(style)
    plain = encode(examples(), task, tokenizer, family, **LENGTHS)
    for _ in ("written", "read"):
        rows = encode_cached(examples(), task, tokenizer, family, **LENGTHS)
        assert isinstance(rows, EncodedRows)
        assert list(rows) == plain
        assert [type(row["labels"]) for row in rows] == [type(row["labels"]) for row in plain]
        assert rows[3:9] == plain[3:9]
        assert rows[-1] == plain[-1]
        assert rows[np.int64(2)] == plain[2]
        assert rows.lengths.tolist() == [len(row["input_ids"]) for row in plain]
        assert lengths_of(rows).tolist() == lengths_of(plain).tolist()
        with pytest.raises(IndexError, match="row 40 of 40"):
            rows[40]
    assert len(files(folder)) == 1
    prompts = encode_cached(examples(), task, tokenizer, family, **LENGTHS, prompts_only=True)
    assert list(prompts) == encode_prompts_only(examples(), task, tokenizer, family, **LENGTHS)
    assert len(files(folder)) == 2
    assert list(pickle.loads(pickle.dumps(prompts))) == list(prompts)


def test_scores_and_free_text(tmp_path):
    score = make_task(
        tmp_path, kind="regression", labels=[], metrics=["pearson"], score_range=[0, 5]
    )
    rows = [replace(e, label=i / 7, target=f"{i / 7:.1f}") for i, e in enumerate(examples(9))]
    tokenizer = make_tokenizer("bert")
    plain = encode(rows, score, tokenizer, "encoder-only")
    for _ in ("written", "read"):
        cached = list(encode_cached(rows, score, tokenizer, "encoder-only"))
        assert cached == plain
        assert all(isinstance(row["labels"], float) for row in cached)
    free = make_task(tmp_path, kind="generation", labels=[], metrics=["exact_match"])
    rows = [replace(e, label=None, target=e.text) for e in examples(9)]
    gpt = make_tokenizer("gpt")
    for _ in ("written", "read"):
        assert list(encode_cached(rows, free, gpt, "decoder-only")) == encode(
            rows, free, gpt, "decoder-only"
        )


def test_rows_are_read_only_and_fresh(tmp_path):
    rows = encode_cached(examples(), make_task(tmp_path), make_tokenizer("t5"), "encoder-decoder")
    before = rows[4]["input_ids"]
    rows[4]["input_ids"].append(99)
    assert rows[4]["input_ids"] == before
    with pytest.raises(TypeError):
        rows[4] = {}
    with pytest.raises(ValueError, match="read-only"):
        rows._columns["input_ids"][1][0] = 5


def test_errors_are_those_of_encode_also_where_the_rows_are_cached(tmp_path, folder):
    task, tokenizer = make_task(tmp_path), make_tokenizer("bert")
    fits = {"max_source_length": 100, "prompt_length": 28, "max_positions": 128}
    assert len(encode_cached(examples(), task, tokenizer, "encoder-only", **fits)) == 40
    with pytest.raises(ConfigError, match="a prompt of 29 is 129 positions"):
        encode_cached(examples(), task, tokenizer, "encoder-only", **{**fits, "prompt_length": 29})
    unlabelled = [*examples(), Example("train:x", "text: one", None, "good")]
    with pytest.raises(DataError, match=r"train:x .* has no label"):
        encode_cached(unlabelled, task, tokenizer, "encoder-only")
    assert len(files(folder)) == 1
    assert [p for p in folder.iterdir() if p.suffix != ".arrow"] == []


# -- the key -------------------------------------------------------------------------------------


def test_everything_that_decides_the_rows_changes_the_key(tmp_path, monkeypatch):
    task, rows = make_task(tmp_path), examples()

    def key(*, task=task, rows=rows, tokenizer=None, family="decoder-only", **changes):
        tokenizer = tokenizer or make_tokenizer("gpt")
        return key_of(rows, task, tokenizer, family, **{**LENGTHS, **changes})

    llama, longer, cut = make_tokenizer("llama"), make_tokenizer("gpt"), make_tokenizer("gpt")
    longer.add_tokens(["new"])
    cut.truncation_side = "left"
    framed = make_tokenizer("gpt")  # the same vocabulary, another frame
    framed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", framed.eos_token_id)]
    )
    keys = {
        "as it is": key(),
        "task version": key(task=replace(task, version=2)),
        "task name": key(task=replace(task, name="other")),
        "template": key(task=replace(task, template="text:  {text}")),
        "row text": key(rows=[*rows[:-1], replace(rows[-1], text="text: one!")]),
        "row label": key(rows=[*rows[:-1], replace(rows[-1], label=0)]),
        "row target": key(rows=[*rows[:-1], replace(rows[-1], target="bad")]),
        "row type": key(rows=[replace(rows[0], label=0.0), *rows[1:]]),
        "row order": key(rows=rows[::-1]),
        "one row less": key(rows=rows[:-1]),
        "text into target": key(rows=[*rows[:-1], replace(rows[-1], text="text: o", target="x")]),
        "target into text": key(rows=[*rows[:-1], replace(rows[-1], text="text: ", target="ox")]),
        "tokenizer": key(tokenizer=llama),
        "added token": key(tokenizer=longer),
        "truncation side": key(tokenizer=cut),
        "post-processor": key(tokenizer=framed),
        "family": key(family="encoder-decoder"),
        "source length": key(max_source_length=13),
        "target length": key(max_target_length=5),
        "prompts": key(prompts_only=True),
    }
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    keys["format"] = key()
    monkeypatch.undo()
    monkeypatch.setattr(cache.metadata, "version", lambda name: "0")
    keys["libraries"] = key()
    assert len(set(keys.values())) == len(keys), keys


def test_what_does_not_decide_the_rows_keeps_the_key(tmp_path):
    task, tokenizer = make_task(tmp_path), make_tokenizer("gpt")
    before = key_of(examples(), task, tokenizer, "decoder-only", **LENGTHS)
    tokenizer(["one"], truncation=True, max_length=5)  # leaves its truncation behind
    tokenizer.pad_token = tokenizer.eos_token
    renamed = [replace(e, id=f"other:{i}") for i, e in enumerate(examples())]
    assert key_of(renamed, task, tokenizer, "decoder-only", **LENGTHS) == before
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = type(tokenizer).from_pretrained(tmp_path / "saved")
    assert key_of(examples(), task, saved, "decoder-only", **LENGTHS) == before


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python, whose rules no digest can state."""

    vocab_size = 300

    def get_vocab(self):
        return {chr(i): i for i in range(300)}

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)


def test_a_tokenizer_that_cannot_state_its_rules_is_not_cached(tmp_path, folder):
    tokenizer, task = Slow(eos_token="x"), make_task(tmp_path)
    assert key_of(examples(), task, tokenizer, "decoder-only", **LENGTHS) is None
    rows = encode_cached(examples(), task, tokenizer, "decoder-only")
    assert rows == encode(examples(), task, tokenizer, "decoder-only")
    assert files(folder) == []


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "half", "tail", "flipped", "foreign", "garbage"])
def test_a_damaged_file_is_rebuilt_and_never_read(tmp_path, folder, damage):
    task, tokenizer = make_task(tmp_path), make_tokenizer("bert")

    def rows(made=None):
        return list(encode_cached(made or examples(), task, tokenizer, "encoder-only"))

    wanted = rows()
    (path,) = files(folder)
    whole = path.read_bytes()
    middle = bytearray(whole)
    start = whole.index(np.array(wanted[-1]["input_ids"], dtype=np.int32).tobytes())
    middle[start] ^= 1
    if damage == "foreign":  # the rows of another set under this name
        rows(examples()[::-1])
        (other,) = set(files(folder)) - {path}
        content = other.read_bytes()
    else:
        content = {
            "empty": b"", "half": whole[: len(whole) // 2], "tail": whole[:-1],
            "flipped": bytes(middle), "garbage": b"ARROW1" + bytes(500) + b"ARROW1",
        }[damage]  # fmt: skip
    path.unlink()
    path.write_bytes(content)
    assert rows() == wanted
    assert path.read_bytes() == whole


def _encode_in_process(arguments):
    folder, task, start = arguments
    cache.THRESHOLD = 1
    while time.time() < start:
        time.sleep(0.001)
    made = encode_cached(
        examples(400), task, make_tokenizer("t5"), "encoder-decoder", folder=folder
    )
    return list(made)


def test_two_processes_at_once(tmp_path, folder):
    task = make_task(tmp_path)
    wanted = encode(examples(400), task, make_tokenizer("t5"), "encoder-decoder")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        both = pool.map(_encode_in_process, [(folder, task, time.time() + 0.2)] * 2, chunksize=1)
    assert both == [wanted, wanted]
    assert len(files(folder)) == 1
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, folder):
    task, tokenizer = make_task(tmp_path), make_tokenizer("t5")
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    wanted = encode(examples(), task, tokenizer, "encoder-decoder")
    with pytest.warns(PemtWarning, match=r"not kept: .*encoded cannot be written.*PEMT_CACHE"):
        rows = encode_cached(examples(), task, tokenizer, "encoder-decoder")
    assert list(rows) == wanted
    again = encode_cached(examples(), task, tokenizer, "encoder-decoder")  # a warning is an error
    assert list(again) == wanted


def test_a_full_disk_leaves_nothing_behind(tmp_path, folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.warns(PemtWarning, match="No space left"):
        rows = encode_cached(
            examples(), make_task(tmp_path), make_tokenizer("t5"), "encoder-decoder"
        )
    assert len(rows) == 40
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_files_are_their_owner_s_alone(tmp_path, folder):
    encode_cached(examples(), make_task(tmp_path), make_tokenizer("t5"), "encoder-decoder")
    assert files(folder)[0].stat().st_mode & 0o077 == 0


def test_the_folder_is_bounded_and_keeps_what_was_used_last(tmp_path, folder, monkeypatch):
    task, tokenizer = make_task(tmp_path), make_tokenizer("t5")

    def rows(count):
        return encode_cached(examples(count), task, tokenizer, "encoder-decoder")

    paths = {}
    for age, count in enumerate((30, 31, 32)):
        before = set(files(folder))
        rows(count)
        (paths[count],) = set(files(folder)) - before
        os.utime(paths[count], (1000 + age, 1000 + age))
    rows(30)  # used again: now the youngest
    size = max(path.stat().st_size for path in paths.values())
    monkeypatch.setenv(cache.LIMIT_VARIABLE, str(2.5 * size / 1e9))
    rows(33)
    assert paths[30].exists()
    assert not paths[31].exists()
    assert not paths[32].exists()
    assert len(files(folder)) == 2
    monkeypatch.setenv(cache.LIMIT_VARIABLE, str(100 / 1e9))
    assert len(rows(34)) == 34  # larger than the bound: not kept, and nothing makes room for it
    assert len(files(folder)) == 2


def test_what_a_killed_run_left_is_removed_after_a_day(folder):
    folder.mkdir(parents=True)
    old, new = folder / ".old.part", folder / ".new.part"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 100_000,) * 2)
    prune(folder, 1e9)
    assert (old.exists(), new.exists()) == (False, True)


def test_few_rows_and_a_cache_that_is_off_do_not_touch_the_disk(tmp_path, folder, monkeypatch):
    task, tokenizer = make_task(tmp_path), make_tokenizer("t5")
    wanted = encode(examples(), task, tokenizer, "encoder-decoder")
    monkeypatch.setattr(cache, "THRESHOLD", 41)
    assert encode_cached(examples(), task, tokenizer, "encoder-decoder") == wanted
    assert encode_cached([], task, tokenizer, "encoder-decoder") == []
    monkeypatch.setattr(cache, "THRESHOLD", 40)
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "0")
    assert encode_cached(examples(), task, tokenizer, "encoder-decoder") == wanted
    assert not folder.exists()
    for wrong in ("off", "-1", "nan"):
        monkeypatch.setenv(cache.LIMIT_VARIABLE, wrong)
        with pytest.raises(ConfigError, match=f"{wrong}.*\n.*0 to switch it off"):
            encode_cached(examples(), task, tokenizer, "encoder-decoder")


def test_another_folder_can_be_named(tmp_path, folder):
    task, tokenizer = make_task(tmp_path), make_tokenizer("t5")
    encode_cached(examples(), task, tokenizer, "encoder-decoder", folder=tmp_path / "other")
    assert len(files(tmp_path / "other")) == 1
    assert not folder.exists()
    assert folder == assets.cache_dir() / "encoded"


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_training_from_the_cache_gives_the_same_model_bit_for_bit(
    tmp_path, folder, monkeypatch, name
):
    task = tiny.task(tmp_path, count=200)
    few = tiny.splits(task)
    seen = []
    keep = fitting.encode_cached
    monkeypatch.setattr(
        fitting, "encode_cached", lambda *a, **k: seen.append(keep(*a, **k)) or seen[-1]
    )

    def run():
        base = tiny.loaded(name)
        base.model.config.num_labels = 2
        model = tiny.pemt(base.model, prompt_dropout=0.2)
        fit(model, task, base.tokenizer, few.train, few.validation, tiny.settings(), progress=False)
        return model.trained_state()

    monkeypatch.setenv(cache.LIMIT_VARIABLE, "0")
    plain = run()
    monkeypatch.delenv(cache.LIMIT_VARIABLE)
    written, read = run(), run()
    assert [isinstance(rows, EncodedRows) for rows in seen] == [False, True, True]
    assert len(files(folder)) == 2  # training rows and validation prompts
    for other in (written, read):
        assert plain.keys() == other.keys()
        assert all(torch.equal(plain[key], other[key]) for key in plain)


def test_batches_of_the_tokenizer_do_not_change_the_rows(tmp_path, monkeypatch):
    many = [replace(e, id=str(i)) for i, e in enumerate(examples(60))]
    task, tokenizer = make_task(tmp_path), make_tokenizer("llama")
    assert len(many) < BATCH
    whole = encode(many, task, tokenizer, "decoder-only", **LENGTHS)
    monkeypatch.setattr("pemt.tasks.encoding.BATCH", 7)
    assert encode(many, task, tokenizer, "decoder-only", **LENGTHS) == whole
