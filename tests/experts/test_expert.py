from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from pemt.errors import ConfigError, ExpertError, UnknownNameError
from pemt.experts import ExpertInfo, check_compatible, check_name

from .builders import D, F, P, R, make_expert, make_info


def test_info_survives_json():
    info = make_info()
    assert ExpertInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_non_finite_metrics_become_null():
    info = make_info(metrics={"pearson": math.nan, "by_seed": [math.inf, 0.5]})
    assert info.to_json()["metrics"] == {"pearson": None, "by_seed": [None, 0.5]}


def test_settings_that_are_no_json_are_refused():
    with pytest.raises(ExpertError, match=r"object of type object|object object"):
        make_info(settings={"x": object()}).to_json()


def test_unknown_field_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="Did you mean: rank"):
        ExpertInfo.from_json({**make_info().to_json(), "ranks": 4})


@pytest.mark.parametrize(("field", "value"), [("rank", "4"), ("rank", True), ("settings", [])])
def test_a_value_of_another_type_is_refused(field, value):
    with pytest.raises(ExpertError, match=field):
        ExpertInfo.from_json({**make_info().to_json(), field: value})


def test_missing_field_is_named():
    data = make_info().to_json()
    del data["base_fingerprint"]
    with pytest.raises(ExpertError, match="base_fingerprint"):
        ExpertInfo.from_json(data)


def test_newer_format_is_refused_even_with_fields_of_its_own():
    with pytest.raises(ExpertError, match=r"format 4.*\n.*newer pemt"):
        ExpertInfo.from_json({"format_version": 4, "something_new": 1})


def test_an_unknown_coverage_is_refused():
    with pytest.raises(ExpertError, match="coverage 'some'"):
        make_info(coverage="some")


def test_away_from_the_down_projections_widths_are_the_maps_own():
    change = dataclasses.replace
    expert = make_expert(coverage="linear")
    layer = change(expert.layers[0], A=torch.ones(2, 7), B=torch.ones(9, 2))
    change(expert, layers=(layer,))
    for A, B in [(torch.ones(2, 7), torch.ones(9, 3)), (torch.ones(7), torch.ones(9, 2))]:
        with pytest.raises(ExpertError, match=r"has [AB] of shape"):
            change(expert, layers=(change(layer, A=A, B=B),))


@pytest.mark.parametrize("name", ["a", "SST-2", "x" * 64, "a.b_c"])
def test_allowed_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a..b", "..", "a b", "a\n", "x" * 65, "é"])
def test_refused_names(name):
    with pytest.raises(ConfigError, match="cannot be an expert's name"):
        check_name(name)


def test_num_params_counts_the_branches():
    assert make_expert().num_params == 2 * R * (F + D)
    assert make_expert(kind="bottleneck").num_params == 2 * (R * (F + D) + R + D)


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_size_is_the_mean_norm_of_the_products(kind):
    expert = make_expert(kind=kind)
    norms = [(y.scale * y.B @ y.A).norm().item() for y in expert.layers]
    assert expert.size == pytest.approx(sum(norms) / len(norms), rel=1e-5)
    larger = [dataclasses.replace(y, scale=3 * y.scale) for y in expert.layers]
    tripled = dataclasses.replace(expert, layers=tuple(larger))
    assert tripled.size == pytest.approx(3 * expert.size)


def test_parts_that_contradict_each_other_are_refused():
    expert = make_expert()
    change = dataclasses.replace
    first = expert.layers[0]
    for wrong, why in [
        ({"name": "other"}, "its info says"),
        ({"activation": "relu"}, "activation"),
        ({"layers": ()}, "at least one"),
        ({"layers": (first, first)}, "occurs once"),
        ({"layers": (change(first, A=torch.zeros(R, F + 1)),)}, "A of shape"),
        ({"layers": (change(first, B=torch.zeros(D, R + 1)),)}, "B of shape"),
        ({"layers": (change(first, a=torch.zeros(R)),)}, "has biases"),
        ({"layers": (change(first, scale=math.inf),)}, "scale"),
        ({"prompt": torch.zeros(P, D + 1)}, "prompt of shape"),
    ]:
        with pytest.raises(ExpertError, match=why):
            change(expert, **wrong)
    other = make_expert(kind="bottleneck")
    with pytest.raises(ExpertError, match="a of shape None"):
        change(other, layers=(change(other.layers[0], a=None),))


FITTING = {
    "base_fingerprint": "b" * 8,
    "tokenizer_fingerprint": "t" * 8,
    "width": D,
    "hidden": F,
}


def test_the_same_base_is_compatible():
    check_compatible(make_info(), **FITTING)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("base_fingerprint", "other", "base fingerprint is 'bbbbbbbb' in the expert and 'other'"),
        ("tokenizer_fingerprint", "new", "tokenizer fingerprint is 'tttttttt' in .* and 'new'"),
        ("width", 768, r"width \(D\) is 32 in the expert and 768 here"),
        ("hidden", 3072, r"hidden \(F\) is 64 in the expert and 3072 here"),
    ],
)
def test_another_base_is_refused_by_what_differs(field, value, named):
    with pytest.raises(ExpertError, match=named) as caught:
        check_compatible(make_info(), **{**FITTING, field: value})
    assert caught.value.what.count(" here") == 1
    assert "tiny-bert" in caught.value.fix
