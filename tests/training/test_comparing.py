"""Many methods on the same rows: what is run once, and the numbers of a table."""

from __future__ import annotations

import json
import math

import pytest

from pemt.methods import METHODS
from pemt.training import comparing
from pemt.training.comparing import Cell, compare, paired, summarise
from tests import tiny


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """`compare` on a tiny base, and the cells that were really run."""
    base = tiny.loaded("bert")
    experts = [tiny.expert(base.model, n, seed=i) for i, n in enumerate("ab", 1)]
    task = tiny.task(tmp_path)
    real, ran = comparing.adapt, []

    def adapt(*args, **kwargs):
        ran.append((kwargs["method"], kwargs["settings"].init_seed))
        return real(*args, **kwargs)

    monkeypatch.setattr(comparing, "adapt", adapt)

    def run(methods=("probe", "adapter"), seeds=(0, 1), **changes):
        ran.clear()
        given = {
            "shots": 4, "folder": tmp_path / "cells",
            "settings": tiny.settings(max_steps=1, checkpoints=False), **changes,
        }  # fmt: skip
        return compare(base, experts, [task], methods, seeds, **given), list(ran)

    run.folder, run.base, run.before = tmp_path / "cells", base, tiny.snapshot(base.model)
    return run


def test_finished_cells_are_not_run_again(bench):
    cells, ran = bench()
    assert ran == [("probe", 0), ("adapter", 0), ("probe", 1), ("adapter", 1)]
    assert [(c.method, c.data_seed) for c in cells] == ran
    found = []
    again, ran = bench(on_cell=lambda cell, result: found.append(result))
    assert ran == []
    assert again == cells
    assert found == [None] * 4
    more, ran = bench(seeds=(0, 1, 2), methods=("probe",))
    assert ran == [("probe", 2)]
    assert more[:2] == [c for c in cells if c.method == "probe"]
    assert tiny.snapshot(bench.base.model) == bench.before


@pytest.mark.parametrize("change", [{"shots": 2}, {"test_rows": 5}, {"validation": "full"}])
def test_a_cell_of_other_settings_is_another_cell(bench, change):
    bench(methods=("probe",), seeds=(0,))
    assert bench(methods=("probe",), seeds=(0,), **change)[1] == [("probe", 0)]
    assert len(list(bench.folder.iterdir())) == 2


def test_an_interrupted_table_keeps_whole_cells(bench):
    seen = []

    def stop(cell, result):
        seen.append(cell)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(on_cell=stop)
    assert tiny.snapshot(bench.base.model) == bench.before
    files = sorted(bench.folder.iterdir())
    assert len(files) == 3
    assert sorted(Cell(**json.loads(f.read_text())).method for f in files) == [
        "adapter", "probe", "probe",
    ]  # fmt: skip
    cells, ran = bench()
    assert ran == [("adapter", 1)]
    assert cells[:3] == seen


def test_gates_of_a_cell_are_by_name(bench):
    cells, _ = bench(methods=("pemt", "lora"), seeds=(0,))
    assert cells[0].gates.keys() == {"a", "b"}
    assert sum(cells[0].gates.values()) == pytest.approx(1)
    assert cells[1].gates is None
    own = [METHODS[m].learning_rates["encoder-only"] for m in ("pemt", "lora")]
    assert [c.learning_rate for c in cells] == own  # not the settings' 1e-2


def cell(method, seed, accuracy, task="t"):
    return Cell(
        task=task, method=method, shots=4, data_seed=seed, metrics={"accuracy": accuracy},
        validation=None, learning_rate=None, trained=1, seconds=0.0,
    )  # fmt: skip


def test_mean_and_spread_by_hand():
    summary = summarise([0.5, 0.7, 0.9])
    assert summary.mean == pytest.approx(0.7)
    assert summary.deviation == pytest.approx(0.2)  # sample deviation: divided by n - 1
    assert summary.n == 3
    assert str(summary) == "70.0 ± 20.0"
    assert summarise([0.25]) == comparing.Summary(0.25, 0.0, 1)


def test_paired_differences_by_hand():
    """Only seeds that both methods have, and only this task."""
    cells = [
        cell("pemt", 0, 0.8), cell("pemt", 1, 0.6), cell("pemt", 2, 0.9),
        cell("lora", 1, 0.7), cell("lora", 0, 0.5), cell("lora", 0, 0.0, task="other"),
    ]  # fmt: skip
    difference = paired(cells, "t", "accuracy", "pemt", "lora")
    assert difference.n == 2
    assert difference.mean == pytest.approx((0.3 - 0.1) / 2)
    assert difference.deviation == pytest.approx(math.sqrt(2 * 0.2**2))
