"""Masked gates: what is left out, what is alone, and that all else stays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pemt.errors import UnknownNameError
from pemt.guide import NONE
from pemt.model import PemtModel
from pemt.model.gated import GateRecord, joined
from tests import adapters, tiny
from tests.guide.test_guided import guided

FAMILIES = pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)


class LoopedGate(nn.Module):
    """The naive twin: exponentials of the kept columns alone, example by example."""

    def __init__(self, gate, keep):
        super().__init__()
        self.gate, self.keep = gate, keep

    def forward(self, u):
        made = torch.zeros(len(u), len(self.keep))
        for b, row in enumerate(u.float()):
            powers = {}
            for k, kept in enumerate(self.keep):
                if kept:
                    score = (row @ self.gate.weight[:, k]).item() / self.gate.tau
                    powers[k] = math.exp(score if self.gate.bias is None
                                         else score + self.gate.bias[k])  # fmt: skip
            for k, power in powers.items():
                made[b, k] = power / sum(powers.values())
        return made


def looped(model, keep):
    """Replace every gate of a model by its naive twin."""
    for layer in model.mixtures:
        if layer.gate is not None:
            layer.gate = LoopedGate(layer.gate, keep)
    return model


def answers(model):
    """Logits, log-likelihoods and texts, where the family has them."""
    ids, mask = tiny.batch()
    with torch.no_grad():
        found = [model(ids, mask, **tiny.decode_inputs(model, len(ids))).logits]
    if model.family != "encoder-only":
        found.append(model.score_answers(ids, mask, [[5, 6, 1], [7, 1]]))
        found.append(model.generate(ids, mask, max_new_tokens=4, do_sample=False).float())
    return found


def stirred(name, **settings):
    return tiny.stir(tiny.pemt(tiny.base(name), **settings))


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-4)


@FAMILIES
@pytest.mark.parametrize("keep", [(True, False, True), (False, True, False)])
def test_masked_gates_equal_loops_over_what_stays(name, keep):
    model = stirred(name)
    plain = answers(model)
    with model.keeping([n for n, kept in zip("abc", keep, strict=True) if kept]):
        found = answers(model)
        gates = model.gates(*tiny.batch())
    assert not torch.allclose(found[0], plain[0], atol=1e-3)
    assert_same(found, answers(looped(stirred(name), keep)))
    assert_close(gates.sum(-1), torch.ones(gates.shape[:2]))
    assert (gates[..., [k for k, kept in enumerate(keep) if not kept]] == 0).all()
    assert_same(answers(model), plain)  # outside, nothing is left of it


@FAMILIES
def test_one_alone_is_a_one_hot_gate(name):
    model = stirred(name)
    ids, mask = tiny.batch()
    extra = tiny.decode_inputs(model, len(ids))
    for k, expert in enumerate("abc"):
        hot = {s.index: torch.eye(3)[k] for s in model.gated_sites()}
        with torch.no_grad(), model.keeping([expert]):
            alone = model(ids, mask, **extra).logits
        with torch.no_grad():
            assert_close(alone, model(ids, mask, fixed_gates=hot, **extra).logits)


@FAMILIES
def test_none_is_a_mixture_of_experts_without_effect(name):
    base = tiny.base(name)
    nothing = [
        tiny.expert(base, n, rank=r, seed=i, prompt=p, zero=True)
        for i, (n, r, p) in enumerate([("a", 4, 3), ("b", 2, 2), ("c", 4, 5)], 1)
    ]
    idle = tiny.stir(tiny.pemt(base, nothing))
    for own, other in zip(idle.experts, tiny.pemt(tiny.base(name)).experts, strict=True):
        assert torch.equal(own.prompt, other.prompt)  # the prompt is fused with the same sources
    model = stirred(name)
    with model.keeping([]):
        assert_same(answers(model), answers(idle))
    with model.keeping([NONE]):
        assert_same(answers(model), answers(idle))


@FAMILIES
def test_all_change_nothing_bit_for_bit(name):
    model = stirred(name)
    plain = answers(model)
    with model.keeping("cab"):
        for a, b in zip(answers(model), plain, strict=True):
            assert torch.equal(a, b)


def test_masks_reach_given_gates():
    model = stirred("bert")
    given = torch.tensor([0.5, 0.25, 0.25])
    fixed = {s.index: given for s in model.gated_sites()}
    with model.keeping("ab"):
        gates = torch.stack(model(*tiny.batch(), output_gates=True, fixed_gates=fixed).gates)
    assert_close(gates, torch.tensor([2 / 3, 1 / 3, 0.0]).expand_as(gates))


@FAMILIES
def test_the_choice_of_none_stays_a_choice(name):
    """Leaving an expert out frees its share for the others and for none, as they stand."""
    weights = {"a": 0.5, "b": 0.2, NONE: 0.3}
    model = guided(tiny.base(name), weights).eval()
    ids, mask = tiny.batch()
    wanted = {
        ("b", NONE): [0.0, 0.4, 0.6], ("a", NONE): [0.625, 0.0, 0.375],
        ("a", "b"): [5 / 7, 2 / 7, 0.0], ("a",): [1.0, 0.0, 0.0], (NONE,): [0.0, 0.0, 1.0],
    }  # fmt: skip
    for kept, gates in wanted.items():
        with model.keeping(kept):
            found = model.gates(ids, mask)
        assert_close(found, torch.tensor(gates).expand_as(found))


def test_an_expert_that_is_absent_keeps_its_share():
    """Alone where it is absent, it adds nothing: the linear map answers as the base's."""
    base = tiny.base("bert")
    model = tiny.stir(tiny.pemt(base, adapters.pair(base)))
    ids, mask = tiny.batch()
    hot = {s.index: torch.tensor([1.0, 0.0]) for s in model.gated_sites()}
    with torch.no_grad(), model.keeping(["attention"]):
        alone = model(ids, mask).logits
    with torch.no_grad():
        assert_close(alone, model(ids, mask, fixed_gates=hot).logits)
        assert not torch.allclose(alone, model(ids, mask).logits, atol=1e-4)


def test_masks_nest_and_end_with_an_error():
    model = stirred("bert")
    before = model.gates(*tiny.batch())
    with model.keeping("ab"):
        with model.keeping("c"):
            assert (model.gates(*tiny.batch())[..., 2] == 1).all()
        assert (model.gates(*tiny.batch())[..., 2] == 0).all()
    with pytest.raises(UnknownNameError, match="Unknown gate column 'd'"), model.keeping("ad"):
        pass
    with pytest.raises(RuntimeError), model.keeping("a"):
        raise RuntimeError
    assert torch.equal(model.gates(*tiny.batch()), before)


@FAMILIES
def test_recorded_gates_are_those_of_the_passes(name):
    model = stirred(name)
    ids, mask = tiny.batch(rows=4)
    gates = model.gates(ids, mask)  # [L, B, K]
    with model.recording() as record:
        for rows in (slice(0, 3), slice(3, 4)):
            answered = model.label_scores(ids[rows], mask[rows], [[5, 1], [6, 1]])
    assert record.rows == 4
    assert_close(record.mean(), gates.mean(1))
    logs = torch.where(gates > 0, gates.log(), 0.0)
    assert_close(record.entropy(), -(gates * logs).sum(-1).mean(1))
    assert_close(answered, model.label_scores(ids[3:], mask[3:], [[5, 1], [6, 1]]))
    with model.recording() as fresh:
        pass
    assert (fresh.rows, fresh.mean(), fresh.entropy()) == (0, None, None)


@FAMILIES
def test_records_of_parts_of_the_rows_join_to_that_of_all(name):
    model = stirred(name)
    ids, mask = tiny.batch(rows=4)
    records = []
    for rows in (slice(0, 4), slice(0, 0), slice(0, 3), slice(3, 4)):
        with model.recording() as record:
            if len(ids[rows]):
                model.label_scores(ids[rows], mask[rows], [[5, 1], [6, 1]])
        records.append(record)
    whole, made = records[0], joined(records[1:])
    assert made.rows == whole.rows == 4
    assert_close(made.mean(), whole.mean())
    assert_close(made.entropy(), whole.entropy())
    assert joined([GateRecord([0]), GateRecord([0])]).mean() is None


@FAMILIES
def test_with_top_k_the_k_are_of_those_that_stay(name):
    """Whom the mask leaves out is not among the k: the next one takes its place."""
    ids, mask = tiny.batch()
    dense, cut = stirred(name), stirred(name, top_k=1)
    with dense.keeping("bc"):
        largest = dense.gates(ids, mask).argmax(-1)
    with cut.keeping("bc"):
        gates = cut.gates(ids, mask)
    # layers below the first see other inputs once it is cut: theirs are one-hot among b and c too
    assert torch.equal(gates[0], torch.nn.functional.one_hot(largest[0], 3).float())
    assert ((gates == 0) | (gates == 1)).all()
    assert (gates[..., 0] == 0).all()
    with cut.keeping("a"):
        assert (cut.gates(ids, mask)[..., 0] == 1).all()
    with cut.keeping([]):
        assert (cut.gates(ids, mask) == 0).all()


def test_recording_without_a_mixture_notes_nothing():
    model = tiny.pemt(tiny.base("bert"), mixture=False)
    assert isinstance(model, PemtModel)
    with model.recording() as record:
        model(*tiny.batch())
    assert record.mean() is None
