"""What a large library costs: listing, adding, and loading many experts into one stacked bank.

    python benchmarks/library.py --output benchmarks/results/library.json

Weights are random. Loading is measured for experts of rank 64 on the sizes of T5-base (24 layers,
F = 3072, D = 768, float32), each size in a process of its own, which gives peak memory and the
bytes it read. It needs about 2.5 GB of disk and 5 GB of memory, and removes what it wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pemt.experts import Expert, ExpertInfo, ExpertLayer, ExpertLibrary
from pemt.nn import ExpertBank, ExpertTensors
from pemt.training.record import run_record, write_json

MODULES = [f"encoder.block.{i}.layer.1.DenseReluDense.wo" for i in range(12)] + [
    f"decoder.block.{i}.layer.2.DenseReluDense.wo" for i in range(12)
]
MB = 1e6


def make_expert(name: str, *, width: int, hidden: int, rank: int, seed: int) -> Expert:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    info = ExpertInfo(
        name=name, kind="lora", task="random", base="random", base_family="encoder-decoder",
        base_fingerprint="none", tokenizer_fingerprint="none", width=width, hidden=hidden,
        rank=rank, alpha=rank, metrics={"test": {"accuracy": 0.5, "n": 100}},
    )  # fmt: skip
    layers = tuple(
        ExpertLayer(module=module, A=normal(rank, hidden), B=normal(width, rank), scale=1.0)
        for module in MODULES
    )
    return Expert(
        name=name, kind="lora", activation=None, layers=layers, prompt=normal(20, width), head={},
        info=info,
    )  # fmt: skip


def timed(do: Any) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def listing(root: Path, count: int) -> dict[str, Any]:
    """Add `count` tiny experts one by one, list them, and load one."""
    library = ExpertLibrary(root)
    adds = [
        timed(lambda i=i: library.add(
            make_expert(f"expert-{i:04d}", width=8, hidden=16, rank=2, seed=i)
        ))
        for i in range(count)
    ]  # fmt: skip

    def around(i: int) -> float:
        return statistics.median(adds[max(0, i - 10) : i + 10])

    names = [timed(library.names) for _ in range(5)]
    infos = [timed(lambda: list(library.infos())) for _ in range(5)]
    command = ["experts", "list", str(root), "--json"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    shown = timed(
        lambda: subprocess.run(
            [sys.executable, "-c", "from pemt.cli import main; main()", *command],
            check=True, capture_output=True, env=environment,
        )
    )  # fmt: skip
    before = read_bytes()
    one = timed(lambda: library.load("expert-0500" if count > 500 else library.names()[0]))
    size = sum(p.stat().st_size for p in (root / "expert-0000").iterdir())
    return {
        "experts": count,
        "add_seconds_first": around(0),
        "add_seconds_100th": around(100),
        "add_seconds_last": around(count),
        "names_seconds": statistics.median(names),
        "infos_seconds": statistics.median(infos),
        "command_seconds_with_imports": shown,
        "load_one_seconds": one,
        "load_one_bytes_read": read_bytes() - before,
        "one_expert_bytes": size,
    }


def loading(root: Path, count: int) -> dict[str, Any]:
    """Load `count` experts and stack them, in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(count), "--root", str(root)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(root: Path, count: int) -> None:
    """Print what loading and stacking costs here."""
    torch.set_num_threads(1)
    library = ExpertLibrary(root)
    names = library.names()[:count]
    on_disk = sum(p.stat().st_size for n in names for p in (root / n).iterdir())
    at_start, read = peak(), read_bytes()
    started, cpu_started = time.perf_counter(), time.process_time()
    experts = library.load_many(names)
    loaded, cpu_loaded = time.perf_counter(), time.process_time()
    bytes_read, peak_loaded = read_bytes() - read, peak()
    banks = [
        ExpertBank([
            ExpertTensors(A=e.layers[i].A, B=e.layers[i].B, scale=e.layers[i].scale)
            for e in experts
        ])
        for i in range(len(MODULES))
    ]  # fmt: skip
    stacked, cpu_stacked = time.perf_counter(), time.process_time()
    weights = sum(t.numel() * t.element_size() for b in banks for t in b.buffers())
    print(
        json.dumps(
            {
                "experts": count,
                "on_disk_MB": on_disk / MB,
                "bytes_read_per_byte_on_disk": bytes_read / on_disk,
                "load_seconds": loaded - started,
                "load_cpu_seconds": cpu_loaded - cpu_started,
                "load_cpu_seconds_per_expert": (cpu_loaded - cpu_started) / count,
                "stack_seconds": stacked - loaded,
                "stack_cpu_seconds": cpu_stacked - cpu_loaded,
                "stack_cpu_seconds_per_expert": (cpu_stacked - cpu_loaded) / count,
                "bank_MB": weights / MB,
                "tensors_per_layer": sum(1 for n, _ in banks[0].named_buffers() if n in "AB"),
                "columns_per_layer": banks[0].columns,
                "start_MB": at_start / MB,
                "peak_loaded_MB": peak_loaded / MB,
                "peak_stacked_MB": peak() / MB,
                "peak_MB_per_expert_loaded": (peak_loaded - at_start) / MB / count,
                "peak_MB_per_expert_stacked": (peak() - at_start) / MB / count,
            }
        )
    )


def peak() -> int:
    """Greatest resident size of this process so far, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_bytes() -> int:
    """Bytes that this process has asked the system for; 0 where that is not counted."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        return 0
    return int(counters.read_text().split("rchar: ")[1].split()[0])


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, rows in (("A library of tiny experts", [result["listing"]]),
                        ("Loading experts of rank 64 on T5-base", result["loading"])):  # fmt: skip
        table = Table(title=title)
        table.add_column("")
        for row in rows:
            table.add_column(f"{row['experts']}", justify="right")
        for key in rows[0]:
            if key != "experts":
                table.add_row(key, *(f"{row[key]:,.4g}" for row in rows))
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/library.json"))
    parser.add_argument("--tiny", type=int, default=1000)
    parser.add_argument("--counts", type=int, nargs="*", default=[6, 24, 96])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.root, given.measure)
        return
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="pemt-library-"))
    try:
        listed = listing(place / "tiny", given.tiny)
        large = ExpertLibrary(place / "large")
        for i in range(max(given.counts)):
            large.add(
                make_expert(f"expert-{i:03d}", width=768, hidden=3072, rank=given.rank, seed=i)
            )
        loaded = [loading(large.root, count) for count in given.counts]
    finally:
        shutil.rmtree(place)
    result = {**run_record(stage="benchmark", threads=1), "listing": listed, "loading": loaded}
    write_json(given.output, result)
    show(result)


if __name__ == "__main__":
    main()
