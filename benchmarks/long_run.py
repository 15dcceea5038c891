"""Does a process grow while it trains? With freed memory returned along the way, and without.

    python benchmarks/long_run.py --output benchmarks/results/long_run.json

PEMT on MiniLM's shape with random weights in bfloat16, batches of 8 rows of 23 to 232 tokens, drawn
alike for both ways. Each way trains in a process of its own, in turns. `held` is resident memory
after each step, `peak` the largest ever (`ru_maxrss`); seconds are processor seconds of a step.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contestants import contestants, shapes
from speed import DTYPES, write_part

from pemt.training.memory import MIB, heap, resident
from pemt.training.record import machine

WAYS = ("kept", "returned")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--experts", type=int, default=12)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    given.append = False
    if given.one is not None:
        print(json.dumps(train(given.one, given)))
        return
    results = []
    for round_ in range(given.rounds):
        for way in WAYS:
            command = [
                sys.executable, __file__, "--one", way, "--steps", str(given.steps),
                "--experts", str(given.experts), "--threads", str(given.threads),
                "--dtype", given.dtype, *(["--quick"] if given.quick else []),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = {"way": way, "round": round_, **json.loads(done.stdout.splitlines()[-1])}
            results.append(row)
            print(
                f"{way:9} after {given.steps // 10} steps {row['held'][given.steps // 10 - 1]:6.0f}"
                f" MiB, at the end {row['held'][-1]:6.0f}, peak {row['peak']:6.0f}, "
                f"{1000 * row['seconds']:.0f} ms a step",
                flush=True,
            )
            if given.output is not None:
                write_part(given, machine=machine(), unit="MiB", results=results)


def train(way: str, given: argparse.Namespace) -> dict[str, Any]:
    """Resident MiB after every step, the peak, and the mean processor seconds of a step."""
    torch.set_num_threads(given.threads)
    shape = shapes(given.quick)["minilm"]
    if not given.quick:
        shape = replace(shape, rows=8, text=232, rank=32)
    ((_, pemt),) = contestants(shape, DTYPES[given.dtype], given.experts, ["pemt"])
    held, seconds = [], []
    whole, draw = dict(pemt.given), random.Random(0)
    for _ in range(given.steps):
        length = draw.randint(max(1, shape.text // 10), shape.text)
        pemt.given = {k: v if k == "labels" else v[:, :length] for k, v in whole.items()}
        begun = time.process_time()
        pemt.step()
        if way == "returned":
            heap.settle()
        seconds.append(time.process_time() - begun)
        held.append((resident() or 0) / MIB)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"held": held, "peak": peak, "seconds": statistics.mean(seconds)}


if __name__ == "__main__":
    main()
