"""Peak memory of training steps: ours, PEFT's LoRA and X-LoRA, the authors' algorithm.

    python benchmarks/memory.py --output benchmarks/results/memory.json

Each contestant builds itself and makes two steps in a process of its own. What is shown is the
largest resident size of that process (`ru_maxrss`), less that of one that only imported the same
libraries. `held` is what the weights alone are: base, experts, what trains, its gradients and
AdamW's two moments. Shapes as in speed.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from contestants import NAMES, contestants, shapes
from speed import DTYPES, LARGEST_LOOP, LARGEST_XLORA, earlier, write_part

from pemt.training.record import machine

MEBIBYTE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", default="t5-base,smollm2,minilm")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--experts", default="6,12,24,48,96")
    parser.add_argument("--methods", default=",".join(NAMES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the parts in the file")
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(one(json.loads(given.one), given)))
        return
    torch.set_num_threads(given.threads)
    given.before = earlier(given)
    imported = peak(None, given)
    if imported is None:
        sys.exit("a process that only imports failed: nothing to compare with")
    nothing = imported["peak"]
    rows = []
    for name in given.shapes.split(","):
        for dtype in given.dtypes.split(","):
            for experts in map(int, given.experts.split(",")):
                print(
                    f"\n{name}, {dtype}, {experts} experts: GiB above the imports, weights alone",
                    flush=True,
                )
                for method in methods_for(name, experts, given):
                    wanted = {"shape": name, "dtype": dtype, "experts": experts, "method": method}
                    found = peak(wanted, given)
                    if found is None:
                        print(f"{method:12} did not end: out of memory?", flush=True)
                        continue
                    row = {**wanted, "peak": found["peak"] - nothing, "held": found["held"]}
                    rows.append(row)
                    print(
                        f"{method:12} {row['peak'] / 1024:7.2f} {row['held'] / 1024:7.2f}",
                        flush=True,
                    )
                    if given.output is not None:
                        write_part(given, machine=machine(), unit="MiB", results=rows)


def methods_for(name: str, experts: int, given: argparse.Namespace) -> list[str]:
    """Those that the family has and that fit; base and LoRA once, as they have no experts."""
    first = int(given.experts.split(",")[0])
    left_out = {"xlora"} if name != "smollm2" or experts > LARGEST_XLORA else set()
    left_out |= {"loop"} if experts > LARGEST_LOOP[name] else set()
    left_out |= {"base", "lora"} if experts != first else set()
    return [m for m in given.methods.split(",") if m not in left_out]


def peak(wanted: dict[str, Any] | None, given: argparse.Namespace) -> dict[str, float] | None:
    """MiB of one contestant's process, or of one that only imports; None where it failed."""
    command = [
        sys.executable,
        __file__,
        "--threads",
        str(given.threads),
        "--one",
        json.dumps(wanted),
    ]
    done = subprocess.run(
        [*command, *(["--quick"] if given.quick else [])],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return None
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def one(wanted: dict[str, Any] | None, given: argparse.Namespace) -> dict[str, float]:
    """Measured in this process."""
    torch.set_num_threads(given.threads)
    held = 0.0
    if wanted is not None:
        shape, dtype = shapes(given.quick)[wanted["shape"]], DTYPES[wanted["dtype"]]
        (entered,) = (
            c for _, c in contestants(shape, dtype, wanted["experts"], [wanted["method"]])
        )
        entered.step()
        entered.step()
        kept = {t.data_ptr(): t for t in [*entered.model.parameters(), *entered.model.buffers()]}
        trained = sum(p.nbytes for p in entered.model.parameters() if p.requires_grad)
        held = (sum(t.nbytes for t in kept.values()) + 3 * trained) / MEBIBYTE
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "held": held}


if __name__ == "__main__":
    main()
