"""How the instant mixture should weigh experts: priors, strengths and views, on the same rows.

    python benchmarks/instant.py LIBRARY --data-dir MIRROR --output RESULTS.json

Every row of a target that any draw needs runs once through every expert; all else is small
regressions. What is chosen here is chosen on development targets: nothing else may be scored with
it. Scores are on test rows, means over data seeds; "nll" is the mean loss of the test rows in nats,
"sharpened" the same after the temperature that the training rows choose.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score

from pemt.bases import load_base
from pemt.errors import DataError
from pemt.experts import ExpertLibrary
from pemt.guide import NONE, Evidence, guide_from
from pemt.guide.evidence import Candidate, candidates_of
from pemt.guide.instant import Part, best_sharpness, said_by, sharpened
from pemt.guide.probes import STRENGTHS, fit_probe, folds_of, truth_of
from pemt.guide.views import Array, View, alone, features_of, views_of
from pemt.methods import Setting
from pemt.methods.instant import LEAST, of_the_largest
from pemt.model import PemtConfig
from pemt.tasks import Example, FewShot, Task
from pemt.training.adapting import target_rows
from pemt.training.record import run_record, write_json
from pemt.training.sourcing import some

TARGETS = ["cb", "rte", "mrpc", "rotten_tomatoes", "product_reviews", "pubmedqa"]
LENGTHS = {"cb": 160, "rte": 160, "pubmedqa": 192}
BALANCED = {"mrpc"}  # its majority class alone is 68 %
OPTIONS: dict[str, dict[str, Any]] = {
    "description / .2, 8 rows (default)": {},
    "description / .2, 4 rows": {"strength": 4.0},
    "description / .1, 8 rows": {"temperature": 0.1},
    "description / .05, 8 rows": {"temperature": 0.05},
    "uniform, 1 row": {"prior": "uniform", "strength": 1.0},
    "uniform, 4 rows": {"prior": "uniform", "strength": 4.0},
    "uniform, 8 rows": {"prior": "uniform", "strength": 8.0},
    "uniform, 16 rows": {"prior": "uniform", "strength": 16.0},
    "default, features alone": {"views": ("features",)},
    "default, without none": {"none": False},
    "default, the six largest": {"largest": 6},
    "default, the four largest": {"largest": 4},
    "default, the three largest": {"largest": 3},
    "default, the two largest": {"largest": 2},
    "default, the largest": {"largest": 1},
    "the likeliest part alone": {"pick": True},
    "all parts alike": {"even": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("library")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--shots", type=int, nargs="*", default=[8, 16, 32])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--test-rows", type=int, default=300)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    base, library = load_base(given.base, precision="auto"), ExpertLibrary(given.library)
    cells: list[dict[str, Any]] = []
    for name in given.targets:
        task = Task.named(name)
        draws = dict(drawn(task, given))
        examples = {e.id: e for d in draws.values() for e in (*d.train, *d.test)}
        setting = Setting(
            base=base, task=task, experts=[], train=[], validation=[], config=PemtConfig(),
            max_source_length=LENGTHS.get(name, 96),
        )  # fmt: skip
        print(f"{name}: {len(examples)} rows through {len(library.names())} experts", flush=True)
        seen, alike = look(setting, library, list(examples.values()))
        place = {key: i for i, key in enumerate(examples)}
        for (shots, seed), rows in draws.items():
            train = [place[e.id] for e in rows.train]
            test = [place[e.id] for e in rows.test]
            for option, score, loss, sharp in judged(task, rows, seen, alike, train, test):
                cells.append({"target": name, "shots": shots, "seed": seed, "option": option,
                              "score": score, "nll": loss, "sharpened": sharp})  # fmt: skip
    write_json(
        given.output,
        {"run": run_record(stage="benchmark", benchmark="instant", base=given.base,
                           experts=library.names(), targets=given.targets, seeds=given.seeds,
                           test_rows=given.test_rows), "cells": cells},
    )  # fmt: skip
    for shots in given.shots:
        print(f"\n### {shots} shots\n\n{table(cells, shots, given.targets)}")


def drawn(task: Task, given: argparse.Namespace) -> Iterator[tuple[tuple[int, int], FewShot]]:
    """The draws that a target has rows for."""
    for shots in given.shots:
        for seed in range(given.seeds):
            try:
                rows = target_rows(
                    task, shots=shots, data_seed=seed, validation="cv", data_dir=given.data_dir
                )
            except DataError as error:
                print(f"{task.name}, {shots} shots, seed {seed}: {error.what}")
                continue
            yield (shots, seed), replace(rows, test=some(rows.test, given.test_rows, 0))


def look(
    setting: Setting, library: ExpertLibrary, examples: list[Example]
) -> tuple[dict[str, dict[View, Array]], dict[str, float]]:
    """Every row through every expert, and how alike the descriptions are."""
    seen, alike = {}, {}
    with alone(setting, None) as model:
        seen[NONE] = views_of(model, setting, None, examples)
        about = features_of(model, setting, [Example("0", setting.task.description, None, "")])[0]
        for expert in map(library.load, library.names()):
            text = [Example("0", expert.info.description, None, "")]
            other = features_of(model, setting, text)[0]
            cosine = about @ other / np.linalg.norm(about) / np.linalg.norm(other)
            alike[expert.name] = float(cosine)
    for expert in map(library.load, library.names()):
        with alone(setting, expert) as model:
            seen[expert.name] = views_of(model, setting, expert, examples)
    return seen, alike


def judged(
    task: Task, rows: FewShot, seen: dict[str, dict[View, Array]], alike: dict[str, float],
    train: list[int], test: list[int],
) -> Iterator[tuple[str, float, float, float]]:  # fmt: skip
    """Score, loss, and loss at the fitted sharpness, of every option on one draw."""
    folds, truth, wanted = folds_of(task, rows.train), truth_of(rows.train), truth_of(rows.test)
    found: list[Candidate] = []
    for name, views in seen.items():
        found += candidates_of(name, {v: x[train] for v, x in views.items()}, task, folds, truth)
    said = {}
    for c in found:
        assert c.values is not None
        probe = None
        if c.view != "named":
            probe = fit_probe(c.values, truth, STRENGTHS[c.view], task.num_labels)
        part = Part(expert=c.expert, view=c.view, weight=1.0, probe=probe)
        said[c.expert, c.view] = said_by(part, seen[c.expert][c.view][test], task.num_labels)
    for option, changes in OPTIONS.items():
        changed = dict(changes)
        views, pick = changed.pop("views", None), changed.pop("pick", False)
        even, largest = changed.pop("even", False), changed.pop("largest", None)
        kept = tuple(c for c in found if views is None or c.view in views)
        evidence = Evidence(
            experts=tuple(alike), candidates=kept, rows=len(train), kind=task.kind, truth=truth,
            descriptions=dict(alike),
        )  # fmt: skip
        given = guide_from(evidence, **changed).shares
        if largest is not None:
            given = of_the_largest([s for s in given if s.weight >= LEAST] or given, largest)
        total = sum(s.weight for s in given)
        shares = {(s.expert, s.view): s.weight / total for s in given}
        if pick:
            best = min(kept, key=lambda c: c.loss)
            shares = {(best.expert, best.view): 1.0}
        if even:
            shares = dict.fromkeys(shares, 1 / len(shares))
        mixed = sum(w * said[key] for key, w in shares.items())
        answers = np.asarray(mixed).argmax(1)
        score = (
            balanced_accuracy_score(wanted, answers)
            if task.name in BALANCED
            else (answers == wanted).mean()
        )
        unseen = {(c.expert, c.view): np.exp(c.said) for c in found if c.said is not None}
        inside = np.asarray(sum(w * unseen[key] for key, w in shares.items()))
        power = best_sharpness(np.log(inside), truth)
        logs = np.log(np.asarray(mixed))
        at = np.arange(len(wanted)), wanted.astype(int)
        yield option, float(score), -logs[at].mean(), -sharpened(logs, power)[at].mean()


def table(cells: list[dict[str, Any]], shots: int, targets: list[str]) -> str:
    """Mean and deviation by option and target, and the mean over targets."""
    here = [c for c in cells if c["shots"] == shots]
    there = [t for t in targets if any(c["target"] == t for c in here)]
    lines = [
        "| weights | " + " | ".join(there) + " | mean | nll | sharpened |",
        "| --- " * (len(there) + 4) + "|",
    ]
    for option in OPTIONS:
        own = [c for c in here if c["option"] == option]
        scores = [np.array([c["score"] for c in own if c["target"] == t]) * 100 for t in there]
        shown = [f"{s.mean():.1f} ± {s.std(ddof=1):.1f}" for s in scores]
        mean = np.mean([s.mean() for s in scores])
        losses = [
            np.mean([np.mean([c[key] for c in own if c["target"] == t]) for t in there])
            for key in ("nll", "sharpened")
        ]
        row = " | ".join(shown)
        lines.append(f"| {option} | {row} | {mean:.1f} | {losses[0]:.3f} | {losses[1]:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
