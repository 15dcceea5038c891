"""Cells written to a CSV file and read back, alone and beside a grid's folder."""

from __future__ import annotations

import csv
import math
import os

import pytest

from pemt.bench.cell import CELL
from pemt.bench.recorded import CELL_FIELDS, cells_csv, read_recorded
from pemt.bench.results import read_results
from pemt.cli import main
from pemt.errors import ConfigError, DataError
from tests.bench.cells import cell, row, study, write


def recorded(path, cells):
    path.write_text(cells_csv(cells), encoding="utf-8")
    return path


def test_every_cell_in_csv():
    odd = 'a, "quoted" name'
    cells = [*study(), cell("lora", 0, math.nan, task=odd, score="f1", shots=None)]
    lines = list(csv.DictReader(cells_csv(cells).splitlines()))
    assert len(lines) == len(cells)
    assert tuple(lines[0]) == (*CELL_FIELDS, "metric:accuracy", "metric:f1", "metric:loss")
    assert [float(line["value"]) for line in lines[:-1]] == [c.value for c in cells[:-1]]
    assert lines[-1]["task"] == odd
    assert (lines[-1]["shots"], lines[-1]["value"]) == ("full", "nan")
    assert (lines[-1]["metric:accuracy"], lines[0]["metric:accuracy"]) == ("", "0.7")
    assert lines[0]["test_rows"] == "100"


def test_what_was_written_is_read(tmp_path):
    cells = [
        *study(), cell("pemt", 3, 1 / 3, variant="short", peak_memory=2**40),
        cell("lora", 0, -0.25, shots=None, score="pearson", task="stsb"),
    ]  # fmt: skip
    lines, read = zip(*read_recorded(recorded(tmp_path / "c.csv", cells)), strict=True)
    assert list(read) == cells
    assert lines == tuple(range(2, 2 + len(cells)))


@pytest.mark.parametrize("notes", [{}, {"own_sources": ["x", "y"]}])
def test_the_same_table_from_the_folder_and_from_the_file(tmp_path, capsys, notes):
    short = row("pemt", [0.1, 0.2, 0.3], variant="short", notes=notes)
    grid = write(tmp_path / "grid", [*study(), *short])
    file = tmp_path / "cells.csv"
    assert main(["bench", "table", str(grid), "--costs", "true", "--cells", str(file)]) == 0
    told = capsys.readouterr().out
    assert ("x, y were trained on this task itself" in told) == bool(notes)
    assert ("own_sources" in file.read_text(encoding="utf-8")) == bool(notes)
    assert main(["bench", "table", str(file), "--costs", "true"]) == 0
    assert capsys.readouterr().out == told


def test_several_in_one_table(tmp_path):
    """What both hold counts once; each folder tells of itself what is missing."""
    grid = {"base": "tiny", "tasks": ["rte", "cb"], "methods": ["pemt", "lora", "single"],
            "shots": [16], "data_seeds": [0, 1, 2, 3]}  # fmt: skip
    folder = write(tmp_path / "grid", study(), grid)
    later = [cell("pemt", 3, 0.6), cell("lora", 0, 0.9, shots=32)]
    file = recorded(tmp_path / "more.csv", [*study()[:4], *later])
    results = read_results(folder, str(file), str(folder))
    assert len(results.cells) == len(study()) + 2
    assert results.tasks == ("rte", "cb")
    assert results.scores("rte", "pemt", 16) == {0: 0.7, 1: 0.8, 2: 0.9, 3: 0.6}
    assert results.shots == (16, 32)
    (line,) = results.header
    assert line.startswith("19 of 24 cells; missing: lora on rte, cb (16 shots, data seeds 3)")


def test_two_results_for_one_cell(tmp_path):
    """A key does not tell a repeated run from the first."""
    folder = write(tmp_path / "grid", row("lora", [0.5]))
    file = recorded(tmp_path / "c.csv", row("lora", [0.6]))
    with pytest.raises(DataError, match=r"two settings for lora on rte.*c\.csv, line 2"):
        read_results(folder, file)
    os.utime(folder / "cells" / row("lora", [0.5])[0].name / CELL, (1, 1))
    results = read_results(folder, file, latest=True)
    assert results.scores("rte", "lora", 16) == {0: 0.6}
    assert results.header[0].startswith("Older cells with other settings, left out (1)")


def test_a_named_source_is_a_variant(tmp_path, capsys):
    """The same cells with other experts, say, beside the first ones."""
    grid = {"base": "tiny", "tasks": ["rte"], "methods": ["pemt"], "shots": [16],
            "data_seeds": [0, 1]}  # fmt: skip
    plain = write(tmp_path / "a", row("pemt", [0.5, 0.6]), grid)
    other = write(tmp_path / "b", row("pemt", [0.7]), grid)
    short = recorded(tmp_path / "c.csv", row("pemt", [0.1, 0.2], variant="short"))
    results = read_results(plain, named={"more": other, "old": short})
    assert results.methods == ("pemt", "pemt@more", "pemt@old-short")
    assert results.scores("rte", "pemt@more", 16) == {0: 0.7}
    assert results.header == ("1 of 2 cells; missing: pemt on rte (16 shots, data seeds 1).",)
    flags = [str(plain), f"more={other}", "--against", "pemt@more"]
    assert main(["bench", "table", *flags]) == 0
    assert "| PEMT   | rte    |      -20.0 |" in capsys.readouterr().out


@pytest.mark.parametrize("names", [["a b=X"], ["=X"], ["n="], ["n=X", "n=Y"], ["X", "n=X"]])
def test_names_that_are_none(tmp_path, names, capsys):
    for folder in "XY":
        write(tmp_path / folder, row("pemt", [0.5]))
    given = [n.replace("X", str(tmp_path / "X")).replace("Y", str(tmp_path / "Y")) for n in names]
    assert main(["bench", "table", *given]) == 1
    assert "source '" in capsys.readouterr().err


def test_a_folder_with_an_equals_sign(tmp_path, capsys):
    assert main(["bench", "table", str(write(tmp_path / "a=b", row("pemt", [0.5])))]) == 0
    assert "PEMT" in capsys.readouterr().out


def test_no_source():
    with pytest.raises(ConfigError, match="nothing to make a table of"):
        read_results()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("data_seed", "seed", "has no column data_seed"),
        ("\nk1,", "\n,", "line 2: key=''"),
        (",16,", ",sixteen,", "line 2: shots='sixteen'"),
        (",0.7,", ",0.8,", "line 2: value='0.8'"),
        (",16,", ",0,", "line 2: shots='0'"),
        (",100,", ",nan,", "line 2: test_rows='nan'"),
        (",100,", ",1e400,", "line 2: test_rows='1e400'"),
        (",100,", ",-1,", "line 2: test_rows='-1'"),
        (",10,1000,", ",10.5,1000,", "line 2: trained='10.5'"),
        (",3.0,", ",three,", "line 2: seconds='three'"),
        (",0.7,0.5", ",0.7,0.5,0.9", "line 2 has not as many values"),
        (",0.7,0.5", ",0.7", "line 2 has not as many values"),
        (",accuracy,", ",matthews,", "line 2: value='0.7'"),
        ("\nk1,", '\n"k1,', "cannot be read"),
    ],
)
def test_a_damaged_file(tmp_path, old, new, words):
    path = recorded(tmp_path / "c.csv", [cell("lora", 0, 0.7)])
    text = path.read_text()
    assert old in text
    at = text.rindex(old) if old.startswith(",0.7") and len(old) > 5 else text.index(old)
    path.write_text(text[:at] + new + text[at + len(old) :])
    with pytest.raises(DataError) as error:
        read_results(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"key,base\n"])
def test_a_file_that_is_none(tmp_path, content):
    path = tmp_path / "c.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"c\.csv"):
        read_results(path)


def test_a_file_without_cells(tmp_path):
    with pytest.raises(DataError, match="has no finished cell"):
        read_results(recorded(tmp_path / "c.csv", []))
