"""Full fine-tuning: what trains, in which type, and that the base comes back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pemt.errors import BackboneError, ConfigError, TrainingError
from pemt.methods import METHODS, Setting
from pemt.model import PemtConfig
from pemt.training import fitting
from pemt.training.fitting import fit
from tests import tiny


def built(name="bert", method="full", *, dtype=torch.float32, folder=None):
    base = tiny.loaded(name)
    base.model.to(dtype)
    task, rows = None, tiny.splits
    if folder is not None:
        task = tiny.task(folder)
    given = Setting(
        base=base, task=task or FREE, experts=[], train=[], validation=[],
        config=PemtConfig(reduction=4),
    )  # fmt: skip
    model = METHODS[method].build(given)
    return (base, model) if folder is None else (base, model, task, rows(task))


class FREE:
    """A task of three classes, as far as building asks."""

    name, kind, num_labels = "free", "classification", 3


def forward(model, name):
    ids, mask = tiny.batch()
    inputs = {"input_ids": ids, "attention_mask": mask, **tiny.decode_inputs(model, len(ids))}
    with torch.no_grad():
        answer = model(**inputs)
    return answer.last_hidden_state if name == "bert" else answer.logits


@pytest.mark.parametrize("name", ["t5", "t5-gated", "bart", "llama", "gpt2", "bert", "modernbert"])
def test_every_weight_that_an_answer_depends_on_trains(name):
    base = tiny.loaded(name)
    own = {n for n, _ in base.model.named_parameters() if not n.startswith("pooler.")}
    base, model = built(name)
    trained = model.trained_state()
    head = {"head.weight", "head.bias"} if model.head is not None else set()
    assert trained.keys() == {f"base.{n}" for n in own} | head
    ids, mask = tiny.batch()
    model.train()(ids, mask, tiny.labels_for(model.family, ids, mask)).loss.backward()
    still = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert still == []


@pytest.mark.parametrize("name", ["t5", "llama", "bert"])
def test_a_bfloat16_base_trains_in_float32_and_comes_back_in_its_own_storage(name):
    base = tiny.loaded(name)
    base.model.to(torch.bfloat16)
    own = dict(base.model.named_parameters(remove_duplicate=False))
    where = {n: (p.data_ptr(), p.dtype, p.clone()) for n, p in own.items()}
    with torch.no_grad():
        wanted = forward(base.model, name)
    given = Setting(
        base=base, task=FREE, experts=[], train=[], validation=[], config=PemtConfig()
    )  # fmt: skip
    model = METHODS["full"].build(given)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    start = {n: v.clone() for n, v in model.trained_state().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    ids, mask = tiny.batch()
    for _ in range(2):
        model.train()(ids, mask, tiny.labels_for(model.family, ids, mask)).loss.backward()
        optimizer.step()
    change = {n: (v - start[n]).abs().max() for n, v in model.trained_state().items()}
    assert all(0 < c < 1e-4 for c in change.values()), "steps that bfloat16 would round away"
    model.eval()
    with model.disable():
        assert torch.equal(forward(model, name), wanted)
        with model.disable():
            assert torch.equal(forward(model, name), wanted)
        assert torch.equal(forward(model, name), wanted), "the inner block put the weights in"
    optimizer.step()  # the optimiser still holds what trains
    model.detach()
    back = dict(base.model.named_parameters(remove_duplicate=False))
    assert all(back[n] is p for n, p in own.items())
    for n, (pointer, dtype, value) in where.items():
        assert (back[n].data_ptr(), back[n].dtype) == (pointer, dtype)
        assert torch.equal(back[n], value)


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2"])
def test_tied_weights_stay_tied(name):
    base, model = built(name)

    def groups():
        seen = {}
        for n, p in base.model.named_parameters(remove_duplicate=False):
            seen.setdefault(id(p), set()).add(n)
        return sorted(map(sorted, seen.values()))

    attached = groups()
    assert any(len(g) > 1 for g in attached)
    tiny.train(model)
    inside = base.model.get_output_embeddings().weight
    assert inside is base.model.get_input_embeddings().weight
    model.detach()
    assert groups() == attached


def test_the_fingerprint_is_the_bases():
    _, model = built("bert")
    before = model.base_fingerprint()
    tiny.stir(model)
    assert model.base_fingerprint() == before


def test_trained_state_moves_to_another_model():
    _, model = built("t5")
    tiny.stir(model)
    _, other = built("t5")
    other.load_trained_state(model.trained_state())
    assert torch.equal(forward(other.eval(), "t5"), forward(model.eval(), "t5"))
    third = built("t5")[1]
    third.load_state_dict(model.state_dict())
    assert torch.equal(forward(third.eval(), "t5"), forward(model, "t5"))


@pytest.mark.parametrize("second", ["full", "bitfit", "adamix", "adapter", "lora"])
@pytest.mark.parametrize("first", ["full", "bitfit", "adamix"])
def test_nothing_is_attached_on_top(first, second):
    base, _ = built("bert", first)
    given = Setting(
        base=base, task=FREE, experts=[], train=[], validation=[], config=PemtConfig(reduction=4)
    )  # fmt: skip
    with pytest.raises(BackboneError, match="already attached"):
        METHODS[second].build(given)


class Packed(nn.Module):
    """A linear map as quantisers leave it: packed weights, in a parameter or in a buffer."""

    def __init__(self, linear: nn.Linear, where: str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        if where == "parameter":
            self.weight = nn.Parameter(packed, requires_grad=False)
        else:
            self.register_buffer("qweight", packed)


@pytest.mark.parametrize(("where", "said"), [("parameter", "torch.uint8"), ("buffer", "a Packed")])
def test_a_quantised_base_is_refused_and_left_alone(where, said):
    base = tiny.loaded("llama")
    layer = base.model.model.layers[1].mlp
    layer.down_proj = Packed(layer.down_proj, where)
    before = tiny.snapshot(base.model)
    given = Setting(
        base=base, task=FREE, experts=[], train=[], validation=[], config=PemtConfig()
    )  # fmt: skip
    with pytest.raises(ConfigError, match=rf"'model.layers.1.mlp.down_proj' is {said}") as refused:
        METHODS["full"].build(given)
    assert "take lora, adapter or pemt" in str(refused.value)
    assert tiny.snapshot(base.model) == before


# -- killed and resumed, for the methods that train by themselves ----------------------------


class Killed(BaseException):
    """Stands for a signal: nothing in the package catches it."""


@pytest.mark.parametrize(
    ("method", "name"), [("full", "t5"), ("full", "bert"), ("bitfit", "t5"), ("adamix", "bert")]
)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch, method, name):
    """Bit for bit: dropout, AdaMix's draws, and the best parameters that are kept."""
    settings = tiny.settings(max_steps=6, evaluations=3, dropout=0.2, learning_rate=1e-3)

    def run(folder):
        base, model, task, rows = built(name, method, folder=tmp_path)
        torch.manual_seed(len(folder))  # what a fresh process has is no part of the run
        made = fit(
            model, task, base.tokenizer, rows.train, rows.validation, settings,
            folder=tmp_path / folder, progress=False,
        )  # fmt: skip
        return made, {k: v.clone() for k, v in model.trained_state().items()}

    whole, wanted = run("whole")
    calls, real = [], fitting.evaluate
    with monkeypatch.context() as patch:

        def stop(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise Killed
            return real(*args, **kwargs)

        patch.setattr(fitting, "evaluate", stop)
        with pytest.raises(Killed):
            run("killed")
    resumed, state = run("killed")
    assert state.keys() == wanted.keys()
    assert [k for k, v in state.items() if not torch.equal(v, wanted[k])] == []
    assert resumed.history == whole.history


def test_a_checkpoint_of_full_fine_tuning_is_not_taken_for_anothers(tmp_path, monkeypatch):
    settings = tiny.settings(max_steps=4, evaluations=2)

    def run(method):
        base, model, task, rows = built("bert", method, folder=tmp_path)
        return fit(
            model, task, base.tokenizer, rows.train, rows.validation, settings,
            folder=tmp_path / "run", progress=False,
        )  # fmt: skip

    calls, real = [], fitting.evaluate

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "evaluate", stop)
        with pytest.raises(Killed):
            run("full")
    with pytest.raises(TrainingError, match="trained and model"):
        run("adapter")
