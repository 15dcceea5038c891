"""The benchmarks' contestants compute the same thing, and ours no more than it must."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(HERE))

import contestants as entered  # noqa: E402
import floor  # noqa: E402
import long_run  # noqa: E402
import memory  # noqa: E402
import speed  # noqa: E402

SHAPES = entered.shapes(quick=True)
EACH = pytest.mark.parametrize("name", SHAPES)


def trained(model) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@EACH
def test_the_authors_algorithm_gives_our_loss_and_gradients(name):
    ours = entered.Pemt(SHAPES[name], torch.float32, 5)
    loop = entered.Pemt(SHAPES[name], torch.float32, 5, loop=True)
    loop.model.load_trained_state(ours.model.trained_state())
    losses = [c.loss() for c in (ours, loop)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1])
    theirs = trained(loop.model)
    for path, gradient in trained(ours.model).items():
        torch.testing.assert_close(gradient, theirs[path], atol=1e-6, rtol=1e-4, msg=path)


@EACH
@pytest.mark.parametrize("loss", [True, False])
def test_ours_multiplies_no_more_than_the_floor(name, loss):
    shape = SHAPES[name]
    pemt = entered.Pemt(shape, torch.float32, 12)
    made = floor.counted(pemt.step if loss else pemt.without_tsl().step)
    least = floor.pemt_floor(
        entered.base_cost(shape), entered.layers_of(shape), experts=12, rank=shape.rank, loss=loss
    )
    # what the floor leaves out: gates, and in T5 a gradient to the decoder's frozen input
    assert least.total <= made < 1.05 * least.total


@EACH
def test_the_floor_of_a_lora_is_what_peft_multiplies(name):
    shape = SHAPES[name]
    made = floor.counted(entered.PeftLora(shape, torch.float32).step)
    least = floor.lora_floor(
        entered.base_cost(shape), entered.layers_of(shape), rank=shape.rank
    ).total
    assert least <= made < 1.05 * least


def test_speed_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    path = tmp_path / "speed.json"
    given = f"--quick --shapes smollm2,minilm --dtypes float32 --experts 3 --rounds 1 --decode 2 \
        --decode-experts 3 --threads 1 --output {path}"
    monkeypatch.setattr(sys, "argv", ["speed.py", *given.split()])
    speed.main()
    rows = json.loads(path.read_text())["results"]
    assert [r["method"] for r in rows if r["shape"] == "smollm2"] == list(entered.NAMES)
    for row in rows:
        assert row["seconds"] > 0
        assert ("decode_seconds" in row) == (row["shape"] == "smollm2")
        assert row["method"] in ("loop", "xlora") or row["over"] == row["ratio"] / row["floor"]
    assert "xlora" in capsys.readouterr().out


def test_memory_counts_base_and_experts(capsys):
    wanted = {"shape": "minilm", "dtype": "float32", "experts": 3, "method": "pemt"}
    given = type("Given", (), {"quick": True, "threads": 1})()
    few = memory.one(wanted, given)["held"]
    many = memory.one({**wanted, "experts": 9}, given)["held"]
    shape = SHAPES["minilm"]
    columns = 6 * shape.rank
    banks = sum(4 * columns * (x.hidden + x.width) for x in entered.layers_of(shape))
    assert many - few > banks / memory.MEBIBYTE


@pytest.mark.parametrize("way", long_run.WAYS)
def test_long_run_reads_memory_after_every_step(way, monkeypatch):
    settled = []
    monkeypatch.setattr(long_run.heap, "settle", lambda: settled.append(True), raising=False)
    given = type(
        "Given", (), {"quick": True, "threads": 1, "steps": 3, "experts": 3, "dtype": "float32"}
    )
    made = long_run.train(way, given())
    assert len(made["held"]) == 3
    assert max(made["held"]) < made["peak"] + 16, "the system counts pages in batches"
    assert len(settled) == (3 if way == "returned" else 0)
