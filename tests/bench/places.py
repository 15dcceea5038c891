"""A tiny base, library and tasks in a folder, with grid files over them; and work that dies."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import yaml

from pemt.bench.workplace import run_cell
from pemt.experts import ExpertLibrary
from pemt.tasks.encoding import fingerprint
from tests import tiny

SETTINGS = {
    "max_steps": 2, "batch_size": 8, "evaluations": 1, "eval_batch_size": 8,
    "max_source_length": 24, "max_target_length": 3,
}  # fmt: skip


def furnish(folder: Path) -> Path:
    """Files of a base ("bert"), a library ("experts") and two tasks; gives the folder back."""
    base = tiny.loaded("bert")
    base.model.save_pretrained(folder / "bert")
    base.tokenizer.save_pretrained(folder / "bert")
    library = ExpertLibrary(folder / "experts")
    for seed, name in enumerate("ab", 1):
        made = tiny.expert(base.model, name, seed=seed)
        info = replace(made.info, tokenizer_fingerprint=fingerprint(base.tokenizer))
        library.add(replace(made, info=info))
    for seed, name in enumerate(("one", "two")):
        tiny.task(folder, name, count=64, seed=seed)
    return folder


def grid(folder: Path, **changes: object) -> Path:
    """A grid file over what `furnish` made."""
    content = {
        "base": str(folder / "bert"), "precision": "float32",
        "libraries": {"experts": str(folder / "experts")}, "tasks": [str(folder / "one.yaml")],
        "methods": ["probe", "adapter"], "shots": [4], "data_seeds": 2, "settings": SETTINGS,
        "output": str(folder / "out"), **changes,
    }  # fmt: skip
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def cells(output: Path) -> dict[str, dict]:
    """Content of every cell.json, by the cell's place in the grid."""
    found = {}
    for path in (output / "cells").glob("[!.]*/cell.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        found[path.parent.name.removesuffix(f"-{content['key']}")] = content
    return found


def results(output: Path) -> dict[str, dict]:
    """What must not depend on where and when cells are made."""
    kept = ("key", "metrics", "validation", "learning_rate", "tried", "trained", "gates", "config")
    return {name: {k: c[k] for k in kept} for name, c in cells(output).items()}


def leftovers(output: Path) -> list[str]:
    """Hidden folders of half-written cells."""
    return [p.name for p in (output / "cells").glob(".*")]


def mark(job, folder: Path) -> None:
    """Write down that a cell is being made, and by which process."""
    with (folder / "made.txt").open("a", encoding="utf-8") as file:
        file.write(f"{job.point} {os.getpid()}\n")


def made(folder: Path) -> list[str]:
    """The cells that were begun, in order."""
    lines = (folder / "made.txt").read_text(encoding="utf-8").splitlines()
    return [line.partition(" ")[0] for line in lines]


def work_slowly(place, job, rows):
    mark(job, Path(os.environ["PEMT_TEST_FOLDER"]))
    time.sleep(0.2)
    return run_cell(place, job, rows)


def die(place, job, rows):
    """One cell kills its process the first time, another one every time."""
    folder = Path(os.environ["PEMT_TEST_FOLDER"])
    mark(job, folder)
    if job.method == "adapter" and (job.data_seed == 1 or made(folder).count(job.point) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return run_cell(place, job, rows)


def break_once(place, job, rows):
    """One cell has an unexpected error, the first time."""
    folder = Path(os.environ["PEMT_TEST_FOLDER"])
    mark(job, folder)
    if job.method == "adapter" and job.data_seed == 0 and made(folder).count(job.point) == 1:
        raise RuntimeError("out of luck")
    return run_cell(place, job, rows)
