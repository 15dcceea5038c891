from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pemt.errors import ConfigError
from pemt.nn import CorrelationPrompt, TaskPrompt
from tests import reference

WIDTH = 16


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1.0, WIDTH**-0.5])
@pytest.mark.parametrize("lengths", [[3], [1, 1], [5, 2, 7], [4, 4, 4, 4]])
@pytest.mark.parametrize("length", [1, 6])
def test_fusion_and_gradient_equal_the_loop_over_sources(length, lengths, scale):
    start, sources = rows(length, 0), [rows(n, 1 + k) for k, n in enumerate(lengths)]
    prompt = CorrelationPrompt(start, sources, scale=scale).eval()
    target = start.clone().requires_grad_()
    theirs = reference.correlation_prompt(target, sources, scale)
    assert_close(prompt(), theirs, atol=1e-5, rtol=1e-5)
    pull = rows(length, 99)
    (theirs * pull).sum().backward()
    (prompt() * pull).sum().backward()
    assert_close(prompt.target.embedding.grad, target.grad, atol=1e-4, rtol=1e-4)


def test_gradient_reaches_the_target_prompt_through_the_scores():
    start = rows(2, 0)
    prompt = CorrelationPrompt(start, [rows(3, 1)], scale=0.1).eval()
    prompt().sum().backward()
    # without the scores' share the gradient of the sum would be one everywhere
    assert (prompt.target.embedding.grad - 1).abs().max() > 1e-3


def test_initial_fusion_is_added_once():
    start, sources = rows(4, 0), [rows(3, 1), rows(2, 2)]
    prompt = CorrelationPrompt(start, sources, dropout=0.0, fusion="init")
    assert_close(prompt(), reference.correlation_prompt(start, sources))
    prompt().sum().backward()
    assert_close(prompt.target.embedding.grad, torch.ones(4, WIDTH))


def test_initial_fusion_is_added_without_dropout():
    start, sources = rows(4, 0), [rows(3, 1), rows(2, 2)]
    prompt = CorrelationPrompt(start, sources, dropout=0.5, fusion="init")
    assert_close(prompt(), reference.correlation_prompt(start, sources))


@pytest.mark.parametrize("sources", [[], [rows(3, 1)]])
def test_without_fusion_or_sources_it_is_the_target_prompt(sources):
    start = rows(4, 0)
    fusion = "none" if sources else "live"
    assert torch.equal(CorrelationPrompt(start, sources, fusion=fusion)(), start)


def test_dropout_acts_in_training_alone():
    prompt = CorrelationPrompt(rows(4, 0), [rows(8, 1)], dropout=0.5, scale=0.1)
    torch.manual_seed(0)
    assert not torch.equal(prompt.train()(), prompt())
    assert torch.equal(prompt.eval()(), prompt())


def test_sources_are_frozen_and_the_start_is_copied():
    start = rows(2, 0)
    prompt = CorrelationPrompt(start, [rows(3, 1)])
    assert [n for n, _ in prompt.named_parameters()] == ["target.embedding"]
    assert prompt.target.embedding.data_ptr() != start.data_ptr()
    assert CorrelationPrompt(start.bfloat16(), [])().dtype == torch.float32


def test_wrong_shapes_are_refused():
    with pytest.raises(ConfigError, match="at least one row"):
        TaskPrompt(torch.zeros(0, WIDTH))
    with pytest.raises(ConfigError, match="Source prompt 1"):
        CorrelationPrompt(rows(2, 0), [rows(2, 1), torch.zeros(2, WIDTH + 1)])
