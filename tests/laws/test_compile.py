"""torch.compile gives what eager gives. The captured graphs run uncompiled here: that is fast."""

from __future__ import annotations

import pytest
import torch

from tests import tiny


@pytest.fixture
def setting():
    torch.compiler.reset()
    model = tiny.stir(tiny.pemt(tiny.base("bert")))
    ids, mask = tiny.batch()
    yield model, ids, mask, tiny.labels_for(model.family, ids, mask)
    torch.compiler.reset()


def test_a_forward_pass_is_one_graph(setting):
    model, ids, mask, labels = setting
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        made, wanted = compiled(ids, mask, labels), model(ids, mask, labels)
    torch.testing.assert_close(made.logits, wanted.logits)
    torch.testing.assert_close(made.loss, wanted.loss)
    assert float(wanted.sparsity) > 0


def test_a_training_step_has_the_same_gradients(setting):
    model, ids, mask, labels = setting
    model.train()
    model(ids, mask, labels).loss.backward()
    wanted = tiny.gradients(model)
    torch.compile(model, backend="eager")(ids, mask, labels).loss.backward()
    made = tiny.gradients(model)
    for name in wanted:
        torch.testing.assert_close(made[name], wanted[name], msg=name)
