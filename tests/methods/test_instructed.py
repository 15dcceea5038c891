"""Zero-shot and in-context answers: what is read before a text, run once, and calibrated."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch

from pemt.errors import ConfigError, DataError
from pemt.methods import METHODS, Setting, instructed
from pemt.methods.frame import instruction
from pemt.methods.instructed import InstructedModel, in_context, zero_shot
from pemt.model import AdaptedModel, PemtConfig
from pemt.tasks import Example
from pemt.tasks.encoding import CUE, Collator, encode_prompts_only, label_word_ids
from pemt.training import adapt, evaluate
from pemt.training.evaluating import predict
from tests import tiny

DECODERS = pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])


def setting(folder, name="llama", kind="classification", **changes):
    task = tiny.task(folder, kind=kind)
    drawn = tiny.splits(task)
    return Setting(
        **{
            "base": tiny.loaded(name), "task": task, "experts": [], "train": drawn.train,
            "validation": drawn.validation, "config": PemtConfig(), "max_source_length": 24,
            **changes,
        }
    )  # fmt: skip


def texts(given, *, rows=5):
    encoded = encode_prompts_only(
        given.validation[:rows], given.task, given.base.tokenizer, "decoder-only",
        max_source_length=24,
    )  # fmt: skip
    batch = Collator(given.base.tokenizer, "decoder-only", side="left")(encoded)
    return batch["input_ids"], batch["attention_mask"]


# -- the words before a text ----------------------------------------------------------------------


@DECODERS
def test_a_text_is_scored_as_the_whole_in_one_sequence(tmp_path, name):
    """Words, text and answer as one plain sequence of tokens through the bare base."""
    given = setting(tmp_path, name, validation=[])
    rows = setting(tmp_path, name).validation[:3]
    base = tiny.base(name)
    model = in_context(given)
    ids, mask = texts(replace(given, validation=rows), rows=3)
    answers = label_word_ids(given.task, given.base.tokenizer, "decoder-only")
    made = model.score_answers(ids, mask, answers)
    for row, (text, real) in enumerate(zip(ids, mask, strict=True)):
        whole = torch.cat([model.words, text[real.bool()]])[None]
        for column, answer in enumerate(answers):
            wanted = tiny.log_likelihood(base, whole, answer)
            torch.testing.assert_close(made[row, column], wanted, atol=1e-4, rtol=0)


@DECODERS
def test_words_that_run_once_give_what_words_that_run_every_time_give(tmp_path, name, monkeypatch):
    given = setting(tmp_path, name)
    ids, mask = texts(given)
    answers = label_word_ids(given.task, given.base.tokenizer, "decoder-only")
    own = [[answers[i % 2], [5, 6, 7]] for i in range(len(ids))]
    model = in_context(given)
    lengths = []
    inner = model.base.base_model.register_forward_pre_hook(
        lambda _m, _a, k: lengths.append(k["inputs_embeds"].shape[1])
        if k.get("inputs_embeds") is not None else None,
        with_kwargs=True,
    )  # fmt: skip

    def answered():
        return [
            model.score_answers(ids, mask, answers),
            model.score_answers(ids, mask, own),
            model.score_answers(ids.flip(1), mask.flip(1), answers),
            model.generate(ids, mask, max_new_tokens=4, do_sample=False, pad_token_id=0),
            model.generate(ids, mask, max_new_tokens=3, num_beams=3, pad_token_id=0),
        ]

    once = answered()
    inner.remove()
    monkeypatch.setattr(InstructedModel, "_reusable", lambda _self: False)
    every = answered()
    for a, b in zip(once[:3], every[:3], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for a, b in zip(once[3:], every[3:], strict=True):
        assert torch.equal(a, b)
    assert lengths.count(len(model.words)) <= 1, "the words ran more than once"


def test_a_sliding_window_is_not_cached(tmp_path):
    given = setting(tmp_path, "mistral")
    given.base.model.config.sliding_window = 16
    model = in_context(given)
    assert not model._reusable()
    given.base.model.config.sliding_window = None
    assert model._reusable()


def test_few_texts_at_a_time_change_nothing(tmp_path, monkeypatch):
    given = setting(tmp_path)
    ids, mask = texts(given)
    answers = label_word_ids(given.task, given.base.tokenizer, "decoder-only")
    own = [[[5 + i], [6, 7]] for i in range(len(ids))]
    model = in_context(given)
    wanted = [model.score_answers(ids, mask, a) for a in (answers, own)]
    monkeypatch.setattr(instructed, "AT_ONCE", 1)
    for a, b in zip((answers, own), wanted, strict=True):
        torch.testing.assert_close(model.score_answers(ids, mask, a), b, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="4 lists of"):
        model.score_answers(ids, mask, own[:4])


def test_a_start_token_comes_once(tmp_path):
    """Llama's tokenizers begin every text with one: in the middle it must not be seen."""
    given = setting(tmp_path)
    from tokenizers import processors

    tokenizer = given.base.tokenizer
    tokenizer.bos_token = "[CLS]"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.bos_token_id)]
    )
    rows, given = given.validation[:1], replace(given, validation=[])
    base = tiny.base("llama")
    model = in_context(given)
    start = tokenizer.bos_token_id
    assert (model.words == start).nonzero().flatten().tolist() == [0]
    ids, mask = texts(replace(given, validation=rows), rows=1)
    assert ids[0, 0] == start
    whole = torch.cat([model.words, ids[0, 1:]])[None]
    wanted = tiny.log_likelihood(base, whole, [5, 6])
    made = model.score_answers(ids, mask, [[5, 6]])[0, 0]
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=0)


def test_nothing_trains(tmp_path):
    for build in (zero_shot, in_context):
        given = setting(tmp_path)
        total = sum(p.numel() for p in given.base.model.parameters())
        model = build(given)
        assert model.parameter_counts() == (0, total)
        assert model.trained_state() == {}
        assert model.state_dict() == {}


# -- zero-shot -------------------------------------------------------------------------------------


def test_zero_shot_reads_the_description_and_no_row(tmp_path):
    given = setting(tmp_path)
    model = zero_shot(given)
    said = given.base.tokenizer(instruction(given.task))["input_ids"]
    assert model.words.tolist()[: len(said)] == said
    assert given.notes["words"] == len(model.words)
    without = zero_shot(setting(tmp_path, train=[]))
    assert torch.equal(without.words, model.words)


def test_what_is_said_about_the_answers(tmp_path):
    task = tiny.task(tmp_path)
    assert instruction(task) == "Given a text judge it\nAnswer with one of: bad, good."
    named = replace(task, description="Given a text tell good from bad")
    assert instruction(named) == named.description
    own = replace(task, option_columns=("a", "b"))
    assert instruction(own) == "Given a text judge it"
    number = tiny.task(tmp_path, kind="regression")
    assert instruction(number).endswith("Answer with a number from 0 to 4.")
    free = tiny.task(tmp_path, kind="generation")
    assert instruction(free) == "Given a text judge it"


# -- demonstrations --------------------------------------------------------------------------------


def test_demonstrations_read_as_training_rows(tmp_path):
    given = setting(tmp_path)
    given = replace(given, train=given.train[:2])
    model = in_context(given)
    tokenizer = given.base.tokenizer
    ids = [tokenizer(f"{e.text}{CUE} {e.target}")["input_ids"] for e in given.train]
    opening = zero_shot(setting(tmp_path, validation=[])).words.tolist()
    assert model.words.tolist() in (opening + ids[0] + ids[1], opening + ids[1] + ids[0])
    assert given.notes["demonstrations"] == given.notes["of"] == 2


CHAT = (
    "{% for m in messages %}{{ '<' + m.role + '> ' + m.content + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT
)


@pytest.mark.parametrize("template", [CHAT, NO_SYSTEM])
@pytest.mark.parametrize("build", [zero_shot, in_context])
def test_a_chat_template_frames_texts_and_answers(tmp_path, template, build):
    """The whole conversation as the template itself renders it, scored by the bare base."""
    rows = setting(tmp_path).validation[:2]
    given = setting(tmp_path, validation=[])
    tokens = ("<system>", "<user>", "<assistant>")
    tokenizer = tiny.tokenizer("decoder-only", *tokens)
    tokenizer.chat_template = template
    base = replace(given.base, tokenizer=tokenizer)
    given = replace(given, base=base, train=given.train[:1])
    model = build(given)
    assert given.notes["chat"]
    said = instruction(given.task)
    turns = [("system", said)] if template is CHAT else []
    opening = "" if turns else f"{said} "
    shown = [(e.text, e.target) for e in given.train] if build is in_context else []
    for text, answer in shown:
        turns += [("user", f"{opening}{text}{CUE}"), ("assistant", answer)]
        opening = ""
    for row in rows:
        asked = [*turns, ("user", f"{opening}{row.text}{CUE}")]
        messages = [{"role": role, "content": content} for role, content in asked]
        whole = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        wanted = tiny.log_likelihood(tiny.base("llama"), whole, [5, 6])
        ids, mask = texts(replace(given, validation=rows[rows.index(row) :]), rows=1)
        made = model.score_answers(ids, mask, [[5, 6]])[0, 0]
        torch.testing.assert_close(made, wanted, atol=1e-4, rtol=0)


def test_a_templates_words_after_the_text_take_positions_too(tmp_path):
    given = setting(tmp_path, "gpt2", "generation", validation=[], max_source_length=None)
    tokenizer = tiny.tokenizer("decoder-only", "<system>", "<user>", "<assistant>")
    tokenizer.chat_template = CHAT.replace("<assistant> ", "<assistant> w1 w2 w3 w4 w5 w6 ")
    given = replace(given, base=replace(given.base, tokenizer=tokenizer))
    model = zero_shot(given)
    assert len(model.closing) > 6
    long = [Example("1", "text: " + "w1 " * 200, "w1", "w1")]
    asked = tiny.settings(max_source_length=None, max_target_length=16)
    room = model.base.config.n_positions - len(model.words) - len(model.closing) - 16
    for length in (None, room):
        made = predict(model, given.task, tokenizer, long, replace(asked, max_source_length=length))
        assert len(made.texts) == 1
    with pytest.raises(ConfigError, match=f"give at most {room}"):
        predict(model, given.task, tokenizer, long, replace(asked, max_source_length=room + 1))


def test_generation_with_and_without_a_cache(tmp_path):
    given = setting(tmp_path, validation=[])
    rows = setting(tmp_path).validation
    model = InstructedModel(given, [5, 6, 7], [8, 9])
    ids, mask = texts(replace(given, validation=rows))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(ids, mask, **options)
    assert torch.equal(model.generate(ids, mask, use_cache=False, **options), cached)
    whole = torch.cat([torch.tensor([5, 6, 7]), ids[0][mask[0].bool()], torch.tensor([8, 9])])
    bare = tiny.base("llama").generate(whole[None], **options)[0, len(whole) :]
    assert cached[0, : len(bare)].tolist() == bare.tolist()


def test_labels_are_refused(tmp_path):
    model = zero_shot(setting(tmp_path))
    ids, mask = tiny.batch()
    with pytest.raises(ConfigError, match="trains nothing"):
        model(ids, mask, labels=ids)
    wanted = tiny.base("llama")(input_ids=ids, attention_mask=mask, labels=ids).loss
    with model.disable():
        assert torch.equal(model(ids, mask, labels=ids).loss, wanted)


def test_as_many_as_fit_and_the_classes_alike(tmp_path):
    given = setting(tmp_path)
    model = in_context(given)
    tokenizer = given.base.tokenizer
    # 128 positions less 24 of text and 16 of answer
    assert len(model.words) <= 128 - 24 - 16
    shown = model.words.tolist()
    good, bad = (
        sum(shown[i : i + 2] == tokenizer(f"answer: {word}")["input_ids"]
            for i in range(len(shown)))
        for word in ("good", "bad")
    )  # fmt: skip
    assert good == bad
    assert good + bad == given.notes["demonstrations"] < len(given.train)
    fewer = setting(tmp_path)
    in_context(fewer, context=60)
    assert 0 < fewer.notes["demonstrations"] < given.notes["demonstrations"]


def test_rows_of_one_class_are_shown_all_the_same(tmp_path):
    given = setting(tmp_path)
    given = replace(given, train=[e for e in given.train if e.label == 1][:3])
    in_context(given)
    assert given.notes["demonstrations"] == 3


def test_the_seed_decides_rows_and_order(tmp_path):
    def words(seed):
        return in_context(setting(tmp_path, init_seed=seed)).words.tolist()

    assert words(0) == words(0)
    assert words(0) != words(1)


def test_no_rows_and_no_room_are_refused_and_the_base_is_clean(tmp_path):
    given = setting(tmp_path, train=[])
    before = tiny.snapshot(given.base.model)
    with pytest.raises(DataError, match="No training rows"):
        in_context(given)
    given = setting(tmp_path, base=given.base)
    with pytest.raises(ConfigError, match=r"takes \d+ tokens.*room for \d+"):
        in_context(given, context=16)
    assert tiny.snapshot(given.base.model) == before


# -- calibration -----------------------------------------------------------------------------------


def test_calibration_is_used_where_validation_says_so(tmp_path):
    """A base that always says one word: divided by its habit, it answers by the text."""
    for habit in (0.0, 30.0):
        given = setting(tmp_path)
        head = given.base.model.lm_head
        with torch.no_grad():
            head.weight[given.base.tokenizer("good")["input_ids"][0]] *= 1 + habit
        model = zero_shot(given)
        decided = given.notes["calibration"]
        scores = [decided["accuracy"][k] for k in ("plain", "calibrated")]
        losses = [decided["loss"][k] for k in ("plain", "calibrated")]
        better = (scores[1], -losses[1]) > (scores[0], -losses[0])
        assert decided["used"] == better == (model.prior is not None)
        metrics, _ = evaluate(
            model, given.task, given.base.tokenizer, given.validation, tiny.settings()
        )  # fmt: skip
        assert metrics["accuracy"] == scores[better]
        assert metrics["loss"] == pytest.approx(losses[better], abs=1e-4)
        if habit:
            assert decided["used"], "a base with a habit is helped"


def test_calibrated_scores_are_divided_by_the_mean_of_empty_inputs(tmp_path, monkeypatch):
    rising = itertools.count().__next__  # whatever is measured second looks better
    given = setting(tmp_path)
    model = zero_shot(replace(given, validation=[]))
    assert model.prior is None
    tokenizer = given.base.tokenizer
    answers = label_word_ids(given.task, tokenizer, "decoder-only")
    ids, mask = texts(given)
    plain = model.label_scores(ids, mask, answers)
    empty = []
    for text in ("text: N/A", "text: ", "text: [MASK]"):
        row = torch.tensor([tokenizer(f"{text}{CUE}")["input_ids"]])
        empty.append(model.label_scores(row, None, answers).exp()[0])
    prior = torch.stack(empty).mean(0)
    wanted = (plain.exp() / prior) / (plain.exp() / prior).sum(-1, keepdim=True)
    model.detach()
    monkeypatch.setattr(instructed, "compute", lambda *_: {"accuracy": rising()})
    other = zero_shot(given)
    assert given.notes["calibration"]["used"]
    torch.testing.assert_close(other.label_scores(ids, mask, answers).exp(), wanted)
    with other.disable():
        bare = other.label_scores(ids, mask, answers)
    reversed_words = other.label_scores(ids, mask, answers[::-1])
    other.detach()
    ordinary = AdaptedModel(given.base.model)
    torch.testing.assert_close(bare, ordinary.label_scores(ids, mask, answers))
    torch.testing.assert_close(reversed_words, plain.flip(1))


# -- other kinds of task ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["zero-shot", "in-context"])
@pytest.mark.parametrize("kind", ["generation", "regression"])
def test_text_is_generated_and_not_calibrated(tmp_path, method, kind):
    given = setting(tmp_path, kind=kind)
    model = METHODS[method].build(given)
    assert "calibration" not in given.notes
    metrics, made = evaluate(
        model, given.task, given.base.tokenizer, given.validation, tiny.settings()
    )  # fmt: skip
    assert len(made.values) == metrics["n"] == len(given.validation)


@pytest.mark.parametrize("method", ["zero-shot", "in-context"])
def test_rows_with_options_of_their_own(tmp_path, method):
    given = setting(tmp_path)
    task = replace(given.task, labels=("1", "2"), option_columns=("a", "b"))
    draw = random.Random(0)

    def optioned(e):
        options = tuple(draw.sample(tiny.FILLERS, 2))
        return Example(e.id, e.text, e.label, options[e.label], options=options)

    train, validation = ([optioned(e) for e in rows] for rows in (given.train, given.validation))
    given = replace(given, task=task, train=train, validation=validation)
    model = METHODS[method].build(given)
    assert "calibration" not in given.notes
    _, made = evaluate(
        model, task, given.base.tokenizer, validation, tiny.settings(eval_batch_size=1)
    )  # fmt: skip
    together = evaluate(
        model, task, given.base.tokenizer, validation, tiny.settings(eval_batch_size=8)
    )[1]  # fmt: skip
    assert made.texts == together.texts
    assert all(t in e.options for t, e in zip(made.texts, validation, strict=True))


def test_adapt_runs_them(tmp_path):
    base = tiny.loaded("llama")
    before = tiny.snapshot(base.model)
    for method in ("zero-shot", "in-context"):
        result = adapt(
            base, tiny.task(tmp_path), [], method=method, shots=4, settings=tiny.settings(),
            progress=False,
        )  # fmt: skip
        assert result.parameters[0] == 0
        assert result.notes["calibration"]["measured_on"] == "8 validation rows"
        result.model.detach()
    assert tiny.snapshot(base.model) == before


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_other_families_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="goes on with a text"):
        METHODS["zero-shot"].build(setting(tmp_path, name))
