"""Answers: their order, how they are read, and what they score."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pemt.errors import ConfigError, DataError
from pemt.model import SourceConfig, SourceModel
from pemt.training import evaluate, predict
from pemt.training.evaluating import longest_first
from pemt.training.fitting import fit
from tests import tiny


def model_on(name, *, outputs=None):
    """A base with one expert in training and a prompt, moved away from its start."""
    base = tiny.loaded(name)
    torch.manual_seed(3)
    model = SourceModel(
        base.model, SourceConfig(rank=4, alpha=8), prompt=0.1 * tiny.prompt(), outputs=outputs
    )
    return base, tiny.stir(model.eval())


def examples(folder, kind="classification"):
    task = tiny.task(folder, kind=kind)
    return task, tiny.splits(task)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_answers_are_in_the_order_of_the_examples(tmp_path, name):
    """Batches sorted by length give what one example at a time gives."""
    base, model = model_on(name, outputs=2 if name == "bert" else None)
    task, splits = examples(tmp_path)
    rows = splits.train[:13]
    together = predict(model, task, base.tokenizer, rows, tiny.settings(eval_batch_size=5))
    for i, row in enumerate(rows):
        alone = predict(model, task, base.tokenizer, [row], tiny.settings())
        torch.testing.assert_close(
            together.log_probabilities[i], alone.log_probabilities[0], atol=1e-4, rtol=1e-4
        )
    chosen = together.log_probabilities.argmax(1).tolist()
    assert together.values == chosen
    assert together.texts == [task.labels[v] for v in chosen]
    torch.testing.assert_close(together.log_probabilities.exp().sum(1), torch.ones(13))
    assert len({round(float(v), 4) for v in together.log_probabilities[:, 0]}) > 5


def test_longest_first():
    rows = [{"input_ids": [1] * n} for n in (2, 5, 1, 5, 3)]
    assert longest_first(rows) == [1, 3, 4, 0, 2]


def test_metrics_by_hand(tmp_path, monkeypatch):
    from pemt.training import evaluating

    base, model = model_on("bert", outputs=2)
    task, splits = examples(tmp_path)
    rows = splits.test[:4]
    assert [r.label for r in rows] == [0, 1, 0, 1]
    logs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]]).log()
    given = evaluating.Predictions([0, 0, 0, 1], ["bad", "bad", "bad", "good"], logs)
    monkeypatch.setattr(evaluating, "predict", lambda *a, **k: given)
    metrics, made = evaluate(model, task, base.tokenizer, rows)
    assert made is given
    loss = -(torch.tensor([0.9, 0.4, 0.7, 0.8]).log().mean())
    assert metrics == pytest.approx(
        {"accuracy": 0.75, "balanced_accuracy": 0.75, "loss": float(loss), "n": 4.0}
    )


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_generated_answers_that_are_none_are_counted(tmp_path, monkeypatch, name):
    base, model = model_on(name)
    task, splits = examples(tmp_path)
    word = {w: base.tokenizer.convert_tokens_to_ids(w) for w in ("good", "bad", "w1", "</s>")}
    answers = [["good"], ["w1"], ["bad"], [], ["good", "good"]]
    rows = splits.train[: len(answers)]
    by_text = dict(zip((r.text for r in rows), answers, strict=True))

    def generate(ids, mask, **settings):
        assert settings["do_sample"] is False
        made = torch.full((len(ids), 3), 0)
        for i, (row, real) in enumerate(zip(ids, mask.bool(), strict=True)):
            text = base.tokenizer.decode(row[real], skip_special_tokens=True)
            text = text.removesuffix(" answer:")
            for j, w in enumerate([*by_text[text], "</s>"]):
                made[i, j] = word[w]
        return made

    monkeypatch.setattr(model, "generate", generate)
    settings = tiny.settings(answers="generate", eval_batch_size=2)
    metrics, made = evaluate(model, task, base.tokenizer, rows, settings)
    assert made.texts == ["good", "w1", "bad", "", "good good"]
    assert made.values == [1, None, 0, None, None]
    assert made.invalid == 3
    assert made.log_probabilities is None
    assert "loss" not in metrics
    # rows are bad, good, bad, good, bad: an answer that is none is wrong
    assert metrics["accuracy"] == pytest.approx(1 / 5)


@pytest.mark.parametrize(("name", "steps", "rate"), [("t5", 150, 1e-2), ("llama", 60, 2e-2)])
def test_ranked_and_generated_answers_of_a_trained_model_agree(tmp_path, name, steps, rate):
    base, model = model_on(name)
    task, splits = examples(tmp_path)
    settings = tiny.settings(max_steps=steps, batch_size=16, learning_rate=rate)
    fit(model, task, base.tokenizer, splits.train, [], settings, progress=False)
    ranked, by_rank = evaluate(model, task, base.tokenizer, splits.train, settings)
    generating = settings.changed(answers="generate")
    generated, by_words = evaluate(model, task, base.tokenizer, splits.train, generating)
    assert ranked["accuracy"] >= 0.9
    assert by_words.invalid == 0
    same = sum(a == b for a, b in zip(by_rank.values, by_words.values, strict=True))
    assert same >= 31  # of 32; a sequence may beat the other though its first token does not
    assert abs(ranked["accuracy"] - generated["accuracy"]) <= 1 / 32


def test_regression_learns_on_an_encoder(tmp_path):
    base, model = model_on("bert", outputs=1)
    task, splits = examples(tmp_path, "regression")
    settings = tiny.settings(max_steps=60, batch_size=32, learning_rate=2e-2)
    before, _ = evaluate(model, task, base.tokenizer, splits.train, settings)
    fit(model, task, base.tokenizer, splits.train, [], settings, progress=False)
    after, made = evaluate(model, task, base.tokenizer, splits.train, settings)
    squares = [(v - e.label) ** 2 for v, e in zip(made.values, splits.train, strict=True)]
    assert after["loss"] == pytest.approx(sum(squares) / 32)
    assert after["loss"] < 0.5 * before["loss"]
    assert after["pearson"] > 0.7
    assert made.texts[0] == f"{made.values[0]:.2f}"
    assert made.log_probabilities is None
    with torch.no_grad():
        ids = torch.tensor([base.tokenizer(splits.train[0].text)["input_ids"]])
        assert made.values[0] == pytest.approx(float(model(ids).logits), abs=1e-4)


@pytest.mark.parametrize(("step", "decimals"), [(1.0, 2), (0.2, 2), (0.25, 3), (0.0005, 5)])
def test_scores_are_written_a_decimal_finer_than_the_task_s(tmp_path, step, decimals):
    base, model = model_on("bert", outputs=1)
    task, splits = examples(tmp_path, "regression")
    task = replace(task, score_step=step)
    made = predict(model, task, base.tokenizer, splits.test, tiny.settings())
    assert made.texts == [f"{value:.{decimals}f}" for value in made.values]


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_free_text_is_scored_as_text(tmp_path, name):
    base, model = model_on(name)
    task, splits = examples(tmp_path, "generation")
    metrics, made = evaluate(model, task, base.tokenizer, splits.test, tiny.settings())
    right = sum(a == e.target for a, e in zip(made.texts, splits.test, strict=True))
    assert metrics["exact_match"] == pytest.approx(right / 16)
    assert made.values == made.texts
    with pytest.raises(ConfigError, match="answers='rank' on the generation task"):
        predict(model, task, base.tokenizer, splits.test, tiny.settings(answers="rank"))


@pytest.mark.parametrize("name", ["bart", "llama"])
def test_answers_are_greedy_whatever_the_base_would_do(tmp_path, name):
    base, model = model_on(name)
    task, splits = examples(tmp_path, "generation")
    test = splits.test
    wanted = predict(model, task, base.tokenizer, test, tiny.settings()).texts
    own = model.base.generation_config
    # what facebook/bart-large-cnn asks for, and more
    own.num_beams, own.no_repeat_ngram_size, own.early_stopping = 4, 1, True
    own.min_length, own.length_penalty, own.repetition_penalty = 3, 2.0, 1.5
    assert predict(model, task, base.tokenizer, test, tiny.settings()).texts == wanted
    assert own.num_beams == 4


def test_free_text_on_an_encoder_is_refused(tmp_path):
    base, model = model_on("bert", outputs=2)
    task, splits = examples(tmp_path, "generation")
    with pytest.raises(ConfigError, match="asks for free text"):
        predict(model, task, base.tokenizer, splits.test, tiny.settings())


def test_rows_without_labels_are_answered_but_not_scored(tmp_path):
    from dataclasses import replace

    base, model = model_on("bert", outputs=2)
    task, splits = examples(tmp_path)
    rows = [replace(splits.test[0], label=None, target="")]
    assert predict(model, task, base.tokenizer, rows, tiny.settings()).values[0] in (0, 1)
    with pytest.raises(DataError, match="test:0 of task 'tiny' has no label"):
        evaluate(model, task, base.tokenizer, rows, tiny.settings())


@pytest.mark.parametrize("training", [True, False])
def test_answering_changes_no_mode(tmp_path, training):
    base, model = model_on("bert", outputs=2)
    task, splits = examples(tmp_path)
    model.train(training)
    predict(model, task, base.tokenizer, splits.test, tiny.settings())
    assert model.training is training
    assert model.base.training is training


def test_a_prompt_that_fills_the_base_is_refused(tmp_path):
    base = tiny.loaded("llama")
    model = SourceModel(base.model, SourceConfig(rank=4), prompt=tiny.prompt(length=120))
    task, splits = examples(tmp_path)
    with pytest.raises(ConfigError, match="A prompt of 120 tokens on a base of 128 positions"):
        predict(model, task, base.tokenizer, splits.test, tiny.settings())
