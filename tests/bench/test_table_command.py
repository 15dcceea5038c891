"""`pemt bench table` from end to end."""

from __future__ import annotations

import csv
import math

import pytest

from pemt.cli import main
from tests.bench.cells import cell, row, study, write


@pytest.fixture
def grid(tmp_path):
    return write(tmp_path / "grid", study())


def run(capsys, *arguments, code=0):
    assert main(["bench", "table", *map(str, arguments)]) == code
    return capsys.readouterr()


def test_by_default_everything_against_the_first(grid, capsys):
    out = run(capsys, grid).out
    assert "### tiny, 16 shots" in out
    assert "**65.0 ± 10.0**" in out
    assert "### Differences to PEMT, 16 shots" in out
    assert "optimistic" not in out
    assert "Costs" not in out
    assert "literature" not in out


def test_against_the_best_single_task_method(grid, capsys):
    out = run(capsys, grid, "--against", "best-single-task", "--costs", "--published").out
    assert "### Differences to LoRA, 16 shots" in out
    assert "chosen on these test scores" in out
    assert "### Costs" in out
    assert "### Beside the literature (published, T5-base, full data, not run here)" in out


def test_no_single_task_method_has_every_target(tmp_path, capsys):
    cells = [c for c in study() if (c.task, c.method) != ("cb", "lora")]
    out = run(capsys, write(tmp_path / "g", cells), "--against", "best-single-task").out
    assert "No single-task method has cells of every target at 16 shots" in out
    assert "### Differences" not in out


def test_choices_ties_and_the_bootstrap(grid, capsys):
    flags = ["--tasks", "rte", "--methods", "pemt, lora", "--shots", "16"]
    out = run(capsys, grid, *flags, "--tie", "10", "--interval", "bootstrap").out
    assert "best single expert" not in out
    assert "| cb" not in out
    # pemt - lora on rte is 10, 0, 20: within ten points twice
    assert "| LoRA   | rte    |      -10.0 |" in out
    assert out.split("| LoRA   | rte")[1].split("\n")[0].replace(" ", "").endswith("|0|2|1|")
    assert "percentile bootstrap" in out


def test_files(grid, tmp_path, capsys):
    named = {"output": "table.tex", "cells": "cells.csv", "plot": "plot.png"}
    flags = [word for k, v in named.items() for word in (f"--{k}", tmp_path / v)]
    assert run(capsys, grid, "--format", "latex", *flags).out == ""
    assert (tmp_path / "table.tex").read_text().count(r"\begin{table}") == 2
    assert len(list(csv.DictReader((tmp_path / "cells.csv").open()))) == 18
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_csv_on_stdout(grid, capsys):
    lines = list(csv.DictReader(run(capsys, grid, "--format", "csv").out.splitlines()))
    assert {line["table"] for line in lines} == {"scores", "differences"}
    assert len(lines) == 3 * 3 + 2 * 3


def test_what_csv_cannot_hold_is_on_stderr(tmp_path, capsys):
    asked = {"tasks": ["rte"], "methods": ["pemt"], "shots": [16], "data_seeds": [0, 1, 2, 3]}
    told = run(capsys, write(tmp_path / "g", study(), asked), "--format", "csv")
    assert told.err.startswith("3 of 4 cells; missing: ")
    assert told.out.startswith("table,base,")


def test_one_method_alone(tmp_path, capsys):
    grid = write(tmp_path / "g", row("pemt", [0.5, 0.7, 0.9]))
    out = run(capsys, grid).out
    assert "70.0 ± 20.0" in out
    assert "Differences" not in out
    refused = run(capsys, grid, "--against", "pemt", code=1).err
    assert "cells of 'pemt' alone" in refused


def test_an_unfinished_grid(tmp_path, capsys):
    asked = {"tasks": ["rte", "cb"], "methods": ["pemt", "lora", "single"], "shots": [16],
             "data_seeds": [0, 1, 2, 3]}  # fmt: skip
    out = run(capsys, write(tmp_path / "g", study(), asked)).out
    assert out.startswith(
        "**18 of 24 cells; missing: pemt on rte, cb (16 shots, data seeds 3); lora on"
    )


def test_a_score_that_is_no_number(tmp_path, capsys):
    cells = [*study(), cell("lora", 3, math.nan), cell("pemt", 3, 0.5)]
    out = run(capsys, write(tmp_path / "g", cells)).out
    assert "nan [" in out
    assert "the score of data seed 3 is no number, so its mean is none" in out


def test_the_latest_of_two_settings(tmp_path, capsys):
    grid = write(tmp_path / "g", [*study(), cell("lora", 0, 0.9, key="k2")])
    refused = run(capsys, grid, code=1).err
    assert "rte-16-0-lora-k1" in refused
    assert "rte-16-0-lora-k2" in refused
    assert "--latest" in refused
    assert "Older cells with other settings, left out (1)" in run(capsys, grid, "--latest").out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--methods", "lorra"], ["Unknown method 'lorra'", "Did you mean: lora?"]),
        (["--against", "pempt"], ["Unknown method 'pempt'", "Did you mean: pemt?"]),
        (["--against", "spot"], ["no finished cell of 'spot'", "has: pemt, lora, single"]),
        (["--tasks", "rtee"], ["Unknown task 'rtee'", "Did you mean: rte?"]),
        (["--shots", "4"], ["no finished cell of shots 4", "has: 16"]),
        (["--shots", "four"], ["shots='four'"]),
        (["--tie", "-1"], ["tie=-1"]),
        (["--plot", "x.txt"], ["'x.txt'"]),
    ],
)
def test_mistakes_are_explained(grid, capsys, flags, words):
    error = run(capsys, grid, *flags, code=1).err
    for word in words:
        assert word in error


def test_a_folder_without_cells(tmp_path, capsys):
    assert "holds no cells" in run(capsys, tmp_path, code=1).err


def test_a_slip_in_the_name_of_a_variant(tmp_path, capsys):
    cells = [*row("pemt", [0.5], variant="short"), *row("pemt", [0.6], variant="long")]
    error = run(capsys, write(tmp_path / "g", cells), "--against", "pemt@shrot", code=1).err
    assert "Did you mean: pemt@short?" in error
