"""Two processes give what one gives: parameters, decisions, answers, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pemt.analysis.history import HISTORY, read_history
from tests import tiny
from tests.training import worker

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)


def launch(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess:
    paths = [str(ROOT / "src"), str(ROOT)]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
         str(processes), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths),
             "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder where two processes have run every case of the worker."""
    folder = tmp_path_factory.mktemp("processes")
    tiny.task(folder)
    done = launch("-m", "tests.training.worker", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def task(place):
    from pemt.tasks import Task

    return Task.from_file(place / "tiny.yaml")


def close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4, msg=name)


def found(place, process=0):
    return json.loads((place / f"process-{process}" / "found.json").read_text())


@pytest.mark.parametrize("name", worker.CASES)
def test_two_processes_give_what_one_gives(place, task, name):
    made, state, scores, texts = worker.run(name, task)
    close(load_file(place / "process-0" / f"{name}.safetensors"), state)
    theirs = found(place)[name]
    assert (theirs["best"], theirs["step"], theirs["texts"]) == (made.best, made.best_step, texts)
    assert theirs["scores"] == pytest.approx(scores, abs=1e-4)
    assert [h["loss"] for h in theirs["history"]] == pytest.approx(
        [h["loss"] for h in made.history], abs=1e-4
    )
    start = worker.build(*[worker.CASES[name][i] for i in (0, 3)])[1].trained_state()
    moved = max(float((state[k] - start[k]).abs().max()) for k in state)
    assert moved > 1e-3  # the run did something that could differ


def test_both_processes_end_with_the_same_numbers(place):
    files = sorted(p.name for p in (place / "process-0").glob("*.safetensors"))
    assert len(files) == len(worker.CASES) + 5
    for name in files:
        mine, theirs = (load_file(place / f"process-{i}" / name) for i in (0, 1))
        assert all(torch.equal(mine[k], theirs[k]) for k in mine), name
    assert found(place, 0) == found(place, 1)


def test_a_killed_run_goes_on(place, task):
    close(load_file(place / "process-0" / "resumed.safetensors"), worker.run("bert", task)[1])
    assert [f.name for f in (place / "resumed").iterdir()] == [HISTORY]  # nothing else is left


WRAPPED = [*(f"wrapped-{name}" for name in tiny.ONE_OF_EACH_FAMILY), "sharded-bert"]


@pytest.mark.parametrize("case", WRAPPED)
def test_the_wrappers_of_torch_average_to_the_same(place, case):
    model = worker.build(case.partition("-")[2], {})[1].train()
    ids, mask = tiny.batch(4)
    model(ids, mask, tiny.labels_for(model.family, ids, mask)).loss.backward()
    close(load_file(place / "process-0" / f"{case}.safetensors"), tiny.gradients(model))


def test_an_error_of_the_first_process_is_that_of_all(place):
    for process in (0, 1):
        unknown, fine, iterable = found(place, process)["refusals"]
        assert unknown.startswith("UnknownNameError: Unknown task 'rtee'. Did you mean: rte?")
        assert fine == "1.0"
        assert "decide their own order" in iterable


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A base, a task and an expert made by two processes."""
    folder = tmp_path_factory.mktemp("commands")
    base = tiny.loaded("bert")
    base.model.save_pretrained(folder / "bert")
    base.tokenizer.save_pretrained(folder / "bert")
    tiny.task(folder)
    return folder


def common(folder):
    return [
        "--base", folder / "bert", "--precision", "float32", "--json", "--settings.epochs", "2",
        "--settings.max_source_length", "24", "--settings.evaluations", "2",
        "--settings.report_to", "none",
    ]  # fmt: skip


def source(folder, library):
    return [
        "train-source", folder / "tiny.yaml", folder / library, "--source.rank", "4", "--output",
        folder / f"source-{library}", *common(folder),
    ]  # fmt: skip


def adapt(folder, name):
    return [
        "adapt", folder / "tiny.yaml", folder / "one", "--shots", "4", "--method", "ensemble",
        "--pemt.prompt_dropout", "0", "--output", folder / name, *common(folder),
    ]  # fmt: skip


def test_the_commands_under_a_launcher(commands, capsys):
    from pemt.cli import main

    printed = {}
    assert main([str(a) for a in source(commands, "one")]) == 0
    for name, arguments in (("two", source(commands, "two")), ("run-2", adapt(commands, "run-2"))):
        done = launch("-m", "pemt", *arguments)
        assert done.returncode == 0, done.stderr[-4000:]
        (printed[name],) = done.stdout.strip().splitlines()  # one process prints
    alone = {}
    alone["two"] = json.loads(capsys.readouterr().out)
    assert main([str(a) for a in adapt(commands, "run-1")]) == 0
    alone["run-2"] = json.loads(capsys.readouterr().out)
    for name, said in printed.items():
        theirs = json.loads(said)
        assert theirs["metrics"] == pytest.approx(alone[name]["metrics"], abs=1e-4)
    close(*(load_file(commands / n / "model" / "model.safetensors") for n in ("run-1", "run-2")))
    files = [sorted(str(p.relative_to(commands / n)) for p in (commands / n).rglob("*"))
             for n in ("run-1", "run-2")]  # fmt: skip
    assert files[0] == files[1]
    noted = [read_history(commands / n / HISTORY) for n in ("run-1", "run-2")]
    for one, two in zip(*(h.steps for h in noted), strict=True):
        assert (one.step, one.rows) == (two.step, two.rows)
        for stack, own in one.stacks.items():
            assert two.stacks[stack].gates == pytest.approx(own.gates, abs=1e-4)
            assert two.stacks[stack].example_effective == pytest.approx(
                own.example_effective, abs=1e-3
            )


def test_other_commands_refuse_a_launcher(monkeypatch, capsys):
    from pemt.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["experts", "list", "x"]) == 1
    assert "adapt and train-source share their work" in capsys.readouterr().err
