"""Settings with a value that nothing knows are refused where they are made."""

from __future__ import annotations

import pytest

from pemt.errors import ConfigError, UnknownNameError
from pemt.model import PemtConfig, SourceConfig
from pemt.model.config import from_dict


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (PemtConfig, {"gate": "exampel"}, "Unknown gate 'exampel'. Did you mean: example"),
        (PemtConfig, {"prompt": "describe"}, "Unknown prompt 'describe'"),
        (PemtConfig, {"prompt_fusion": "lvie"}, "Did you mean: live"),
        (PemtConfig, {"sparsity_tokens": "real"}, "Unknown sparsity_tokens 'real'"),
        (PemtConfig, {"guide": "evidense"}, "Did you mean: evidence"),
        (SourceConfig, {"kind": "lorra"}, "Unknown kind 'lorra'. Did you mean: lora"),
    ],
)
def test_a_choice_that_is_none_is_refused(kind, values, words):
    """An unknown one would be taken for another of the choices, in code and in saved files."""
    for make in (lambda: kind(**values), lambda: from_dict(kind, values)):
        with pytest.raises(UnknownNameError, match=words):
            make()


@pytest.mark.parametrize("reduction", [0, -4])
def test_a_reduction_below_one_is_refused_whatever_the_adapter(reduction):
    with pytest.raises(ConfigError, match=f"reduction={reduction}"):
        PemtConfig(reduction=reduction, target_adapter="lora")


def test_a_sparsity_weight_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="sparsity_weight=nan"):
        PemtConfig(sparsity_weight=float("nan"))
