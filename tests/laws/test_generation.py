"""Cached, uncached, greedy, beam and scored answers are one and the same model."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pemt.errors import ConfigError
from tests import tiny

NEW = 5
SETTINGS = {
    "max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "eos_token_id": -1,
    "pad_token_id": 0,
}  # fmt: skip
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "returned": {"num_beams": 3, "num_return_sequences": 2},
}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def adapted(name: str, kind: str = "pemt", **settings):
    base = tiny.base(name)
    model = tiny.pemt(base, **settings) if kind == "pemt" else tiny.source(base, **settings)
    return tiny.stir(model)


def argmax_loop(model, ids, mask, new: int = NEW):
    """Greedy tokens by running `forward` on everything so far."""
    if model.family == "encoder-decoder":
        start = model.config.decoder_start_token_id
        tokens = torch.full((len(ids), 1), start)
        for _ in range(new):
            logits = model(ids, mask, decoder_input_ids=tokens).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
        return tokens
    for _ in range(new):
        last = model(ids, mask).logits[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, last], 1), torch.cat([mask, torch.ones_like(last)], 1)
    return ids[:, -new:]


@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_greedy_is_the_argmax_of_forward(name, kind):
    model = adapted(name, kind)
    ids, mask = tiny.batch(side="left")
    assert torch.equal(model.generate(ids, mask, **SETTINGS), argmax_loop(model, ids, mask))


@pytest.mark.parametrize("gate", ["example", "task"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_uncached_equals_cached(name, way, gate):
    model = adapted(name, gate=gate)
    ids, mask = tiny.batch(side="left")
    cached = model.generate(ids, mask, **SETTINGS, **WAYS[way])
    uncached = model.generate(ids, mask, **SETTINGS, **WAYS[way], use_cache=False)
    assert cached.shape[0] == len(ids) * WAYS[way].get("num_return_sequences", 1)
    assert torch.equal(uncached, cached)


@pytest.mark.parametrize("way", ["greedy", "returned"])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_uncached_equals_cached_in_a_source_model_without_a_prompt(name, way):
    model = tiny.stir(tiny.source(tiny.base(name), with_prompt=False))
    ids, mask = tiny.batch(side="left")
    cached = model.generate(ids, mask, **SETTINGS, **WAYS[way])
    assert torch.equal(model.generate(ids, mask, **SETTINGS, **WAYS[way], use_cache=False), cached)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_a_row_is_answered_as_if_it_were_alone(name, way):
    model = adapted(name)
    ids, mask = tiny.batch(side="left")
    together = model.generate(ids, mask, **SETTINGS, **WAYS[way]).view(len(ids), -1)
    for row in range(len(ids)):
        text = ids[row : row + 1, mask[row].bool()]
        alone = model.generate(text, **SETTINGS, **WAYS[way]).reshape(1, -1)
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("name", tiny.GENERATES)
def test_beam_scores_are_the_likelihoods_of_forward(name):
    model = adapted(name)
    ids, mask = tiny.batch(side="left")
    output = model.generate(
        ids, mask, **SETTINGS, num_beams=3, num_return_sequences=2, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    tokens = output.sequences[:, -NEW:].view(len(ids), 2, NEW)
    for row in range(len(ids)):
        text = ids[row : row + 1, mask[row].bool()]
        for beam in range(2):
            wanted = likelihood(model, text, tokens[row, beam].tolist())
            assert_close(output.sequences_scores[2 * row + beam], wanted, **CLOSE)


@pytest.mark.parametrize("gate", ["example", "task"])
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_padding_side_does_not_change_what_is_generated(name, gate):
    model = adapted(name, gate=gate)
    right = tiny.batch(side="right")
    left = tiny.move_padding(*right)
    for settings in (WAYS["greedy"], WAYS["beams"], {"use_cache": False}):
        a = model.generate(*left, **SETTINGS, **settings)
        assert torch.equal(a, model.generate(*right, **SETTINGS, **settings))


@torch.no_grad()
def likelihood(model, text, answer: list[int]):
    """log p(answer | text) by one full `forward` with the answer in place."""
    given = torch.tensor([answer])
    if model.family == "encoder-decoder":
        start = torch.tensor([[model.config.decoder_start_token_id]])
        logits = model(text, decoder_input_ids=torch.cat([start, given[:, :-1]], 1)).logits
    else:
        whole = torch.cat([text, given[:, :-1]], 1)
        logits = model(whole).logits[:, text.shape[1] - 1 :]
    return logits.log_softmax(-1).gather(-1, given.unsqueeze(-1)).sum()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("answers", [[[5, 9, 4, 1], [7, 1], [8]], [[5], [6]]])
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_scores_are_the_likelihoods_of_forward(name, answers, side):
    model = adapted(name)
    ids, mask = tiny.batch(side=side)
    scores = model.score_answers(ids, mask, answers)
    assert scores.shape == (len(ids), len(answers))
    for row in range(len(ids)):
        text = ids[row : row + 1, mask[row].bool()]
        for column, answer in enumerate(answers):
            assert_close(scores[row, column], likelihood(model, text, answer), **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_one_pass_gives_scores_and_features(name, side):
    model = adapted(name)
    ids, mask = tiny.batch(side=side)
    answers = [[5, 9, 4, 1], [7, 1], [8]]

    def given():
        scores, features = model.score_and_read(ids, mask, answers)
        assert_close(scores, model.score_answers(ids, mask, answers), **CLOSE)
        assert_close(features, model.features(ids, mask), **CLOSE)
        return features

    bare = given()
    with model.disable():
        assert not torch.allclose(given(), bare)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_answers_while_training_with_checkpointing(name, kind, reentrant):
    model = adapted(name, kind)
    ids, mask = tiny.batch(side="left")
    answers = [[5, 9, 4, 1], [7, 1]]

    def given():
        yield model.generate(ids, mask, **SETTINGS)
        yield model.score_answers(ids, mask, answers)
        with model.disable():
            yield model.generate(ids, mask, **SETTINGS)

    wanted = list(given())
    model.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    states = [getattr(m, "gradient_checkpointing", None) for m in model.modules()]
    for ours, theirs in zip(given(), wanted, strict=True):
        assert_close(ours, theirs, **CLOSE)
    assert True in states
    assert [getattr(m, "gradient_checkpointing", None) for m in model.modules()] == states


@pytest.mark.parametrize("name", tiny.GENERATES)
def test_one_row_of_one_token(name):
    model = adapted(name)
    ids = torch.tensor([[9]])
    assert torch.equal(model.generate(ids, **SETTINGS), argmax_loop(model, ids, ids > 0))
    scores = model.score_answers(ids, None, [[4, 1]])
    assert_close(scores[0, 0], likelihood(model, ids, [4, 1]), **CLOSE)


@pytest.mark.parametrize("name", tiny.ENCODER_ONLY)
def test_an_encoder_only_base_neither_generates_nor_scores(name):
    model = tiny.pemt(tiny.base(name))
    ids, mask = tiny.batch()
    with pytest.raises(ConfigError, match="generates no text"):
        model.generate(ids, mask)
    with pytest.raises(ConfigError, match="scores no answers"):
        model.score_answers(ids, mask, [[1]])


@pytest.mark.parametrize("answers", [[], [[1], []]])
def test_answers_without_tokens_are_refused(answers):
    ids, mask = tiny.batch()
    with pytest.raises(ConfigError, match="at least one token"):
        tiny.pemt(tiny.base("llama")).score_answers(ids, mask, answers)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_answers_of_its_own_score_as_each_text_alone(name, side):
    """Own answers, of different lengths, cost one pass and no accuracy."""
    model = adapted(name)
    ids, mask = tiny.batch(side=side)
    own = [[[5, 9, 4, 1], [7, 1]], [[8], [6, 3, 1]], [[4, 1], [9, 9, 9, 9, 1]]]
    together = model.score_answers(ids, mask, own)
    assert together.shape == (3, 2)
    for row in range(3):
        text = ids[row : row + 1, mask[row].bool()]
        assert_close(together[row], model.score_answers(text, None, own[row])[0], **CLOSE)
    same = [own[0]] * 3
    assert torch.equal(model.score_answers(ids, mask, same), model.score_answers(ids, mask, own[0]))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([[[5], [6]], [[5], [6]]], "2 lists of 2 answers for 3 texts"),
        ([[[5], [6]], [[5]], [[5], [6]]], "3 lists of 1 and 2 answers for 3 texts"),
        ([[[5], []], [[5], [6]], [[5], [6]]], "at least one token"),
        ([[[5], [6]], [], [[5], [6]]], "3 lists of 0 and 2 answers"),
    ],
)
def test_unequal_answers_are_refused(answers, words):
    ids, mask = tiny.batch()
    with pytest.raises(ConfigError, match=words):
        tiny.pemt(tiny.base("llama")).score_answers(ids, mask, answers)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.GENERATES)
def test_ranking_words_of_one_token_is_greedy_among_them(name, side):
    """The greedy first token, put among one-token answers, is the one ranked first."""
    model = adapted(name)
    ids, mask = tiny.batch(rows=6, side=side)
    made = model.generate(ids, mask, **SETTINGS)
    first = made[:, 1 if model.family == "encoder-decoder" else 0].tolist()
    words = sorted({*first, 11, 12, 13})
    ranked = model.score_answers(ids, mask, [[w] for w in words]).argmax(1).tolist()
    assert [words[i] for i in ranked] == first


@pytest.mark.parametrize("name", tiny.GENERATES)
def test_a_greedy_answer_with_most_of_the_mass_is_ranked_first(name):
    """No other answer can be likelier than one of more than half: greedy and ranking agree.

    Below half they may differ, because greedy looks at one token and ranking at whole answers.
    """
    model = adapted(name)
    base_logits = model.base.get_output_embeddings()
    sharpen = base_logits.register_forward_hook(lambda _m, _i, out: 30 * out)
    try:
        ids, mask = tiny.batch(rows=6, side="left")
        made = model.generate(ids, mask, **SETTINGS)
        made = made[:, 1:] if model.family == "encoder-decoder" else made
        greedy = [row.tolist() for row in made]
        words = [list(w) for w in dict.fromkeys(map(tuple, greedy))]
        words += [[token, 1] for token in range(60, 70)]
        scores = model.score_answers(ids, mask, words)
    finally:
        sharpen.remove()
    sure = [words.index(g) for g in greedy]
    likely = scores[torch.arange(6), sure].exp() > 0.5
    assert likely.sum() >= 3
    assert torch.equal(scores.argmax(1)[likely], torch.tensor(sure)[likely])
