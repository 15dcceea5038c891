"""Top-k in whole models: dense when nothing is cut, the same however decoded, kept on disk."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from pemt.errors import ConfigError
from pemt.model import PemtConfig
from pemt.model.storage import load_model
from pemt.nn import selection
from tests import adapters, reference, tiny
from tests.laws.test_generation import CLOSE, SETTINGS, WAYS, argmax_loop, likelihood
from tests.laws.test_gradients import batches, run, same

SCOPES = ["example", "batch"]


def model_of(name: str, seed: int = 13, **settings):
    """Gates far enough apart that rows choose different experts; the pair covers other maps."""
    base = tiny.base(name)
    experts = [tiny.expert(base, f"e{i}", rank=4, seed=i + 1) for i in range(4)]
    return tiny.stir(tiny.pemt(base, experts, **settings), seed=seed, size=0.5)


def answer(model, rows: int = 3):
    ids, mask = tiny.batch(rows=rows)
    with torch.no_grad():
        return model(
            ids, mask, output_gates=True, **tiny.decode_inputs(model.base, rows)
        )  # fmt: skip


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_as_many_as_there_are_equals_the_dense_model_bit_for_bit(name, scope):
    wanted = answer(model_of(name))
    ours = answer(model_of(name, top_k=4, top_k_scope=scope))
    assert torch.equal(ours.logits, wanted.logits)
    cut = answer(model_of(name, top_k=1, top_k_scope=scope))
    assert not torch.allclose(cut.logits, wanted.logits, atol=1e-3)
    assert all(((g > 0).sum(-1) == 1).all() for g in cut.gates)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_checkpointing_gives_the_same_gradients(name, scope, reentrant):
    settings = {"top_k": 2, "top_k_scope": scope, "top_k_train": True, "sparsity_weight": 0.5}
    model = model_of(name, **settings).train()
    loss, wanted = run(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed, ours = run(model)
    assert_close(checkpointed, loss)
    same(ours, wanted, atol=2e-5)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_training_mixes_all_unless_it_is_asked_to_cut(name):
    (batch,) = batches(model_of(name))
    dense = model_of(name).train()(*batch).loss
    assert torch.equal(model_of(name, top_k=1).train()(*batch).loss, dense)
    assert not torch.equal(model_of(name, top_k=1, top_k_train=True).train()(*batch).loss, dense)


@pytest.mark.parametrize("apart", [0, 99])
@pytest.mark.parametrize("gate", ["example", "task"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["t5", "llama", "gpt2"])
def test_uncached_equals_cached_and_rows_do_not_meet(name, way, gate, apart, monkeypatch):
    monkeypatch.setattr(selection, "APART", apart)
    model = model_of(name, gate=gate, top_k=2)
    ids, mask = tiny.batch(side="left")
    cached = model.generate(ids, mask, **SETTINGS, **WAYS[way])
    uncached = model.generate(ids, mask, **SETTINGS, **WAYS[way], use_cache=False)
    assert torch.equal(uncached, cached)
    together = cached.view(len(ids), -1)
    for row in range(len(ids)):
        text = ids[row : row + 1, mask[row].bool()]
        alone = model.generate(text, **SETTINGS, **WAYS[way]).reshape(1, -1)
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_greedy_is_the_argmax_of_forward_and_scores_its_likelihoods(name):
    model = model_of(name, top_k=2)
    ids, mask = tiny.batch(side="left")
    assert torch.equal(model.generate(ids, mask, **SETTINGS), argmax_loop(model, ids, mask))
    scores = model.score_answers(ids, mask, [[5, 9, 4, 1], [7, 1], [8]])
    text = ids[1:2, mask[1].bool()]
    assert_close(scores[1, 0], likelihood(model, text, [5, 9, 4, 1]), **CLOSE)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_padding_and_rows_beside_do_not_matter_by_example(name):
    model = model_of(name, top_k=2)
    ids, mask = tiny.batch()
    more = {} if model.family != "encoder-decoder" else tiny.decode_inputs(model.base, 3)
    with torch.no_grad():
        whole = model(ids, mask, output_gates=True, **more)
        one = {k: v[:1] for k, v in more.items()}
        first = model(ids[:1], mask[:1], output_gates=True, **one)
    assert_close(whole.logits[:1], first.logits, atol=1e-5, rtol=1e-4)
    for both, alone in zip(whole.gates, first.gates, strict=True):
        assert_close(both[:1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_experts_absent_at_a_map_are_not_counted(name):
    base = tiny.base(name)
    model = tiny.stir(tiny.pemt(base, adapters.mixed(base), top_k=1))
    for layer, gates in zip(
        [m for m in model.mixtures if m.gate is not None], answer(model).gates, strict=True
    ):
        here = range(gates.shape[-1]) if layer.present is None else layer.present.tolist()
        dense = [c for c in range(gates.shape[-1]) if c not in here]
        assert ((gates[:, list(here)] > 0).sum(-1) == 1).all()
        assert (gates[:, dense] > 0).all()
        assert_close(gates.sum(-1), torch.ones(len(gates)))


def test_none_keeps_its_gate_under_a_guide():
    base = tiny.base("bert")
    guide = {"a": 0.5, "b": 0.2, "c": 0.1, "none": 0.2}
    model = tiny_guided(base, guide, top_k=1)
    gates = answer(model).gates[0]
    assert_close(gates, torch.tensor([0.5, 0, 0, 0.2]).div(0.7).expand(3, 4))
    wanted = reference.top_gates(torch.tensor([[0.5, 0.2, 0.1, 0.2]]), 1, [0, 1, 2])
    assert_close(gates[:1], wanted)


def tiny_guided(base, guide, **settings):
    from pemt.model import PemtModel

    experts = [tiny.expert(base, n, seed=i + 1) for i, n in enumerate("abc")]
    config = PemtConfig(guide="evidence", prompt_dropout=0.0, reduction=4, **settings)
    return PemtModel(
        base, experts, config, prompt=tiny.prompt(), outputs=tiny.outputs_of(base), guide=guide
    ).eval()


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_saved_and_read_is_the_same_model(name, tmp_path):
    model = model_of(name, top_k=2, top_k_scope="batch", top_k_train=True)
    model.save_pretrained(tmp_path / "model", base_name=name)
    again, _, described = load_model(tmp_path / "model", base=tiny.loaded(name))
    assert described["config"]["top_k"] == 2
    assert again.pemt_config == model.pemt_config
    assert torch.equal(answer(again).logits, answer(model).logits)


def test_files_of_models_without_top_k_say_nothing_of_it():
    assert not [key for key in PemtConfig().to_dict() if key.startswith("top_k")]
    assert PemtConfig(target_adapter="serial").to_dict() == PemtConfig().to_dict()
    assert PemtConfig(target_adapter="none") == PemtConfig(target_adapter=False)
    assert PemtConfig(**PemtConfig(top_k=3).to_dict()).top_k == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"top_k_train": True}, "without top_k"),
        ({"top_k_scope": "batch"}, "without top_k"),
        ({"top_k": 2, "gate": "uniform"}, "gate='uniform'"),
        ({"target_adapter": "parallel"}, "'parallel'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        PemtConfig(**settings)
