"""From a grid to the jobs that fill its cells: rows are drawn and keys made, nothing is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from pemt.bases import Base
from pemt.bench.cell import arm_of
from pemt.bench.grid import TOGETHER, Grid, GridMethod, GridTask
from pemt.bench.identity import BaseIdentity
from pemt.bench.variant import GridVariant
from pemt.errors import ConfigError, PemtError, UnknownNameError
from pemt.experts import ExpertLibrary
from pemt.methods import method_named
from pemt.model.config import PemtConfig
from pemt.tasks import Example, FewShot, Splits, Task, draw, load_splits
from pemt.tasks.fewshot import Validation
from pemt.training.choosing import best_of, check_experts
from pemt.training.settings import TrainSettings
from pemt.training.sourcing import outputs_of, some

# of a task's definition, what reaches a model otherwise than through its rows
_DECIDES = ("name", "version", "description", "kind", "labels", "metrics", "score_range",
            "score_step")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell to be filled, but for its rows; small enough to send around.

    Attributes:
        task: the target task.
        method: its name.
        variant: of the grid; "" where it has none.
        shots: labels per class; None for the full split.
        data_seed: of the draw.
        score: the metric that tables show.
        validation: "shots", "full" or "cv".
        test_rows: at most so many.
        settings: of training, but for the learning rate.
        rates: learning rates to pick from; empty where nothing trains by gradient.
        pemt: PEMT's options as the method uses them.
        library: what it takes from which library; "none".
        experts: name -> content hash, in order.
        auto: "auto:4" where the experts are picked on the training rows.
        key: hash of everything that decides the result.
        problem: why it cannot be run (too few rows), or None.
    """

    task: Task
    method: str
    shots: int | None
    data_seed: int
    score: str
    validation: Validation
    test_rows: int | None
    settings: TrainSettings
    rates: tuple[float, ...]
    pemt: PemtConfig
    library: str
    experts: dict[str, str]
    auto: str | None
    variant: str = ""
    key: str = ""
    problem: str | None = None

    @property
    def arm(self) -> str:
        """What it is compared as: its method, in its variant."""
        return arm_of(self.method, self.variant)

    @property
    def point(self) -> str:
        """Its place in the grid."""
        return f"{draw_name(self.task.name, self.shots, self.data_seed)}-{self.arm}"

    @property
    def name(self) -> str:
        """Of its folder, as `Cell.name`."""
        return f"{self.point}-{self.key}"

    @property
    def rows(self) -> tuple[str, int | None, int]:
        """Which draw it learns from: task, shots and data seed."""
        return self.task.name, self.shots, self.data_seed


def draw_name(task: str, shots: int | None, data_seed: int) -> str:
    """What a draw of labels is called: "rte-16-0", "rte-full-0"."""
    return f"{task}-{'full' if shots is None else shots}-{data_seed}"


@dataclass(kw_only=True)
class Plan:
    """What a run is about to do.

    Attributes:
        base: which.
        jobs: in the order they are run.
        rows: task, shots and data seed -> rows; test rows are cut to what is scored.
        refused: (task, method) -> why the method is not defined there.
        libraries: kind -> address, of those that are used.
        own_sources: task -> the experts at hand that were trained on that very task.
    """

    base: BaseIdentity
    jobs: list[Job] = field(default_factory=list)
    rows: dict[tuple[str, int | None, int], FewShot] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    own_sources: dict[str, list[str]] = field(default_factory=dict)

    def experts(self) -> dict[str, list[str]]:
        """Library -> the names that any of its jobs takes: variants and draws have their own."""
        found: dict[str, dict[str, str]] = {}
        for job in self.jobs:
            found.setdefault(job.library, {}).update(job.experts)
        return {kind: list(names) for kind, names in found.items() if names}


def make_plan(
    grid: Grid,
    base: Base,
    *,
    data_dir: str | Path | None = None,
    only_tasks: Collection[str] = (),
    only_methods: Collection[str] = (),
    on_task: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Read and draw the rows of every task, and name every cell.

    A task whose rows cannot be read, or are too few, becomes jobs with a `problem`.

    Args:
        grid: the grid.
        base: loaded.
        data_dir: local mirror of datasets.
        only_tasks: these alone; all by default.
        only_methods: these alone; all by default.
        on_task: called with each task's name before its rows are read.

    Raises:
        ConfigError: an empty library.
        UnknownNameError: a task, method or expert that is not there.
        ExpertError: an expert that is altered, or made for another base.
        ConfigError: a variant that says nothing of one of the draws.
    """
    plan = Plan(base=BaseIdentity.of(base, grid.base))
    targets = _only(grid.targets, only_tasks, lambda t: t.task.name, "task of the grid")
    methods = _only(grid.chosen, only_methods, lambda m: m.name, "method of the grid")
    family = base.backbone.family
    defined: dict[str, list[GridMethod]] = {}
    for target in targets:
        for m in methods:
            reason = _refusal(m, family, target.task)
            if reason is None:
                defined.setdefault(target.task.name, []).append(m)
            else:
                plan.refused[target.task.name, m.name] = reason
    experts: dict[str, dict[str, str]] = {
        kind: _experts(grid, kind, base)
        for kind in sorted({m.method.library for own in defined.values() for m in own} - {"none"})
    }
    plan.libraries = {kind: grid.libraries[kind] for kind in experts}
    sources = {kind: _source_tasks(grid, kind, names) for kind, names in experts.items()}
    drawn: dict[tuple[str, int | None, int], _Drawn] = {}
    for target in targets:
        if target.task.name in defined:
            on_task(target.task.name)
            drawn |= _draws(grid, target, data_dir)
    for seed, target, shots in grid.points():
        mine = defined.get(target.task.name, []) if target in targets else []
        for m, variant in product(mine, grid.varied):
            found = drawn[target.task.name, shots, seed]
            names, asked = _chosen(grid, m, variant, experts, target.task.name, shots, seed)
            job = Job(
                task=variant.told(target.task), method=m.name, variant=variant.name, shots=shots,
                data_seed=seed, score=target.score, validation=target.validation,
                test_rows=_test_rows(grid, target),
                settings=grid.settings_of(target, m, seed, variant),
                rates=grid.rates_of(m, family) if m.method.trains else (),
                pemt=m.method.configured(variant.configured(grid.pemt)), library=m.method.library,
                experts=names, auto=asked,
                problem=found.problem,
            )  # fmt: skip
            plan.jobs.append(replace(job, key=_key(plan.base, job, found)))
            if found.rows is not None:
                plan.rows[job.rows] = found.rows
            learnt = sources.get(m.method.library, {})
            own = [n for n in names if learnt[n] == target.task.name]
            if own:
                plan.own_sources[target.task.name] = own
    return plan


@dataclass(frozen=True)
class _Drawn:
    """A draw with its digest, or why there is none."""

    rows: FewShot | None
    digest: list[str]
    problem: str | None = None


def _draws(
    grid: Grid, target: GridTask, data_dir: str | Path | None
) -> dict[tuple[str, int | None, int], _Drawn]:
    """Every draw of a task; its splits are read once and only what was drawn is kept."""
    points = [(target.task.name, k, seed) for k in grid.shots for seed in grid.data_seeds]
    try:
        splits = load_splits(target.task, data_dir=data_dir)
    except PemtError as error:
        return dict.fromkeys(points, _Drawn(None, [], str(error)))
    test = some(splits.test, _test_rows(grid, target), 0)
    scored = _digest(test)
    found: dict[tuple[str, int | None, int], _Drawn] = {}
    full: _Drawn | None = None
    for point in points:
        _, shots, seed = point
        if shots is None:
            # one draw for all seeds: the same rows need no second digest
            full = full or _drawn(_full(splits, target.task), test, scored)
            found[point] = full
            continue
        try:
            rows = draw(
                splits, target.task, shots=shots, data_seed=seed, validation=target.validation
            )
        except PemtError as error:
            found[point] = _Drawn(None, [], str(error))
        else:
            manifest = {**rows.manifest, "origin": splits.origin}
            found[point] = _drawn(replace(rows, manifest=manifest), test, scored)
    return found


def _full(splits: Splits, task: Task) -> FewShot:
    manifest = {
        "task": task.name, "version": task.version, "shots": None, **splits.sizes,
        "origin": splits.origin,
    }  # fmt: skip
    return FewShot(splits.train, splits.validation, splits.test, manifest)


def _drawn(rows: FewShot, test: list[Example], scored: str) -> _Drawn:
    digest = [_digest(rows.train), _digest(rows.validation), scored]
    manifest = {**rows.manifest, "digest": hashlib.sha256("".join(digest).encode()).hexdigest()}
    return _Drawn(replace(rows, test=test, manifest=manifest), digest)


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for e in examples:
        digest.update(
            repr((e.id, e.text, e.label, e.target, e.group, e.accepted, e.options)).encode()
        )
    return digest.hexdigest()


def _test_rows(grid: Grid, target: GridTask) -> int | None:
    return grid.test_rows if target.test_rows is None else target.test_rows


def _refusal(m: GridMethod, family: Any, task: Task) -> str | None:
    reason = m.method.refusal(family, task.kind)
    if reason is None:
        try:
            outputs_of(task, family)
        except ConfigError as error:
            reason = str(error).replace("\n  -> ", "; ")
    return reason


def _experts(grid: Grid, kind: str, base: Base) -> dict[str, str]:
    """Name -> content hash of the experts of a library, all checked against the base."""
    library = ExpertLibrary(grid.libraries[kind])
    asked = grid.experts_of(kind)
    names = None if isinstance(asked, str) else asked
    return {n: library.info(n).content_hash for n in check_experts(base, library, names)}


def _source_tasks(grid: Grid, kind: str, names: Collection[str]) -> dict[str, str]:
    """Name -> the task that an expert of a library was trained on."""
    library = ExpertLibrary(grid.libraries[kind])
    return {name: library.info(name).task for name in names}


def _chosen(
    grid: Grid, m: GridMethod, variant: GridVariant, experts: dict[str, dict[str, str]], task: str,
    shots: int | None, seed: int,
) -> tuple[dict[str, str], str | None]:  # fmt: skip
    """The experts of a cell (name -> content hash), and "auto:4" where they are yet to be picked.

    Raises:
        ConfigError: more are to be picked than there are, or nothing is said of this draw.
        UnknownNameError: an expert that the grid does not have.
    """
    kind = m.method.library
    if kind == "none":
        return {}, None
    names, asked = experts[kind], None
    if kind != TOGETHER:
        draw = draw_name(task, shots, seed)
        names, asked = variant.among(names, task, draw), variant.asked(task, draw)
    asked = grid.experts_of(kind) if asked is None else asked
    if not isinstance(asked, str):
        return names, None
    if best_of(asked) > len(names):
        raise ConfigError(
            f"The best {best_of(asked)} of {len(names)} experts ({asked!r})",
            f"known: {', '.join(names)}",
        )
    return names, asked


def _key(base: BaseIdentity, job: Job, drawn: _Drawn) -> str:
    """Of everything that decides the result; where data and results are decides nothing."""
    definition = {k: v for k, v in job.task.to_dict().items() if k in _DECIDES}
    decides = {
        "base": [base.weights, base.precision, base.tokenizer], "rows": drawn.digest,
        "task": definition, "method": job.method, "shots": job.shots,
        "validation": job.validation, "seed": job.data_seed, "rates": list(job.rates),
        "settings": job.settings.to_dict(), "config": _read(job),
        "test_rows": job.test_rows, "experts": list(job.experts.items()), "auto": job.auto,
    }  # fmt: skip
    text = json.dumps(decides, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read(job: Job) -> dict[str, Any]:
    """PEMT's options, those that the method ignores at their defaults: they decide nothing."""
    method, usual = method_named(job.method), PemtConfig().to_dict()
    ignored = set(method.unread(job.pemt)) - method.changes.keys()
    return {k: usual[k] if k in ignored else v for k, v in job.pemt.to_dict().items()}


def _only(given: Sequence[Any], names: Collection[str], name_of: Any, kind: str) -> list[Any]:
    known = [name_of(g) for g in given]
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    return [g for g in given if not names or name_of(g) in names]
