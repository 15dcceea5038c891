"""The pages' tables are those of the recorded cells, number by number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pemt.cli import main

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "benchmarks" / "results"

SPREAD = re.compile(r"-?\d+\.\d ± \d+\.\d")
DIFFERENCE = re.compile(r"([-+]?\d+\.\d) \[([-+]?\d+\.\d, [-+]?\d+\.\d)\]")
"""A difference and its interval, as pages write them."""

RELATED = "subj,tweets,imdb,ag_news"
"""The confirmation's targets above chance."""

TABLES = {
    "minilm-16": ["--against", "pemt", "--costs"],
    "minilm-shots": ["--against", "pemt"],
    "minilm-full": ["--against", "best-single-task", "--costs"],
    "smollm2-16": ["--against", "adapter", "--costs"],
    "guided-confirm": ["--against", "ensemble", "--costs"],
}
"""Name of a recorded table and of its cells -> how it was made."""

PAGES = [
    ("docs/results.md", "## The methods beside each other", [["minilm-16", "--against", "pemt"]]),
    ("docs/results.md", "### 8, 16 and 32 labels", [["minilm-shots", "--against", "pemt"]]),
    (
        "docs/results.md", "### How many rows the sources need",
        [
            ["minilm-rows", "--against", "pemt@rows-all"],
            ["minilm-16", "new=minilm-rows", "--methods", "pemt,adapter",
             "--tasks", "rte,mrpc,rotten_tomatoes", "--against", "adapter"],
        ],
    ),
    ("docs/results.md", "## 16 labels per class, Smol", [["smollm2-16", "--against", "adapter"]]),
    (
        "docs/concepts/guided.md", "## The confirmation",
        [
            ["guided-confirm", "hand=guided-hand", "--against", "ensemble"],
            ["guided-confirm", "--against", "pemt"], ["guided-confirm", "--against", "adapter"],
            ["guided-confirm", "why=guided-why", "--against", "pemt@why-without-stsb"],
            ["guided-confirm", "why=guided-why", "--against", "pemt@why-without-tsl"],
        ],
    ),
    (
        "docs/concepts/guided.md", "## 8 and 32 labels",
        [
            ["guided-shots", "guided-confirm", "guided-hand", "--tasks", RELATED,
             "--against", "ensemble"],
        ],
    ),
    (
        "docs/concepts/guided.md", "### The four targets at chance",
        [
            ["guided-shots-chance", "guided-shots", "guided-hand", "--shots", "8,32",
             "--against", "ensemble"],
        ],
    ),
    (
        "docs/concepts/guided.md", "## Ten more useless",
        [["guided-confirm", "more=guided-useless", "--methods", "ensemble"]],
    ),
]  # fmt: skip
"""Page, the beginning of a heading, and the cells behind the tables under it."""


def remade(capsys, arguments):
    """What `pemt bench table` says of recorded cells; names come before the flags."""
    given = []
    for word in arguments:
        name, equals, file = word.rpartition("=")
        path = RECORDED / f"{file}-cells.csv"
        given.append(f"{name}{equals}{path}" if path.exists() else word)
    assert main(["bench", "table", *given]) == 0
    return capsys.readouterr().out


def plain(number):
    """Without a plus, which some pages leave out."""
    return number.replace("+", "")


def numbers(text):
    """Every mean with its spread, and every difference with its interval, of a made table."""
    found = set(SPREAD.findall(text))
    for line in text.splitlines():
        fields = [f.strip().strip("*") for f in line.split("|")[1:-1]]
        if len(fields) > 5 and fields[5].startswith("["):
            found.add((plain(fields[2]), plain(fields[5].strip("[]"))))
    return found


def section(page, heading):
    """The tables under a heading, down to the next one."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("#")), len(lines))
    return "\n".join(line for line in lines[start:end] if line.startswith("|"))


@pytest.mark.parametrize("name", TABLES)
def test_a_recorded_table_is_made_from_its_cells(name, capsys):
    told = (RECORDED / f"{name}.md").read_text(encoding="utf-8").splitlines()
    again = remade(capsys, [name, *TABLES[name]]).splitlines()
    # the order of targets is the grid's, which a file of cells does not tell
    assert sorted(filter(bool, told)) == sorted(filter(bool, again))


@pytest.mark.parametrize(("page", "heading", "sources"), PAGES)
def test_a_page_says_what_the_cells_say(page, heading, sources, capsys):
    known = set().union(*(numbers(remade(capsys, s)) for s in sources))
    shown = section(page, heading)
    spreads = SPREAD.findall(shown)
    differences = [(plain(d), plain(interval)) for d, interval in DIFFERENCE.findall(shown)]
    assert len(spreads) > 3
    assert [s for s in spreads if s not in known] == []
    assert [d for d in differences if d not in known] == []


def test_the_readme_says_what_the_cells_say(capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = set()
    for name in ("guided-confirm", "guided-why", "smollm2-16"):
        known |= numbers(remade(capsys, [name]))
    shown = SPREAD.findall(text)
    assert len(shown) > 5
    assert [s for s in shown if s not in known] == []
