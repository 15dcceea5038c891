"""The peak of a stretch of work, not of the process's whole life."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pemt.training import memory
from pemt.training.memory import PeakMemory, give_back_memory

MIB = 1 << 20


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
