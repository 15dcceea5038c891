"""The implementations of attention agree, mixture and prompt included."""

from __future__ import annotations

import pytest
import torch

from tests import tiny


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_eager_and_sdpa_give_the_same(name):
    model = tiny.stir(tiny.pemt(tiny.base(name)))
    ids, mask = tiny.batch(side="left")
    labels = tiny.labels_for(model.family, ids, mask)
    found = []
    for kind in ("eager", "sdpa"):
        model.base.set_attn_implementation(kind)
        assert model.base.config._attn_implementation == kind
        output = model(ids, mask, labels)
        output.loss.backward()
        found.append((output.loss.detach(), tiny.gradients(model)))
    torch.testing.assert_close(found[0][0], found[1][0])
    for key, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][key], atol=2e-5, rtol=1e-3, msg=key)
