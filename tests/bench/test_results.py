"""Which cells a table is made from, and every reason to refuse them."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace

import pytest

from pemt.bench.cell import CELL, ERROR
from pemt.bench.results import read_results
from pemt.errors import ConfigError, DataError, UnknownNameError
from tests.bench.cells import cell, row, study, write

GRID = {
    "base": "tiny", "tasks": [{"name": "cb"}, {"name": "rte"}], "shots": [16],
    "methods": ["single", {"name": "lora"}, "pemt"], "data_seeds": [0, 1, 2],
}  # fmt: skip


def test_order_of_tasks_methods_and_shots(tmp_path):
    cells = [*study(), cell("lora", 0, 0.5, shots=None), cell("lora", 0, 0.5, shots=4)]
    cells += row("a-new-method", [0.5])
    results = read_results(write(tmp_path, cells, GRID))
    assert results.tasks == ("cb", "rte")  # as in the grid
    assert results.methods == ("pemt", "lora", "single", "a-new-method")  # as in METHODS
    assert results.shots == (4, 16, None)
    assert results.header == ()
    assert results.scores("rte", "pemt", 16) == {0: 0.7, 1: 0.8, 2: 0.9}
    assert results.scores("rte", "pemt", 4) == {}


def test_choices(tmp_path):
    write(tmp_path, [*study(), cell("lora", 0, 0.5, shots=None)])
    assert read_results(tmp_path, tasks=["cb"], methods=["lora"]).tasks == ("cb",)
    assert [c.method for c in read_results(tmp_path, shots=[None]).cells] == ["lora"]
    with pytest.raises(ConfigError, match="has all of what was chosen"):
        read_results(tmp_path, methods=["pemt"], shots=[None])


def test_no_cells(tmp_path):
    with pytest.raises(DataError, match="holds no cells"):
        read_results(tmp_path)
    (tmp_path / "cells").mkdir()
    with pytest.raises(DataError, match="no finished cell"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"methods": ["lorra"]}, "Unknown method 'lorra'. Did you mean: lora?"),
        ({"tasks": ["rtee"]}, "Unknown task 'rtee'. Did you mean: rte?"),
        ({"base": "tinyy"}, "Unknown base 'tinyy'. Did you mean: tiny?"),
    ],
)
def test_unknown_names(tmp_path, choice, words):
    with pytest.raises(UnknownNameError) as error:
        read_results(write(tmp_path, study()), **choice)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"methods": ["spot"]}, "no finished cell of method 'spot'"),
        ({"shots": [4]}, "no finished cell of shots 4"),
        ({"shots": [None]}, "no finished cell of shots full"),
    ],
)
def test_names_without_a_cell(tmp_path, choice, words):
    with pytest.raises(ConfigError, match=words) as error:
        read_results(write(tmp_path, study()), **choice)
    assert "has: " in error.value.fix


def test_two_settings_for_one_place(tmp_path):
    old, new = cell("lora", 0, 0.1, key="old1"), cell("lora", 0, 0.9, key="new1")
    write(tmp_path, [old, new, cell("lora", 1, 0.5, key="new1")])
    os.utime(tmp_path / "cells" / old.name / CELL, (1, 1))
    with pytest.raises(DataError) as error:
        read_results(tmp_path)
    for folder in (old.name, new.name):
        assert str(tmp_path / "cells" / folder) in str(error.value)
    assert "--latest" in error.value.fix
    results = read_results(tmp_path, latest=True)
    assert results.scores("rte", "lora", 16) == {0: 0.9, 1: 0.5}
    assert results.header == (f"Older cells with other settings, left out (1): {old.name}.",)
    # of the two it is the file's time that decides, not the name
    os.utime(tmp_path / "cells" / new.name / CELL, (0, 0))
    assert read_results(tmp_path, latest=True).scores("rte", "lora", 16)[0] == 0.1


def test_two_bases_are_not_compared(tmp_path):
    write(tmp_path, [*row("lora", [0.5]), *row("pemt", [0.9], base="huge")])
    with pytest.raises(ConfigError, match="2 bases: huge, tiny") as error:
        read_results(tmp_path, latest=True)
    assert "--base" in error.value.fix
    assert read_results(tmp_path, base="huge").methods == ("pemt",)


def test_two_bases_of_one_name_are_not_compared(tmp_path):
    """A base in a folder is called by the folder's last part."""

    def on(weights, cells):
        return [replace(c, config={"base": {"weights": weights}}) for c in cells]

    write(tmp_path / "a", [*on("1", row("lora", [0.5])), *row("single", [0.4])])  # one is silent
    write(tmp_path / "b", on("1", row("pemt", [0.9])))
    write(tmp_path / "c", on("2", row("pemt", [0.9])))
    assert len(read_results(tmp_path / "a", tmp_path / "b").cells) == 3
    with pytest.raises(DataError, match=r"called tiny: .*lora-k1 .*pemt-k1 ") as error:
        read_results(tmp_path / "a", named={"other": tmp_path / "c"})
    assert "not compared" in error.value.fix


def test_two_scores_of_one_task(tmp_path):
    write(tmp_path, [*row("lora", [0.5]), *row("pemt", [0.9], score="f1")])
    with pytest.raises(DataError, match=r"two scores for rte: accuracy in .* and f1 in"):
        read_results(tmp_path)


@pytest.mark.parametrize("value", [None, "0.5", True])
def test_a_score_that_is_not_there(tmp_path, value):
    with pytest.raises(DataError, match="no number for its score 'accuracy'"):
        read_results(write(tmp_path, [cell("lora", 0, value)]))


def test_a_damaged_cell(tmp_path):
    made = cell("lora", 0, 0.5)
    write(tmp_path, [made])
    (tmp_path / "cells" / made.name / CELL).write_text('{"key": ')
    with pytest.raises(DataError, match="is no finished cell"):
        read_results(tmp_path)


def test_a_copied_folder_is_not_counted_twice(tmp_path):
    made = cell("lora", 0, 0.5)
    write(tmp_path, [made])
    shutil.copytree(tmp_path / "cells" / made.name, tmp_path / "cells" / "copy")
    with pytest.raises(DataError, match=f"holds the cell {made.name} under another name"):
        read_results(tmp_path, latest=True)


def test_infinite_is_no_number(tmp_path):
    scores = read_results(write(tmp_path, row("lora", [math.inf, 0.5]))).scores("rte", "lora", 16)
    assert math.isnan(scores[0])


def test_an_unfinished_grid_says_what_is_missing(tmp_path):
    left_out = ("single", 2), ("lora", 0)
    cells = [c for c in study() if c.task != "cb" or (c.method, c.data_seed) not in left_out]
    write(tmp_path, cells, GRID)
    failed = tmp_path / "cells" / "cb-16-0-lora-k9"
    failed.mkdir()
    (failed / ERROR).write_text("{}")
    assert read_results(tmp_path).header == (
        "16 of 18 cells; missing: single on cb (16 shots, data seeds 2); "
        "lora on cb (16 shots, data seeds 0 (failed)).",
    )
    assert read_results(tmp_path, methods=["pemt"]).header == ()
    assert read_results(tmp_path, methods=["lora"], tasks=["cb"]).header[0].startswith("2 of 3 ")


def test_what_failed_with_other_settings_did_not_fail_with_these(tmp_path):
    cells = [c for c in study() if (c.task, c.method, c.data_seed) != ("cb", "lora", 0)]
    now = {c.name.rpartition("-")[0]: c.name for c in study()}
    write(tmp_path, cells, GRID, cells=now)
    for name, said in (("cb-16-0-lora-k9", "data seeds 0)"), ("cb-16-0-lora-k1", "0 (failed))")):
        (tmp_path / "cells" / name).mkdir()
        (tmp_path / "cells" / name / ERROR).write_text("{}")
        assert said in read_results(tmp_path).header[0]


def test_what_is_not_defined_is_not_missing(tmp_path):
    cells = [c for c in study() if (c.task, c.method) != ("cb", "single")]
    refused = [
        {"task": "cb", "method": "single", "reason": "no head"},
        {"task": "rte", "method": "setfit", "reason": "in no grid"},
    ]
    write(tmp_path, cells, GRID, refused=refused)
    assert read_results(tmp_path).header == ("Not run, as not defined: single on cb (no head).",)
    assert read_results(tmp_path, methods=["pemt"]).header == ()


def test_cells_of_other_settings_are_told(tmp_path):
    """A grid that was changed and not run to its end leaves a mixture."""
    folders = {c.name.rpartition("-")[0]: c.name for c in study()}
    write(tmp_path / "same", study(), GRID, cells=folders)
    assert read_results(tmp_path / "same").header == ()
    folders |= {"rte-16-1-lora": "rte-16-1-lora-k2"}  # settings changed, not run again
    del folders["cb-16-0-pemt"]  # not asked for any more
    write(tmp_path / "other", study(), GRID, cells=folders)
    (line,) = read_results(tmp_path / "other").header
    assert line == (
        "Cells that the last grid does not have with its settings (2): cb-16-0-pemt-k1; "
        "rte-16-1-lora-k1."
    )


def of_rows(digest, *cells):
    return [replace(c, config={"rows": {"digest": digest}}) for c in cells]


def test_cells_of_different_rows_are_told(tmp_path):
    """Pairs are matched by data seed, which says nothing about the rows under it."""
    lora, pemt = row("lora", [0.5, 0.6, 0.7]), row("pemt", [0.6, 0.7, 0.8])
    write(tmp_path / "same", [*of_rows("r", *lora), *of_rows("r", *pemt)])
    assert read_results(tmp_path / "same").header == ()
    probe = of_rows("new", cell("probe", 1, 0.5))
    write(
        tmp_path / "other", [*of_rows("old", *lora[:2], pemt[1]), *of_rows("new", pemt[0]), *probe]
    )
    cb = row("pemt", [0.5], task="cb", shots=None)
    write(
        tmp_path / "other", [*of_rows("c", *cb), lora[2], *of_rows("new", pemt[2])]
    )  # one is silent
    what = "Made from different rows, so that their differences compare rows too"
    assert read_results(tmp_path / "other").header == (
        f"{what} (2): rte (16 shots, data seed 0): lora | pemt; "
        "rte (16 shots, data seed 1): lora, pemt | probe.",
    )
    assert read_results(tmp_path / "other", methods=["pemt"]).header == ()
    write(tmp_path / "more", of_rows("d", cell("pemt", 0, 0.9, task="cb", shots=None)))
    (line,) = read_results(
        tmp_path / "other", named={"more": tmp_path / "more"}, tasks=["cb"]
    ).header  # fmt: skip
    assert line == f"{what} (1): cb (full data, data seed 0): pemt | pemt@more."


def test_a_long_list_of_different_rows_is_cut(tmp_path):
    cells = [*of_rows("a", *row("lora", 14 * [0.5])), *of_rows("b", *row("pemt", 14 * [0.5]))]
    (line,) = read_results(write(tmp_path, cells)).header
    assert "rows too (14): " in line
    assert line.count("lora | pemt") == 12
    assert line.endswith("; and 2 more.")


def test_a_cell_that_is_being_written_is_not_there(tmp_path):
    made = cell("lora", 0, 0.5)
    write(tmp_path, [made])
    shutil.copytree(tmp_path / "cells" / made.name, tmp_path / "cells" / f".{made.name}.tmp")
    assert len(read_results(tmp_path).cells) == 1


def test_a_long_list_is_cut(tmp_path):
    grid = {**GRID, "shots": [2**i for i in range(8)], "methods": ["pemt", "lora"]}
    header = read_results(write(tmp_path, [cell("pemt", 0, 0.5)], grid)).header[0]
    assert header.startswith("1 of 96 cells; missing: ")
    assert header.endswith("and 5 more.")


@pytest.mark.parametrize("grid", [None, {}, {"tasks": ["rte"]}, {**GRID, "shots": 16}])
def test_a_grid_that_tells_nothing(tmp_path, grid):
    assert read_results(write(tmp_path, study(), grid)).header == ()


def test_a_damaged_grid(tmp_path):
    write(tmp_path, study())
    (tmp_path / "grid.json").write_text("{")
    with pytest.raises(DataError, match=r"grid\.json cannot be read"):
        read_results(tmp_path)
