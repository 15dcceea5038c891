"""PEMT with one part taken out: exactly that part is missing, and all the rest is PEMT's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from pemt.errors import ConfigError
from pemt.methods import METHODS
from pemt.model import PemtModel
from pemt.model.storage import load_model
from pemt.nn import ExpertBank, PromptGate, TargetAdapter, TrainedNorm, UniformGate
from pemt.training import adapt
from tests import adapters, tiny
from tests.methods.mixing import CLOSE, INPUTS, given

FAMILIES = pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
ABLATIONS = ["uniform", *[name for name in METHODS if name.startswith("pemt-")]]
PARTS = {
    "gates": ".gate.weight", "adapter": ".adapter.", "norms": ".trained.", "head": "head.",
    "prompt": "correlation_prompt.target.embedding",
}  # fmt: skip
GONE = {
    "uniform": {"gates"}, "pemt-no-mixture": {"gates"}, "pemt-no-adapter": {"adapter"},
    "pemt-frozen-norms": {"norms"},
}  # fmt: skip
OTHER_START = {"pemt-no-description": {"prompt"}, "pemt-task-gates": {"gates"}}


def library(kind="lora", **settings):
    def make(model):
        pairs = (("a", 4, 1), ("b", 2, 2))
        return [tiny.expert(model, n, kind=kind, rank=r, seed=s, **settings) for n, r, s in pairs]

    return make


def build(folder, name, method, **changes) -> PemtModel:
    kind = "bottleneck" if METHODS[method].library == "bottleneck" else "lora"
    experts = changes.pop("experts", library(kind))
    model = METHODS[method].build(given(folder, name, experts=experts, **changes))
    return model.eval()


def part_of(parameter: str) -> str:
    (found,) = [part for part, mark in PARTS.items() if mark in parameter]
    return found


def answer(model, **more):
    ids, mask = tiny.batch()
    with torch.no_grad():
        return model(ids, mask, **INPUTS.get(model.base.config.model_type, {}), **more)


def with_labels(model):
    ids, mask = tiny.batch()
    return model(ids, mask, tiny.labels_for(model.family, ids, mask, classes=2))


@FAMILIES
@pytest.mark.parametrize("method", ABLATIONS)
def test_what_trains_is_pemts_without_the_part(tmp_path, name, method):
    """By name, and with the same seed bit for bit the same first values."""
    whole = build(tmp_path, name, "pemt").trained_state()
    parts = {part_of(key) for key in whole}
    assert parts == set(PARTS) - ({"head"} if name != "bert" else set())
    left = build(tmp_path, name, method).trained_state()  # task-level gates are [D, K], not [F, K]
    gone = GONE.get(method, set())
    assert left.keys() == {key for key in whole if part_of(key) not in gone}
    for key, value in left.items():
        if part_of(key) not in OTHER_START.get(method, set()):
            assert torch.equal(value, whole[key]), key


@FAMILIES
@pytest.mark.parametrize("method", ABLATIONS)
def test_the_modules_are_pemts_without_the_part(tmp_path, name, method):
    def count(model):
        kinds = (ExpertBank, PromptGate, UniformGate, TargetAdapter, TrainedNorm)
        return [sum(isinstance(m, kind) for m in model.modules()) for kind in kinds]

    banks, gates, _, task, norms = count(build(tmp_path, name, "pemt"))
    wanted = {
        "uniform": [banks, 0, gates, task, norms],
        "pemt-no-mixture": [0, 0, 0, task, norms],
        "pemt-no-adapter": [banks, gates, 0, 0, norms],
        "pemt-frozen-norms": [banks, gates, 0, task, 0],
    }
    got = count(build(tmp_path, name, method))
    assert got == wanted.get(method, [banks, gates, 0, task, norms])


@FAMILIES
@pytest.mark.parametrize("method", ["pemt", *ABLATIONS])
def test_the_sparsity_loss_is_there_or_not(tmp_path, name, method):
    output = with_labels(tiny.stir(build(tmp_path, name, method)))
    if method in ("uniform", "pemt-no-mixture", "pemt-no-tsl"):
        assert output.sparsity is None
        assert torch.equal(output.loss, output.task_loss)
    else:
        assert_close(output.loss, output.task_loss + 0.1 * output.sparsity)
        assert output.sparsity > 0


@FAMILIES
@pytest.mark.parametrize("method", ["pemt", *ABLATIONS])
def test_the_prompt_attends_to_the_experts_prompts_or_not(tmp_path, name, method):
    model = build(tmp_path, name, method)
    target = model.correlation_prompt.target.embedding
    assert torch.equal(model.prompt(), target) == (method == "pemt-no-prompt")
    assert model.correlation_prompt.count == (0 if method == "pemt-no-prompt" else 2)


@FAMILIES
def test_no_description_starts_the_prompt_at_noise_of_its_length(tmp_path, name):
    description = build(tmp_path, name, "pemt").correlation_prompt.target.embedding
    setting = given(tmp_path, name, experts=library())
    model = METHODS["pemt-no-description"].build(setting)
    start = model.correlation_prompt.target.embedding
    assert start.shape == description.shape
    drawn = torch.randn(start.shape, generator=torch.Generator().manual_seed(setting.init_seed))
    assert torch.equal(start, drawn)


@FAMILIES
def test_task_gates_are_equal_for_all_rows_and_example_gates_are_not(tmp_path, name):
    for method in ("pemt", "pemt-task-gates"):
        model = tiny.stir(build(tmp_path, name, method))
        gates = model.gates(*tiny.batch())
        alike = bool((gates == gates[:, :1]).all())
        # a causal base's prompt sees no text
        assert alike == (method == "pemt-task-gates" or name == "llama")
        assert gates[:, 0].std() > 1e-4


def test_bottleneck_experts_are_mixed(tmp_path):
    model = build(tmp_path, "bert", "pemt-bottleneck")
    assert all(m.bank.bottleneck for m in model.mixtures)
    whole = build(tmp_path, "bert", "pemt")
    assert not any(m.bank.bottleneck for m in whole.mixtures)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("lora", "lora"), "All experts are LoRAs, .*: e0, e1"),
        (("bottleneck", "lora"), "Some experts are LoRAs, .*: e1"),
    ],
)
def test_bottleneck_wants_bottleneck_experts(tmp_path, kinds, message):
    def experts(model):
        return [tiny.expert(model, f"e{i}", kind=k, seed=i) for i, k in enumerate(kinds)]

    setting = given(tmp_path, "bert", experts=experts)
    before = tiny.snapshot(setting.base.model)
    with pytest.raises(ConfigError, match=message) as caught:
        METHODS["pemt-bottleneck"].build(setting)
    assert "pemt train-source TASK LIBRARY --source.kind bottleneck" in str(caught.value)
    assert ("--experts" in str(caught.value)) == (len(set(kinds)) == 2)
    assert tiny.snapshot(setting.base.model) == before


# -- uniform -----------------------------------------------------------------------------------


@FAMILIES
def test_uniform_gates_stay_at_one_over_k(tmp_path, name):
    model = build(tmp_path, name, "uniform").train()
    with_labels(model).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    model.eval()
    gates = model.gates(*tiny.batch())
    assert gates.shape == (len(model.sites), 3, 2)
    assert torch.equal(gates, torch.full_like(gates, 0.5))


@FAMILIES
def test_uniform_is_pemt_with_gates_fixed_there(tmp_path, name):
    """The rest being equal, PEMT with its gates given as 1/K answers the same, bit for bit."""
    uniform = build(tmp_path, name, "uniform")
    whole = build(tmp_path, name, "pemt")
    for model in (uniform, whole):
        for key, value in model.named_parameters():
            if value.requires_grad and part_of(key) != "gates":
                value.data.add_(0.1 * torch.randn(value.shape, generator=torch.manual_seed(5)))
            elif value.requires_grad:
                value.data.normal_()
    half = torch.full((2,), 0.5)
    fixed = dict.fromkeys(range(len(whole.sites)), half)
    assert torch.equal(answer(uniform).logits, answer(whole, fixed_gates=fixed).logits)
    assert not torch.equal(answer(uniform).logits, answer(whole).logits)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_uniform_beams_equal_fixed_gates_beams(tmp_path, name):
    model = tiny.stir(build(tmp_path, name, "uniform"))
    ids, mask = tiny.batch()
    settings = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    cached, plain = (
        model.generate(ids, mask, use_cache=c, **settings) for c in (True, name == "llama")
    )
    assert torch.equal(cached, plain)


def test_uniform_where_an_expert_is_absent_keeps_its_share_unused(tmp_path):
    model = build(tmp_path, "bert", "uniform", experts=adapters.mixed)
    gates = model.gates(*tiny.batch())
    assert gates.shape == (len(model.gated_sites()), 3, 3)
    assert torch.equal(gates, torch.full_like(gates, 1 / 3))


# -- without the mixture -----------------------------------------------------------------------


@FAMILIES
def test_without_the_mixture_is_pemt_over_experts_that_do_nothing(tmp_path, name):
    """Same prompts, every e_k zero: the same answers."""
    less = tiny.stir(build(tmp_path, name, "pemt-no-mixture"))
    zero = build(tmp_path, name, "pemt", experts=library(zero=True))
    used = build(tmp_path, name, "pemt")
    for model in (zero, used):
        model.load_state_dict(less.state_dict(), strict=False)
    assert_close(answer(less).logits, answer(zero).logits, **CLOSE)
    assert not torch.allclose(answer(less).logits, answer(used).logits, atol=1e-3)


@FAMILIES
@pytest.mark.parametrize("gate", ["example", "task", "uniform"])
def test_without_the_mixture_nobody_has_gates(tmp_path, name, gate):
    setting = given(tmp_path, name, experts=adapters.mixed)
    base = sum(p.numel() for p in setting.base.model.parameters())
    setting = replace(setting, config=replace(setting.config, gate=gate))
    model = METHODS["pemt-no-mixture"].build(setting).eval()
    assert model.gated_sites() == []
    assert all(site.is_down for site in model.sites)
    assert model.gates(*tiny.batch()).shape == (0, 3, 3)
    assert answer(model, output_gates=True).gates == ()
    trained, total = model.parameter_counts()
    assert total == base + trained + sum(e.prompt.numel() for e in model.experts)


@FAMILIES
@pytest.mark.parametrize("method", ["pemt-no-mixture", "uniform"])
def test_saved_and_read_is_the_same_model(tmp_path, name, method):
    model = tiny.stir(build(tmp_path, name, method))
    model.save_pretrained(tmp_path / "model", base_name=name)
    again, _, _ = load_model(tmp_path / "model", base=tiny.loaded(name))
    assert again.pemt_config == model.pemt_config
    assert torch.equal(answer(again).logits, answer(model).logits)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_adapt_without_the_mixture_leaves_no_gates(tmp_path, name):
    setting = given(tmp_path, name, experts=library())
    result = adapt(
        setting.base, setting.task, setting.experts, method="pemt-no-mixture",
        settings=tiny.settings(max_steps=1, evaluations=1), config=setting.config,
        folder=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert result.gates is None
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["gates"] is None
    assert not (tmp_path / "run" / "gates.png").exists()
    assert (tmp_path / "run" / "model" / "pemt.json").is_file()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["mixture"] is False
    result.model.detach()
