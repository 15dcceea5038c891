"""BitFit: which biases, and that they act as biases."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pemt.backbones import norms
from pemt.methods import METHODS, Setting
from pemt.methods.bitfit import Shifted, biases
from pemt.model import PemtConfig
from tests import tiny
from tests.methods.test_full import FREE, built, forward


@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_where_the_biases_are(name):
    """Found here by walking over the base, without the table of bases for the linear maps."""
    base = tiny.loaded(name)
    layers = tuple(stack.layers + "." for stack in base.backbone.stacks)
    wanted = {
        n for n, m in base.model.named_modules()
        if n.startswith(layers) and type(m).__name__ in ("Linear", "Conv1D")
    }  # fmt: skip
    wanted |= {path for path, _, _ in norms(base.model, base.backbone)}
    if name in tiny.GENERATES:
        wanted.add("lm_head")
    found = biases(base.model, base.backbone)
    assert len(found) == len(wanted)
    assert {path for path, _ in found} == wanted
    shifted = {n for n, m in built(name, "bitfit")[1].named_modules() if isinstance(m, Shifted)}
    assert shifted == {f"base.{n}" for n in wanted}


@pytest.mark.parametrize("name", ["bart", "gpt2", "bert", "roberta"])
def test_a_change_is_a_bias_and_nothing_else(name):
    """The base with the changes added to its own biases answers the same."""
    _, model = built(name, "bitfit")
    assert all(n.endswith(".change") for n in model.trained_state() if not n.startswith("head."))
    tiny.stir(model).eval()
    changes = {
        n.removeprefix("base.").removesuffix(".change"): v.clone()
        for n, v in model.trained_state().items()
        if n.endswith(".change")
    }
    head = None if model.head is None else model.head
    ids, mask = tiny.batch()
    inputs = {"input_ids": ids, "attention_mask": mask, **tiny.decode_inputs(model, len(ids))}
    with torch.no_grad():
        answer = model(**inputs).logits
    edited = tiny.base(name)
    with torch.no_grad():
        for path, change in changes.items():
            module = edited.get_submodule(path)
            if getattr(module, "bias", None) is None:  # the maps to the vocabulary have none
                assert path == "lm_head"
                module.bias = nn.Parameter(torch.zeros_like(change))
            module.bias.add_(change)
        if head is None:
            wanted = edited(**inputs).logits
        else:
            hidden = edited(**inputs).last_hidden_state
            weights = mask.unsqueeze(-1).float()
            wanted = head((hidden * weights).sum(1) / weights.sum(1))
    if name == "gpt2":  # padding is left out of the model's positions, so compare the full row
        answer, wanted = answer[:1], wanted[:1]
    torch.testing.assert_close(answer, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_float32_changes_over_a_bfloat16_base(name):
    base = tiny.loaded(name)
    base.model.to(torch.bfloat16)
    wanted = forward(base.model, name)
    before = {n: p.clone() for n, p in base.model.named_parameters()}
    given = Setting(
        base=base, task=FREE, experts=[], train=[], validation=[], config=PemtConfig()
    )  # fmt: skip
    model = METHODS["bitfit"].build(given)
    assert {v.dtype for v in model.trained_state().values()} == {torch.float32}
    tiny.train(model)
    assert all(v.abs().max() > 0 for v in model.trained_state().values())
    with model.disable():
        assert torch.equal(forward(model, name), wanted)
    model.detach()
    assert all(torch.equal(p, before[n]) for n, p in base.model.named_parameters())


def test_generation_uses_the_vocabularys_bias():
    _, model = built("llama", "bitfit")
    ids, mask = tiny.batch()
    with torch.no_grad():
        dict(model.named_parameters())["base.lm_head.change"][41] = 1e4
    made = model.eval().generate(ids, mask, max_new_tokens=2, do_sample=False)
    assert made.tolist() == [[41, 41]] * len(ids)
