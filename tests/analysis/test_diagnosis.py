"""Each sign of failure is found where it is, and not where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pemt.analysis.diagnosis import diagnose
from pemt.analysis.findings import Facts
from pemt.analysis.heldout import HeldOut, best_single, of_run, standard_error
from pemt.analysis.mixture import MixtureMeasures
from pemt.guide.evidence import Candidate, Evidence
from pemt.tasks.reporting import ConstantAnswer, report
from pemt.training.fitting import Fit
from pemt.training.selecting import Choice, Selection
from tests import tiny


def classified(task, truth, answers):
    texts = ["?" if a is None else task.labels[a] for a in answers]
    return report(task, answers, truth, texts)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return tiny.task(tmp_path_factory.mktemp("task"))


def measures(**changed):
    k = 3
    given = {
        "rows": 32, "experts": ("a", "b", "c"), "gates": torch.tensor([[0.6, 0.3, 0.1]] * 2),
        "moved": torch.tensor([0.3, 0.3]), "mixture": torch.tensor([2.0, 2.0]),
        "adapter": torch.tensor([1.0, 1.0]),
        "cosines": torch.full((k, k), 0.1).fill_diagonal_(1.0),
    }  # fmt: skip
    return MixtureMeasures(**{**given, **changed})


def facts(task, **changed):
    truth = [0, 1] * 20
    given = {
        "method": "pemt", "kind": "classification", "shots": 16, "learning_rate": 1e-3,
        "report": classified(task, truth, truth), "gated": True, "pemt": True,
        "constant": ConstantAnswer(label="bad", metrics={"accuracy": 0.5}),
        "losses": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], "measures": measures(),
        "prompt_moved": 0.1, "own_sources": [],
        "mine": HeldOut(name="pemt", metric="accuracy", value=0.8, error=0.05, how="x"),
        "rival": HeldOut(name="a", metric="accuracy", value=0.7, error=0.05, how="y"),
    }  # fmt: skip
    return Facts(**{**given, **changed})


def found(given) -> dict:
    return {f.name: f for f in diagnose(given).findings}


def test_a_sound_run_has_no_problem(task):
    diagnosis = diagnose(facts(task))
    assert diagnosis.problems == ()
    assert {f.severity for f in diagnosis.findings} == {"fine"}
    assert len(diagnosis.findings) == 10
    assert len(diagnosis.lines()) == 1


def rival(value):
    return HeldOut(name="a", metric="accuracy", value=value, error=0.05, how="y")


@pytest.mark.parametrize(
    ("name", "severity", "changed"),
    [
        ("gates-uniform", "warning", {"measures": measures(moved=torch.tensor([0.04, 0.05]))}),
        ("gates-uniform", "fine", {"measures": measures(moved=torch.tensor([0.05, 0.06]))}),
        ("gates-on-one", "note", {"measures": measures(gates=torch.tensor([[0.92, 0.08, 0.0]]))}),
        ("adapter-dominates", "warning", {"measures": measures(adapter=torch.tensor([2.5, 2.1]))}),
        ("adapter-dominates", "fine", {"measures": measures(adapter=torch.tensor([2.5, 1.0]))}),
        ("behind-single-expert", "warning", {"rival": rival(0.95)}),
        ("behind-single-expert", "note", {"rival": rival(0.90)}),
        ("behind-single-expert", "fine", {"rival": rival(0.85)}),
        ("behind-single-expert", "not checked", {"rival": None}),
        ("behind-single-expert", "not checked", {"mine": None}),
        ("prompt-unmoved", "warning", {"prompt_moved": 0.009}),
        ("prompt-unmoved", "warning", {"prompt_moved": math.nan}),
        ("experts-collinear", "warning", {"measures": measures(cosines=torch.full((3, 3), 0.6))}),
        ("training-loss", "warning", {"losses": [{"step": 1, "loss": 1.0},
                                                 {"step": 2, "loss": 0.96}]}),
        ("training-loss", "warning", {"losses": [{"step": 1, "loss": math.nan}]}),
        ("training-loss", "not checked", {"losses": [{"step": 1, "loss": 1.0}]}),
        ("beyond-constant", "warning",
         {"constant": ConstantAnswer(label="bad", metrics={"accuracy": 1.0})}),
        ("own-source", "warning", {"own_sources": ["a"]}),
        ("own-source", "note", {"own_sources": ["a"], "shots": None}),
        ("own-source", "fine", {"own_sources": []}),
        ("beyond-constant", "note",
         {"constant": ConstantAnswer(label="bad", metrics={"accuracy": 0.99})}),
    ],
)  # fmt: skip
def test_each_sign(task, name, severity, changed):
    finding = found(facts(task, **changed))[name]
    assert finding.severity == severity
    assert finding.evidence
    if severity in ("note", "warning"):
        assert finding.advice.strip()
        assert any(finding.title in line for line in diagnose(facts(task, **changed)).lines())


def test_an_expert_of_the_same_task_is_named(task):
    assert "'a', 'b'" in found(facts(task, own_sources=["a", "b"]))["own-source"].evidence
    assert "own-source" not in found(facts(task, own_sources=None))


def test_one_pair_that_is_the_same_is_named(task):
    cosines = torch.full((3, 3), 0.1)
    cosines[0, 2] = cosines[2, 0] = 0.95
    finding = found(facts(task, measures=measures(cosines=cosines)))["experts-collinear"]
    assert finding.severity == "note"
    assert "'a' and 'c'" in finding.evidence
    assert finding.advice.endswith("--experts a,b.")


@pytest.mark.parametrize(("gated", "sparsity"), [(True, 0.1), (True, 0.0), (False, 0.1)])
def test_one_answer_to_everything_may_be_the_loss(task, gated, sparsity):
    constant = ConstantAnswer(label="bad", metrics={"accuracy": 1.0})
    finding = found(facts(task, constant=constant, gated=gated, sparsity=sparsity))
    advice = finding["beyond-constant"].advice
    assert ("--method guided-no-tsl" in advice) == (gated and sparsity > 0)
    assert "--method probe" in advice


@pytest.mark.parametrize("sparsity", [0.0, 0.1])
def test_the_loss_that_hands_gates_to_one_expert_is_named(task, sparsity):
    chosen = measures(gates=torch.tensor([[0.98, 0.01, 0.01]]))
    finding = found(facts(task, measures=chosen, sparsity=sparsity))["gates-on-one"]
    assert "--experts b,c)" in finding.advice
    assert ("--pemt.sparsity_weight 0" in finding.advice) == (sparsity > 0)


def test_gates_on_no_expert(task):
    chosen = measures(experts=("a", "b", "none"), gates=torch.tensor([[0.01, 0.01, 0.98]]))
    finding = found(facts(task, measures=chosen))["gates-on-one"]
    assert finding.severity == "note"
    assert "--method adapter" in finding.advice


def test_labels_that_are_never_answered(task):
    truth = [0] * 30 + [1] * 11
    many = found(facts(task, report=classified(task, truth, [0] * 41)))["labels-predicted"]
    assert many.severity == "warning"
    assert "'good' (11 test rows)" in many.evidence
    few = found(facts(task, report=classified(task, truth[:-1], [0] * 40)))["labels-predicted"]
    assert few.severity == "note"  # ten rows may all be missed by a model that knows the label


def test_a_label_without_rows_is_not_missed(task):
    only = classified(task, [0] * 20, [0] * 20)
    assert found(facts(task, report=only))["labels-predicted"].severity == "fine"


def test_invalid_answers(task):
    truth = [0, 1] * 10
    for wrong, severity in ((1, "note"), (3, "warning")):
        answers = [None] * wrong + truth[wrong:]
        finding = found(facts(task, report=classified(task, truth, answers)))["invalid-answers"]
        assert finding.severity == severity
        assert "--answers rank" in finding.advice


def test_baselines_get_what_applies(task):
    plain = facts(
        task, method="lora", gated=False, pemt=False, measures=None, prompt_moved=None, mine=None,
        rival=None, own_sources=None,
    )  # fmt: skip
    assert set(found(plain)) == {"training-loss", "beyond-constant", "labels-predicted"}
    probe = facts(
        task, method="probe", trains=False, losses=(), gated=False, pemt=False, measures=None,
        prompt_moved=None, own_sources=None,
    )  # fmt: skip
    assert set(found(probe)) == {"beyond-constant", "labels-predicted"}


def test_uniform_gates_are_no_finding_where_they_are_meant(task):
    uniform = facts(task, method="uniform", gated=False, measures=measures(moved=torch.zeros(2)))
    assert "gates-uniform" not in found(uniform)
    single = measures(
        experts=("a",), gates=torch.ones(2, 1), moved=torch.zeros(2), cosines=torch.ones(1, 1)
    )
    names = set(found(facts(task, method="single", measures=single)))
    assert not names & {"gates-uniform", "gates-on-one", "behind-single-expert"}
    assert "experts-collinear" not in names


def test_values_are_plain(task):
    import json

    written = json.loads(json.dumps(diagnose(facts(task)).to_list()))
    assert {"name", "title", "severity", "evidence", "numbers", "advice"} == set(written[0])


# -- held-out scores -------------------------------------------------------------------------------


def evidence(task, right: dict[str, float], rows: int = 20) -> Evidence:
    """Experts whose answers are right on a share of the rows."""
    truth = np.array([0, 1] * (rows // 2), dtype=float)
    candidates = []
    for name, share in right.items():
        said = np.full((rows, 2), math.log(0.2))
        for i, label in enumerate(truth.astype(int)):
            said[i, label if i < share * rows else 1 - label] = math.log(0.8)
        losses = -said[np.arange(rows), truth.astype(int)]
        candidates.append(Candidate(expert=name, view="features", losses=losses, said=said))
    return Evidence(
        experts=tuple(n for n in right if n != "none"), candidates=tuple(candidates), rows=rows,
        kind="classification", truth=truth,
    )  # fmt: skip


def test_the_best_single_expert_is_the_one_that_is_right_most(task):
    best = best_single(task, evidence(task, {"none": 1.0, "a": 0.6, "b": 0.9}), None)
    assert (best.name, best.value) == ("b", pytest.approx(0.9))
    assert best.error == pytest.approx(standard_error("accuracy", 0.9, 20))
    assert best_single(task, None, None) is None


def test_cross_validation_goes_before_evidence(task):
    choices = tuple(
        Choice(method=m, learning_rate=None, share=1.0, score=s, error=0.1, loss=0.1, folds=4)
        for m, s in (("pemt", 0.9), ("single", 0.8))
    )
    chosen = Selection(choices=choices, metric="accuracy")
    assert best_single(task, evidence(task, {"a": 1.0}), chosen).value == 0.8
    assert of_run(task, "pemt", None, 0, chosen).value == 0.9


def test_a_run_without_validation_has_no_held_out_score(task):
    assert of_run(task, "pemt", None, 8, None) is None
    assert of_run(task, "pemt", Fit(1, None, 1, 0.0, []), 0, None) is None
    mine = of_run(task, "pemt", Fit(1, 1.0, 1, 0.0, []), 8, None)
    assert mine.value == 1.0
    assert mine.error > 0.05  # all right on eight rows is not certain


def test_standard_errors():
    assert standard_error("accuracy", 0.5, 98) == pytest.approx(0.05)
    assert standard_error("accuracy", 0.5, 400) < standard_error("accuracy", 0.5, 100)
    assert standard_error("matthews", 0.0, 101) == pytest.approx(0.1 + 1 / 101)
