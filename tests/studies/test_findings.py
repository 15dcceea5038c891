"""What cells say: means, distances, differences, and what is missing."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from pemt.bench.difference import differences
from pemt.errors import DataError
from pemt.studies.findings import Findings
from pemt.studies.measures import MEASURES, distance, from_uniform, moved
from pemt.studies.prompt import between_draws
from pemt.studies.running import found_so_far, keep
from pemt.studies.study import Point, Study
from pemt.studies.writing import sheet, text, write_findings
from tests.studies import made


def test_distance_is_the_share_that_is_elsewhere():
    same, other, half = [[1.0, 0.0]], [[0.0, 1.0]], [[0.5, 0.5]]
    assert distance(same, same) == 0
    assert distance(same, other) == distance(other, same) == 1
    assert distance(same, half) == 0.5
    assert distance([*same, *half], [*other, *half]) == 0.5  # a mean over layers
    assert from_uniform(made.cell("pemt", 0, 0.5, gates=[[0.9, 0.1]])) == pytest.approx(0.4)
    assert from_uniform(made.cell("pemt", 0, 0.5, gates=[[0.5, 0.5]])) == 0


def test_gates_over_other_experts_have_no_distance():
    one = made.cell("pemt", 0, 0.5)
    other = made.plain("pemt", 0, 0.5, gates={"a": 1.0}, gates_by_layer=[[1.0]])
    assert moved(one, other) is None
    assert moved(one, None) is None
    none = made.plain("lora", 0, 0.5)
    assert [m.of(none, one) for name, m in MEASURES.items() if name in
            ("entropy", "top", "from_uniform", "moved", "words")] == [None] * 5  # fmt: skip


def test_means_over_targets_and_draws(tmp_path):
    folder = made.write(tmp_path / "out", made.sparsity(), made.whole())
    findings = Findings.of(made.sparsity(), folder)
    assert findings.header == ()
    three = findings.over("score", "pemt@3", 16)
    assert (three.mean, three.n) == (pytest.approx(0.45), 3)
    assert three.deviation == pytest.approx(0.1)
    assert findings.over("score", "pemt@3", 16, "cb").mean == pytest.approx(0.4)
    assert findings.mean("moved", "pemt@3", 16) == pytest.approx(0.4)
    assert findings.mean("moved", "pemt@0.1", 16) == 0
    assert findings.mean("top", "pemt@3", 16) == pytest.approx(0.9)
    for kind in ("t", "bootstrap"):
        (expected,) = [
            d for d in differences(findings.results, 16, "pemt@0.1", kind=kind)
            if d.method == "pemt@3" and d.task is None
        ]  # fmt: skip
        assert findings.against("pemt@3", 16, kind) == expected
    assert findings.against("pemt@3", 16).summary.mean == pytest.approx(-0.2)
    assert findings.against("pemt@0.1", 16) is None


def test_a_study_that_is_not_finished_says_so_and_is_drawn(tmp_path):
    cells = [c for c in made.whole() if (c.task, c.data_seed, c.variant) != ("cb", 2, "3")]
    folder = made.write(tmp_path / "out", made.sparsity(), cells)
    findings = found_so_far(folder, "sparsity")
    assert findings.header[0].startswith("17 of 18 cells; missing: pemt@3 on cb")
    assert findings.over("score", "pemt@3", 16).n == 2  # the third draw lacks a target
    assert findings.over("score", "pemt@3", 16, "rte").n == 3
    written = write_findings(findings, folder)
    assert "17 of 18 cells" in written["table"].read_text()
    assert written["plot"].read_bytes().startswith(b"\x89PNG")
    (tmp_path / "out" / "cells" / cells[0].name / "cell.json").write_text("{}")
    with pytest.raises(DataError, match="no finished cell"):
        found_so_far(folder, "sparsity")


def test_a_target_without_cells_is_in_no_difference_over_all(tmp_path):
    """Rows of two targets are no mean over three."""
    folder = made.write(tmp_path / "out", made.sparsity(), made.whole(), tasks=("rte", "cb", "wic"))
    findings = Findings.of(made.sparsity(), folder)
    assert findings.over("score", "pemt@3", 16) is None
    assert findings.against("pemt@3", 16) is None
    said = text(findings)
    assert "No difference to weight 0.1 has an interval yet (three draws of all targets)." in said
    assert "Minus weight 0.1" not in said


def test_means_over_fewer_draws_say_how_many(tmp_path):
    cells = [c for c in made.whole() if (c.task, c.data_seed, c.variant) != ("cb", 2, "3")]
    folder = made.write(tmp_path / "out", made.sparsity(), cells)
    (row,) = [
        line for line in text(Findings.of(made.sparsity(), folder)).splitlines()
        if line.startswith("| weight 3 ") and line.endswith("3 |")
    ]  # fmt: skip
    assert [field.strip() for field in row.split("|")[2:-1]] == [
        "50.0 ± 10.0", "45.0 ± 7.1 (n=2)", "50.0 ± 7.1 (n=2)", "3",
    ]  # fmt: skip


def test_cells_that_are_not_defined_are_not_asked_for(tmp_path):
    points = tuple(Point(arm=m, title=m) for m in ("pemt", "pemt-task-gates"))
    study = Study(kind="ablation", points=points, reference="pemt")
    cells = [made.cell("pemt", seed, 0.5, task=t) for t in ("rte", "cb") for seed in range(3)]
    folder = made.write(tmp_path / "out", study, cells)
    path = tmp_path / "out" / "grid.json"
    refused = [
        {"task": t, "method": "pemt-task-gates", "reason": "not here"} for t in ("rte", "cb")
    ]
    path.write_text(json.dumps({**json.loads(path.read_text()), "refused": refused}))
    findings = Findings.of(study, folder)
    assert findings.header == ("Not run, as not defined: pemt-task-gates on rte, cb (not here).",)
    assert "(6 of 6 cells)" in text(findings)


@pytest.mark.parametrize("count", [1, 2])
def test_one_cell_is_enough_to_draw(count, tmp_path):
    folder = made.write(tmp_path / "out", made.sparsity(), made.whole()[:count])
    findings = Findings.of(made.sparsity(), folder)
    written = write_findings(findings, folder)
    assert "No difference to weight 0.1 has an interval yet" in written["table"].read_text()


def test_a_score_that_is_no_number(tmp_path):
    cells = made.whole()
    cells[0] = made.cell("pemt@0", 0, math.nan, gates=[[math.nan, math.nan]])
    folder = made.write(tmp_path / "out", made.sparsity(), cells)
    written = write_findings(Findings.of(made.sparsity(), folder), folder)
    content = json.loads(
        written["json"].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert content["cells"]


@pytest.mark.parametrize("broken", ["pemt-no-tsl", "pemt-no-prompt", "pemt-no-adapter"])
def test_a_part_without_a_mean_is_neither_highest_nor_lowest(tmp_path, broken):
    level = {"pemt": 0.5, "pemt-no-tsl": 0.6, "pemt-no-prompt": 0.4, "pemt-no-adapter": 0.45}
    points = tuple(Point(arm=m, title=m) for m in level)
    study = Study(kind="ablation", points=points, reference="pemt")
    cells = [
        made.cell(name, seed, math.nan if name == broken else value)
        for name, value in level.items() for seed in range(3)
    ]  # fmt: skip
    folder = made.write(tmp_path / "out", study, cells, tasks=("rte",))
    there = sorted((n for n in level if n not in ("pemt", broken)), key=lambda n: level[n])
    said = text(Findings.of(study, folder))
    assert f"Lowest beside it: {there[0]}, " in said
    assert f"Highest: {there[-1]}, " in said


def test_folders_that_are_none_or_another(tmp_path):
    folder = made.write(tmp_path / "out", made.sparsity(), [])
    with pytest.raises(DataError, match="no finished cell of this study"):
        found_so_far(folder, "sparsity")
    with pytest.raises(DataError, match="a study of sparsity, not of prompt"):
        found_so_far(folder, "prompt")
    (tmp_path / "out" / "study.json").write_text('{"study": {"kind": "sparsity"}}')
    with pytest.raises(DataError, match="describes no study"):
        found_so_far(folder, "sparsity")
    (tmp_path / "out" / "study.json").unlink()
    with pytest.raises(DataError, match="holds no study"):
        found_so_far(folder, "sparsity")


@pytest.mark.parametrize("content", ["{", "[]", '{"other": 1}'])
def test_a_damaged_description_is_written_again(content, tmp_path):
    folder = made.write(tmp_path / "out", made.sparsity(), made.whole())
    (tmp_path / "out" / "study.json").write_text(content)
    keep(made.sparsity(), folder)
    assert found_so_far(folder, "sparsity").study == made.sparsity()


def test_the_reading_and_the_files(tmp_path):
    folder = made.write(tmp_path / "out", made.sparsity(), made.whole())
    findings = Findings.of(made.sparsity(), folder)
    said = text(findings)
    assert "(18 of 18 cells)" in said
    assert "weight 3 -20.0 [-44.8, +4.8]" not in said  # its interval holds 0
    assert "No paired difference to weight 0.1 has a 95 % interval" in said
    assert "the largest gate 0.50, 0.50, 0.90" in said
    rows = list(csv.DictReader(io.StringIO(sheet(findings))))
    (row,) = [r for r in rows if (r["arm"], r["task"], r["measure"]) == ("pemt@3", "mean", "score")]
    assert (float(row["mean"]), row["n"], row["x"]) == (pytest.approx(45), "3", "3")
    assert float(row["difference"]) == pytest.approx(-20)
    assert (row["wins"], row["ties"], row["losses"]) == ("0", "0", "6")
    low, high = float(row["t_low"]), float(row["t_high"])
    assert low < -44 < 4 < high
    assert -30.001 <= float(row["bootstrap_low"]) < float(row["bootstrap_high"]) <= -9.999
    written = write_findings(findings, folder)
    content = json.loads(written["json"].read_text())
    assert Study.from_dict(content["study"]) == findings.study
    assert len(content["cells"]) == 18
    assert {c["measures"]["moved"] for c in content["cells"] if c["arm"] == "pemt@3"} == {0.4}


def test_an_interval_that_leaves_out_zero_is_said(tmp_path):
    cells = [
        made.cell(f"pemt@{w}", seed, 0.8 - (0.2 + 0.001 * seed) * (w == "3"), task=task)
        for task in ("rte", "cb") for seed in range(3) for w in ("0", "0.1", "3")
    ]  # fmt: skip
    folder = made.write(tmp_path / "out", made.sparsity(), cells)
    said = text(Findings.of(made.sparsity(), folder))
    assert "leaves out 0: weight 3 -20.1 [-20.3, -19.9], 0 won, 0 level, 6 lost." in said
    assert "2 intervals were read" in said


def test_the_scale_of_moved_gates_is_another_draw(tmp_path):
    study = Study(
        kind="prompt", reference="pemt@standard",
        points=tuple(Point(arm=f"pemt@{v}", title=v) for v in ("standard", "short")),
    )  # fmt: skip
    cells = [
        made.cell("pemt@standard", 0, 0.5, gates=[[0.5, 0.5]]),
        made.cell("pemt@standard", 1, 0.5, gates=[[0.8, 0.2]]),
        made.cell("pemt@short", 0, 0.5, gates=[[0.6, 0.4]]),
    ]
    folder = made.write(tmp_path / "out", study, cells, tasks=("rte",), seeds=2)
    findings = Findings.of(study, folder)
    assert between_draws(findings, 16) == pytest.approx(0.3)
    said = text(findings)
    assert "from 0.100 (short) to 0.100 (short)" in said
    assert "same description are 0.300 apart" in said


def test_the_reading_of_sources(tmp_path):
    """Each order has its rule; orders are compared at equal numbers; all belongs to both."""
    points = [
        Point(arm=f"pemt@{order}-{n}", title=f"{n}, {order}", x=n, lines=(order,))
        for order in ("ranked", "random") for n in (1.0, 2.0)
    ]  # fmt: skip
    points.append(Point(arm="pemt@all", title="all 4 sources", x=4.0, lines=("ranked", "random")))
    study = Study(kind="sources", points=tuple(points), reference="pemt@all")
    level = {"ranked-1.0": 0.5, "ranked-2.0": 0.7, "random-1.0": 0.4, "random-2.0": 0.5, "all": 0.7}
    cells = [
        made.cell(f"pemt@{name}", seed, value + 0.01 * seed, task=task)
        for task in ("rte", "cb") for seed in range(3) for name, value in level.items()
    ]  # fmt: skip
    folder = made.write(tmp_path / "out", study, cells)
    (tmp_path / "out" / "rankings").mkdir()
    (tmp_path / "out" / "rankings" / "rte-16-0-k.json").write_text('{"seconds": 12.0}')
    said = text(Findings.of(study, folder))
    assert "In ranked order the highest mean is at 2, and 2 are enough" in said
    assert "In random order the highest mean is at 4, and 4 are enough" in said
    assert "1: +10.0 [+10.0, +10.0], 6 won, 0 level, 0 lost; 2: +20.0" in said
    assert "took 12 s (median)" in said
