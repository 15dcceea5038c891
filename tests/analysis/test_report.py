"""Reports of runs: everything in one file, escaped, whatever the run was."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace

import pytest

from pemt.analysis.errors import worst_errors
from pemt.analysis.report import files_of, read_run, write_run_report
from pemt.analysis.report.curves import gate_curves
from pemt.analysis.report.run import run_page
from pemt.cli import main
from pemt.training import adapt
from pemt.training.evaluating import Predictions
from tests import tiny
from tests.analysis.pages import EVIL, Page, checked


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A PEMT run on a tiny base, and its folder."""
    place = tmp_path_factory.mktemp("report")
    base = tiny.loaded("bert")
    experts = [tiny.expert(base.model, name, seed=i) for i, name in enumerate("ab", 1)]
    result = adapt(
        base, tiny.task(place), experts, method="pemt", shots=4, settings=tiny.settings(),
        folder=place / "run", progress=False,
    )  # fmt: skip
    result.model.detach()
    return place / "run", result


def page_of(files) -> Page:
    return checked(run_page(files))


def test_a_run_as_a_page(finished, tmp_path):
    folder, result = finished
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").unlink()
    page = checked(text)
    shown = page.text
    for words in (
        "PEMT on tiny", "Given a text judge it", "95 % interval", "Who was taken for whom",
        "Learning curves", "whom each layer listened to", "Diagnosis", "Wrong answers",
        "All settings", "Versions", "4 per class", "one answer to everything",
    ):  # fmt: skip
        assert words in shown, words
    assert f"{result.metrics['accuracy']:.3f}" in shown
    assert "torch" in shown
    pictures = [a["src"][:26] for t, a in page.tags if t == "img"]
    assert pictures == ["data:image/svg+xml;base64,"] * 2  # learning curves, gates over steps
    for finding in result.diagnosis.findings:
        assert finding.evidence in shown


def test_the_result_writes_the_same_page(finished, tmp_path):
    """From its folder; and without one, from memory, the same but for the gates over the steps."""
    folder, result = finished
    written = result.write_report(tmp_path / "deep" / "mine.html")
    main(["report", str(folder), "--output", str(tmp_path / "theirs.html")])
    with result.model.attaching():
        pass  # the model is off its base: nothing of it is needed but the names of its layers
    alone = replace(result, folder=None).write_report(tmp_path / "alone.html")
    varying = r"\d{4}-\d\d-\d\d \d\d:\d\d|[\d,.]+ s<|commit \w+|\s+"
    steps = r"<h3>While it trained</h3>.*?(?=</section>)"
    mine, theirs, memory = (
        re.sub(varying, "", re.sub(steps, "", p.read_text(), flags=re.DOTALL))
        for p in (written, tmp_path / "theirs.html", alone)
    )
    assert "While it trained" in written.read_text()
    assert "While it trained" not in alone.read_text()
    assert mine == theirs
    assert mine == memory


def test_diagnosis_is_in_the_results(finished):
    folder, result = finished
    results = json.loads((folder / "results.json").read_text())
    assert results["diagnosis"] == json.loads(json.dumps(result.diagnosis.to_list()))
    assert {"gates-uniform", "adapter-dominates", "prompt-unmoved", "experts-collinear"} <= {
        f["name"] for f in results["diagnosis"]
    }
    assert results["constant"]["metrics"]["accuracy"] == 0.5
    assert len(results["fit"]["losses"]) == 2


def test_probabilities_and_errors_are_written(finished):
    folder, _ = finished
    answers = json.loads((folder / "predictions.json").read_text())
    assert all(0.5 <= line["probability"] <= 1 for line in answers)  # of two labels, the likelier
    errors = json.loads((folder / "errors.json").read_text())
    assert len(errors) == sum(line["answer"] != line["target"] for line in answers)
    sure = [e["probability"] for e in errors]
    assert sure == sorted(sure, reverse=True)
    assert all(e["text"].startswith("text: ") for e in errors)


def evil(value):
    """The same values with markup in every string, names of keys too."""
    if isinstance(value, dict):
        return {k: evil(v) for k, v in value.items()}
    if isinstance(value, list):
        return [evil(v) for v in value]
    return value + EVIL if isinstance(value, str) else value


def test_nothing_that_somebody_wrote_is_taken_for_markup(finished, tmp_path):
    folder, _ = finished
    files = read_run(folder)
    record, results = evil(files.record), evil(files.results)
    results["about"] |= {"metric": "accuracy", "kind": "classification"}
    for finding in results["diagnosis"]:  # ours, and a word of the page's own
        finding["severity"] = finding["severity"].removesuffix(EVIL)
    for f in results["diagnosis"][:2]:
        f["severity"] = "warning"
    results["per_class"] = {k + EVIL: v for k, v in results["per_class"].items()}
    gates = results["gates"]
    results["gates"] = gates | {
        "by_layer": {k + EVIL: {n + EVIL: v for n, v in row.items()}
                     for k, row in gates["by_layer"].items()},
        "mean": {n + EVIL: v for n, v in gates["mean"].items()},
    }  # fmt: skip
    results["notes"] = {
        "expert" + EVIL: EVIL,
        "guide": {"weights": {"a" + EVIL: 0.5, "none": 0.5}, "gains": {"a" + EVIL: 0.1},
                  "errors": {"a" + EVIL: 0.1}},
    }  # fmt: skip
    results["invalid"], results["invalid_texts"] = 3, [[EVIL, 3]]
    results["verdicts"] = [EVIL]
    record["versions"] = {"torch" + EVIL: EVIL}
    record["git"] = {"commit": EVIL, "changed": True}
    record["settings"] = {"a" + EVIL: EVIL}
    record["config"] = {"b" + EVIL: [EVIL]}
    errors = [dict.fromkeys(("id", "target", "answer", "text"), EVIL) | {"probability": 0.9}] * 9
    write_run_report(files_of(record, results, errors), tmp_path / "evil.html")
    page = checked((tmp_path / "evil.html").read_text(encoding="utf-8"))
    assert page.text.count(EVIL) > 60
    assert "49" not in page.text[: page.text.index("Diagnosis")]  # no template runs in a value


def test_a_run_without_gates(finished, tmp_path):
    base = tiny.loaded("bert")
    result = adapt(
        base, tiny.task(tmp_path), [], method="lora", shots=4, settings=tiny.settings(),
        folder=tmp_path / "lora", progress=False,
    )  # fmt: skip
    result.model.detach()
    shown = page_of(read_run(tmp_path / "lora")).text
    assert "LoRA on tiny" in shown
    assert "listened" not in shown
    assert {f.name for f in result.diagnosis.findings} == {
        "training-loss", "beyond-constant", "labels-predicted",
    }  # fmt: skip


def write_gate_files(folder, experts=("a", "b")):
    """What `pemt adapt` and `pemt gates` leave of gates, by hand."""
    lines = [
        {"step": step, "rows": 8, "stacks": {"encoder": {
            "gates": {name: [0.5 + step / 100, 0.5 - step / 100][i % 2]
                      for i, name in enumerate(experts)},
            "effective": 2.0, "example_effective": 1.9}}}
        for step in (2, 4)
    ]  # fmt: skip
    (folder / "gates.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "gates").mkdir()
    measured = {
        "experts": list(experts), "classes": {"bad": [[0.9, 0.1], [0.7, 0.3]],
                                              "good": [[0.2, 0.8], [0.2, 0.8]]},
        "class_rows": {"bad": 8, "good": 9}, "overall": {"mean": {"a": 0.5, "b": 0.5}},
    }  # fmt: skip
    (folder / "gates" / "gates.json").write_text(json.dumps(measured))


def test_gates_by_class_and_step_where_they_are_there(finished, tmp_path):
    folder, _ = finished
    for name in ("run.json", "results.json", "errors.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "gates").mkdir()
    (tmp_path / "gates" / "masks.png").write_bytes((folder / "gates.png").read_bytes())
    (tmp_path / "gates.jsonl").write_text("{")  # a damaged one is left out
    page = page_of(read_run(tmp_path))
    assert "With experts left out" in page.text
    assert "While it trained" not in page.text
    (tmp_path / "gates" / "masks.png").unlink()
    (tmp_path / "gates").rmdir()
    write_gate_files(tmp_path)
    page = page_of(read_run(tmp_path))
    assert "While it trained" in page.text
    assert "good (9 rows)" in page.text
    by_class = page.text[page.text.index("By true label") :]
    assert re.search(r"a\s+\.50\s+\.80\s+\.20", by_class)
    assert len([t for t, _ in page.tags if t == "img"]) == 2
    # of several learning rates the chosen one's
    (tmp_path / "lr-0.01").mkdir()
    assert "While it trained" not in page_of(read_run(tmp_path)).text
    (tmp_path / "gates.jsonl").rename(tmp_path / "lr-0.01" / "gates.jsonl")
    assert "While it trained" in page_of(read_run(tmp_path)).text


def test_long_names_that_begin_alike_are_told_apart():
    names = ("sentiment-of-tweets-2013", "sentiment-of-tweets-2017")
    lines = {name: [(1.0, 0.5), (2.0, 0.5)] for name in names}
    for picture in gate_curves({"encoder": lines}):
        drawn = base64.b64decode(picture.partition(",")[2]).decode()
        labels = [c for c in re.findall("<!-- (.*?) -->", drawn) if c.startswith("sentiment")]
        assert len(set(labels)) == 2


@pytest.mark.parametrize("kind", ["regression", "generation"])
def test_tasks_without_labels(kind, tmp_path):
    base = tiny.loaded("t5")
    result = adapt(
        base, tiny.task(tmp_path, kind=kind), [tiny.expert(base.model, "a")], shots=8,
        method="pemt", settings=tiny.settings(), folder=tmp_path / "run", progress=False,
    )  # fmt: skip
    result.model.detach()
    shown = page_of(read_run(tmp_path / "run")).text
    assert "taken for whom" not in shown
    assert result.constant is None
    errors = json.loads((tmp_path / "run" / "errors.json").read_text())
    assert errors[0]["probability"] is None


def test_an_older_run_has_fewer_sections(finished, tmp_path):
    """What runs wrote before there were reports."""
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    for key in ("about", "constant", "tried", "train_seconds", "verdicts", "diagnosis"):
        del results[key]
    del results["fit"]["losses"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "run.json").write_text((folder / "run.json").read_text())
    shown = page_of(read_run(tmp_path)).text
    assert "accuracy" in shown
    assert "Diagnosis" not in shown
    assert "Wrong answers" not in shown


def test_numbers_that_are_none(finished):
    folder, _ = finished
    files = read_run(folder)
    nan = float("nan")
    fit = files.results["fit"]
    fit["losses"] = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": nan}]
    fit["history"] = [{"step": 2, "accuracy": 0.5, "loss": float("inf")}]
    files.results["metrics"]["loss"] = nan
    gates = files.results["gates"]
    name = next(iter(gates["mean"]))
    gates["mean"][name] = nan
    shown = page_of(files).text
    assert "not a number" in shown
    assert "Not a number at step 2" in shown
    fit["losses"] = [{"step": 1, "loss": nan}]
    fit["history"] = []
    page = page_of(files)
    assert "Not a number at step 1" in page.text
    assert len([t for t, _ in page.tags if t == "img"]) == 1  # gates over steps, no curves


def test_three_hundred_experts_are_readable(finished):
    folder, _ = finished
    files = read_run(folder)
    names = [f"expert-{i}" for i in range(300)]
    row = {name: (i + 1) / 45150 for i, name in enumerate(names)}  # sums to 1
    files.results["gates"] = {
        "by_layer": {f"encoder {i}": row for i in range(24)}, "mean": row, "effective_experts": 226,
    }  # fmt: skip
    files.record["experts"] = names
    text = run_page(files)
    shown = checked(text).text
    assert "expert-299" in shown
    assert "276 others" in shown
    tints = [float(t) for t in re.findall(r"--v: ([\d.]+)", text)]
    assert max(tints) == 1.0  # colours reach to the largest of them
    assert "expert-200" not in shown
    assert len(text) < 300_000


def test_many_labels_become_a_list_of_confusions(finished):
    folder, _ = finished
    files = read_run(folder)
    count = 77
    matrix = [[0] * (count + 1) for _ in range(count)]
    for i in range(count):
        matrix[i][i] = 5
    matrix[3][70], matrix[4][count] = 4, 2
    scores = {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 5}
    files.results.update({
        "confusion": matrix, "per_class": {f"intent {i}": scores for i in range(count)}
    })  # fmt: skip
    shown = page_of(files).text
    assert "Commonest confusions of 77 labels" in shown
    assert re.search(r"intent 3\s+intent 70\s+4", shown)
    assert re.search(r"intent 4\s+invalid\s+2", shown)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no run"),
        ({"checkpoint-5/trained.safetensors": ""}, "is not finished"),
        ({"lr-0.001/identity.json": "{}"}, "is not finished"),
        ({"elsewhere/identity.json": "{}"}, "holds no run"),
        ({"results.json": "{", "run.json": "{}"}, "cannot be read"),
        ({"results.json": "[]", "run.json": "{}"}, "holds no dict"),
        ({"results.json": '{"task": "t", "metrics": 3}', "run.json": "{}"}, "do not hold"),
        ({"results.json": '{"task": "t", "metrics": {}}', "run.json": "{}"}, "do not hold"),
        ({"results.json": '{"metrics": {}}', "run.json": '{"stage": "source"}'}, "train-source"),
        ({"results.json": '{"task": "t", "metrics": {}}'}, "run.json cannot be read"),
        ({"grid.json": "{}"}, "holds no cells"),
    ],
)
def test_folders_that_cannot_be_shown(files, words, tmp_path, capsys):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert main(["report", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_no_folder_and_a_folder_as_output(tmp_path, finished, capsys):
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert main(["report", str(finished[0]), "--output", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err
    assert main(["report", str(finished[0]), "--against", "lora"]) == 1
    assert "goes with a grid" in capsys.readouterr().err


def test_errors_of_scores_and_texts(tmp_path):
    scored = tiny.task(tmp_path, kind="regression")
    rows = tiny.splits(scored).test[:3]
    values = [float(r.label) + d for r, d in zip(rows, (0.1, 3.0, -1.0), strict=True)]
    made = Predictions(values, [f"{v:.2f}" for v in values], None)
    assert [e["id"] for e in worst_errors(scored, rows, made)] == [rows[i].id for i in (1, 2, 0)]
    assert len(worst_errors(scored, rows, made, limit=1)) == 1
    written = tiny.task(tmp_path, "words", kind="generation")
    rows = tiny.splits(written).test[:3]
    said = [rows[0].target, "nothing", rows[2].target]
    assert [e["id"] for e in worst_errors(written, rows, Predictions(said, said, None))] == [
        rows[1].id
    ]
