"""How much hangs on the words, the length and the truth of the task description?"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pemt.bench.cell import arm_of
from pemt.bench.grid import Grid
from pemt.bench.variant import GridVariant
from pemt.errors import ConfigError, UnknownNameError
from pemt.studies.findings import Findings
from pemt.studies.measures import distance
from pemt.studies.study import Kind, Point, Rank, Study, sources_of
from pemt.studies.words import extremes, level, opening, verdict
from pemt.tasks import Task

if TYPE_CHECKING:
    from pemt.bench.located import Located

STANDARD, OTHER, RANDOM = "standard", "other", "random"


def half(description: str) -> str:
    """Its first half, in words."""
    words = description.split()
    return " ".join(words[: (len(words) + 1) // 2])


def twice(description: str) -> str:
    """Said two times: longer, and nothing new."""
    return f"{description} {description}"


def shuffled(description: str) -> str:
    """The same words in an order that depends on them alone."""
    words = description.split()
    random.Random(description).shuffle(words)
    return " ".join(words)


CHANGES: dict[str, Callable[[str], str]] = {"half": half, "twice": twice, "shuffled": shuffled}
"""What can be done to a description of any task."""
WAYS = (*CHANGES, OTHER, RANDOM)


def build(grid: Grid, options: Mapping[str, Any], _: Rank) -> tuple[Study, Grid]:
    """The description as it is, the wordings of the file, and changes that suit every task.

    Raises:
        ConfigError: a wording that some target lacks, or a name used twice.
        UnknownNameError: no such change.
    """
    sources_of(grid)
    targets = [t.task for t in grid.targets]
    wordings: dict[str, dict[str, str]] = options.get("wordings") or {}
    ways: Sequence[str] = options["ways"] if options.get("ways") is not None else WAYS
    for way in ways:
        if way not in WAYS:
            raise UnknownNameError("way to change a description", way, WAYS)
    for name, texts in wordings.items():
        lacking = [t.name for t in targets if t.name not in texts]
        if lacking:
            raise ConfigError(
                f"The wording {name!r} has no description of {', '.join(lacking)}", "write one"
            )
    names = [STANDARD, *wordings, *ways]
    if len(set(names)) != len(names) or len(names) < 2:
        raise ConfigError(
            f"wordings and ways: {', '.join(names)}", "name each once, and one at least"
        )
    other = Task.named(options.get("other") or "question_types")
    if OTHER in ways and other.name in [t.name for t in targets]:
        raise ConfigError(
            f"The other task is {other.name!r}, a target", "write other: TASK, or leave it out"
        )
    variants = [GridVariant(name=STANDARD)]
    for name, texts in wordings.items():
        told = {t.name: texts[t.name] for t in targets}
        variants.append(GridVariant(name=name, descriptions=told))
    for way in ways:
        if way == RANDOM:
            variants.append(GridVariant(name=way, pemt={"prompt": "random"}))
            continue
        told = {
            t.name: other.description if way == OTHER else CHANGES[way](t.description)
            for t in targets
        }
        variants.append(GridVariant(name=way, descriptions=told))
    (method,) = (m.name for m in grid.chosen)
    titles = {OTHER: f"of {other.name}", RANDOM: "random numbers", "half": "first half",
              "shuffled": "words shuffled"}  # fmt: skip
    titles = {way: title for way, title in titles.items() if way in ways}  # no wording's name
    made = tuple(
        Point(arm=arm_of(method, v.name), title=titles.get(v.name, v.name)) for v in variants
    )
    study = Study(kind="prompt", points=made, reference=made[0].arm)
    return study, replace(grid, variants=variants)


def reading(findings: Findings, shots: int | None) -> list[str]:
    """The score of each wording, and how far the gates go."""
    study = findings.study
    said = [opening(findings, shots)]
    said.append(f"The standard description: {level(findings, study.reference, shots)}.")
    said += [extremes(findings, shots), verdict(findings, shots)]
    moves = {
        p.title: value
        for p in study.points
        if p.arm != study.reference and (value := findings.mean("moved", p.arm, shots)) is not None
    }
    if moves:
        most, least = max(moves, key=lambda t: moves[t]), min(moves, key=lambda t: moves[t])
        text = (
            f"Share of gate weight that is elsewhere than with the standard description: from "
            f"{moves[least]:.3f} ({least}) to {moves[most]:.3f} ({most})"
        )
        scale = between_draws(findings, shots)
        if scale is not None:
            text += f"; two draws of labels with the same description are {scale:.3f} apart"
        uniform = findings.mean("from_uniform", study.reference, shots)
        if uniform is not None:
            text += f", and its gates are {uniform:.3f} from uniform"
        said.append(f"{text}.")
    return [sentence for sentence in said if sentence]


def between_draws(findings: Findings, shots: int | None) -> float | None:
    """How far apart the reference's gates of two draws of one target are, on average: the scale on
    which gates that a wording moved are to be read. None with one draw.
    """
    apart = []
    for task in findings.tasks:
        cells = list(findings.results.of(task, findings.study.reference, shots).values())
        gates = [c.gates_by_layer for c in cells if c.gates_by_layer]
        apart += [distance(a, b) for i, a in enumerate(gates) for b in gates[:i]]
    return fmean(apart) if apart else None


def _wordings(given: Located) -> dict[str, dict[str, str]]:
    found = given.mapping(given.value or (), "wordings")
    return {
        name: {
            task: text.of(str, f"wordings.{name}.{task}")
            for task, text in texts.mapping(texts.value or (), f"wordings.{name}").items()
        }
        for name, texts in found.items()
    }


def _ways(given: Located) -> list[str]:
    return [item.of(str, "ways") for item in given.items()]


KIND = Kind(
    name="prompt",
    question="How much do score and gates depend on the description that the prompt starts from?",
    axis="", measures=("moved", "from_uniform", "effective_experts", "top", "words"),
    keys={"wordings": _wordings, "ways": _ways, "other": lambda v: v.of(str, "other")},
    build=build, reading=reading,
)  # fmt: skip
