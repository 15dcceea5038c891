"""Gates noted while a model trains: right, free of side effects, whole after a kill."""

from __future__ import annotations

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pemt.analysis.history import HISTORY, read_history
from pemt.analysis.measuring import measure_gates
from pemt.errors import DataError
from pemt.training import trainer
from pemt.training.fitting import fit
from pemt.training.watching import MOST_LOGGED, GateWatch, logged
from tests import tiny
from tests.training.test_fitting import Killed, build, killed_at, same


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return tiny.task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def few(task):
    return tiny.splits(task)


def run(task, few, settings, *, folder=None, name="bert", **model_settings):
    base, model = build(name, **model_settings)
    made = fit(
        model, task, base.tokenizer, few.train, few.validation, settings, folder=folder,
        progress=False,
    )  # fmt: skip
    return base, model, made


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_the_last_line_is_what_the_model_says_of_the_validation_rows(task, few, tmp_path, name):
    base, model, made = run(task, few, tiny.settings(), folder=tmp_path, name=name)
    history = read_history(tmp_path / HISTORY, kept=made.best_step)
    assert [s.step for s in history.steps] == [h["step"] for h in made.history] == [2, 4]
    kept = next(s for s in history.steps if s.step == made.best_step)
    report = measure_gates(model, task, base.tokenizer, few.validation, tiny.settings())
    assert kept.rows == len(few.validation)
    assert tuple(kept.stacks) == report.stack_names
    for stack, own in kept.stacks.items():
        assert list(own.gates.values()) == pytest.approx(report.of_stack(stack).tolist(), abs=1e-4)
        layers = [i for i, s in enumerate(report.stacks) if s == stack]
        entropies = torch.tensor(report.example_effective[layers]).log().mean()
        assert own.example_effective == pytest.approx(float(entropies.exp()), abs=1e-4)


def test_watching_changes_no_training(task, few, tmp_path):
    """With and without a folder: the same parameters, bit for bit, and the same evaluations."""
    settings = tiny.settings(max_steps=6, evaluations=3, dropout=0.2)
    _, watched, one = run(task, few, settings, folder=tmp_path)
    _, alone, other = run(task, few, settings)
    assert (tmp_path / HISTORY).is_file()
    assert same(watched.trained_state(), alone.trained_state())
    assert one.history == other.history


def test_without_a_folder_or_gates_nothing_is_watched(task, few, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pemt.training.watching.GateWatch.scored", lambda *_: pytest.fail("watched")
    )
    run(task, few, tiny.settings())
    run(task, few, tiny.settings(), folder=tmp_path, mixture=False)
    assert not (tmp_path / HISTORY).exists()


@pytest.mark.parametrize("where", ["evaluate", "save"])
def test_a_resumed_run_has_the_lines_of_an_uninterrupted_one(
    task, few, tmp_path, monkeypatch, where
):
    settings = tiny.settings(max_steps=8, evaluations=4, dropout=0.2)
    run(task, few, settings, folder=tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_at(patch, 3, where=where)
        with pytest.raises(Killed):
            run(task, few, settings, folder=tmp_path / "killed")
    before = (tmp_path / "killed" / HISTORY).read_text()
    run(task, few, settings, folder=tmp_path / "killed")
    after = (tmp_path / "killed" / HISTORY).read_text()
    assert after == (tmp_path / "whole" / HISTORY).read_text()
    assert len(before.splitlines()) < len(after.splitlines()) == 4


def test_lines_of_steps_that_are_done_again_are_replaced(tmp_path):
    (tmp_path / HISTORY).write_text("\n".join(line(step, experts="abc") for step in (2, 4, 6)))
    _, model = build()
    watch = GateWatch(model, tmp_path, resumed=True)
    found = watch.scored(lambda: {"seen": float(model(*tiny.batch()).logits.isfinite().all())}, 4)
    assert found["seen"] == 1
    assert "gates_encoder/a" in found
    assert [s.step for s in read_history(tmp_path / HISTORY).steps] == [2, 4]
    assert watch.scored(dict, 5) == {}  # no pass, no line


def test_a_fresh_run_begins_its_file_anew(task, few, tmp_path):
    (tmp_path / HISTORY).write_text("an earlier run's\n")
    run(task, few, tiny.settings(), folder=tmp_path)
    assert len(read_history(tmp_path / HISTORY).steps) == 2


def test_tensorboard_and_the_log_show_them(task, few, tmp_path, monkeypatch):
    seen = []
    real = trainer.PemtTrainer.log
    monkeypatch.setattr(
        trainer.PemtTrainer, "log", lambda self, logs, *a: (seen.append(dict(logs)),
                                                            real(self, logs, *a))
    )  # fmt: skip
    run(task, few, tiny.settings(report_to="tensorboard"), folder=tmp_path)
    assert any("eval_gates_encoder/a" in logs for logs in seen)
    folder = next(tmp_path.rglob("events.out.tfevents.*")).parent
    events = EventAccumulator(str(folder)).Reload()
    names = events.Tags()["scalars"]
    assert {"eval/gates_encoder/a", "eval/effective_experts/encoder"} <= set(names)
    lines = read_history(tmp_path / HISTORY).line("encoder", "a")
    assert [e.value for e in events.Scalars("eval/gates_encoder/a")] == pytest.approx(
        lines, abs=1e-5
    )


def test_many_experts_do_not_flood_the_log(task, few, tmp_path):
    from pemt.analysis.history import StackGates

    names = [f"e{i}" for i in range(MOST_LOGGED + 1)]
    own = StackGates(gates=dict.fromkeys(names, 0.1), effective=2.0, example_effective=1.5)
    assert logged({"encoder": own}) == {
        "effective_experts/encoder": 2.0, "effective_experts/encoder_of_one_row": 1.5,
    }  # fmt: skip


# -- the file --------------------------------------------------------------------------------------


def line(step, gate=0.5, experts=("a", "b")):
    own = {"gates": dict.fromkeys(experts, gate), "effective": 2.0, "example_effective": 2.0}
    return json.dumps({"step": step, "rows": 4, "stacks": {"encoder": own}})


def test_lines_without_numbers_are_left_out_and_counted(tmp_path):
    path = tmp_path / HISTORY
    path.write_text("\n".join([line(2), line(4, None), line(6, float("nan")), line(8, 0.25)]))
    history = read_history(path)
    assert [s.step for s in history.steps] == [2, 8]
    assert history.notes == ("The gates were no numbers at 2 evaluations (step 4, 6).",)
    assert history.line("encoder", "b") == [0.5, 0.25]
    assert history.to_dict()["steps"][1]["stacks"]["encoder"]["gates"] == {"a": 0.25, "b": 0.25}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", ":1 is no evaluation"), ('{"step": 1}', ":1 is no evaluation"),
        (line(2) + "\n" + line(4, experts=("a", "c")), ":2 has other experts"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path, text, words):
    (tmp_path / HISTORY).write_text(text)
    with pytest.raises(DataError, match=words):
        read_history(tmp_path / HISTORY)
