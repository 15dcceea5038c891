"""A base in 8 bits under a mixture in float32, for the libraries that are installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests import tiny

AUTO = {"t5": AutoModelForSeq2SeqLM, "llama": AutoModelForCausalLM, "bert": AutoModel}


def configuration(library):
    """How transformers is asked for 8 bits; skips where the library is not there."""
    if library == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True)
    if library == "torchao":
        pytest.importorskip("torchao")
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if importlib.util.find_spec("optimum") is None or not importlib.util.find_spec(
        "optimum.quanto"
    ):
        pytest.skip("optimum-quanto is not installed")
    from transformers import QuantoConfig

    return QuantoConfig(weights="int8")


@pytest.mark.parametrize("library", ["bitsandbytes", "quanto", "torchao"])
@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_an_8_bit_base_is_near_its_float32_one(name, library, tmp_path):
    asked = configuration(library)
    base = tiny.base(name)
    base.save_pretrained(tmp_path)
    small = (
        AUTO[name].from_pretrained(tmp_path, quantization_config=asked, dtype=torch.float32).eval()
    )
    assert any(not p.is_floating_point() or type(p.detach()) is not torch.Tensor
               for p in small.parameters())  # fmt: skip
    ids, mask = tiny.batch()
    found = []
    for one in (small, base):
        with torch.no_grad():
            before = one(input_ids=ids, attention_mask=mask, **tiny.decode_inputs(base, 3))[0]
        model = tiny.stir(tiny.pemt(one)).train()
        model(ids, mask, tiny.labels_for(model.family, ids, mask)).loss.backward()
        found.append(tiny.gradients(model))
        model.detach().eval()
        with torch.no_grad():
            after = one(input_ids=ids, attention_mask=mask, **tiny.decode_inputs(base, 3))[0]
        assert torch.equal(before, after)
    apart = sum(float((found[0][k] - found[1][k]).square().sum()) for k in found[1]) ** 0.5
    size = sum(float(found[1][k].square().sum()) for k in found[1]) ** 0.5
    assert 0 < apart < 0.15 * size
