"""`pemt prune` and `pemt fold` from end to end, on tiny bases and a tiny task in files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from peft import PeftModel

from pemt.bases import load_base
from pemt.cli import main
from pemt.experts import ExpertLibrary
from pemt.model import PemtConfig
from pemt.model.storage import read_description
from pemt.tasks.encoding import fingerprint
from pemt.training import adapt
from pemt.training.deploying import load_run
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs of two bases: "bert" by example with a serial adapter, "llama" whole when folded."""
    folder = tmp_path_factory.mktemp("deploy")
    task = tiny.task(folder)
    for name, config in (
        ("bert", PemtConfig(reduction=4)),
        ("llama", PemtConfig(reduction=4, target_adapter="lora")),
    ):
        base = tiny.loaded(name)
        base.model.save_pretrained(folder / f"base-{name}")
        base.tokenizer.save_pretrained(folder / f"base-{name}")
        base = tiny.loaded(name)
        object.__setattr__(base, "name", str(folder / f"base-{name}"))
        library = ExpertLibrary(folder / f"experts-{name}")
        for i, letter in enumerate("abc"):
            made = tiny.expert(base.model, letter, rank=2 + i, seed=i + 1)
            info = replace(made.info, tokenizer_fingerprint=fingerprint(base.tokenizer))
            library.add(replace(made, info=info))
        result = adapt(
            base, task, library, method="pemt", shots=4, config=config, progress=False,
            settings=tiny.settings(max_steps=2, evaluations=1), folder=folder / f"run-{name}",
        )  # fmt: skip
        result.model.detach()
    return folder


def run(capsys, *arguments, code=0):
    assert main([str(a) for a in arguments]) == code
    return capsys.readouterr()


FLAGS = ("--precision", "float32")


def test_prune_writes_a_smaller_run_and_says_what_it_scores(place, tmp_path, capsys):
    run_folder = shutil.copytree(place / "run-bert", tmp_path / "run")
    said = json.loads(
        run(capsys, "prune", run_folder, "--below", "0.3334", *FLAGS, "--json").out
    )  # fmt: skip
    assert set(said["kept"]) | set(said["dropped"]) == {"a", "b", "c"}
    assert said["dropped"]
    assert said["scores"]["before"].keys() == said["scores"]["after"].keys()
    again = load_run(said["output"], precision="float32")
    assert again.model.expert_names == said["kept"]
    assert json.loads((tmp_path / "run-pruned" / "prune.json").read_text())["below"] == 0.3334
    scored = json.loads(
        run(capsys, "evaluate", said["output"], *FLAGS, "--json").out
    )["metrics"]  # fmt: skip
    assert scored["accuracy"] == pytest.approx(said["scores"]["after"]["accuracy"])
    refused = run(capsys, "prune", run_folder, "--below", "0.3334", *FLAGS, code=1)
    assert "is not empty" in refused.err


def test_prune_without_rows_reads_the_runs_own_gates(place, tmp_path, capsys):
    said = json.loads(
        run(capsys, "prune", place / "run-bert", "--below", "0.3334", "--rows", "0", "--output",
            tmp_path / "small", *FLAGS, "--json").out
    )  # fmt: skip
    assert said["scores"] is None
    extra = read_description(tmp_path / "small" / "model")["extra"]
    assert not extra.get("metrics")  # the whole model's are not its own
    assert not extra.get("interval")
    bare = shutil.copytree(place / "run-bert" / "model", tmp_path / "bare")
    refused = run(capsys, "prune", bare, "--rows", "0", *FLAGS, code=1)
    assert "No gates to judge" in refused.err


def test_prune_with_nothing_to_drop_writes_nothing(place, tmp_path, capsys):
    shown = run(
        capsys, "prune", place / "run-bert", "--below", "0.001", "--output", tmp_path / "x", *FLAGS
    ).out  # fmt: skip
    assert "Nothing was written" in shown
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("more", [[], ["--rank", "5"]])
def test_fold_writes_what_plain_peft_loads(place, tmp_path, capsys, more):
    folder = tmp_path / "folded"
    said = json.loads(
        run(capsys, "fold", place / "run-llama", "--output", folder, *more, "--json").out
    )
    assert said["rank"] == (5 if more else 2 + 3 + 4 + 8)
    assert (said["error"] > 0) == bool(more)
    if not more:
        assert said["scores"]["before"]["loss"] == pytest.approx(
            said["scores"]["after"]["loss"], abs=1e-5
        )
    base = tiny.base("llama")
    PeftModel.from_pretrained(base, folder).merge_and_unload()
    assert "target adapter (a LoRA)" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_lora_of_a_run_without_experts_is_written_as_it_is(place, tmp_path, capsys, name):
    base, folder = load_base(str(place / f"base-{name}"), precision="float32"), tmp_path / "run"
    adapt(
        base, tiny.task(place), None, method="lora", shots=4, progress=False, folder=folder,
        settings=tiny.settings(max_steps=2, evaluations=1),
    ).model.detach()  # fmt: skip
    refused = run(capsys, "fold", folder, "--rank", "4", code=1).err
    assert "rank=4" in refused
    assert not (tmp_path / "run-folded").exists()
    shown = run(capsys, "fold", folder).out
    assert "rank 8 of 8 (exact)" in shown
    kept = json.loads((folder / "results.json").read_text())["metrics"]["accuracy"]
    assert f"accuracy: {kept:.3f}\n" in shown
    card = (tmp_path / "run-folded" / "README.md").read_text()
    assert "| this model |" in card
    assert "| folded |" not in card
    PeftModel.from_pretrained(tiny.base(name), tmp_path / "run-folded").merge_and_unload()


def test_fold_refuses_gates_of_examples_and_says_what_to_do(place, tmp_path, capsys):
    one = ["fold", place / "run-bert", "--output", tmp_path / "folded"]
    assert "--partial" in run(capsys, *one, code=1).err
    assert "--at-mean-gates" in run(capsys, *one, "--partial", code=1).err
    shown = run(capsys, *one, "--partial", "--at-mean-gates").out
    assert "away (relative)" in shown
    assert "Not in it: the serial target adapter" in shown
    assert "before" in shown
    said = json.loads((tmp_path / "folded" / "fold.json").read_text())
    assert said["gate_error"] > 0
    assert "exists and is not empty" in run(capsys, *one, code=1).err


@pytest.mark.parametrize("rank", ["0", "18"])
def test_ranks_out_of_range_write_nothing(place, tmp_path, capsys, rank):
    asked = ["fold", place / "run-llama", "--output", tmp_path / "f", "--rank", rank]
    assert "give 1 to 17" in run(capsys, *asked, "--rows", "0", code=1).err
    assert not (tmp_path / "f").exists()
