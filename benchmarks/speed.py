"""Seconds of a training step and of decoding: ours, PEFT's LoRA, X-LoRA, the authors' algorithm.

    python benchmarks/speed.py --output benchmarks/results/speed.json
    python benchmarks/speed.py --shapes minilm --dtypes float32 --experts 6,24      (a part of it)

One process. All contestants of a shape, type and number of experts are built first and then take
turns, so that whatever else the machine does meets all of them; medians over the rounds, and ratios
round by round. Beside each ratio to PEFT's LoRA stands what the arithmetic allows (floor.py): the
multiply-adds of the one over those of the other. `over` is how far the measured ratio is above
that; the goal is 1.10 in float32. Weights are random; the shapes are those of T5-base, SmolLM2-135M
and all-MiniLM-L6: 16 rows of 96 tokens behind a prompt of 24, rank 64, 8 tokens answered, AdamW, no
dropout. Decoding is greedy. contestants.py says what each contestant is.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from contestants import NAMES, Contestant, Shape, base_cost, contestants, layers_of, shapes
from floor import lora_floor, pemt_floor

from pemt.training.record import machine, run_record, write_json

LARGEST_LOOP = {"t5-base": 24, "smollm2": 12, "minilm": 96}
"""Stacked full-width outputs of more experts than this do not fit 24 GiB."""
LARGEST_XLORA = 24
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", default="t5-base,smollm2,minilm")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--experts", default="6,12,24,48,96")
    parser.add_argument("--methods", default=",".join(NAMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, default=32, help="tokens; 0 leaves decoding out")
    parser.add_argument(
        "--decode-experts", default="6,24", help="numbers of experts to decode with"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the parts in the file")
    given = parser.parse_args()
    given.before = earlier(given)
    torch.set_num_threads(given.threads)
    found = shapes(given.quick)
    rows: list[dict[str, Any]] = []
    load = os.getloadavg()[0]
    for name in given.shapes.split(","):
        for dtype in given.dtypes.split(","):
            for experts in map(int, given.experts.split(",")):
                decode = given.decode if str(experts) in given.decode_experts.split(",") else 0
                made = measure(
                    name,
                    found[name],
                    dtype,
                    experts,
                    given.methods.split(","),
                    given.rounds,
                    decode,
                )
                show(made)
                rows += made
                if given.output is not None:
                    record(given, rows, load)


def measure(
    name: str,
    shape: Shape,
    dtype: str,
    experts: int,
    methods: Sequence[str],
    rounds: int,
    decode: int,
) -> list[dict[str, Any]]:
    """One shape, type and number of experts: a row per contestant."""
    most = {"loop": LARGEST_LOOP[name], "xlora": LARGEST_XLORA}
    fits = [m for m in methods if experts <= most.get(m, experts)]
    entered = dict(contestants(shape, DTYPES[dtype], experts, fits))
    steps = timed({n: c.step for n, c in entered.items()}, rounds)
    decoded: dict[str, list[float]] = {}
    if decode and shape.family != "encoder-only":
        decoded = timed({n: lambda c=c: decoding(c, decode) for n, c in entered.items()}, rounds)
    base, layers = base_cost(shape), layers_of(shape)
    lora = lora_floor(base, layers, rank=shape.rank).total
    floors = {
        "base": base, "lora": lora,
        "pemt": pemt_floor(base, layers, experts=experts, rank=shape.rank, loss=True).total,
        "pemt-no-tsl": pemt_floor(base, layers, experts=experts, rank=shape.rank, loss=False).total,
    }  # fmt: skip
    made = []
    for method in entered:
        row: dict[str, Any] = {
            "shape": name, "dtype": dtype, "experts": experts, "method": method,
            "seconds": statistics.median(steps[method]), "rounds": steps[method],
        }  # fmt: skip
        if "lora" in steps:
            row["ratio"] = ratio(steps[method], steps["lora"])
            if method in floors:
                row["floor"] = floors[method] / lora
                row["over"] = row["ratio"] / row["floor"]
        if method in floors:
            row["gigamacs"] = floors[method] / 1e9
        if decoded:
            row["decode_seconds"] = statistics.median(decoded[method])
            if "lora" in decoded:
                row["decode_ratio"] = ratio(decoded[method], decoded["lora"])
        made.append(row)
    del entered
    gc.collect()
    return made


def timed(turns: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, `rounds` times in turn after a first time that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for i in range(rounds + 1):
        for name, turn in turns.items():
            started = time.perf_counter()
            turn()
            if i:
                taken[name].append(time.perf_counter() - started)
    return taken


@torch.no_grad()
def decoding(contestant: Contestant, tokens: int) -> None:
    """Greedy decoding; the model is left as it was found."""
    training = contestant.model.training
    contestant.decode(tokens)
    contestant.model.train(training)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def show(rows: list[dict[str, Any]]) -> None:
    """As a table."""
    first = rows[0]
    print(f"\n{first['shape']}, {first['dtype']}, {first['experts']} experts", flush=True)
    heads = f"{'step s':>8} {'/ lora':>7} {'floor':>7} {'over':>6} {'decode s':>9} {'/ lora':>7}"
    print(f"{'':12} {heads}")
    for row in rows:
        cells = [
            f"{row[key]:{width}.{places}f}" if key in row else " " * (width - 1) + "-"
            for key, width, places in (
                ("seconds", 8, 3), ("ratio", 7, 2), ("floor", 7, 2), ("over", 6, 2),
                ("decode_seconds", 9, 3), ("decode_ratio", 7, 2),
            )
        ]  # fmt: skip
        print(f"{row['method']:12} " + " ".join(cells), flush=True)


def record(given: argparse.Namespace, rows: list[dict[str, Any]], load: float) -> None:
    """Write what there is so far."""
    write_part(given, machine={**machine(), "load_before": load}, results=rows)


def earlier(given: argparse.Namespace) -> list[Any]:
    """The parts that are in the file already, where it is appended to."""
    if not given.append or given.output is None or not given.output.exists():
        return []
    parts: list[Any] = json.loads(given.output.read_text(encoding="utf-8"))
    return parts


def write_part(given: argparse.Namespace, **content: Any) -> None:
    """Write a run's record: alone, or behind the parts that were there before it."""
    left_out = ("output", "append", "before", "one")
    settings = {k: v for k, v in vars(given).items() if k not in left_out}
    part = run_record(settings=settings, **content)
    write_json(given.output, [*given.before, part] if given.append else part)


if __name__ == "__main__":
    main()
