"""Answers of a model on examples, and their scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from pemt.backbones import Family, max_positions
from pemt.errors import ConfigError, DataError
from pemt.model import AdaptedModel
from pemt.tasks import Example, Task
from pemt.tasks.cache import encode_cached
from pemt.tasks.encoding import Collator, Encoded, label_word_ids
from pemt.tasks.metrics import Statistic, compute, parse_answer, resampled
from pemt.tasks.reporting import Report, report
from pemt.training import processes
from pemt.training.memory import heap
from pemt.training.settings import Answers, TrainSettings


@dataclass(frozen=True)
class Predictions:
    """What a model answered, in the order of the examples.

    Attributes:
        values: class number, score or text of each example; None for an invalid generated answer.
        texts: the answers as text.
        log_probabilities: `[N, C]` where classes were scored, else None; -inf where a row has
            fewer options than another.
    """

    values: list[Any]
    texts: list[str]
    log_probabilities: Tensor | None

    @property
    def invalid(self) -> int:
        """How many generated answers were none of the task's."""
        return sum(v is None for v in self.values)


SOURCE_LENGTH = 256


def side_of(family: Family) -> Literal["left", "right"]:
    """Where the padding of a family goes: decoder-only texts end where their answers begin."""
    return "left" if family == "decoder-only" else "right"


def lengths(
    model: AdaptedModel, settings: TrainSettings, taken: int | None = None
) -> dict[str, Any]:
    """The length arguments of `pemt.tasks.encoding`: as asked, or fitted to what the base can take.

    Args:
        model: on its base.
        settings: with the lengths asked for.
        taken: positions of the prompt, where it is not simply the model's.

    Raises:
        ConfigError: the base has no room for the length asked for, or the prompt leaves the text
            less than 8 positions.
    """
    limit = max_positions(model.base.config, model.backbone)
    taken = model.prompt_rows() if taken is None else taken
    source = settings.max_source_length or SOURCE_LENGTH
    if limit is not None:
        room = limit - taken
        if model.family == "decoder-only":
            room -= settings.max_target_length
        if room < 8:
            raise ConfigError(
                f"A prompt of {taken} tokens on a base of {limit} positions",
                "shorten the description",
            )
        if settings.max_source_length is not None and source > room:
            raise ConfigError(
                f"max_source_length={source} beside a prompt of {taken} tokens on a base of "
                f"{limit} positions",
                f"give at most {room}, or leave it out",
            )
        source = min(source, room)
    return {
        "max_source_length": source,
        "max_target_length": settings.max_target_length,
        "max_positions": limit,
        "prompt_length": taken,
    }


def longest_first(encoded: Sequence[Encoded]) -> list[int]:
    """Indices of encoded rows, longest text first: batches of similar length waste no padding."""
    return sorted(
        range(len(encoded)), key=lambda i: -len(cast("list[int]", encoded[i]["input_ids"]))
    )


@contextlib.contextmanager
def evaluating(model: AdaptedModel) -> Iterator[None]:
    """Evaluation mode with the fastest attention; modes are put back afterwards.

    On a CPU in bfloat16 training wants eager attention, because the backward pass of the fused one
    is several times slower; evaluation wants the fused one.
    """
    training = model.training
    before = getattr(model.base.config, "_attn_implementation", None)
    cpu_bf16 = model.device.type == "cpu" and model.base.dtype == torch.bfloat16
    swap = before == "eager" and cpu_bf16
    model.eval()
    if swap:
        model.base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if swap:
            model.base.set_attn_implementation(before)
        model.train(training)


def answers_of(task: Task, family: Family, answers: Answers) -> Answers:
    """How answers are read: by a head, by ranking label words, or generated.

    Raises:
        ConfigError: ranking without label words, or generation on an encoder-only base.
    """
    if family == "encoder-only":
        if answers == "generate" and task.kind != "generation":  # that one has its own refusal
            raise ConfigError(
                f"answers='generate' for {task.name!r} on an encoder-only base, which writes no "
                "text",
                "leave answers at 'auto', or take an encoder-decoder or decoder-only base",
            )
        return "rank"
    if answers == "rank" and task.kind != "classification":
        raise ConfigError(
            f"answers='rank' on the {task.kind} task {task.name!r}",
            "rank needs label words: generate",
        )
    if answers == "auto":
        return "rank" if task.kind == "classification" else "generate"
    return answers


@torch.no_grad()
def predict(
    model: AdaptedModel,
    task: Task,
    tokenizer: Any,
    examples: Sequence[Example],
    settings: TrainSettings | None = None,
    *,
    progress: bool = False,
    shared: bool = False,
) -> Predictions:
    """Answer every example.

    Batches are made of texts of similar length; the order of the answers is that of the examples.

    Args:
        model: on any family.
        task: decides what an answer is.
        tokenizer: the base's.
        examples: their labels are not looked at.
        settings: batch size, lengths and how to answer.
        progress: show a progress bar.
        shared: every process of a launcher calls this and answers its share of the batches.

    Raises:
        ConfigError: a generation task on an encoder-only base, or answers that cannot be had.
        DataError: no options for a row of a task whose rows have their own.
    """
    settings = settings or TrainSettings()
    bare = [e.id for e in examples if task.option_columns and not e.options]
    if bare:
        raise DataError(
            f"The example {bare[0]} of task {task.name!r} has no options",
            f"give its own label words (columns {', '.join(task.option_columns)})",
        )
    how = answers_of(task, model.family, settings.answers)
    with processes.main_first() if shared else contextlib.nullcontext():
        encoded = encode_cached(
            examples, task, tokenizer, model.family, **lengths(model, settings), prompts_only=True
        )
    collate = Collator(tokenizer, model.family, side=side_of(model.family))
    ranks = how == "rank" and model.outputs != 1
    choices = [e.options or task.labels for e in examples]
    answer_ids = word_ids(task, tokenizer, model, choices) if ranks else {}
    values: list[Any] = [None] * len(encoded)
    texts = [""] * len(encoded)
    widest = max((len(own) for own in choices), default=0)
    scores = torch.full((len(encoded), widest), -torch.inf) if ranks and encoded else None
    batches = _batches(encoded, choices if ranks else [()] * len(encoded), settings.eval_batch_size)
    if shared:
        batches, progress = processes.share(batches), progress and processes.is_main()
    with evaluating(model):
        for rows in _bar(batches, "answering", progress):
            heap.settle()
            batch = collate([encoded[i] for i in rows])
            ids, mask = (batch[k].to(model.device) for k in ("input_ids", "attention_mask"))
            if how == "generate":
                said = generated(model, tokenizer, ids, mask, settings.max_target_length)
                for i, text in zip(rows, said, strict=True):
                    texts[i] = text.strip()
                    values[i] = (
                        texts[i]
                        if task.kind == "generation"
                        else parse_answer(task, text, examples[i].options)
                    )
            elif scores is None:
                numbers = model(ids, mask).logits.squeeze(-1).tolist()
                for i, value in zip(rows, numbers, strict=True):
                    values[i], texts[i] = value, score_text(task, value)
            else:
                own = [choices[i] for i in rows]
                logs = _ranked(model, ids, mask, own, answer_ids).float().cpu()
                scores[rows, : logs.shape[1]] = logs
                for i, best in zip(rows, logs.argmax(-1).tolist(), strict=True):
                    values[i], texts[i] = best, choices[i][best]
    if shared and processes.world() > 1:
        done = [i for rows in batches for i in rows]
        mine = [(i, values[i], texts[i]) for i in done]
        for theirs, made_there in processes.gathered(
            (mine, None if scores is None else scores[done])
        ):
            for i, value, text in theirs:
                values[i], texts[i] = value, text
            if scores is not None and made_there is not None:
                scores[[i for i, *_ in theirs]] = made_there
    return Predictions(values, texts, scores)


def generated(
    model: AdaptedModel, tokenizer: Any, ids: Tensor, mask: Tensor, tokens: int
) -> list[str]:
    """The answers of a batch, written greedily.

    As in the paper; a base's own way is left out: BART asks for beams, others punish repetition.

    Args:
        model: whose answers.
        tokenizer: of its base.
        ids: of the texts, `[B, L]`.
        mask: of them, `[B, L]`.
        tokens: at most, in an answer.
    """
    made = model.generate(
        ids, mask, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id,
        num_beams=1, early_stopping=False, length_penalty=1.0, min_length=0,
        no_repeat_ngram_size=0, repetition_penalty=1.0,
    )  # fmt: skip
    said: list[str] = tokenizer.batch_decode(made, skip_special_tokens=True)
    return said


def score_text(task: Task, value: float) -> str:
    """A score as text: one decimal more than the task writes, and so two at least."""
    decimals = len(task.answer(0.0).partition(".")[2]) + 1
    return f"{value:.{decimals}f}"


def evaluate(
    model: AdaptedModel,
    task: Task,
    tokenizer: Any,
    examples: Sequence[Example],
    settings: TrainSettings | None = None,
    *,
    progress: bool = False,
    shared: bool = False,
) -> tuple[dict[str, float], Predictions]:
    """Answer and score; the arguments are those of `predict`.

    Returns:
        The task's metrics (plus "balanced_accuracy" for classification, "loss" where classes were
        scored or scores predicted, and "n"), and the answers. `report_of` says what is behind them.
    """
    made = predict(model, task, tokenizer, examples, settings, progress=progress, shared=shared)
    truth = [_truth(task, e) for e in examples]
    scored = task
    if task.kind == "classification" and "balanced_accuracy" not in task.metrics:
        # accuracy says little where one class is most of the rows
        scored = replace(task, metrics=(*task.metrics, "balanced_accuracy"))
    metrics = dict(compute(scored, made.values, truth, _questions(examples)))
    if made.log_probabilities is not None:
        wanted = torch.tensor([int(cast("int", t)) for t in truth])
        metrics["loss"] = float(-made.log_probabilities[torch.arange(len(wanted)), wanted].mean())
    elif model.outputs == 1:
        squares = [
            (v - float(cast("float", t))) ** 2 for v, t in zip(made.values, truth, strict=True)
        ]
        metrics["loss"] = sum(squares) / len(squares)
    metrics["n"] = float(len(truth))
    return metrics, made


def report_of(task: Task, examples: Sequence[Example], predictions: Predictions) -> Report:
    """The interval of the main metric, scores per class and invalid answers.

    Args:
        task: what was asked.
        examples: labelled, in the order of the predictions.
        predictions: of `predict` or `evaluate`.

    Raises:
        DataError: an example without a label, or without a question where the metric needs one.
    """
    truth = [_truth(task, e) for e in examples]
    return report(task, predictions.values, truth, predictions.texts, _questions(examples))


def statistic_of(
    task: Task, examples: Sequence[Example], predictions: Predictions
) -> tuple[int, Statistic]:
    """The main metric of answers as a function of the rows, see `pemt.tasks.metrics.resampled`.

    Args:
        task: what was asked.
        examples: labelled, in the order of the predictions.
        predictions: of `predict` or `evaluate`.
    """
    truth = [_truth(task, e) for e in examples]
    return resampled(task, task.metrics[0], predictions.values, truth, _questions(examples))


def _batches(
    encoded: Sequence[Encoded], choices: Sequence[Sequence[str]], size: int
) -> list[list[int]]:
    """Row numbers by batch: similar lengths, and equally many options in each."""
    order = longest_first(encoded)
    made = []
    for count in sorted({len(own) for own in choices}):
        rows = [i for i in order if len(choices[i]) == count]
        made += [rows[start : start + size] for start in range(0, len(rows), size)]
    return made


def word_ids(
    task: Task, tokenizer: Any, model: AdaptedModel, choices: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], list[list[int]]]:
    """Token ids of each set of label words in use; none are needed where a head answers.

    Raises:
        ConfigError: a head with fewer outputs than a row has options.
    """
    widest = max(choices, key=len, default=())
    if model.head is not None:
        if model.outputs is not None and len(widest) > model.outputs:
            raise ConfigError(
                f"{len(widest)} options for a head of {model.outputs} outputs: {', '.join(widest)}",
                f"give the task as many labels as a row has options ({len(widest)})",
            )
        return {}
    ids = {}
    for words in dict.fromkeys(choices):
        worded = task
        if words != task.labels:
            worded = replace(
                task, labels=words, label_values={}, label_bins={}, label_variants={},
                option_columns=(), metrics=("accuracy",),
            )  # fmt: skip
        ids[words] = label_word_ids(worded, tokenizer, model.family)
    return ids


def _ranked(
    model: AdaptedModel,
    ids: Tensor,
    mask: Tensor,
    choices: Sequence[tuple[str, ...]],
    answer_ids: dict[tuple[str, ...], list[list[int]]],
) -> Tensor:
    """Log-probabilities over each row's own options, `[B, C]`."""
    if model.head is not None:
        # an output beyond a row's options is no answer to it
        return model.label_scores(ids, mask, [])[:, : len(choices[0])].log_softmax(-1)
    if len(set(choices)) == 1:
        return model.label_scores(ids, mask, answer_ids[choices[0]])
    own = [answer_ids[words] for words in choices]
    return model.score_answers(ids, mask, own).log_softmax(-1)


def _questions(examples: Sequence[Example]) -> list[str] | None:
    questions = [e.group for e in examples]
    return questions if any(questions) else None


def _truth(task: Task, example: Example) -> int | float | tuple[str, ...]:
    if task.kind == "generation":
        return example.accepted or (example.target,)
    if example.label is None:
        raise DataError(
            f"The example {example.id} of task {task.name!r} has no label",
            "score labelled rows, or call predict",
        )
    return example.label


def _bar(items: Any, what: str, show: bool) -> Any:
    if not show:
        return items
    from rich.progress import track

    return track(items, description=what, transient=True)
