"""What the instant mixture and its relatives refuse, and how the one that writes is read again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pemt.errors import ConfigError
from pemt.guide.rule import takes_probes
from pemt.methods import METHODS
from pemt.model import PemtConfig
from pemt.model.storage import load_model
from pemt.training import adapt
from pemt.training.evaluating import predict
from tests import tiny
from tests.guide.test_guide import experts, setting
from tests.training.test_evaluating_options import rows


def with_options(given):
    """Rows of which each has label words of its own."""
    task = replace(given.task, option_columns=("first", "second"), label_values={})
    return replace(given, task=task, train=[replace(e, id=str(i)) for i, e in enumerate(rows(16))])


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_an_instant_mixture_that_writes_is_read_again(tmp_path, name):
    given = setting(tmp_path, name, kind="generation")
    given = replace(given, experts=experts(given.base))
    model = METHODS["instant"].build(given)
    assert model.parameter_counts()[0] == 0, "nothing trains"
    prompt = model.eval().prompt().detach()
    given_rows = tiny.splits(given.task).test[:6]
    before = predict(model, given.task, given.base.tokenizer, given_rows, tiny.settings())
    folder = model.save_pretrained(tmp_path / "saved", base_name=name)
    model.detach()
    again, _, _ = load_model(folder, base=tiny.loaded(name))
    torch.testing.assert_close(again.prompt().detach(), prompt, atol=0, rtol=0)
    after = predict(again, given.task, given.base.tokenizer, given_rows, tiny.settings())
    assert after.texts == before.texts


@pytest.mark.parametrize("method", ["instant", "ensemble", "probe"])
def test_options_of_a_rows_own_have_no_probe(tmp_path, method):
    """A regression over places tells nothing of the words that stand there; a head does."""
    writes = with_options(setting(tmp_path, "llama"))
    writes = replace(writes, experts=experts(writes.base) if method != "probe" else [])
    before = writes.base.model.state_dict()
    with pytest.raises(ConfigError, match="options of its own"):
        METHODS[method].build(writes)
    assert writes.base.model.state_dict().keys() == before.keys()
    assert not takes_probes(writes.task, "decoder-only")
    assert takes_probes(writes.task, "encoder-only")


@pytest.mark.parametrize("method", ["instant", "ensemble"])
def test_experts_without_branches_cannot_be_asked(tmp_path, method):
    """Their probes were fitted on what the branches do."""
    given = setting(tmp_path, config=PemtConfig(mixture=False, sparsity_weight=0.0))
    given = replace(given, experts=experts(given.base))
    with pytest.raises(ConfigError, match="mixture=False"):
        METHODS[method].build(given)


def test_names_of_experts_are_no_matter_to_a_method_that_takes_none(tmp_path):
    """The same flags serve the baseline beside the mixture."""
    given = setting(tmp_path)
    result = adapt(
        given.base, given.task, experts(given.base), names="a,b", shots=4, method="probe",
        settings=tiny.settings(), progress=False,
    )  # fmt: skip
    assert result.experts == []
    result.model.detach()
