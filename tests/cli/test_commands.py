"""The commands from end to end, on a tiny base in a folder and a tiny task in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from pemt.cli import _friendly, main
from tests import tiny

QUICK = [
    "--settings.epochs", "1", "--settings.max_source_length", "24", "--settings.evaluations", "1",
    "--settings.report_to", "none", "--settings.checkpoints", "false",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base, two task files and a library of two experts."""
    folder = tmp_path_factory.mktemp("commands")
    for name in ("bert", "llama"):
        base = tiny.loaded(name)
        base.model.save_pretrained(folder / name)
        base.tokenizer.save_pretrained(folder / name)
    for name, seed in (("first", 0), ("second", 1)):
        task = tiny.task(folder, name, seed=seed)
        described = {
            "kind": task.kind, "template": task.template, "label_column": task.label_column,
            "description": task.description, "labels": list(task.labels), "split": {"rule": "own"},
            "rows": {"files": {k: str(v) for k, v in task.rows.files.items()}},
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
        arguments = [
            "train-source", str(folder / f"{name}.yaml"), str(folder / "experts"),
            "--base", str(folder / "bert"), "--source.rank", "4", "--precision", "float32",
            "--output", str(folder / f"source-{name}"), "--json", *QUICK,
        ]  # fmt: skip
        assert main(arguments) == 0
    return folder


def run(capsys, *arguments, code=0):
    assert main([str(a) for a in arguments]) == code
    return capsys.readouterr()


def adapt(place, folder, *more):
    return [
        "adapt", place / "first.yaml", place / "experts", "--base", place / "bert", "--shots", "2",
        "--output", folder, "--precision", "float32", *QUICK, *more,
    ]  # fmt: skip


def test_experts_are_listed_and_verified(place, capsys):
    listed = json.loads(run(capsys, "experts", "list", place / "experts", "--json").out)
    assert sorted(entry["name"] for entry in listed) == ["first", "second"]
    run(capsys, "experts", "verify", place / "experts")


def test_experts_are_ranked(place, capsys):
    asked = [
        "experts", "rank", place / "experts", place / "first.yaml", "--base", place / "bert",
        "--precision", "float32", "--shots", "4",
    ]  # fmt: skip
    said = json.loads(run(capsys, *asked, "--json").out)
    assert sorted(r["name"] for r in said["ranks"]) == ["first", "second"]
    assert said["rows"] == 8
    shown = run(capsys, *asked).out
    assert all(word in shown for word in ("first", "second", "(none)"))
    helpful = ", ".join(said["helpful"]) or "none"
    assert f"Better than no expert beyond noise: {helpful}." in " ".join(shown.split())


def test_a_command_without_the_flags_of_a_data_file_does_not_ask_for_them(place, tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\nw1,good\n", encoding="utf-8")
    for asked in (
        ["experts", "rank", place / "experts", rows, "--base", place / "bert"],
        ["experts", "import", place / "lora", tmp_path, "--base", place / "bert", "--name", "a",
         "--task", rows],
        ["train-shared-prompt", tmp_path, "--sources", f"{rows},sst2", "--teachers", tmp_path],
    ):  # fmt: skip
        error = run(capsys, *asked, code=1).err
        assert "rows.csv is a data file" in error
        assert "YAML" in error
        assert "--text-template" not in error


def test_adapt_evaluate_predict(place, tmp_path, capsys):
    folder = tmp_path / "run"
    made = json.loads(run(capsys, *adapt(place, folder, "--json")).out)
    assert set(made["gates"]) == {"none", "first", "second"}
    assert sum(made["gates"].values()) == pytest.approx(1, abs=1e-4)
    for name in ("run.json", "results.json", "predictions.json", "gates.png", "model/pemt.json"):
        assert (folder / name).is_file()
    record = json.loads((folder / "run.json").read_text())
    assert {"versions", "git", "command", "settings", "rows"} <= record.keys()

    flags = ["--precision", "float32", "--json"]
    again = json.loads(run(capsys, "evaluate", folder, "--task", place / "first.yaml", *flags).out)
    assert again["metrics"]["accuracy"] == pytest.approx(made["metrics"]["accuracy"])
    assert again["metrics"]["loss"] == pytest.approx(made["metrics"]["loss"], abs=1e-5)

    rows = tmp_path / "new.jsonl"
    rows.write_text('{"text": "good"}\n{"text": "bad thing"}\n', encoding="utf-8")
    answers = run(capsys, "predict", folder, "--input", rows, "--precision", "float32").out
    assert len(answers.split()) == 2
    shown = run(capsys, "predict", folder, "--text", '["good"]', *flags).out
    entry = json.loads(shown)
    assert entry["text"] == "text: good"
    assert sum(entry["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_adapt_diagnoses_and_reports(place, tmp_path, capsys):
    folder = tmp_path / "run"
    made = json.loads(run(capsys, *adapt(place, folder, "--json", "--report")).out)
    names = {f["name"] for f in made["diagnosis"]}
    assert {"gates-uniform", "behind-single-expert", "labels-predicted"} <= names
    assert "</html>" in (folder / "report.html").read_text(encoding="utf-8")
    run(capsys, "report", folder, "--output", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == (folder / "report.html").read_text()
    said = run(capsys, *adapt(place, tmp_path / "plain")).out
    assert "Diagnosis" in said
    assert said.index("test rows.") < said.index("Diagnosis") < said.index("Everything is in")
    assert not (tmp_path / "plain" / "report.html").exists()


def test_training_is_logged_for_tensorboard(place, tmp_path, capsys):
    folder = tmp_path / "run"
    run(capsys, *adapt(place, folder, "--settings.report_to", "tensorboard", "--json"))
    assert list(folder.rglob("events.out.tfevents.*"))
    assert not list(tmp_path.glob("events*"))


def test_a_finished_run_is_not_overwritten_unasked(place, tmp_path, capsys):
    run(capsys, *adapt(place, tmp_path / "run", "--method", "probe", "--json"))
    refused = run(capsys, *adapt(place, tmp_path / "run", "--method", "probe"), code=1)
    assert "finished run" in refused.err
    run(capsys, *adapt(place, tmp_path / "run", "--method", "probe", "--overwrite", "--json"))


def test_a_run_that_fails_leaves_the_one_it_was_to_replace(place, tmp_path, capsys):
    folder = tmp_path / "run"
    run(capsys, *adapt(place, folder, "--method", "probe", "--json"))
    (folder / "mine.txt").write_text("kept")
    before = {p.name for p in folder.iterdir()}
    run(capsys, *adapt(place, folder, "--overwrite", "--shots", "99"), code=1)
    assert {p.name for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    run(capsys, *adapt(place, folder, "--overwrite", "--method", "probe", "--json"))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert not (folder / "mine.txt").exists()


def test_replacing_a_run_takes_no_library_away(place, tmp_path, capsys):
    asked = [
        "train-source", place / "first.yaml", tmp_path / "run" / "experts", "--output",
        tmp_path / "run", "--base", place / "bert", "--precision", "float32", "--json", *QUICK,
    ]  # fmt: skip
    run(capsys, *asked)
    refused = run(capsys, *asked, "--overwrite", code=1)
    assert "run/experts" in refused.err
    assert (tmp_path / "run" / "experts" / "first").is_dir()


@pytest.mark.parametrize("which", ["--rows", "--validation-rows", "--test-rows", "--data-seed"])
def test_counts_of_source_rows_below_0_are_refused(place, tmp_path, capsys, which):
    asked = [
        "train-source", place / "first.yaml", tmp_path / "experts", "--output", tmp_path / "run",
        "--base", place / "bert", "--precision", "float32", "--rows", "4", *QUICK, which, "-1",
    ]  # fmt: skip
    assert "-1" in run(capsys, *asked, code=1).err
    assert not (tmp_path / "experts" / "first").exists()


def test_a_source_is_not_trained_to_be_scored_on_nothing(place, tmp_path, capsys):
    asked = [
        "train-source", place / "first.yaml", tmp_path / "experts", "--output", tmp_path / "run",
        "--base", place / "bert", "--precision", "float32", "--test-rows", "0", *QUICK,
    ]  # fmt: skip
    assert "test_rows=0" in run(capsys, *asked, code=1).err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rows", ["0", "-3"])
def test_no_rows_are_not_scored(place, tmp_path, capsys, rows):
    run(capsys, *adapt(place, tmp_path / "run", "--method", "adapter", "--json"))
    asked = ["evaluate", tmp_path / "run", "--precision", "float32", "--rows", rows]
    assert f"rows={rows}" in run(capsys, *asked, code=1).err


@pytest.mark.parametrize("method", ["pemt", "adapter"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_is_scored_again_in_its_own_precision(place, tmp_path, capsys, precision, method):
    asked = adapt(place, tmp_path / "run", "--method", method, "--json")
    asked[asked.index("--precision") + 1] = precision
    made = json.loads(run(capsys, *asked).out)["metrics"]
    again = json.loads(run(capsys, "evaluate", tmp_path / "run", "--json").out)["metrics"]
    assert again == made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--method", "pempt"], ["Unknown method 'pempt'", "Did you mean: pemt?"]),
        (["--experts", '["frist"]'], ["Unknown expert 'frist'", "Did you mean: first?"]),
        (["--base", "minilmm"], ["Unknown base 'minilmm'", "Did you mean: minilm?"]),
        (["--shots", "99"], ["99"]),
        (["--settings.batch_size", "0"], ["batch_size=0"]),
        (["--test-rows", "0"], ["test_rows=0", "at least 1"]),
        (["--test-rows", "-1"], ["test_rows=-1", "at least 1"]),
        (["--settings.init_seed", "-1"], ["init_seed=-1"]),
        (["--settings.report_to", "tensorbord"], ["'tensorbord'", "Did you mean: tensorboard?"]),
    ],
)
def test_mistakes_are_explained(place, tmp_path, capsys, change, words):
    try:
        code = main([str(a) for a in adapt(place, tmp_path / "run", *change)])
    except SystemExit as stop:  # the parser's own refusal of a value
        code = stop.code
    assert code != 0
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "results.json").exists()


def test_an_expert_of_another_base_is_refused(place, tmp_path, capsys):
    arguments = adapt(place, tmp_path / "run")
    arguments[arguments.index(place / "bert")] = place / "llama"
    assert "base" in run(capsys, *arguments, code=1).err


def test_unknown_task_and_folder(tmp_path, capsys):
    assert "Did you mean: rte?" in run(capsys, "adapt", "rtee", tmp_path, code=1).err
    assert "No adapted model" in run(capsys, "evaluate", tmp_path, code=1).err


def test_help_teaches(capsys):
    for command in (["adapt"], ["train-source"], ["demo"], ["predict"], ["experts", "verify"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
        assert len(capsys.readouterr().out.splitlines()) > 15
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pemt ")


def test_experts_on_the_hub_are_used_as_in_a_folder(place, tmp_path, capsys, monkeypatch):
    """Push the library, adapt from the pinned address, evaluate with experts from there."""
    from huggingface_hub import constants

    from tests.experts.fake_hub import FakeHub

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        pushed = json.loads(
            run(capsys, "experts", "push", place / "experts", "team/experts", "--json").out
        )["address"]
        arguments = adapt(place, tmp_path / "run", "--json")
        arguments[2] = pushed
        made = json.loads(run(capsys, *arguments).out)
        assert set(made["gates"]) == {"none", "first", "second"}
        assert json.loads((tmp_path / "run" / "run.json").read_text())["library"] == pushed
        refused = run(
            capsys, "train-source", place / "first.yaml", "hf://team/experts", "--base",
            place / "bert", code=1,
        )  # fmt: skip
        assert "cannot be written to" in refused.err


def test_adapt_without_the_mixture_shows_no_gates(place, tmp_path, capsys):
    folder = tmp_path / "run"
    more = ("--method", "pemt-no-mixture")
    made = json.loads(run(capsys, *adapt(place, folder, "--json", *more)).out)
    assert made["gates"] is None
    assert not (folder / "gates.png").exists()
    shown = run(capsys, *adapt(place, tmp_path / "again", *more)).out
    assert "PEMT, no mixture on first" in shown
    assert "gates" not in shown
    answered = run(capsys, "predict", folder, "--text", '["w1 nice"]', "--precision", "float32")
    assert answered.out.strip() in ("bad", "good")


def test_bottleneck_mixture_says_how_to_train_its_experts_and_that_works(place, tmp_path, capsys):
    arguments = adapt(place, tmp_path / "run", "--method", "pemt-bottleneck")
    error = run(capsys, *arguments, code=1).err
    assert "All experts are LoRAs" in error
    assert "--source.kind bottleneck" in error
    run(
        capsys, "train-source", place / "first.yaml", tmp_path / "bottleneck", "--base",
        place / "bert", "--source.kind", "bottleneck", "--source.rank", "4", "--precision",
        "float32", "--output", tmp_path / "source", *QUICK,
    )  # fmt: skip
    arguments[2] = tmp_path / "bottleneck"
    assert "PEMT, bottleneck experts on first" in run(capsys, *arguments).out


@pytest.mark.parametrize(
    "flags", [["--instant"], ["--method", "guided"], ["--method", "ensemble"]], ids=lambda f: f[-1]
)
def test_the_labels_speak_first(place, tmp_path, capsys, flags):
    """At once or with training: the guide is shown, kept, on the card, and answers again."""
    folder = tmp_path / "run"
    said = run(capsys, *adapt(place, folder, *flags)).out
    assert "rows" in said
    assert "expert" in said
    results = json.loads((folder / "results.json").read_text())
    weights = results["notes"]["guide"]["weights"]
    assert set(weights) == {"none", "first", "second"}
    assert sum(weights.values()) == pytest.approx(1)
    kept = json.loads((folder / "model" / "pemt.json").read_text())
    assert sum(kept["guide"].values()) == pytest.approx(1)
    assert "gave each of them before training" in (folder / "model" / "README.md").read_text()
    made = run(
        capsys, "predict", folder, "--text", '["good"]', "--precision", "float32", "--json"
    ).out
    assert sum(json.loads(made)["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_no_labels_but_the_training_ones(place, tmp_path, capsys):
    more = ["--validation", "cv", "--cv_folds", "2", "--method", "instant,probe"]
    said = run(capsys, *adapt(place, tmp_path / "run", *more)).out
    assert "Chosen by cross-validation" in said
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    tried = {c["method"] for c in results["notes"]["selection"]["choices"]}
    assert tried == {"instant", "probe"}
    assert results["method"] in tried


def test_instant_is_one_method(place, tmp_path, capsys):
    arguments = adapt(place, tmp_path / "run", "--instant", "--method", "lora")
    assert "one of the two" in run(capsys, *arguments, code=1).err


def test_the_released_code_is_pemt(place, tmp_path, capsys):
    more = ["--pemt.tau", "2", "--pemt.sparsity_weight", "0"]
    run(capsys, *adapt(place, tmp_path / "run", "--compat", "released", *more, "--json"))
    used = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (used["prompt"], used["sparsity_tokens"]) == ("random", "all")
    assert (used["tau"], used["sparsity_weight"]) == (2.0, 0.0)
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["method"] == "pemt"
    assert "rule" not in record["notes"]


@pytest.mark.parametrize("asked", [["tasks", "list"], ["bench", "table", "--help"], ["--version"]])
def test_output_that_nobody_reads_is_no_error(asked):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pemt", *asked], stdout=writer, stderr=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode in (141, 1)  # 1: rich prints the table, and ends so
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["--text", "it broke"], ["--text", '["it broke"]']),
        (["--text=it broke, twice"], ['--text=["it broke, twice"]']),
        (["--text", "[sic] w1"], ["--text", '["[sic] w1"]']),
        (["--text", "[laughs]"], ["--text", '["[laughs]"]']),
        (["--text", '["a", "b"]'], ["--text", '["a", "b"]']),
        (["--learning-rates", "1e-3,2e-3"], ["--learning_rates", "[1e-3,2e-3]"]),
        (["--learning-rates", "1e-3"], ["--learning_rates", "[1e-3]"]),
        (["--names", "first, second"], ["--names", '["first", "second"]']),
        (["--names", '["first"]'], ["--names", '["first"]']),
        (["--text"], ["--text"]),
    ],
)
def test_a_list_may_be_written_plainly(given, taken):
    assert _friendly(["predict", *given]) == ["predict", *taken]
