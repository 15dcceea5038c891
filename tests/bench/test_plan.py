"""A base is told apart by all that it computes with, and by nothing else."""

from __future__ import annotations

import pickle

import pytest
import torch

from pemt.bases import load_base
from pemt.bench.identity import BaseIdentity
from pemt.training import adapt
from tests import tiny
from tests.bench import places


def exact(base):
    return BaseIdentity.of(base, "tiny").exact


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_the_same_files_are_the_same_base(name, tmp_path):
    made = tiny.loaded(name)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    one, two = (load_base(tmp_path, precision="float32") for _ in range(2))
    identity = BaseIdentity.of(one, "tiny")
    assert identity == BaseIdentity.of(two, "tiny") == pickle.loads(pickle.dumps(identity))
    assert identity.exact == exact(made)


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_use_changes_nothing(name, tmp_path):
    base, before = tiny.loaded(name), exact(tiny.loaded(name))
    task = tiny.task(tmp_path, "one", count=64)
    settings = tiny.settings(max_steps=2, gradient_checkpointing=True)
    result = adapt(
        base, task, [], shots=4, method="lora", settings=settings, progress=False, test_rows=5
    )
    result.model.detach()
    assert exact(base) == before


def test_every_weight_and_kept_buffer_counts():
    def told(change=lambda _: None):
        base = tiny.loaded("bert")
        base.model.register_buffer("kept", torch.zeros(2))
        base.model.register_buffer("computed", torch.zeros(2), persistent=False)
        with torch.no_grad():
            change(base.model)
        return exact(base)["weights"]

    before = told()
    names = [n for n, _ in tiny.base("bert").named_parameters()]
    changed = [told(lambda m, n=n: m.get_parameter(n).view(-1)[-1].add_(1e-3)) for n in names]
    assert len({before, *changed}) == len(names) + 1
    assert told(lambda m: m.kept.add_(1)) != before
    assert told(lambda m: m.computed.add_(1)) == before
    assert told(lambda m: m.to(torch.bfloat16)) != before


class Packed(torch.Tensor):
    """A tensor of a library's own kind."""


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_without_plain_bytes_are_passed_over():
    base = tiny.loaded("bert")
    before = exact(base)["weights"]
    base.model.register_buffer("nowhere", torch.zeros(2, device="meta"))
    base.model.register_buffer("sparse", torch.eye(2).to_sparse())
    base.model.register_buffer(
        "quantised", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    )
    base.model.register_buffer("packed", torch.zeros(2).as_subclass(Packed))
    base.model.register_buffer("scalar", torch.tensor(True))
    base.model.register_buffer("empty", torch.zeros(0))
    told = exact(base)["weights"]
    assert told != before
    base.model.packed.add_(1)
    assert exact(base)["weights"] == told
    base.model.scalar.logical_not_()
    assert exact(base)["weights"] != told


def test_where_a_base_came_from_and_how_it_pads_say_nothing():
    base = tiny.loaded("bert")
    before = exact(base)
    base.model.config._name_or_path = "elsewhere"
    base.model.config.architectures = ["Another"]
    base.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert exact(base) == before
    base.model.config.layer_norm_eps = 1e-3
    base.tokenizer.chat_template = "{{ messages }}"
    assert [k for k, v in exact(base).items() if v != before[k]] == ["configuration", "tokenizer"]


def test_a_tokenizer_without_a_backend_is_known_by_its_chats(monkeypatch):
    base = tiny.loaded("bert")
    monkeypatch.setattr(type(base.tokenizer), "backend_tokenizer", None)
    before = exact(base)["tokenizer"]
    base.tokenizer.chat_template = "{{ messages }}"
    assert exact(base)["tokenizer"] != before


def test_a_cell_holds_the_digests(tmp_path):
    from pemt.bench.grid import Grid
    from pemt.bench.running import GridRun

    path = places.grid(places.furnish(tmp_path), methods=["probe"], data_seeds=1)
    run = GridRun(Grid.from_file(path))
    (cell,) = run.go()
    assert cell.config["base"]["exact"] == run.plan.base.exact
    assert run.plan.base.differs(cell) == []
