"""Encoding for the three families: where labels start, what is cut, how batches are padded."""

from __future__ import annotations

import pytest
import torch
from tokenizers import normalizers

from pemt.errors import ConfigError, DataError
from pemt.tasks.encoding import Collator, encode, encode_prompts_only, fingerprint, label_word_ids
from pemt.tasks.rows import Example
from tests.tasks.builders import make_task, make_tokenizer

EXAMPLES = [
    Example("train:0", "text: one two three", 0, "bad"),
    Example("train:1", "text: one", 1, "good"),
]
LONG = [Example("train:2", "text: " + " ".join(["six"] * 50), 1, "good")]


@pytest.fixture
def task(tmp_path):
    return make_task(tmp_path)


def words(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_encoder_decoder(task):
    tokenizer = make_tokenizer("t5")
    first, _ = encode(EXAMPLES, task, tokenizer, "encoder-decoder")
    assert words(tokenizer, first["input_ids"]) == "text: one two three </s>"
    assert words(tokenizer, first["labels"]) == "bad </s>"


@pytest.mark.parametrize(("style", "start"), [("gpt", ""), ("llama", "<s> ")])
def test_decoder_only_has_a_loss_on_the_answer_alone(task, style, start):
    tokenizer = make_tokenizer(style)
    first, second = encode(EXAMPLES, task, tokenizer, "decoder-only")
    assert words(tokenizer, first["input_ids"]) == f"{start}text: one two three answer: bad </s>"
    kept = [i for i in first["labels"] if i != -100]
    assert words(tokenizer, kept) == "bad </s>"
    assert first["input_ids"][-2:] == kept
    assert len(first["labels"]) == len(first["input_ids"])
    prompts = encode_prompts_only(EXAMPLES, task, tokenizer, "decoder-only")
    assert prompts[0] == {"input_ids": first["input_ids"][:-2]}
    assert prompts[1]["input_ids"] == second["input_ids"][:-2]


def test_encoder_only(task, tmp_path):
    tokenizer = make_tokenizer("bert")
    first, second = encode(EXAMPLES, task, tokenizer, "encoder-only")
    assert words(tokenizer, first["input_ids"]) == "[CLS] text: one two three [SEP]"
    assert (first["labels"], second["labels"]) == (0, 1)
    score = make_task(tmp_path, kind="regression", labels=[], metrics=["pearson"])
    (row,) = encode([Example("a", "one", 3, "3.0")], score, tokenizer, "encoder-only")
    assert isinstance(row["labels"], float)


def test_truncation_keeps_what_the_model_needs(task):
    t5, gpt, bert = make_tokenizer("t5"), make_tokenizer("llama"), make_tokenizer("bert")
    options = {"max_source_length": 8}
    (row,) = encode(LONG, task, t5, "encoder-decoder", **options)
    assert len(row["input_ids"]) == 8
    assert words(t5, row["input_ids"]).startswith("text: six")
    assert words(t5, row["input_ids"]).endswith("six </s>")
    (row,) = encode_prompts_only(LONG, task, gpt, "decoder-only", **options)
    assert len(row["input_ids"]) == 8
    assert words(gpt, row["input_ids"]).startswith("<s> text: six")
    assert words(gpt, row["input_ids"]).endswith("six answer:")
    (row,) = encode(LONG, task, bert, "encoder-only", **options)
    assert len(row["input_ids"]) == 8
    assert words(bert, row["input_ids"]).endswith("[SEP]")


def test_long_answers_are_cut_and_long_label_words_refused(tmp_path):
    tokenizer = make_tokenizer("gpt")
    answer = make_task(tmp_path, kind="generation", labels=[], metrics=["exact_match"])
    rows = [Example("a", "one", None, "one two three four")]
    (row,) = encode(rows, answer, tokenizer, "decoder-only", max_target_length=3)
    kept = [i for i in row["labels"] if i != -100]
    assert words(tokenizer, kept) == "one two </s>"
    label = make_task(tmp_path, labels=["one two three four", "good"])
    rows = [Example("a", "one", 0, "one two three four")]
    with pytest.raises(ConfigError, match="takes 5 tokens, and max_target_length is 3"):
        encode(rows, label, tokenizer, "decoder-only", max_target_length=3)


def test_positions(task):
    bert, gpt = make_tokenizer("bert"), make_tokenizer("gpt")
    fits = {"max_source_length": 100, "prompt_length": 28, "max_positions": 128}
    assert encode(EXAMPLES, task, bert, "encoder-only", **fits)
    message = r"max_source_length 100 \+ a prompt of 29 is 129 positions, and the base has 128"
    with pytest.raises(ConfigError, match=message):
        encode(EXAMPLES, task, bert, "encoder-only", **{**fits, "prompt_length": 29})
    with pytest.raises(ConfigError, match=r"16 for the answer is 144 .*\n.*at most 84"):
        encode(EXAMPLES, task, gpt, "decoder-only", **fits)


def test_what_cannot_be_encoded(task, tmp_path):
    free = make_task(tmp_path, kind="generation", labels=[], metrics=["exact_match"])
    with pytest.raises(ConfigError, match="an encoder-only base writes none"):
        encode(EXAMPLES, free, make_tokenizer("bert"), "encoder-only")
    with pytest.raises(ConfigError, match="no end token"):
        encode(EXAMPLES, task, make_tokenizer("bert"), "decoder-only")
    with pytest.raises(ConfigError, match="family is 'decoder'"):
        encode(EXAMPLES, task, make_tokenizer("gpt"), "decoder")
    with pytest.raises(ConfigError, match="no room"):
        encode(EXAMPLES, task, make_tokenizer("gpt"), "decoder-only", max_source_length=1)
    assert encode([], task, make_tokenizer("gpt"), "decoder-only") == []


@pytest.mark.parametrize("side", ["right", "left"])
def test_collate_decoder_only(task, side):
    tokenizer = make_tokenizer("gpt")
    assert tokenizer.pad_token_id is None
    rows = encode(EXAMPLES, task, tokenizer, "decoder-only")
    batch = Collator(tokenizer, "decoder-only", side=side)(rows)
    for i, row in enumerate(rows):
        mask = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][mask].tolist() == row["input_ids"]
        assert batch["labels"][i][mask].tolist() == row["labels"]
        assert (batch["labels"][i][~mask] == -100).all()
        assert (batch["input_ids"][i][~mask] == tokenizer.eos_token_id).all()
    assert batch["attention_mask"][1].tolist()[0] == (1 if side == "right" else 0)


def test_collate_encoder_decoder_pads_labels_on_the_right(task):
    tokenizer = make_tokenizer("t5")
    rows = [{"input_ids": [5, 1], "labels": [6, 1]}, {"input_ids": [5, 6, 1], "labels": [1]}]
    batch = Collator(tokenizer, "encoder-decoder", pad_to_multiple_of=8, side="left")(rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 8)
    assert batch["input_ids"][0].tolist() == [0] * 6 + [5, 1]
    assert batch["labels"].tolist() == [[6, 1] + [-100] * 6, [1] + [-100] * 7]


def test_collate_encoder_only_and_without_labels():
    tokenizer = make_tokenizer("bert")
    collate = Collator(tokenizer, "encoder-only")
    batch = collate([{"input_ids": [1, 2], "labels": 1}, {"input_ids": [1], "labels": 0}])
    assert batch["labels"].dtype == torch.long
    assert batch["labels"].tolist() == [1, 0]
    assert collate([{"input_ids": [1], "labels": 2.5}])["labels"].dtype == torch.float32
    assert set(collate([{"input_ids": [1]}])) == {"input_ids", "attention_mask"}
    with pytest.raises(ConfigError, match="'text'"):
        collate([{"input_ids": [1], "text": "x"}])


def test_label_words(task, tmp_path):
    gpt, t5 = make_tokenizer("gpt"), make_tokenizer("t5")
    assert [words(gpt, i) for i in label_word_ids(task, gpt, "decoder-only")] == [
        "bad </s>",
        "good </s>",
    ]
    assert [words(t5, i) for i in label_word_ids(task, t5, "encoder-decoder")] == [
        "bad </s>",
        "good </s>",
    ]
    with pytest.raises(ConfigError, match="no label words"):
        label_word_ids(task, make_tokenizer("bert"), "encoder-only")
    strange = make_task(tmp_path, labels=["good", "schlecht"])
    with pytest.raises(DataError, match=r"'schlecht' .* an unknown token"):
        label_word_ids(strange, gpt, "decoder-only")
    empty = make_task(tmp_path, labels=["good", "~"])
    for tokenizer, family in ((t5, "encoder-decoder"), (gpt, "decoder-only")):
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
        message = r"The label word '~' of task 'tiny' becomes no token .*\n.*choose label words"
        with pytest.raises(DataError, match=message):
            label_word_ids(empty, tokenizer, family)
    same = make_task(tmp_path, labels=["one two", "one  two"])
    with pytest.raises(DataError, match="the same tokens"):
        label_word_ids(same, t5, "encoder-decoder")


def test_fingerprint_is_of_the_vocabulary_and_survives_saving(tmp_path):
    t5 = make_tokenizer("t5")
    t5.save_pretrained(tmp_path)
    assert fingerprint(type(t5).from_pretrained(tmp_path)) == fingerprint(t5)
    assert len({fingerprint(make_tokenizer(s)) for s in ("t5", "gpt", "llama", "bert")}) == 4
    gpt = make_tokenizer("gpt")
    before = fingerprint(gpt)
    gpt.pad_token = gpt.eos_token
    assert fingerprint(gpt) == before
    gpt.add_tokens(["new"])
    assert fingerprint(gpt) != before
