"""Padding and batch mates change nothing; one row and one token are enough."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests import tiny

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def adapted(name: str, **settings):
    return tiny.stir(tiny.pemt(tiny.base(name), **settings))


def labels_of(model, ids, mask):
    """Labels and what moves with the padding."""
    labels = tiny.labels_for(model.family, ids, mask)
    return labels, (labels,) if model.family == "decoder-only" else ()


def text_logits(model, output, mask):
    return output.logits[mask.bool()] if model.family == "decoder-only" else output.logits


@pytest.mark.parametrize("gate", ["example", "task"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_left_and_right_padding_give_the_same_loss_gates_and_gradients(name, gate):
    model = adapted(name, gate=gate, sparsity_weight=0.5)
    ids, mask = tiny.batch()
    labels, moving = labels_of(model, ids, mask)
    moved = tiny.move_padding(ids, mask, *moving)
    right = model(ids, mask, labels, output_gates=True)
    right.loss.backward()
    wanted = tiny.gradients(model)
    left = model(*moved[:2], moved[2] if moving else labels, output_gates=True)
    left.loss.backward()
    assert_close(left.loss, right.loss, **CLOSE)
    assert_close(left.sparsity, right.sparsity, **CLOSE)
    for a, b in zip(left.gates, right.gates, strict=True):
        assert_close(a, b, **CLOSE)
    for key, gradient in tiny.gradients(model).items():
        assert_close(gradient, wanted[key], atol=1e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_more_padding_changes_neither_logits_nor_loss(name):
    model = adapted(name, sparsity_weight=0.5)
    ids, mask = tiny.batch()
    labels, moving = labels_of(model, ids, mask)
    wanted = model(ids, mask, labels)
    wide, wide_mask = (torch.nn.functional.pad(t, (0, 4)) for t in (ids, mask))
    if moving:
        labels = torch.nn.functional.pad(labels, (0, 4), value=-100)
    got = model(wide, wide_mask, labels)
    assert_close(got.loss, wanted.loss, **CLOSE)
    assert_close(got.sparsity, wanted.sparsity, **CLOSE)
    decode = tiny.decode_inputs(model.base, len(ids))
    a, b = model(wide, wide_mask, **decode), model(ids, mask, **decode)
    assert_close(text_logits(model, a, wide_mask), text_logits(model, b, mask), **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_row_does_not_depend_on_its_batch_mates(name, side):
    model = adapted(name)
    ids, mask = tiny.batch(side=side)
    decode = tiny.decode_inputs(model.base, len(ids))
    together = model(ids, mask, output_gates=True, **decode)
    for row in range(len(ids)):
        text = ids[row : row + 1, mask[row].bool()]
        mine = {k: v[row : row + 1] for k, v in decode.items()}
        alone = model(text, output_gates=True, **mine)
        logits = together.logits[row]
        if model.family == "decoder-only":
            logits = logits[mask[row].bool()]
        assert_close(logits, alone.logits[0], **CLOSE)
        for a, b in zip(together.gates, alone.gates, strict=True):
            assert_close(a[row], b[0], **CLOSE)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_padding_tokens_ids_do_not_matter(name):
    model = adapted(name)
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(model.base, len(ids))
    other = torch.where(mask.bool(), ids, 50)
    a = text_logits(model, model(ids, mask, **decode), mask)
    assert_close(text_logits(model, model(other, mask, **decode), mask), a, **CLOSE)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_one_row_of_one_token(name):
    model = adapted(name)
    ids = torch.tensor([[9]])
    decode = tiny.decode_inputs(model.base)
    output = model(ids, **decode, output_gates=True)
    assert output.logits.isfinite().all()
    assert [g.shape for g in output.gates] == [(1, 3)] * len(model.sites)
    if model.family == "decoder-only":
        return  # the only token has none before it that could predict it
    labels = torch.tensor([[5]]) if model.family == "encoder-decoder" else torch.tensor([1])
    model(ids, labels=labels).loss.backward()
    assert all(g.isfinite().all() for g in tiny.gradients(model).values())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_decoder_only_gates_depend_on_the_task_alone(name):
    model = adapted(name)
    gates = model.gates(*tiny.batch())
    other = model.gates(*tiny.batch(rows=2, length=4, seed=9))
    assert_close(gates[:, 0], other[:, 1], **CLOSE)


@pytest.mark.parametrize("name", ["t5", "bart", "bert"])
def test_example_gates_depend_on_the_text_and_task_gates_do_not(name):
    for gate, spread in (("example", True), ("task", False)):
        gates = adapted(name, gate=gate).gates(*tiny.batch())
        assert ((gates[:, 0] - gates[:, 1]).abs().max() > 1e-4) == spread


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_logits_of_answer_columns_alone_are_those_of_a_full_pass(name):
    model = adapted(name)
    ids, mask = tiny.batch()
    labels = tiny.labels_for(model.family, ids, mask)
    few, full = model(ids, mask, labels).logits, model(ids, mask).logits
    assert few.shape[1] < full.shape[1]
    assert_close(few, full[:, -few.shape[1] :], **CLOSE)
