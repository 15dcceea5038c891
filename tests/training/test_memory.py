"""The peak of a stretch of work, not of the process's whole life."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pemt.methods import METHODS, Setting
from pemt.model import PemtConfig, SourceConfig, SourceModel
from pemt.training import memory, predict
from pemt.training.fitting import fit
from pemt.training.memory import MIB, Heap, PeakMemory, give_back_memory
from tests import tiny


def test_peak_of_a_stretch():
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pytest.skip("the system does not let the mark be set back")
    cpu = torch.device("cpu")
    first = PeakMemory.started(cpu)
    before = first.bytes()
    block = torch.ones(300 * MIB, dtype=torch.uint8)
    del block
    give_back_memory()
    assert first.bytes() >= before + 290 * MIB, "the block is gone, its peak stays"
    assert PeakMemory.started(cpu).bytes() < before + 150 * MIB, "the mark is set back"


def test_none_where_the_system_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / "missing" / name.strip("/"))
    assert PeakMemory.started(torch.device("cpu")).bytes() is None


def test_memory_is_returned_when_it_has_piled_up(monkeypatch):
    held, returned = iter([100, 400, 611, 650, 150, 200, 710, 711]), []
    monkeypatch.setattr(memory, "resident", lambda: next(held) * MIB)
    monkeypatch.setattr(memory, "_trim", lambda: returned.append(True))
    heap, after = Heap(), []
    for _ in range(8):
        heap.settle()
        after.append(len(returned))
    # up to 612 beside a step that needs 100; after that the next one says what it needs
    assert after == [0, 0, 0, 1, 1, 1, 2, 2]


def test_nothing_is_returned_where_the_system_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / "missing" / name.strip("/"))
    assert memory.resident() is None
    Heap().settle()


def test_freed_blocks_go_back_to_the_system():
    if memory.resident() is None:
        pytest.skip("the system does not say")
    heap = Heap(slack=64 * MIB)
    heap.settle()
    begun = memory.resident()
    # every other one is freed: holes that the heap keeps
    blocks = [torch.ones(100_000, dtype=torch.uint8) for _ in range(4_000)]
    del blocks[::2]
    held = memory.resident()
    assert held > begun + 300 * MIB
    heap.settle()
    assert memory.resident() < held - 150 * MIB, "half of them were freed"


def test_settled_between_steps_and_batches(monkeypatch, tmp_path):
    """In training and in answering."""
    base = tiny.loaded("bert")
    task = tiny.task(tmp_path)
    splits = tiny.splits(task)
    settled = []
    monkeypatch.setattr(memory.Heap, "settle", lambda self: settled.append(True))
    model = SourceModel(base.model, SourceConfig(rank=4, alpha=8), prompt=tiny.prompt(), outputs=2)
    settings = tiny.settings(epochs=2, batch_size=4, eval_batch_size=4)
    fitted = fit(model, task, base.tokenizer, splits.train[:8], [], settings)
    assert len(settled) == fitted.steps == 4
    settled.clear()
    predict(model, task, base.tokenizer, splits.test[:10], settings)
    assert len(settled) == 3


def test_settled_while_experts_are_asked(monkeypatch, tmp_path):
    """Before training, one expert after the other, and by the instant mixture's every answer."""
    base, method = tiny.loaded("bert"), METHODS["instant"]
    task = tiny.task(tmp_path)
    splits = tiny.splits(task)
    experts = tiny.library_for(method, base)
    settled = []
    monkeypatch.setattr(memory.Heap, "settle", lambda self: settled.append(True))
    model = method.build(
        Setting(
            base=base, task=task, experts=experts, train=splits.train[:8], validation=[],
            config=PemtConfig(reduction=4, prompt_scale=0.1), max_source_length=24,
        )
    )  # fmt: skip
    assert len(settled) > len(experts)
    settled.clear()
    predict(model, task, base.tokenizer, splits.test[:3], tiny.settings())
    asked = len({part.expert for part in model.instant.parts})
    assert len(settled) == 1 + asked
