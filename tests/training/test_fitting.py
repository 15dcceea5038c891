"""One training run: what is kept, when it stops, what the seeds decide, and resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from pemt.errors import ConfigError, DataError, TrainingError
from pemt.nn import TaskHead
from pemt.training import fitting, trainer
from pemt.training.fitting import fit
from tests import tiny


class Killed(BaseException):
    """Stands for a signal: nothing in the package catches it."""


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return tiny.task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def few(task):
    return tiny.splits(task)


def build(name="bert", **settings):
    """A model whose forward pass in training draws random numbers (the prompt's dropout)."""
    base = tiny.loaded(name)
    base.model.config.num_labels = 2
    return base, tiny.pemt(base.model, **{"prompt_dropout": 0.2, **settings})


def run(task, few, settings, *, folder=None, name="bert", validation=None, **model_settings):
    base, model = build(name, **model_settings)
    rows = few.validation if validation is None else validation
    made = fit(
        model, task, base.tokenizer, few.train, rows, settings, folder=folder, progress=False
    )
    return made, {k: v.clone() for k, v in model.trained_state().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def scores(monkeypatch):
    """Evaluation gives these (accuracy, loss) pairs in turn; `before` runs first each time."""
    given, seen = [], []

    def evaluate(model, *args, **kwargs):
        seen.append({k: v.clone() for k, v in model.trained_state().items()})
        accuracy, loss = given[len(seen) - 1]
        return {"accuracy": accuracy, "loss": loss}, None

    monkeypatch.setattr(fitting, "evaluate", evaluate)
    return given, seen


# -- which parameters are kept -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequence", "best"),
    [
        ([(0.1, 1.0), (0.9, 1.0), (0.5, 0.1)], 1),
        ([(0.5, 1.0), (0.5, 0.4), (0.5, 0.6)], 1),  # a tie: the lower loss
        ([(0.5, 0.4), (0.5, 0.4), (0.2, 0.1)], 0),  # a tie in both: the earlier
    ],
)
def test_the_best_evaluation_is_kept(task, few, scores, sequence, best):
    given, seen = scores
    given.extend(sequence)
    made, state = run(task, few, tiny.settings(max_steps=6, evaluations=3))
    assert [h["step"] for h in made.history] == [2, 4, 6]
    assert (made.best_step, made.best, made.steps) == (2 * best + 2, sequence[best][0], 6)
    assert same(state, seen[best])
    assert not same(state, seen[(best + 1) % 3])


def test_without_validation_the_last_step_is_kept(task, few):
    made, state = run(task, few, tiny.settings(), validation=[])
    assert (made.best_step, made.best, made.steps, made.history) == (4, None, 4, [])
    _, before = build()
    assert not same(state, before.trained_state())


@pytest.mark.parametrize(("patience", "steps"), [(1, 4), (2, 6), (None, 10)])
def test_patience(task, few, scores, patience, steps):
    scores[0].extend([(0.9, 1.0), (0.8, 1.0), (0.9, 2.0), (0.9, 1.0), (0.1, 9.0)])
    made, _ = run(task, few, tiny.settings(max_steps=10, evaluations=5, patience=patience))
    assert (made.steps, made.best_step) == (steps, 2)


def test_a_loss_that_is_not_finite_stops_the_run(task, few):
    base, model = build()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="The loss became nan at step 1"):
        fit(model, task, base.tokenizer, few.train, few.validation, tiny.settings(), progress=False)


def test_the_last_step_is_judged_where_the_run_does_not_divide_evenly(task, few):
    fitted, _ = run(task, few, tiny.settings(max_steps=5, evaluations=3))
    assert [entry["step"] for entry in fitted.history] == [2, 4, 5]


def test_a_length_the_base_has_no_room_for(task, few):
    with pytest.raises(ConfigError, match="max_source_length=500") as refused:
        run(task, few, tiny.settings(max_source_length=500))
    assert "128 positions" in str(refused.value)
    assert "give at most" in str(refused.value)
    run(task, few, tiny.settings(max_source_length=None, max_steps=1))


def test_no_rows(task, few):
    base, model = build()
    with pytest.raises(DataError, match="No training rows"):
        fit(model, task, base.tokenizer, [], few.validation, tiny.settings(), progress=False)


def test_the_bases_dropout_is_set_for_the_run_alone(task, few, monkeypatch):
    base, model = build()
    layers = [m for m in base.model.modules() if isinstance(m, torch.nn.Dropout)]
    layers[0].p = 0.05
    before, during = [m.p for m in layers], []

    def evaluate(*args, **kwargs):
        during.append({m.p for m in layers})
        return {"accuracy": 0.5}, None

    monkeypatch.setattr(fitting, "evaluate", evaluate)
    rate = tiny.settings(dropout=0.3)
    fit(model, task, base.tokenizer, few.train, few.validation, rate, progress=False)
    assert during
    assert all(found == {0.3} for found in during)
    assert [m.p for m in layers] == before


@pytest.mark.parametrize("name", ["t5", "bart", "llama", "modernbert"])
def test_dropout_reaches_the_rates_that_no_layer_holds(monkeypatch, name):
    """T5's attention, BART and Llama keep theirs as numbers: at 0 nothing is drawn any more."""
    config = tiny.CONFIGS[name]()
    for field in ("dropout_rate", "dropout", "attention_dropout", "activation_dropout"):
        if hasattr(config, field):
            setattr(config, field, 0.4)
    monkeypatch.setitem(tiny.CONFIGS, name, lambda: config)
    model = tiny.pemt(tiny.base(name)).train()

    def passes():
        inputs = (*tiny.batch(), tiny.labels_for(model.family, *tiny.batch()))
        with torch.no_grad():
            one, other = (model(*inputs).logits for _ in range(2))
        return torch.equal(one, other)

    assert not passes()
    with fitting._dropout(model, 0.0):
        assert passes()
    with fitting._dropout(model, None):
        assert not passes()
    assert not passes()
    with fitting._dropout(model, 0.0), fitting._dropout(model, 0.2):
        assert not passes()


# -- seeds -------------------------------------------------------------------------------------


@pytest.fixture
def order(monkeypatch):
    """The rows of each run, in the order they were batched."""
    batches = []

    class Recording(fitting.Collator):
        def __call__(self, rows):
            batches.append([tuple(r["input_ids"]) for r in rows])
            return super().__call__(rows)

    monkeypatch.setattr(fitting, "Collator", Recording)

    def taken():
        got = list(batches)
        batches.clear()
        return got

    return taken


def test_seeds(task, few, order):
    """The order seed decides the order of rows alone, the init seed the dropout alone."""

    def trained(init, rows):
        made = run(
            task, few, tiny.settings(init_seed=init, order_seed=rows, max_steps=3), validation=[]
        )[1]
        return made, order()

    first, rows = trained(0, 0)
    again, rows_again = trained(0, 0)
    assert same(first, again)
    assert rows == rows_again
    other_order, rows_other = trained(0, 1)
    assert rows_other != rows
    assert not same(first, other_order)
    other_init, rows_init = trained(1, 0)
    assert rows_init == rows, "the init seed changed the order of the rows"
    assert not same(first, other_init)


def test_many_rows_are_grouped_by_length(task, few, order, monkeypatch):
    """Every row once an epoch, less padding, and an order that the order seed decides."""
    monkeypatch.setattr(trainer, "GROUPED_FROM", 1)

    def batches(**seeds):
        run(task, few, tiny.settings(batch_size=4, max_steps=16, **seeds), validation=[])
        return order()

    first = batches()
    assert len(first) == 16
    epochs = [sorted(row for b in first[i : i + 8] for row in b) for i in (0, 8)]
    assert epochs[0] == epochs[1]
    assert len(epochs[0]) == 32
    assert first[:8] != first[8:], "both epochs have the same order"
    assert batches() == first
    assert batches(init_seed=1) == first
    assert batches(order_seed=1) != first

    def waste(made):
        return sum(max(map(len, b)) * len(b) - sum(map(len, b)) for b in made)

    monkeypatch.setattr(trainer, "GROUPED_FROM", 99)
    assert waste(first) < waste(batches())


# -- accumulation ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_accumulation_equals_one_large_batch(task, few, name, monkeypatch):
    """Gradients of the first step, clipping off, the Task Sparsity Loss included."""
    found = []

    def keep(self, args, state, control, model=None, **_):
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})

    monkeypatch.setattr(trainer.BestState, "on_pre_optimizer_step", keep, raising=False)
    for size, times in [(8, 1), (2, 4)]:
        one = tiny.settings(max_steps=1, batch_size=size, accumulation=times, clip=1e9)
        run(task, few, one, name=name, validation=[], prompt_dropout=0.0)
    large, summed = found
    assert any(float(g.abs().max()) > 1e-3 for g in large.values())
    for key, gradient in large.items():
        torch.testing.assert_close(summed[key], gradient, atol=2e-6, rtol=1e-4, msg=key)


@pytest.mark.parametrize("sizes", [(8, 1), (3, 3)])
def test_a_score_of_minus_100_counts_like_any_other(tmp_path, sizes):
    """The loss of the first step is the mean over all rows, whatever their scores."""
    scored = tiny.task(tmp_path, kind="regression")
    rows = tiny.splits(scored).train[: sizes[0] * sizes[1]]
    losses = []
    for truth in (-99.0, -100.0, -101.0):
        base = tiny.loaded("bert")
        model = tiny.pemt(base.model)
        model.outputs, model.head = 1, TaskHead(model.width, 1)
        torch.nn.init.zeros_(model.head.weight)
        given = [replace(row, label=truth if i else 1.0) for i, row in enumerate(rows)]
        one = tiny.settings(max_steps=1, batch_size=sizes[0], accumulation=sizes[1], evaluations=1)
        made = fit(model, scored, base.tokenizer, given, [], one, progress=False)
        losses.append(made.losses[-1]["loss"])
    share = (len(rows) - 1) / len(rows)
    for loss, truth in zip(losses, (99.0, 100.0, 101.0), strict=True):
        assert loss == pytest.approx(share * truth**2 + 1 / len(rows), rel=1e-3)


def test_what_is_not_installed_cannot_be_logged_to(task, few, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.integrations.integration_utils.is_wandb_available", lambda: False
    )
    base, model = build()
    before = tiny.snapshot(base.model)
    with pytest.raises(ConfigError, match=r"report_to='wandb'.*requires wandb to be installed"):
        fit(
            model, task, base.tokenizer, few.train, [], tiny.settings(report_to="wandb"),
            folder=tmp_path, progress=False,
        )  # fmt: skip
    assert tiny.snapshot(base.model) == before


# -- killed and resumed ------------------------------------------------------------------------


def killed_at(monkeypatch, call: int, *, where: str) -> list[int]:
    """Raise at the n-th evaluation, or between the n-th evaluation and its checkpoint."""
    calls: list[int] = []
    owner, name = (fitting, "evaluate") if where == "evaluate" else (trainer.PemtTrainer, "_save")
    real = getattr(owner, name)

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, stop)
    return calls


@pytest.mark.parametrize(
    ("name", "where", "grouped_from"),
    [("bert", "evaluate", 99), ("bert", "save", 99), ("t5", "evaluate", 99), ("bert", "save", 1)],
)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    task, few, tmp_path, monkeypatch, name, where, grouped_from
):
    """Bit for bit, the dropout's random numbers included; the kill is in the second epoch."""
    monkeypatch.setattr(trainer, "GROUPED_FROM", grouped_from)
    settings = tiny.settings(max_steps=8, evaluations=4, dropout=0.2, warmup_steps=2)
    whole, wanted = run(task, few, settings, name=name, folder=tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_at(patch, 3, where=where)
        with pytest.raises(Killed):
            run(task, few, settings, name=name, folder=tmp_path / "killed")
    assert [p.name for p in (tmp_path / "killed").glob("checkpoint-*")] != []
    resumed, state = run(task, few, settings, name=name, folder=tmp_path / "killed")
    assert same(state, wanted)
    assert resumed.history == whole.history
    assert (resumed.best, resumed.best_step, resumed.steps) == (
        whole.best, whole.best_step, whole.steps,
    )  # fmt: skip


@pytest.mark.parametrize("where", ["evaluate", "save"])
def test_patience_outlives_a_kill(task, few, tmp_path, monkeypatch, where):
    """Waiting is neither forgotten nor counted twice."""
    sequence = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]

    def scored(patch, start):
        left = iter(sequence[start:])
        patch.setattr(
            fitting, "evaluate", lambda *a, **k: ({"accuracy": next(left), "loss": 1.0}, None)
        )

    settings = tiny.settings(max_steps=12, evaluations=6, patience=3)
    with monkeypatch.context() as patch:
        scored(patch, 0)
        killed_at(patch, 3, where=where)
        with pytest.raises(Killed):
            run(task, few, settings, folder=tmp_path)
    with monkeypatch.context() as patch:
        scored(patch, 2)  # step 6 is done again
        made, _ = run(task, few, settings, folder=tmp_path)
    assert (made.best, made.best_step, made.steps) == (0.9, 2, 8)
    assert [h["accuracy"] for h in made.history] == sequence[:4]


@pytest.mark.parametrize("call", [1, 3])
def test_a_kill_inside_a_checkpoint_costs_that_checkpoint(task, few, tmp_path, monkeypatch, call):
    """The newest folder then lacks the Trainer's state, which is written last."""
    settings = tiny.settings(max_steps=8, evaluations=4, dropout=0.2)
    whole, wanted = run(task, few, settings, folder=tmp_path / "whole")
    real, calls = TrainerState.save_to_json, []

    def stop(self, path):
        calls.append(path)
        if len(calls) == call:
            if call > 1:  # a part of it is there
                Path(path).write_text('{"epoch":', encoding="utf-8")
            raise Killed
        real(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", stop)
        with pytest.raises(Killed):
            run(task, few, settings, folder=tmp_path / "killed")
    left = sorted(p.name for p in (tmp_path / "killed").glob("checkpoint-*"))
    assert f"checkpoint-{2 * call}" in left
    resumed, state = run(task, few, settings, folder=tmp_path / "killed")
    assert same(state, wanted)
    assert (resumed.history, resumed.steps) == (whole.history, whole.steps)
    assert [p.name for p in (tmp_path / "killed").glob("*check*")] == []


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("patience", [1, None])
def test_a_kill_after_the_last_step_trains_no_further(
    task, few, tmp_path, monkeypatch, patience, validated
):
    """Neither a step more than asked for, nor on where patience had stopped it."""
    sequence = [0.5, 0.4, 0.9, 0.95]
    settings = tiny.settings(max_steps=8, evaluations=4, patience=patience)

    def go(folder, start=0):
        left = iter(sequence[start:])
        with monkeypatch.context() as patch:
            patch.setattr(
                fitting, "evaluate", lambda *a, **k: ({"accuracy": next(left), "loss": 1.0}, None)
            )
            rows = None if validated else []
            return run(task, few, settings, folder=folder, validation=rows)

    whole, wanted = go(tmp_path / "whole")
    with monkeypatch.context() as patch:

        def stop(self):
            raise Killed

        patch.setattr(trainer.BestState, "restore", stop)
        with pytest.raises(Killed):
            go(tmp_path / "killed")
    resumed, state = go(tmp_path / "killed", start=len(whole.history))
    assert same(state, wanted)
    told = [(m.history, m.steps, m.best, m.best_step, m.losses) for m in (whole, resumed)]
    assert told[0] == told[1]
    assert whole.steps == (4 if patience and validated else 8)
    assert [p.name for p in (tmp_path / "killed").glob("*check*")] == []


def test_checkpoints_hold_what_trains_and_go_at_the_end(task, few, tmp_path, monkeypatch):
    real, seen = fitting.evaluate, []

    def evaluate(model, *args, **kwargs):
        for place in tmp_path.glob("checkpoint-*"):
            seen.append(sorted(p.name for p in place.iterdir()))
            kept = load_file(place / trainer.TRAINED)
            assert kept.keys() == model.trained_state().keys()
            trained = sum(v.numel() for v in kept.values())
            optimizer = torch.load(place / "optimizer.pt", weights_only=True)["state"]
            moments = sum(s["exp_avg"].numel() for s in optimizer.values())
            assert moments == trained, "the optimiser holds more than what trains"
        return real(model, *args, **kwargs)

    monkeypatch.setattr(fitting, "evaluate", evaluate)
    run(task, few, tiny.settings(max_steps=6, evaluations=3), folder=tmp_path)
    assert len(seen) == 2, "one checkpoint at a time, at the second and third evaluation"
    for names in seen:
        assert trainer.TRAINED in names
        assert not {"model.safetensors", "pytorch_model.bin", "config.json"} & set(names)
    assert [p.name for p in tmp_path.iterdir()] == ["gates.jsonl"]  # the gates at each evaluation


def test_checkpoints_off_writes_none(task, few, tmp_path, monkeypatch):
    calls = killed_at(monkeypatch, 0, where="save")
    run(task, few, tiny.settings(checkpoints=False), folder=tmp_path)
    assert calls == []
    assert [p.name for p in tmp_path.iterdir()] == ["gates.jsonl"]  # the gates at each evaluation


@pytest.mark.parametrize(
    ("changes", "model_settings", "said"),
    [
        ({"learning_rate": 1e-3}, {}, "settings"),
        ({}, {"tau": 2.0}, "model"),
        ({}, {"reduction": 8}, "trained and model"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    task, few, tmp_path, monkeypatch, changes, model_settings, said
):
    with monkeypatch.context() as patch:
        killed_at(patch, 2, where="evaluate")
        with pytest.raises(Killed):
            run(task, few, tiny.settings(), folder=tmp_path)
    before = json.loads((tmp_path / fitting.IDENTITY).read_text())
    with pytest.raises(TrainingError, match=f"a run with other {said}\n"):
        run(task, few, tiny.settings(**changes), folder=tmp_path, **model_settings)
    assert json.loads((tmp_path / fitting.IDENTITY).read_text()) == before


@pytest.mark.parametrize(
    "change", [{"metrics": ("macro_f1",)}, {"labels": ("good", "bad")}], ids=lambda c: next(iter(c))
)
def test_an_edited_task_is_another_run(task, few, tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch:
        killed_at(patch, 2, where="evaluate")
        with pytest.raises(Killed):
            run(task, few, tiny.settings(), folder=tmp_path)
    with pytest.raises(TrainingError, match="a run with other task\n"):
        run(replace(task, **change), few, tiny.settings(), folder=tmp_path)


def test_other_rows_are_another_run(task, few, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at(patch, 2, where="evaluate")
        with pytest.raises(Killed):
            run(task, few, tiny.settings(), folder=tmp_path)
    with pytest.raises(TrainingError, match="a run with other validation\n"):
        run(task, few, tiny.settings(), folder=tmp_path, validation=few.validation[:-1])
