"""What `generate` returns, however it is asked."""

from __future__ import annotations

import pytest
import torch

from tests import tiny


@pytest.mark.parametrize("name", ["t5", "llama", "gpt2"])
def test_sequences_in_a_dictionary_are_those_without_one(name):
    model = tiny.stir(tiny.pemt(tiny.base(name)))
    ids, mask = tiny.batch(side="left")
    asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    plain = model.generate(ids, mask, **asked)
    for use_cache in (True, False):
        made = model.generate(
            ids, mask, **asked, use_cache=use_cache, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
        assert torch.equal(made.sequences, plain)
        assert len(made.scores) == 4


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_detach_ends_the_checkpointing_that_was_switched_on(name, reentrant):
    """A plain `transformers.Trainer` switches it on and leaves it so."""
    base = tiny.base(name).requires_grad_(False)
    ids, mask = tiny.batch()
    inputs = {"input_ids": ids, "attention_mask": mask, **tiny.decode_inputs(base, len(ids))}
    wanted = base(**inputs)[0]
    model = tiny.source(base)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.detach()
    assert not any(getattr(m, "gradient_checkpointing", False) for m in base.modules())
    made = base(**inputs)[0]
    assert torch.equal(made, wanted)
    assert not made.requires_grad


def test_detach_leaves_the_bases_own_checkpointing_on():
    base = tiny.base("llama")
    base.gradient_checkpointing_enable({"use_reentrant": False})
    model = tiny.source(base)
    model.gradient_checkpointing_enable()
    model.detach()
    assert base.is_gradient_checkpointing
