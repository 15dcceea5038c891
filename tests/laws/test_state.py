"""What trains, what stays, what is saved, and what `detach` gives back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pemt.errors import ConfigError
from pemt.nn import LoraBranch, PromptGate, TargetAdapter, TaskHead, TaskPrompt, TrainedNorm
from tests import tiny


def logits(model, side: str = "right"):
    ids, mask = tiny.batch(side=side)
    with torch.no_grad():
        return model(ids, mask, **tiny.decode_inputs(model.base, len(ids))).logits


def modes(model):
    return (
        {n: p.requires_grad for n, p in model.named_parameters()},
        {n: m.training for n, m in model.named_modules()},
        {n: b.clone() for n, b in model.named_buffers()},
    )


def owned(model, kind) -> set[str]:
    """Names of the parameters inside modules of a kind."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, kind)
        for name, _ in module.named_parameters()
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_forward_and_generate_change_neither_requires_grad_nor_mode(name, kind, training):
    base = tiny.base(name)
    model = (tiny.pemt(base) if kind == "pemt" else tiny.source(base)).train(training)
    if training:  # a mixed mode must survive too
        model.sites[0].parent.eval()
    grads, modules, buffers = modes(model)
    ids, mask = tiny.batch(side="left")
    model(ids, mask, tiny.labels_for(model.family, ids, mask)).loss.backward()
    logits(model)
    if kind == "pemt":
        model.gates(ids, mask)
    if model.family != "encoder-only":
        model.generate(ids, mask, max_new_tokens=2, num_beams=2, pad_token_id=0)
        model.generate(ids, mask, max_new_tokens=2, use_cache=False, pad_token_id=0)
        model.score_answers(ids, mask, [[3, 1]])
    with model.disable():
        model(ids, mask, **tiny.decode_inputs(base, len(ids)))
    after = modes(model)
    assert (grads, modules) == after[:2]
    assert all(torch.equal(b, after[2][n]) for n, b in buffers.items())
    assert buffers.keys() == after[2].keys()


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_stage_two_trains_gates_adapters_norms_prompt_and_head(name):
    model = tiny.pemt(tiny.base(name))
    trained = set(model.trained_state())
    norms = {n for n in owned(model, TrainedNorm) if ".trained." in n}
    wanted = owned(model, (PromptGate, TargetAdapter, TaskHead, TaskPrompt)) | norms
    assert trained == wanted
    D, K, P = model.width, 3, len(tiny.prompt())
    narrow = D // 4
    adapter = 2 * D * narrow + narrow + D
    gates = sum(
        K * (D if model.family == "encoder-decoder" and s.stack == "decoder" else s.hidden)
        for s in model.sites
    )
    affine = sum(p.numel() for n, p in model.named_parameters() if n in norms)
    head = 0 if model.head is None else 3 * D + 3
    count = adapter * len(model.sites) + gates + affine + P * D + head
    assert model.parameter_counts()[0] == count
    assert all(p.dtype == torch.float32 for p in model.trained_state().values())


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_settings_switch_off_what_trains(name):
    model = tiny.pemt(tiny.base(name), train_norms=False, target_adapter=False)
    assert set(model.trained_state()) == owned(model, (PromptGate, TaskHead, TaskPrompt))


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_a_lora_as_the_target_adapter_starts_without_effect_and_trains(name):
    model = tiny.pemt(tiny.base(name), target_adapter="lora", train_norms=False)
    adapters = owned(model, LoraBranch)
    assert set(model.trained_state()) == adapters | owned(model, (PromptGate, TaskHead, TaskPrompt))
    assert len(adapters) == 2 * len(model.sites)
    none = tiny.pemt(tiny.base(name), target_adapter=False, train_norms=False)
    assert torch.equal(logits(model), logits(none))
    site, rank = model.sites[0], model.width // 4
    count = (site.hidden + site.width) * rank * len(model.sites)
    assert model.parameter_counts()[0] == count + none.parameter_counts()[0]
    before = {n: v.clone() for n, v in model.trained_state().items()}
    tiny.train(model)
    assert not [n for n in adapters if torch.equal(model.trained_state()[n], before[n])]


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_stage_one_trains_branches_prompt_and_head(name, kind):
    model = tiny.source(tiny.base(name), kind=kind)
    branch = type(model.branches[0])
    model_names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert model_names == {
        n
        for n in owned(model, (branch, TaskHead, TaskPrompt))
        if n in dict(model.named_parameters())  # branches are reached by two paths
    }
    assert not owned(model, TrainedNorm)
    site = model.sites[0]
    each = 4 * (site.hidden + site.width) + (4 + site.width if kind == "bottleneck" else 0)
    head = 0 if model.head is None else 3 * model.width + 3
    assert model.parameter_counts()[0] == each * len(model.sites) + 3 * model.width + head


@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_optimiser_steps_leave_base_experts_and_source_prompts_alone(name, kind):
    base = tiny.base(name)
    before = {n: v.clone() for n, v in base.state_dict().items()}
    model = tiny.pemt(base) if kind == "pemt" else tiny.source(base)
    start = {n: v.clone() for n, v in model.trained_state().items()}
    buffers = {n: v.clone() for n, v in model.named_buffers()}
    experts = getattr(model, "experts", ())
    tensors = [t.clone() for e in experts for t in (e.prompt, *(x.A for x in e.layers))]
    tiny.train(model)
    still = [n for n, v in model.trained_state().items() if torch.equal(v, start[n])]
    assert not still, "what trains must have moved"
    assert all(torch.equal(v, buffers[n]) for n, v in model.named_buffers())
    after = [t for e in experts for t in (e.prompt, *(x.A for x in e.layers))]
    assert all(torch.equal(a, b) for a, b in zip(tensors, after, strict=True))
    given = model.detach().state_dict()
    assert given.keys() == before.keys()
    assert all(torch.equal(v, before[n]) for n, v in given.items())


@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_detach_gives_the_base_back(name, kind):
    base = tiny.base(name)
    frozen = next(iter(base.parameters())).requires_grad_(False)
    next(iter(base.children())).train()  # a mode of its own, to be given back
    grads, modules, _ = modes(base)
    objects = dict(base.named_modules())
    model = tiny.train((tiny.pemt(base) if kind == "pemt" else tiny.source(base)).train())
    assert model.detach() is base
    after = dict(base.named_modules())
    assert after.keys() == objects.keys()
    assert all(after[n] is objects[n] for n in objects)
    assert modes(base)[:2] == (grads, modules)
    assert not frozen.requires_grad
    assert all(p.grad is None for p in base.parameters())
    tiny.pemt(base).detach()  # and it can be attached again


@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_saved_and_loaded_parameters_give_the_same_logits(name, kind):
    def build():
        base = tiny.base(name)
        return tiny.pemt(base) if kind == "pemt" else tiny.source(base)

    trained, fresh = tiny.train(build()), build()
    wanted = logits(trained)
    assert not torch.equal(logits(fresh), wanted)
    fresh.load_trained_state({n: v.clone() for n, v in trained.trained_state().items()})
    assert torch.equal(logits(fresh), wanted)


def test_parameters_that_do_not_fit_are_refused():
    model = tiny.pemt(tiny.base("llama"))
    state = dict(model.trained_state())
    name = "correlation_prompt.target.embedding"
    with pytest.raises(ConfigError, match=f"missing \\['{name}'\\]"):
        model.load_trained_state({k: v for k, v in state.items() if k != name})
    with pytest.raises(ConfigError, match=r"unexpected \['wild'\]"):
        model.load_trained_state({**state, "wild": torch.zeros(1)})
    before = model.trained_state()[name].clone()
    with pytest.raises(ConfigError, match=r"\(5, 32\)"):
        model.load_trained_state({**state, name: torch.zeros(5, 32)})
    assert torch.equal(model.trained_state()[name], before)


@pytest.mark.parametrize("kind", ["pemt", "source"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_deep_copy_stands_on_its_own(name, kind):
    base = tiny.base(name)
    model = tiny.train(tiny.pemt(base) if kind == "pemt" else tiny.source(base))
    wanted = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), wanted)
    tiny.train(twin)
    assert not torch.equal(logits(twin), wanted)
    assert torch.equal(logits(model), wanted)
    assert not set(map(id, twin.modules())) & set(map(id, model.modules()))
    slots = {id(m.slot) for m in twin.modules() if hasattr(m, "slot")}
    assert slots == {id(twin.slot)}
    assert twin.slot is not model.slot
    assert twin.detach() is not base
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_a_source_model_becomes_an_expert_and_back(name):
    base = tiny.base(name)
    info = tiny.info(base, "mine", rank=4, alpha=8.0)
    model = tiny.train(tiny.source(base))
    expert = model.to_expert(info)
    wanted = logits(model)
    fresh = tiny.source(tiny.base(name))
    fresh.load_expert(expert)
    assert torch.equal(logits(fresh), wanted)
    tiny.train(model)
    assert torch.equal(logits(fresh), wanted), "the expert shares nothing with the model"


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_gates_start_uniform_and_are_returned_layer_by_layer(name):
    model = tiny.pemt(tiny.base(name))
    ids, mask = tiny.batch()
    gates = model.gates(ids, mask)
    torch.testing.assert_close(gates, torch.full((len(model.sites), len(ids), 3), 1 / 3))
    tiny.train(model)
    moved = model.gates(ids, mask)
    torch.testing.assert_close(moved.sum(-1), torch.ones(moved.shape[:2]))
    assert (moved - 1 / 3).abs().amax((1, 2)).min() > 1e-3, "every layer's gate has learnt"


def test_every_replaced_module_is_one_of_ours():
    model = tiny.pemt(tiny.base("modernbert"))
    assert not any(isinstance(m.original, nn.Identity) for m in model.modules()
                   if isinstance(m, TrainedNorm))  # fmt: skip
