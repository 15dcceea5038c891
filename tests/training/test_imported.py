"""Imported experts go through stage 2 like those trained here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pemt.experts import ExpertLibrary
from pemt.model import PemtConfig, PemtModel
from pemt.training import adapt
from tests import adapters, tiny

CONFIG = PemtConfig(reduction=4, prompt_scale=0.1)


@pytest.mark.parametrize("name", [*tiny.ONE_OF_EACH_FAMILY, "gpt2"])
def test_adapt_over_an_imported_and_a_trained_expert(name, tmp_path):
    base = tiny.loaded(name)
    library = ExpertLibrary(tmp_path / "library")
    adapters.saved(tiny.base(name), tmp_path / "lora", "attention")
    info = library.import_peft(
        tmp_path / "lora", name="imported", base=base, task=tiny.task(tmp_path, "judging")
    )
    assert info.task == "judging"
    trained = tiny.expert(base.model, "trained")
    library.add(_with_tokenizer(trained, info.tokenizer_fingerprint))
    result = adapt(
        base, tiny.task(tmp_path, "target", seed=3), library, method="pemt", shots=4, config=CONFIG,
        settings=tiny.settings(), folder=tmp_path / "run", progress=False,
    )  # fmt: skip
    model = result.model
    assert result.gates.shape == (len(model.gated_sites()), 2)
    assert len(model.gated_sites()) > len([s for s in model.sites if s.is_down])
    written = json.loads((tmp_path / "run" / "results.json").read_text())["gates"]
    assert list(written["by_layer"]) == [site.label for site in model.gated_sites()]
    assert (tmp_path / "run" / "gates.png").is_file()
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(base.model, len(ids))
    with torch.no_grad():
        wanted = model(ids, mask, **decode).logits
    model.detach()
    again = PemtModel.from_pretrained(tmp_path / "run" / "model", base=base)
    with torch.no_grad():
        assert torch.equal(again(ids, mask, **decode).logits, wanted)
    again.detach()


def _with_tokenizer(expert, fingerprint: str):
    return replace(expert, info=replace(expert.info, tokenizer_fingerprint=fingerprint))
