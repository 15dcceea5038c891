from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pemt.nn import ExpertBank, task_sparsity
from tests import reference
from tests.nn import draws


@pytest.mark.parametrize("averaging", ["example", "batch"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", draws.SHAPES)
@pytest.mark.parametrize("mix", ["l4", "l4 l2 l4", "g3 l2 g3 l2 r3"])
def test_loss_and_gradients_equal_the_loop(mix, shape, padded, averaging):
    experts = draws.experts(mix)
    bank = ExpertBank(experts)
    x, y, gates = draws.inputs(*shape, len(experts))
    weights = draws.weights(*shape) if padded else None
    ours = task_sparsity(gates, bank.cosines(y, bank.hidden_of(x)), weights, averaging=averaging)
    theirs = reference.sparsity(experts, x, y, gates, weights, averaging=averaging)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(theirs, (x, y, gates))
    for a, b in zip(torch.autograd.grad(ours, (x, y, gates)), wanted, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_tokens_of_weight_zero_do_not_count():
    gates = torch.tensor([[0.3, 0.7]])
    cosines = torch.rand(1, 4, 2)
    weights = torch.tensor([[1, 1, 0, 0]])
    assert_close(task_sparsity(gates, cosines, weights), task_sparsity(gates, cosines[:, :2], None))


def test_an_example_without_tokens_contributes_cosine_zero():
    cosines = torch.rand(2, 3, 2)
    gates = torch.full((2, 2), 0.5)
    weights = torch.tensor([[1, 1, 1], [0, 0, 0]])
    alone = task_sparsity(gates[:1], cosines[:1], None)
    assert_close(task_sparsity(gates, cosines, weights), (alone + 1.0) / 2)


def test_averagings_differ_where_gates_and_agreement_vary_together():
    cosines = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    gates = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert_close(task_sparsity(gates, cosines, None), torch.tensor(0.0))
    assert_close(task_sparsity(gates, cosines, None, averaging="batch"), torch.tensor(0.5))


def test_descending_the_loss_moves_weight_to_the_expert_that_agrees():
    experts = draws.experts("l4 l4 l4")
    bank = ExpertBank(experts)
    x, _, _ = draws.inputs(2, 4, 3)
    y = reference.expert_output(experts[1], x)
    scores = torch.zeros(2, 3, requires_grad=True)
    task_sparsity(scores.softmax(-1), bank.cosines(y, bank.hidden_of(x)), None).backward()
    assert (scores.grad.argmin(-1) == 1).all()
