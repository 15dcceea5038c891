"""AdaMix: routes, the consistency loss and the merged adapter, against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pemt.methods import METHODS, Setting
from pemt.methods.adamix import MODULES, AdaMixModel, RoutedAdapter, symmetric_kl
from pemt.model import AdaptedModel, PemtConfig
from pemt.nn import ForwardContext, Slot, TargetAdapter
from tests import tiny
from tests.methods.test_full import FREE, built

FAMILIES = pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)


def layer(seed: int = 0) -> RoutedAdapter:
    torch.manual_seed(seed)
    adapters = [TargetAdapter(16, reduction=4) for _ in range(MODULES)]
    for adapter in adapters[1:]:
        adapter.up = adapters[0].up
    slot = Slot()
    slot.active = ForwardContext()
    return tiny.stir(RoutedAdapter(torch.nn.Linear(32, 16), adapters, slot))


def by_formula(made: RoutedAdapter, x, i: int | None):
    """y = f + U gelu(V f + v) + u with adapter i's V and v, or their means."""
    f = made.down(x)
    V = torch.stack([a.down.weight for a in made.adapters])
    v = torch.stack([a.down.bias for a in made.adapters])
    V, v = (V.mean(0), v.mean(0)) if i is None else (V[i], v[i])
    up = made.adapters[0].up
    return f + F.gelu(f @ V.T + v, approximate="tanh") @ up.weight.T + up.bias


def test_training_draws_one_adapter_and_evaluation_takes_their_mean():
    made = layer()
    x = torch.randn(2, 5, 32)
    torch.manual_seed(3)
    drawn = [int(torch.randint(MODULES, ())) for _ in range(40)]
    assert set(drawn) == set(range(MODULES))
    torch.manual_seed(3)
    for i in drawn:
        torch.testing.assert_close(made.train()(x), by_formula(made, x, i))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(made.eval()(x), by_formula(made, x, None))
    made.slot.active = None
    assert torch.equal(made(x), made.down(x))


def test_the_mean_is_made_once_and_again_after_every_change(monkeypatch):
    made, calls = layer().eval(), []
    real = RoutedAdapter._mean
    monkeypatch.setattr(RoutedAdapter, "_mean", lambda self: calls.append(1) or real(self))
    x = torch.randn(3, 32)
    with torch.no_grad():
        for _ in range(3):
            made(x)
        assert len(calls) == 1
        made.adapters[2].down.weight.add_(1.0)  # as an optimiser and load_trained_state do
        torch.testing.assert_close(made(x), by_formula(made, x, None))
        assert len(calls) == 2
        made.adapters[2].down.weight.data.add_(1.0)  # unseen by autograd's counter
        torch.testing.assert_close(made.train().eval()(x), by_formula(made, x, None))
        assert len(calls) == 3


def test_the_mean_moves_with_the_adapters():
    """To another type or device: what was made before is no use there."""
    made = layer().eval()
    with torch.no_grad():
        made(torch.randn(3, 32))
        made.double()
        assert {mean.dtype for mean in made.merged().values()} == {torch.float64}


def test_evaluation_has_gradients():
    made = layer().eval()
    made(torch.randn(3, 32)).sum().backward()
    assert all(a.down.weight.grad.abs().max() > 0 for a in made.adapters)


def test_symmetric_kl():
    a, b = (torch.randn(5, 7, requires_grad=True) for _ in range(2))
    p, q = a.softmax(-1), b.softmax(-1)
    plain = 0.5 * ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1))
    torch.testing.assert_close(symmetric_kl(a, b), plain)
    symmetric_kl(a, b).sum().backward()
    torch.testing.assert_close(a.grad, 0.5 * (p - q))  # a follows b, as in a cross-entropy
    torch.testing.assert_close(b.grad, 0.5 * (q - p))
    assert symmetric_kl(a, a).abs().max() < 1e-6


def labels_of(family, ids, mask, kind):
    if kind == "regression":
        return torch.linspace(0, 4, len(ids))
    return tiny.labels_for(family, ids, mask)


class SCORES(FREE):
    """A task of scores, as far as building asks."""

    kind = "regression"


@pytest.mark.parametrize(
    ("name", "kind"), [("t5", "text"), ("llama", "text"), ("bert", "text"), ("bert", "regression")]
)
def test_the_loss_is_the_first_passes_plus_the_divergence(name, kind, monkeypatch):
    """Against two plain passes with the same draws, position by position."""
    base = tiny.loaded(name)
    given = Setting(
        base=base, task=SCORES if kind == "regression" else FREE, experts=[], train=[],
        validation=[], config=PemtConfig(reduction=4),
    )  # fmt: skip
    model = tiny.stir(METHODS["adamix"].build(given)).train()
    ids, mask = tiny.batch()
    labels = labels_of(model.family, ids, mask, kind)
    torch.manual_seed(5)
    got = model(ids, mask, labels)
    torch.manual_seed(5)
    one, two = (AdaptedModel.forward(model, ids, mask, labels) for _ in range(2))
    assert not torch.equal(one.logits, two.logits), "both passes took the same routes"
    each = []
    if kind == "regression":
        each = [0.5 * (a - b) ** 2 for a, b in zip(one.logits, two.logits, strict=True)]
    elif name == "bert":
        each = list(symmetric_kl(one.logits, two.logits))
    else:
        width = one.logits.shape[1]
        shown = labels if name == "t5" else labels[:, -width:]
        for row in range(len(ids)):
            for column in range(width):
                at = column if name == "t5" else column - 1
                if shown[row, column] != -100 and at >= 0:
                    pair = (out.logits[row, at][None] for out in (one, two))
                    each.append(symmetric_kl(*pair))
    wanted = one.loss + torch.stack([e.squeeze() for e in each]).mean()
    torch.testing.assert_close(got.loss, wanted)
    torch.testing.assert_close(got.task_loss, one.task_loss)
    assert torch.equal(got.logits, one.logits)
    torch.manual_seed(5)
    counted = model(ids, mask, labels, num_items_in_batch=2 * len(each))
    torch.testing.assert_close(counted.loss, wanted / 2)
    model.eval()
    quiet = model(ids, mask, labels)
    assert torch.equal(quiet.loss, quiet.task_loss), "evaluation has one pass"


@FAMILIES
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_takes_the_same_routes_again(name, reentrant):
    _, model = built(name, "adamix")
    tiny.stir(model).train()
    ids, mask = tiny.batch()
    labels = tiny.labels_for(model.family, ids, mask)

    def gradients():
        model.zero_grad()
        torch.manual_seed(9)
        model(ids, mask, labels).loss.backward()
        return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients()
    model.gradient_checkpointing_disable()
    for n, g in plain.items():
        assert (g is None) == (again[n] is None), n
        if g is not None:
            torch.testing.assert_close(again[n], g, atol=1e-6, rtol=1e-5, msg=n)


@FAMILIES
def test_counts_and_sharing(name):
    base = tiny.loaded(name)
    given = Setting(
        base=base, task=FREE, experts=[], train=[], validation=[], config=PemtConfig(reduction=4)
    )  # fmt: skip
    model = METHODS["adamix"].build(given)
    assert isinstance(model, AdaMixModel)
    _, single = built(name, "adapter")
    trained, merged = model.parameter_counts()[0], single.parameter_counts()[0]
    assert given.notes == {"trained_parameters": trained, "merged_parameters": merged}
    assert trained - merged == (MODULES - 1) * len(model.sites) * (32 * 8 + 8)
    for routed in (m for m in model.modules() if isinstance(m, RoutedAdapter)):
        assert len({id(a.up) for a in routed.adapters}) == 1
        downs = [a.down.weight for a in routed.adapters]
        assert not any(torch.equal(downs[0], other) for other in downs[1:])
