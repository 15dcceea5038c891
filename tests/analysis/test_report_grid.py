"""Reports of grids: the table of `pemt bench table`, and what is missing or failed."""

from __future__ import annotations

import json

import pytest

from pemt.analysis.report import write_grid_report
from pemt.bench.cell import ERROR
from pemt.cli import main
from tests.analysis.pages import EVIL, checked
from tests.bench.cells import cell, row, study, write

GRID = {
    "tasks": [{"name": "rte"}, {"name": "cb"}], "methods": [{"name": "pemt"}, {"name": "lora"}],
    "shots": [16], "data_seeds": [0, 1, 2],
}  # fmt: skip


def page_of(folder, **options):
    path = write_grid_report(folder, folder / "report.html", **options)
    return checked(path.read_text(encoding="utf-8"))


def test_the_table_is_that_of_bench_table(tmp_path, capsys):
    write(tmp_path, study())
    assert main(["report", str(tmp_path)]) == 0
    capsys.readouterr()
    shown = checked((tmp_path / "report.html").read_text(encoding="utf-8")).text
    main(["bench", "table", str(tmp_path), "--costs"])
    entries = {
        field.strip(" *") for line in capsys.readouterr().out.splitlines()
        if line.startswith("|") and "---" not in line for field in line.strip("|").split("|")
    }  # fmt: skip
    assert {"80.0 ± 10.0", "rte", "PEMT"} <= entries
    for entry in entries:
        assert entry in shown, entry
    assert "not finished" not in shown
    assert "Failed cells" not in shown


def test_two_pictures_of_one_plot(tmp_path):
    cells = [*study(), *row("pemt", [0.9, 0.8], shots=32), *row("lora", [0.7, 0.8], shots=32)]
    page = page_of(write(tmp_path, cells))
    assert "16 shots" in page.text
    assert "32 shots" in page.text
    (image,) = [a for t, a in page.tags if t == "img"]
    (narrow,) = [a for t, a in page.tags if t == "source"]
    assert narrow["media"] == "(max-width: 44rem)"
    assert narrow["srcset"] != image["src"]


def test_methods_without_a_cell_at_these_shots_are_left_out(tmp_path):
    cells = [*study(), *row("pemt", [0.9, 0.8], shots=32), *row("lora", [0.7, 0.8], shots=32)]
    shown = page_of(write(tmp_path, cells)).text
    assert "1 methods without a cell here are left out." in shown


def test_a_column_of_dashes_is_no_method(tmp_path):
    cells = [*row("pemt", [0.7, 0.8]), *row("lora", [0.6, 0.5])]
    for made in cells:
        del made.metrics["n"]
    assert "left out" not in page_of(write(tmp_path, cells)).text


def test_failures_of_earlier_settings_are_not_tried_again(tmp_path):
    names = {f"rte-16-{seed}-pemt": f"rte-16-{seed}-pemt-k1" for seed in range(3)}
    write(tmp_path, row("pemt", [0.7, 0.8]), grid=GRID, cells=names)
    for name in ("rte-16-0-pemt-k0", "rte-16-2-pemt-k1"):
        (tmp_path / "cells" / name).mkdir()
        (tmp_path / "cells" / name / ERROR).write_text(json.dumps({"message": f"why {name}"}))
    shown = page_of(tmp_path).text
    assert "why rte-16-2-pemt-k1" in shown
    assert "why rte-16-0-pemt-k0" not in shown


def test_an_unfinished_grid_says_so_and_shows_what_failed(tmp_path):
    write(tmp_path, [*row("pemt", [0.7, 0.8]), *row("lora", [0.6])], grid=GRID)
    for name, message in (("cb-16-0-pemt-k1", EVIL), ("cb-16-1-pemt-k1", EVIL)):
        place = tmp_path / "cells" / name
        place.mkdir()
        (place / ERROR).write_text(json.dumps({"message": message, "task": "cb"}))
    broken = tmp_path / "cells" / "cb-16-2-pemt-k1"
    broken.mkdir()
    (broken / ERROR).write_text("{")
    shown = page_of(tmp_path).text
    assert "This grid is not finished" in shown
    assert "3 of 12 cells; missing:" in shown
    assert "2 cells:" in shown
    assert EVIL in shown
    assert "cb-16-1-pemt" in shown
    assert "error.json cannot be read" in shown


def test_one_method_has_no_differences(tmp_path):
    shown = page_of(write(tmp_path, row("pemt", [0.7, 0.8]))).text
    assert "Differences" not in shown
    assert "1 target" in shown


def test_names_with_markup(tmp_path):
    evil = EVIL.replace("/", "")  # names are folders
    made = [
        cell(method, seed, 0.5 + seed / 10, task="t$x$" + evil, base=evil)
        for method in ("pemt", "lora") for seed in (0, 1)
    ]  # fmt: skip
    shown = page_of(write(tmp_path, made)).text
    assert shown.count(evil) > 5


def test_a_score_that_is_no_number(tmp_path):
    shown = page_of(write(tmp_path, [*row("pemt", [float("nan"), 0.8]), *row("lora", [0.6, 0.5])]))
    assert "nan" in shown.text


def test_against_and_bases(tmp_path, capsys):
    write(tmp_path, [*study(), cell("pemt", 0, 0.5, base="other", key="k2")])
    assert main(["report", str(tmp_path)]) == 1
    assert "2 bases" in capsys.readouterr().err
    shown = page_of(tmp_path, base="tiny", against="lora").text
    assert "Differences to LoRA" in shown


@pytest.mark.parametrize("name", ["pempt", "setfit"])
def test_a_rival_without_cells(name, tmp_path, capsys):
    write(tmp_path, study())
    assert main(["report", str(tmp_path), "--against", name]) == 1
    assert name in capsys.readouterr().err
