"""Options of each row's own, both ways to answer, accepted answers, and what a report holds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pemt.errors import ConfigError, DataError
from pemt.tasks import Example, Task
from pemt.training import evaluate, predict, report_of
from pemt.training.deploying import task_from_saved
from pemt.training.evaluating import Predictions
from pemt.training.sourcing import some
from tests import tiny
from tests.training.test_evaluating import model_on

OPTIONS = [("nice", "dull"), ("w1 w2 w3", "good"), ("bad", "w4 w5"), ("w6", "w7")]
GENERATES = ["t5", "bart", "llama", "gpt2"]


def rows(count=11, options=OPTIONS):
    """Texts of different lengths, each with options of its own."""
    made = []
    for i in range(count):
        own = options[i % len(options)]
        text = "text: " + " ".join(f"w{(3 * i + j) % 24}" for j in range(1 + i % 7))
        made.append(Example(f"test:{i}", text, i % len(own), own[i % len(own)], options=own))
    return made


@pytest.mark.parametrize("name", [*GENERATES, "bert"])
def test_rows_of_a_batch_are_ranked_as_if_alone(tmp_path, name):
    base, model = model_on(name, outputs=2 if name == "bert" else None)
    task, examples = tiny.task(tmp_path), rows()
    together = predict(model, task, base.tokenizer, examples, tiny.settings(eval_batch_size=5))
    for i, example in enumerate(examples):
        alone = predict(model, task, base.tokenizer, [example], tiny.settings())
        torch.testing.assert_close(
            together.log_probabilities[i], alone.log_probabilities[0], atol=1e-5, rtol=1e-5
        )
    assert together.values == together.log_probabilities.argmax(1).tolist()
    assert together.texts == [e.options[v] for e, v in zip(examples, together.values, strict=True)]
    assert together.invalid == 0
    assert len({round(float(v), 4) for v in together.log_probabilities[:, 0]}) > 5


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_options_that_are_the_tasks_words_change_nothing(tmp_path, name):
    base, model = model_on(name)
    task = tiny.task(tmp_path)
    plain = tiny.splits(task).test
    own = [replace(e, options=task.labels) for e in plain]
    mixed = [replace(e, options=("nice", "dull")) if i % 3 == 0 else e for i, e in enumerate(plain)]
    wanted = predict(model, task, base.tokenizer, plain, tiny.settings())
    same = predict(model, task, base.tokenizer, own, tiny.settings())
    assert torch.equal(same.log_probabilities, wanted.log_probabilities)
    some = predict(model, task, base.tokenizer, mixed, tiny.settings())
    kept = [i for i in range(len(plain)) if i % 3]
    torch.testing.assert_close(
        some.log_probabilities[kept], wanted.log_probabilities[kept], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_rows_may_have_unequal_numbers_of_options(tmp_path, name):
    base, model = model_on(name, outputs=3 if name == "bert" else None)
    task = replace(tiny.task(tmp_path), labels=("first", "second", "third"))
    examples = rows(options=[*OPTIONS, ("nice", "w8 w9", "poor")])
    made = predict(model, task, base.tokenizer, examples, tiny.settings(eval_batch_size=3))
    assert made.log_probabilities.shape == (11, 3)
    counts = torch.isfinite(made.log_probabilities).sum(1).tolist()
    assert counts == [len(e.options) for e in examples]
    torch.testing.assert_close(made.log_probabilities.exp().sum(1), torch.ones(11))
    for i in (4, 5):
        alone = predict(model, task, base.tokenizer, [examples[i]], tiny.settings())
        torch.testing.assert_close(
            made.log_probabilities[i, : counts[i]], alone.log_probabilities[0],
            atol=1e-5, rtol=1e-5,
        )  # fmt: skip


def test_a_head_with_too_few_outputs_is_refused(tmp_path):
    base, model = model_on("bert", outputs=2)
    task = tiny.task(tmp_path)
    three = rows(options=[("nice", "w8", "poor")])
    with pytest.raises(ConfigError, match="3 options for a head of 2 outputs: nice, w8, poor"):
        predict(model, task, base.tokenizer, three, tiny.settings())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (("nice", "nice"), ConfigError, "a label word twice"),
        (("nice", "unheard"), DataError, "'unheard' of task 'tiny' becomes an unknown token"),
    ],
)
def test_options_that_cannot_be_told_apart_or_written_are_refused(tmp_path, options, error, words):
    base, model = model_on("t5")
    with pytest.raises(error, match=words):
        predict(
            model, tiny.task(tmp_path), base.tokenizer, rows(options=[options]), tiny.settings()
        )


def test_rows_that_should_have_options_and_have_none_are_refused(tmp_path):
    base, model = model_on("t5")
    task = replace(tiny.task(tmp_path), option_columns=("left", "right"))
    without = [*rows(3), replace(rows(1)[0], id="test:9", options=())]
    with pytest.raises(DataError, match="test:9 of task 'tiny' has no options"):
        predict(model, task, base.tokenizer, without, tiny.settings())


def saying(tokenizer, words):
    """A stand-in for `generate` that says `words[i]` to the i-th row it is shown."""
    said = iter(words)

    def generate(ids, _mask, **_settings):
        made = [tokenizer.convert_tokens_to_ids([*next(said).split(), "</s>"]) for _ in ids]
        longest = max(map(len, made))
        return torch.tensor([m + [tokenizer.pad_token_id] * (longest - len(m)) for m in made])

    return generate


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_generated_options_are_read_by_their_own_row(tmp_path, monkeypatch, name):
    base, model = model_on(name)
    task = tiny.task(tmp_path)
    examples = [replace(e, text="text: w1") for e in rows(4)]
    words = ["dull", "good", "good", "w7"]  # "good" is an option of the second row alone
    monkeypatch.setattr(model, "generate", saying(base.tokenizer, words))
    settings = tiny.settings(answers="generate")
    metrics, made = evaluate(model, task, base.tokenizer, examples, settings)
    assert made.values == [1, 1, None, 1]
    assert metrics["accuracy"] == 2 / 4  # the labels are 0, 1, 0, 1
    shown = report_of(task, examples, made)
    assert (shown.invalid, shown.invalid_texts) == (1, (("good", 1),))
    assert shown.confusion == [[0, 1, 1], [0, 2, 0]]


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_ranking_never_gives_an_invalid_answer(tmp_path, name):
    """A random model writes no label word; ranked, it always answers one."""
    base, model = model_on(name)
    task = tiny.task(tmp_path)
    examples = tiny.splits(task).train
    generated = predict(model, task, base.tokenizer, examples, tiny.settings(answers="generate"))
    assert generated.invalid > 0
    ranked = predict(model, task, base.tokenizer, examples, tiny.settings(answers="rank"))
    assert ranked.invalid == 0
    assert set(ranked.values) <= {0, 1}


def test_generation_on_an_encoder_is_refused(tmp_path):
    base, model = model_on("bert", outputs=2)
    task = tiny.task(tmp_path)
    with pytest.raises(ConfigError, match="answers='generate' for 'tiny' on an encoder-only base"):
        predict(model, task, base.tokenizer, rows(), tiny.settings(answers="generate"))


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_scores_in_text_are_read_or_invalid(tmp_path, monkeypatch, name):
    """STS-B from text to text: a number in the range is a score, all else is invalid."""
    base, model = model_on(name)
    task = replace(tiny.task(tmp_path, kind="regression"), score_range=(1.0, 4.0))
    examples = [
        Example(f"test:{i}", "text: w1", float(score), f"{score}.0")
        for i, score in enumerate([1, 2, 3, 4, 2])
    ]
    words = ["1.0", "0.0", "3.0", "good", "2.0 3.0"]
    monkeypatch.setattr(model, "generate", saying(base.tokenizer, words))
    metrics, made = evaluate(model, task, base.tokenizer, examples, tiny.settings())
    assert made.values == [1.0, None, 3.0, None, None]
    assert made.invalid == 3
    # an invalid score counts as the end of the range that is farther from the truth
    said, truth = torch.tensor([1.0, 4, 3, 1, 4]), torch.tensor([1.0, 2, 3, 4, 2])
    wanted = torch.corrcoef(torch.stack([said, truth]))[0, 1]
    assert metrics["pearson"] == pytest.approx(float(wanted))
    assert report_of(task, examples, made).invalid == 3


def test_the_best_accepted_answer_counts(tmp_path, monkeypatch):
    base, model = model_on("t5")
    task = tiny.task(tmp_path, kind="generation")
    examples = [
        Example("test:0", "text: w1", None, "nice", accepted=("nice", "lovely")),
        Example("test:1", "text: w1", None, "dull"),
    ]
    monkeypatch.setattr(model, "generate", saying(base.tokenizer, ["lovely", "poor"]))
    metrics, made = evaluate(model, task, base.tokenizer, examples, tiny.settings())
    assert metrics == {"exact_match": 0.5, "n": 2.0}
    shown = report_of(task, examples, made)
    assert shown.value == 0.5
    assert shown.per_class is None


def test_questions_are_scored_and_resampled_whole(tmp_path):
    task = replace(tiny.task(tmp_path), metrics=("question_exact_match", "question_f1"))
    examples = [replace(e, group=f"q{i // 4}") for i, e in enumerate(rows(40))]
    values = [0 if i == 1 else e.label for i, e in enumerate(examples)]
    made = Predictions(values, [""] * 40, None)
    shown = report_of(task, examples, made)
    assert shown.value == 9 / 10
    assert (shown.interval.unit, shown.interval.units) == ("question", 10)
    with pytest.raises(DataError, match="without questions"):
        report_of(task, rows(40), made)
    half = [replace(e, group="") if i > 20 else e for i, e in enumerate(examples)]
    with pytest.raises(DataError, match="Row 21 belongs to no question"):
        report_of(task, half, made)


@pytest.mark.parametrize("name", ["wsc", "winogrande", "paws", "record", "stsb", "multirc"])
def test_a_saved_task_renders_and_answers_as_before(name):
    """A run keeps its task as JSON: what comes back must read rows in the same way."""
    task = Task.named(name)
    back = task_from_saved(json.loads(json.dumps(task.to_dict())))
    kept = set(task.to_dict()) - {"rows", "split", "group"}
    assert {k: v for k, v in vars(back).items() if k in kept} == {
        k: v for k, v in vars(task).items() if k in kept
    }


def test_fewer_rows_keep_whole_groups():
    examples = [replace(e, group=f"q{i // 4}") for i, e in enumerate(rows(40))]
    drawn = some(examples, 18, 0)
    assert len(drawn) == 16
    assert all(sum(e.group == g for e in drawn) == 4 for g in {e.group for e in drawn})
    assert some(examples, 18, 1) != drawn
    assert len(some([replace(e, group="") for e in examples], 18, 0)) == 18


@pytest.mark.parametrize(("count", "seed"), [(-1, 0), (4, -1)])
def test_a_count_or_seed_below_0_draws_nothing(count, seed):
    with pytest.raises(ConfigError, match=r"(-1 rows|seed=-1)"):
        some(rows(40), count, seed)
