from __future__ import annotations

import copy
import dataclasses
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from pemt.errors import ExpertError
from pemt.experts import Expert, lora_from_peft, lora_to_peft, save_expert

from .builders import MODULES, D, F, R, make_base, make_expert

FAMILIES = ["bert", "t5", "gpt2"]


def run(model: torch.nn.Module, family: str) -> torch.Tensor:
    torch.manual_seed(1)
    ids = torch.randint(1, 50, (2, 7))
    inputs = {"decoder_input_ids": ids[:, :3]} if family == "t5" else {}
    with torch.no_grad():
        return model(input_ids=ids, **inputs)[0]


def with_branches(base: torch.nn.Module, expert: Expert) -> torch.nn.Module:
    """The base with `scale * B A x` added to each down projection's output."""
    for layer in expert.layers:

        def add(_, args, output, layer=layer):
            return output + layer.scale * args[0] @ layer.A.T @ layer.B.T

        base.get_submodule(layer.module).register_forward_hook(add)
    return base


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_loads_the_folder_and_computes_the_same(tmp_path, family, uneven):
    expert = make_expert(family=family, head=False)
    if uneven:
        first, *rest = expert.layers
        odd = dataclasses.replace(first, A=first.A[:3], B=first.B[:, :3], scale=0.25)
        expert = dataclasses.replace(expert, layers=(odd, *rest))
    save_expert(expert, tmp_path / expert.name)
    base = make_base(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns of keys it could not place
        peft = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / expert.name).eval()
    plain, ours, theirs = (
        run(base, family),
        run(with_branches(copy.deepcopy(base), expert), family),
        run(peft, family),
    )
    assert (ours - plain).abs().max() > 1e-2
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family):
    expert = make_expert(family=family)
    layers = lora_from_peft(*lora_to_peft(expert), modules=MODULES[family])
    assert [y.module for y in layers] == MODULES[family]
    for one, other in zip(layers, expert.layers, strict=True):
        assert one.scale == pytest.approx(other.scale)
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_saved_is_read(tmp_path, rslora):
    config = LoraConfig(
        r=R,
        lora_alpha=6,
        target_modules=["output.dense"],
        exclude_modules=r".*attention.*",
        init_lora_weights=False,
        use_rslora=rslora,
        rank_pattern={r"layer\.1\.output\.dense": 2},
        alpha_pattern={r"layer\.0\.output\.dense": 3},
    )
    base = make_base("bert")
    peft = get_peft_model(copy.deepcopy(base), config).eval()
    peft.save_pretrained(tmp_path)
    layers = lora_from_peft(
        json.loads((tmp_path / "adapter_config.json").read_text()),
        load_file(tmp_path / "adapter_model.safetensors"),
    )
    assert [y.module for y in layers] == MODULES["bert"]
    assert [list(y.A.shape) for y in layers] == [[R, F], [2, F]]
    expert = dataclasses.replace(make_expert(), layers=layers)
    theirs = run(peft, "bert")
    assert (theirs - run(base, "bert")).abs().max() > 1e-2
    torch.testing.assert_close(
        run(with_branches(base, expert), "bert"), theirs, atol=1e-5, rtol=1e-5
    )


def test_layers_are_sorted_with_numbers_as_numbers():
    def adapter(i: int) -> dict[str, torch.Tensor]:
        key = f"base_model.model.h.{i}.mlp"
        return {
            f"{key}.lora_A.weight": torch.zeros(R, F),
            f"{key}.lora_B.weight": torch.zeros(D, R),
        }

    state = {**adapter(10), **adapter(2), **adapter(1)}
    layers = lora_from_peft({"peft_type": "LORA", "r": R, "lora_alpha": 1}, state)
    assert [y.module for y in layers] == ["h.1.mlp", "h.2.mlp", "h.10.mlp"]


def test_what_is_no_plain_lora_is_refused():
    config, state = lora_to_peft(make_expert())
    key = f"base_model.model.{MODULES['bert'][0]}.lora_A.weight"
    with pytest.raises(ExpertError, match="use_dora"):
        lora_from_peft({**config, "use_dora": True}, state)
    with pytest.raises(ExpertError, match="IA3"):
        lora_from_peft({**config, "peft_type": "IA3"}, state)
    with pytest.raises(ExpertError, match="bias 'all'"):
        lora_from_peft({**config, "bias": "all"}, state)
    with pytest.raises(ExpertError, match=r"'score\.weight'"):
        lora_from_peft(config, {**state, "score.weight": torch.zeros(1)})
    with pytest.raises(ExpertError, match=r"lacks lora_A of encoder\.layer\.0"):
        lora_from_peft(config, {k: v for k, v in state.items() if k != key})
    with pytest.raises(ExpertError, match="rank 4"):
        lora_from_peft({**config, "r": 8}, state)
    with pytest.raises(ExpertError, match=r"encoder\.layer\.1"):
        lora_from_peft(config, state, modules=MODULES["bert"][:1])


def test_a_bottleneck_is_no_peft_adapter():
    with pytest.raises(ExpertError, match="'bottleneck'"):
        lora_to_peft(make_expert(kind="bottleneck"))
