"""Tables as Markdown, LaTeX and CSV, read back."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace

import pytest

from pemt.bench.comparison import compared
from pemt.bench.cost import costs
from pemt.bench.difference import differences
from pemt.bench.results import Results
from pemt.bench.sheet import CSV_FIELDS, aggregates_csv
from pemt.bench.table import Entry, Table, cost_table, difference_table, score_table
from pemt.bench.writing import escaped, latex, markdown
from pemt.errors import ConfigError
from pemt.writing import write_named
from tests.bench.cells import cell, row, study


def results_of(cells):
    return Results(cells=tuple(cells))


def scores(cells, shots=16):
    results = results_of(cells)
    return score_table(results, compared(results, shots))


def grid_of(text):
    """The fields of a Markdown table's lines, without the rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert re.fullmatch(r"\|( -+:? \|)+", lines.pop(1))
    return [[f.strip() for f in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_scores_in_markdown():
    text = markdown([scores(study())], ["3 of 4 cells."])
    assert text.startswith("**3 of 4 cells.**\n\n### tiny, 16 shots\n")
    assert grid_of(text) == [
        ["target", "metric", "test rows", "n", "PEMT", "LoRA", "best single expert"],
        ["cb", "accuracy", "28", "3", "50.0 ± 10.0", "**55.0 ± 5.0**", "30.0 ± 0.0"],
        ["rte", "accuracy", "100", "3", "**80.0 ± 10.0**", "70.0 ± 10.0", "60.0 ± 10.0"],
        ["mean", "accuracy", "-", "3", "**65.0 ± 10.0**", "62.5 ± 6.6", "45.0 ± 5.0"],
    ]


def test_gaps_and_their_notes_in_markdown():
    cells = [c for c in study() if (c.task, c.method) != ("cb", "pemt")]
    cells = [c for c in cells if (c.method, c.task, c.data_seed) != ("lora", "rte", 2)]
    text = markdown([scores([*cells, cell("spot", 0, math.nan), cell("spot", 0, 0.5, task="cb")])])
    table = grid_of(text)
    assert table[1][4:] == ["-", "**55.0 ± 5.0**", "30.0 ± 0.0", "50.0 (n=1)"]
    assert table[2][4:6] == ["**80.0 ± 10.0**", "70.0 ± 14.1 (n=2)"]
    assert re.fullmatch(r"nan \(n=1\) \[\d\]", table[2][7])
    assert re.fullmatch(r"- \[\d\]", table[3][4])
    notes = dict(re.findall(r"^\[(\d)\] (.*)$", text, re.M))
    assert notes[table[3][4][3]] == "PEMT, 16 shots: no mean, because it has no cell of cb."
    assert "is no number" in notes[re.search(r"\[(\d)\]", table[2][7])[1]]
    used = {n for line in table for f in line for n in re.findall(r"\[(\d)\]$", f)}
    assert used == set(notes)


def test_differences_in_markdown():
    found = differences(results_of(study()), 16, "lora")
    text = markdown([difference_table(found, chosen=True)])
    table = grid_of(text)
    assert table[0][5] == "95 % (Student t)"
    assert table[3] == ["PEMT", "mean", "+2.5", "6.6", "3", "[-13.9, +18.9]", "2", "2", "2"]
    assert "Method minus LoRA" in text
    assert "chosen on these test scores: that is optimistic for it" in text
    plain = difference_table(found, tie=0.02, kind="bootstrap")
    assert plain.columns[5] == "95 % (percentile bootstrap)"
    assert "ties are within 2.0" in plain.remarks[0]
    assert "too narrow" in plain.remarks[-1]
    assert not any("chosen on" in remark for remark in plain.remarks)


def test_on_full_data_seeds_are_no_draws_of_labels():
    """All seeds train on the same rows there."""
    few = difference_table(differences(results_of(study()), 16, "lora"))
    assert "is for the mean over draws of labels; it is given" in few.remarks[1]
    cells = [replace(c, shots=None) for c in study()]
    full = difference_table(differences(results_of(cells), None, "lora"))
    assert "draws of labels" not in full.remarks[1]
    varied = "initialisation and order, all seeds having the same rows"
    assert f"is for the mean over {varied}; it is given" in full.remarks[1]


def test_two_seeds_have_no_interval():
    cells = [*row("pemt", [0.5, 0.7]), *row("lora", [0.4, 0.4]), *row("mpt", [], task="cb")]
    table = grid_of(markdown([difference_table(differences(results_of(cells), 16, "pemt"))]))
    assert table[1] == ["LoRA", "rte", "-20.0", "14.1", "2", "-", "0", "0", "2"]


def test_costs_by_hand():
    cells = [
        cell("lora", 0, 0.5, trained=10, total=1000, train_seconds=1.0, peak_memory=2**21),
        cell("lora", 1, 0.5, trained=20, total=1000, train_seconds=9.0, peak_memory=2**20),
        cell("lora", 2, 0.5, trained=20, total=1000, train_seconds=2.0),
        cell("probe", 0, 0.5, trained=1_234, total=0),
    ]
    assert grid_of(markdown([cost_table(costs(results_of(cells)))]))[1:] == [
        ["linear probe", "1,234", "0.00", "2.0", "3.0", "-", "1"],
        ["LoRA", "10-20", "2.00", "2.0", "3.0", "2", "3"],
    ]


def test_markdown_keeps_bars_and_stars():
    odd = Table(title="a*b", columns=("x|y",), words=1, rows=((Entry("p|q*", best=True),),))
    assert grid_of(markdown([odd])) == [[r"x\|y"], [r"**p\|q\***"]]


def test_latex_is_balanced():
    odd = "task_1 & 50% #2 {x} ~ ^ \\ $5 <a>"
    cells = [*study(), *row("lora", [math.nan], task=odd), *row("pemt", [0.25], task=odd)]
    results = results_of(cells)
    tables = [scores(cells), difference_table(differences(results, 16, "pemt"))]
    text = latex([*tables, cost_table(costs(results))], ["37 of 60 cells\nmissing: rte"])
    assert "% 37 of 60 cells missing: rte\n" in text
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}")
    depth = 0
    for letter in bare:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    bodies = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", text, re.S)
    assert len(bodies) == 3
    for columns, body in bodies:
        assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1] * 3
        lines = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert lines
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    # outside comments, dollar signs come in pairs and no special letter stands alone
    for line in text.splitlines():
        if not line.startswith("%"):
            assert len(re.findall(r"(?<!\\)\$", line)) % 2 == 0
            assert not re.search(r"(?<!\\)[%#_~]", line)
    assert r"\textbf{80.0 $\pm$ 10.0}" in text


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("product_reviews", r"product\_reviews"),
        ("50 % & more", r"50 \% \& more"),
        ("a\\b", r"a\textbackslash{}b"),
        ("[-1.5, +2.0]", "[$-$1.5, +2.0]"),
        ("100-200", "100-200"),
        ("pemt-2", "pemt-2"),
        ("1.0 ± 0.5", r"1.0 $\pm$ 0.5"),
    ],
)
def test_names_in_latex(text, tex):
    assert escaped(text) == tex


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_is_read_back():
    cells = [*study(), cell("lora", 0, 0.7, shots=None)]
    results = results_of(cells)
    rows = [r for shots in results.shots for r in compared(results, shots)]
    text = aggregates_csv(
        results,
        rows,
        found=differences(results, 16, "lora"),
        spent=costs(results),
        published=True,
        chosen=True,
    )
    lines = read(text)
    assert tuple(lines[0]) == CSV_FIELDS
    assert all(None not in line and len(line) == len(CSV_FIELDS) for line in lines)

    def of(**chosen):
        (line,) = [x for x in lines if all(x[k] == v for k, v in chosen.items())]
        return line

    best = of(table="scores", shots="16", task="rte", method="pemt")
    assert [float(best[k]) for k in ("mean", "deviation")] == [80.0, 10.0]
    assert (best["n"], best["best"], best["test_rows"], best["base"]) == ("3", "1", "100", "tiny")
    alone = of(table="scores", shots="full", method="lora")
    assert (alone["mean"], alone["deviation"], alone["best"]) == ("70.0", "", "0")
    empty = of(table="scores", shots="full", method="pemt")
    assert (empty["n"], empty["mean"]) == ("0", "")
    gain = of(table="differences", task="mean", method="pemt")
    assert float(gain["mean"]) == 2.5
    assert (gain["wins"], gain["ties"], gain["losses"]) == ("2", "2", "2")
    assert (gain["against"], gain["interval"]) == ("lora", "Student t")
    assert gain["note"] == "the other method was chosen on these test scores"
    assert float(gain["low"]) < 2.5 < float(gain["high"])
    assert of(table="costs", method="lora")["trained"] == "10"
    assert of(table="published", task="rte", method="mpt")["mean"] == "79.4"


def test_a_file_is_there_whole(tmp_path):
    path = tmp_path / "new" / "table.md"
    write_named(path, "one\n")
    write_named(path, "two\n")
    assert path.read_text() == "two\n"
    assert [p.name for p in path.parent.iterdir()] == ["table.md"]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_named(path / "inside", "x")


@pytest.mark.parametrize(("tie", "said"), [(0.0025, "0.25."), (0.0004, "0.04."), (0.02, "2.0.")])
def test_the_margin_of_ties_is_told_as_it_was_used(tie, said):
    table = difference_table(differences(results_of(study()), 16, "lora", tie=tie), tie=tie)
    assert table.remarks[0].endswith(f"ties are within {said}")
