"""Rows per second from a JSONL file to token ids, against datasets' own `map`.

    python benchmarks/encoding.py --data-dir MIRROR --output benchmarks/results/encoding.json

Both sides read the same MNLI file, render the same template and call the same tokenizer, in one
process and one thread, in turn. Medians of `--repeats` count, of wall time and (on a machine that
others use too) of processor time. Each repeat begins with empty caches. Measured per tokenizer:

- first: file -> examples -> encoded rows, written to the cache;
- map:   `load_dataset("json")` -> `Dataset.map(batched=True)`, which writes its cache too;
- encode: examples -> encoded rows in memory, without the cache;
- second: file -> examples -> the cached rows; read: the cached rows alone;
- fetch: single rows in random order, as a Trainer asks for them;
- small: encoding against reading the cache for few rows, which is where `THRESHOLD` comes from.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# One thread on both sides, before the tokenizers library reads it.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import datasets
import torch
from transformers import AutoTokenizer

from pemt import assets
from pemt.tasks import Task, cache, load_examples
from pemt.tasks.encoding import CUE, IGNORED, encode, encode_prompts_only
from pemt.tasks.sources import RowSource
from pemt.training.record import run_record, write_json

FAMILIES = {"smollm2": "decoder-only", "minilm": "encoder-only"}
LENGTHS = {"max_source_length": 256, "max_target_length": 16}
SMALL = (500, 1000, 2000, 4000)
KINDS = ("first", "map", "load", "encode", "second", "read", "fetch", "fetch from datasets")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    loads = [os.getloadavg()[0]]  # above the cores: others were at work, trust processor time
    results = {name: measure(name, given) for name in FAMILIES}
    loads.append(os.getloadavg()[0])
    settings = {
        "task": "mnli", "rows": given.rows, "repeats": given.repeats, "threads": 1, **LENGTHS,
        "batch": cache.BATCH,
    }  # fmt: skip
    if given.output is not None:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": loads}
        write_json(given.output, run_record(settings=settings, machine=machine, results=results))


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(
        assets.base_path(name), gguf_file=assets.base_gguf(name)
    )
    path = given.data_dir / "mnli" / "train.jsonl.gz"
    # One file, as on the other side: the registry's task would read three.
    task = replace(Task.named("mnli"), rows=RowSource(files={"train": path}))
    load_examples(task)  # nothing is timed that happens once a process
    seconds: dict[str, list[float]] = {}
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as folder:
            once(task, tokenizer, FAMILIES[name], path, given.rows, Path(folder), seconds)
    middle = {what: statistics.median(values) for what, values in seconds.items()}
    ratio = middle["map"] / middle["first"]
    print(f"{name}: {given.rows} rows, median of {given.repeats}")
    for what in KINDS:
        print(f"  {what:20} {given.rows / middle[what]:12,.0f} rows/s  {middle[what]:.3f} s")
    cpu = middle["map (cpu)"] / middle["first (cpu)"]
    print(f"  first run against map {ratio:.2f} (processor time {cpu:.2f}); ", end="")
    print(f"second {middle['map'] / middle['second']:.1f}")
    for count in SMALL:
        few, read = middle[f"encode {count}"], middle[f"read {count}"]
        print(f"  {count:5} rows: encode {few:.3f} s, read {read:.3f} s", flush=True)
    return {
        "rows_per_second": {what: given.rows / middle[what] for what in KINDS},
        "first_against_map": ratio,
        "first_against_map_cpu": cpu,
        "second_against_map": middle["map"] / middle["second"],
        "seconds": seconds,
    }


def once(
    task: Task, tokenizer: Any, family: Any, path: Path, count: int, folder: Path,
    seconds: dict[str, list[float]],
) -> None:  # fmt: skip
    """Every measurement, one after another, beginning with empty caches."""
    threshold = cache.THRESHOLD

    def load() -> list[Any]:
        return load_examples(task)["train"][:count]

    def cached(rows: list[Any], **options: Any) -> Any:
        return cache.encode_cached(
            rows, task, tokenizer, family, **LENGTHS, folder=folder, **options
        )

    def plain(rows: list[Any], how: Any = encode) -> Any:
        return how(rows, task, tokenizer, family, **LENGTHS)

    theirs = timed(seconds, "map", lambda: mapped(path, task, tokenizer, family, count, folder))
    first = timed(seconds, "first", lambda: cached(load()))
    examples = timed(seconds, "load", load)
    uncached = timed(seconds, "encode", lambda: plain(examples))
    second = timed(seconds, "second", lambda: cached(load()))
    timed(seconds, "read", lambda: cached(examples))
    order = random.Random(0).sample(range(count), count)
    timed(seconds, "fetch", lambda: fetch(second, order))
    timed(seconds, "fetch from datasets", lambda: fetch(theirs, order))
    assert len(first) == len(second) == len(uncached) == len(theirs) == count
    for i in range(count):
        assert first[i] == second[i] == uncached[i]
    for i in order[:500]:
        assert uncached[i] == theirs[i]
    for size in SMALL:
        few = examples[:size]
        cache.THRESHOLD = 1
        cached(few, prompts_only=True)
        timed(seconds, f"read {size}", partial(cached, few, prompts_only=True))
        cache.THRESHOLD = threshold
        timed(seconds, f"encode {size}", partial(plain, few, encode_prompts_only))


def timed(seconds: dict[str, list[float]], what: str, do: Callable[[], Any]) -> Any:
    started, worked = time.perf_counter(), time.process_time()
    made = do()
    seconds.setdefault(what, []).append(time.perf_counter() - started)
    seconds.setdefault(f"{what} (cpu)", []).append(time.process_time() - worked)
    return made


def fetch(rows: Any, order: list[int]) -> None:
    for i in order:
        rows[i]


def mapped(
    path: Path, task: Task, tokenizer: Any, family: str, count: int, folder: Path
) -> datasets.Dataset:
    """What a user of datasets writes: the same rows, ids and labels."""
    table = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(folder / "datasets")
    ).select(range(count))
    limit = LENGTHS["max_source_length"]
    cue = tokenizer([CUE], add_special_tokens=False)["input_ids"][0]
    end = [tokenizer.eos_token_id]
    answers = [
        ids + end
        for ids in tokenizer([f" {w}" for w in task.labels], add_special_tokens=False)["input_ids"]
        if end != [None]
    ]

    def rows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns = zip(*(batch[name] for name in task.columns), strict=True)
        texts = [
            task.template.format(**dict(zip(task.columns, values, strict=True)))
            for values in columns
        ]
        if family == "encoder-only":
            made = tokenizer(
                texts, truncation=True, max_length=limit, return_attention_mask=False,
                return_token_type_ids=False,
            )  # fmt: skip
            return {"input_ids": made["input_ids"], "labels": batch["label"]}
        bodies = tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        prompts = [body[: limit - len(cue)] + cue for body in bodies]
        chosen = [answers[label] for label in batch["label"]]
        return {
            "input_ids": [p + a for p, a in zip(prompts, chosen, strict=True)],
            "labels": [[IGNORED] * len(p) + a for p, a in zip(prompts, chosen, strict=True)],
        }

    return table.map(rows, batched=True, remove_columns=table.column_names)


if __name__ == "__main__":
    main()
