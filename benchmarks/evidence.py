"""What evidence and the instant mode cost: seconds and memory for 6, 24 and 96 experts.

    python benchmarks/evidence.py LIBRARY --output benchmarks/results/evidence.json

The library's experts are copied under other names until there are enough; 16 rows per class of
product reviews. Each size in a process of its own, which gives its peak memory. "gather": evidence
over experts that are loaded one after the other; "build": the instant mixture from it; "answer": of
200 test rows with all experts that have a share.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pemt.bases import load_base
from pemt.experts import ExpertLibrary
from pemt.guide import gather, guide_of
from pemt.methods import METHODS, Setting
from pemt.model import PemtConfig
from pemt.tasks import Task
from pemt.training import TrainSettings
from pemt.training.adapting import target_rows
from pemt.training.evaluating import evaluate
from pemt.training.record import run_record, write_json

SIZES = (6, 24, 96)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("library")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one is not None:
        print(json.dumps(measure(given, given.one)))
        return
    rows = []
    for size in SIZES:
        command = [
            sys.executable, __file__, given.library, "--base", given.base, "--output",
            str(given.output), "--threads", str(given.threads), "--one", str(size),
        ]  # fmt: skip
        made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(made.splitlines()[-1]))
    write_json(
        given.output,
        {"run": run_record(stage="benchmark", benchmark="evidence", base=given.base,
                           threads=given.threads), "rows": rows},
    )  # fmt: skip
    print("| experts | gather, s | a expert, s | build, s | answer 200 rows, s | of | peak, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for r in rows:
        times = f"{r['gather']:.1f} | {r['gather'] / r['experts']:.2f} | {r['build']:.1f}"
        answers = f"{r['answer']:.1f} | {r['used']}"
        print(f"| {r['experts']} | {times} | {answers} | {r['peak_mb']:.0f} |")


def measure(given: argparse.Namespace, size: int) -> dict[str, Any]:
    base, source = load_base(given.base, precision="auto"), ExpertLibrary(given.library)
    task = Task.named("product_reviews")
    rows = target_rows(task, shots=16, data_seed=0)
    with tempfile.TemporaryDirectory() as folder:
        library = ExpertLibrary(folder)
        names = source.names()
        for i in range(size):
            expert = source.load(names[i % len(names)])
            name = f"{expert.name}-{i}"
            library.add(replace(expert, name=name, info=replace(expert.info, name=name)))
        setting = Setting(
            base=base, task=task, experts=[], train=rows.train, validation=[],
            config=PemtConfig(), max_source_length=96,
        )  # fmt: skip
        gather(setting, [library.load(n) for n in library.names()[:2]])  # warms up
        begun = time.perf_counter()
        gather(setting, (library.load(n) for n in library.names()))
        seconds = time.perf_counter() - begun
        loaded = replace(setting, experts=library.load_many(library.names()))
        guide_of(loaded)
        begun = time.perf_counter()
        model = METHODS["instant"].build(loaded)
        build = time.perf_counter() - begun
        begun = time.perf_counter()
        settings = TrainSettings(max_source_length=96)
        evaluate(model, task, base.tokenizer, rows.test[:200], settings)
        answer = time.perf_counter() - begun
        used = len(model.experts)
        model.detach()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"experts": size, "gather": seconds, "build": build, "answer": answer, "used": used,
            "peak_mb": peak}  # fmt: skip


if __name__ == "__main__":
    main()
