"""From source tasks to an adapted model on disk, on one tiny base of each family."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pemt.errors import ConfigError, ExpertError, UnknownNameError
from pemt.experts import ExpertLibrary
from pemt.model import PemtConfig, PemtModel, SourceConfig
from pemt.training import adapt, sourcing, train_source
from tests import tiny

CONFIG = PemtConfig(reduction=4, prompt_scale=0.1)


@pytest.fixture(scope="module", params=tiny.ONE_OF_EACH_FAMILY)
def run(request, tmp_path_factory):
    """Two experts and an adapted model, all on disk."""
    place = tmp_path_factory.mktemp(request.param)
    base = tiny.loaded(request.param)
    before = tiny.snapshot(base.model)
    library = ExpertLibrary(place / "library")
    sources = {
        name: train_source(
            base, tiny.task(place, name, seed=seed), library, settings=tiny.settings(),
            config=SourceConfig(rank=4, alpha=8), folder=str(place / f"source-{name}"),
            progress=False,
        )
        for seed, name in enumerate(["one", "two"], 1)
    }  # fmt: skip
    after_sources = tiny.snapshot(base.model)
    task = tiny.task(place, "target", seed=3)
    result = adapt(
        base, task, library, method="pemt", shots=4, config=CONFIG, settings=tiny.settings(),
        folder=str(place / "run"), progress=False,
    )  # fmt: skip
    texts = [e.text for e in tiny.splits(task).test]
    encoded = base.tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    labels = (ids[:, :2],) if base.backbone.family == "encoder-decoder" else ()
    inputs = (ids, mask, *labels)
    with torch.no_grad():
        logits = result.model(*inputs).logits
    result.model.detach()
    return SimpleNamespace(
        name=request.param, place=place, base=base, before=before, after_sources=after_sources,
        library=library, sources=sources, task=task, result=result, inputs=inputs, logits=logits,
    )  # fmt: skip


def test_both_stages_give_the_base_back(run):
    assert run.after_sources == run.before
    assert tiny.snapshot(run.base.model) == run.before


def test_experts_are_in_the_library_whole(run):
    assert run.library.names() == ["one", "two"]
    for name, made in run.sources.items():
        expert = run.library.load(name)
        assert made.name == expert.name == name
        assert set(expert.head) == ({"weight", "bias"} if run.name == "bert" else set())
        assert len(expert.prompt) == 6  # five words of the description and the end token
        assert max(float(layer.B.abs().max()) for layer in expert.layers) > 0, "B never moved"
        assert expert.info.base == f"tiny-{run.name}"
        assert expert.info.label_words == ("bad", "good")
        assert expert.info.settings["rows"] == 32
        measured = dict(expert.info.metrics["test"])
        sure = measured.pop("interval")
        assert measured == made.metrics
        assert sure["low"] <= made.metrics[sure["metric"]] <= sure["high"]
        assert made.metrics["n"] == 16


def test_a_name_that_is_taken_is_refused_before_training(run):
    with pytest.raises(ConfigError, match="already has an expert 'one'"):
        train_source(run.base, tiny.task(run.place, "one"), run.library, progress=False)


@pytest.mark.parametrize(("said", "constant"), [(["bad"], "bad"), (["bad", "good"], None)])
def test_an_expert_that_always_says_the_same_is_told(tmp_path, monkeypatch, said, constant):
    real = sourcing.evaluate

    def evaluate(model, task, tokenizer, test, settings, **rest):
        metrics, made = real(model, task, tokenizer, test, settings, **rest)
        texts = [said[i % len(said)] for i in range(len(test))]
        return metrics, replace(made, texts=texts)

    monkeypatch.setattr(sourcing, "evaluate", evaluate)
    made = train_source(
        tiny.loaded("bert"), tiny.task(tmp_path, "one"), tmp_path / "library",
        config=SourceConfig(rank=4, alpha=8), settings=tiny.settings(max_steps=1), progress=False,
    )  # fmt: skip
    assert made.constant == constant


def test_the_saved_model_answers_as_the_trained_one(run):
    model = PemtModel.from_pretrained(run.place / "run" / "model", base=run.base)
    try:
        assert model.expert_names == run.result.experts == ["one", "two"]
        assert not model.training
        with torch.no_grad():
            assert torch.equal(model(*run.inputs).logits, run.logits)
    finally:
        model.detach()
    assert tiny.snapshot(run.base.model) == run.before


def test_the_record_says_what_ran(run):
    record = json.loads((run.place / "run" / "run.json").read_text())
    assert {"python", "torch", "transformers", "peft", "pemt"} <= record["versions"].keys()
    assert "git" in record
    assert record["experts"] == ["one", "two"]
    assert record["config"] == CONFIG.to_dict()
    assert {record["settings"]["init_seed"], record["settings"]["order_seed"]} == {0}
    assert record["rows"]["data_seed"] == 0
    assert record["settings"]["learning_rate"] == 1e-2
    source = json.loads((run.place / "source-one" / "run.json").read_text())
    assert source["stage"] == "source"
    assert source["git"] == record["git"]
    assert source["versions"] == record["versions"]


def test_results_and_predictions_agree_with_the_returned_ones(run):
    results = json.loads((run.place / "run" / "results.json").read_text())
    assert results["metrics"] == pytest.approx(run.result.metrics)
    assert results["parameters"] == list(run.result.parameters)
    lines = json.loads((run.place / "run" / "predictions.json").read_text())
    test = tiny.splits(run.task).test
    assert [x["id"] for x in lines] == [e.id for e in test]
    right = sum(x["answer"] == x["target"] for x in lines) / len(lines)
    assert right == pytest.approx(results["metrics"]["accuracy"])


def test_gates_are_drawn_and_sum_to_one(run):
    gates = run.result.gates
    assert gates.shape == (len(run.result.model.sites), 2)
    torch.testing.assert_close(gates.sum(1), torch.ones(len(gates)))
    picture = (run.place / "run" / "gates.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_no_checkpoint_is_left(run):
    for folder in ("run", "source-one"):
        assert not list((run.place / folder).rglob("checkpoint-*"))


@pytest.mark.parametrize(
    ("seed", "words", "said"),
    [(1, (), "base fingerprint"), (0, ("surplus",), "tokenizer fingerprint")],
    ids=["base", "tokenizer"],
)
def test_an_expert_of_another_base_or_tokenizer_is_refused(run, seed, words, said):
    other = tiny.loaded(run.name, seed, *words)
    before = tiny.snapshot(other.model)
    with pytest.raises(ExpertError, match=said):
        adapt(other, run.task, run.library, method="pemt", shots=4, progress=False)
    assert tiny.snapshot(other.model) == before


@pytest.mark.parametrize("loaded", [False, True], ids=["library", "experts"])
def test_names_choose_the_gate_columns_and_their_order(run, loaded):
    experts = run.library.load_many(["one", "two"]) if loaded else run.library
    result = adapt(
        run.base, run.task, experts, method="pemt", names=["two", "one"], shots=4, config=CONFIG,
        settings=tiny.settings(max_steps=1), progress=False,
    )  # fmt: skip
    result.model.detach()
    assert result.experts == ["two", "one"]
    with pytest.raises(UnknownNameError, match="Did you mean: one"):
        adapt(run.base, run.task, experts, method="pemt", names=["onee"], shots=4, progress=False)


@pytest.mark.parametrize("scores", [(0.2, 0.9), (0.9, 0.2), (0.5, 0.5)])
def test_the_learning_rate_is_chosen_on_validation(run, monkeypatch, scores):
    """The better score wins, then the lower loss (here the second's); its parameters are kept."""
    from pemt.training import adapting
    from pemt.training.fitting import Fit

    rates, tried = [1e-3, 1e-2], []

    def fit(model, *args, **kwargs):
        tried.append(args[4].learning_rate)
        i = len(tried) - 1
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.fill_(float(len(tried)))
        return Fit(2, scores[i], 4, 0.0, [{"step": 2, "accuracy": scores[i], "loss": 1.0 - i / 2}])

    monkeypatch.setattr(adapting, "fit", fit)
    result = adapt(
        run.base, run.task, run.library, shots=4, config=CONFIG, learning_rates=rates,
        method="pemt", settings=tiny.settings(), progress=False,
    )  # fmt: skip
    chosen = 0 if scores[0] > scores[1] else 1
    state = result.model.trained_state()
    result.model.detach()
    assert tried == rates
    assert result.settings.learning_rate == rates[chosen]
    assert result.validation == scores[chosen]
    assert all((p == chosen + 1).all() for p in state.values())


@pytest.mark.parametrize("validation", ["shots", "cv"])
def test_every_learning_rate_is_looked_at_before_the_first_trains(run, monkeypatch, validation):
    from pemt.training import adapting, selecting

    def trained(*args, **kwargs):
        raise AssertionError("it trains")

    monkeypatch.setattr(adapting, "fit", trained)
    monkeypatch.setattr(selecting, "run", trained)
    with pytest.raises(ConfigError, match="learning_rate=-1"):
        adapt(
            run.base, run.task, run.library, shots=4, config=CONFIG, learning_rates=[1e-3, -1.0],
            method="adapter", settings=tiny.settings(), validation=validation, progress=False,
        )  # fmt: skip


@pytest.mark.parametrize("rates", [[1e-2], [1e-2, 1e-3]])
def test_a_run_that_fails_gives_the_base_back(run, rates, monkeypatch):
    from pemt.training import adapting

    calls = []

    def fit(*args, **kwargs):
        calls.append(1)
        if len(calls) == len(rates):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    real = adapting.fit
    monkeypatch.setattr(adapting, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        adapt(
            run.base, run.task, run.library, shots=4, config=CONFIG, learning_rates=rates,
            method="pemt", settings=tiny.settings(max_steps=1), progress=False,
        )  # fmt: skip
    assert tiny.snapshot(run.base.model) == run.before


def test_a_method_that_cannot_be_built_gives_the_base_back(run):
    for name in ("pemt", "adapter", "single", "uniform", "mixda"):  # those with such an adapter
        with pytest.raises(ConfigError, match="reduction 1000"):
            adapt(
                run.base, run.task, run.library, shots=4, method=name, progress=False,
                config=PemtConfig(reduction=1000), settings=tiny.settings(),
            )  # fmt: skip
        assert tiny.snapshot(run.base.model) == run.before


def test_a_diagnosis_changes_nothing(tmp_path):
    made = {}
    for diagnose in (True, False):
        base = tiny.loaded("bert")
        experts = [tiny.expert(base.model, name, seed=i) for i, name in enumerate("ab", 1)]
        result = adapt(
            base, tiny.task(tmp_path), experts, shots=4, settings=tiny.settings(), config=CONFIG,
            method="pemt", diagnose=diagnose, progress=False,
        )  # fmt: skip
        assert (result.diagnosis is not None) == diagnose
        state = {k: v.clone() for k, v in result.model.trained_state().items()}
        made[diagnose] = (state, result.metrics, torch.random.get_rng_state())
        result.model.detach()
    (a, scores_a, drawn_a), (b, scores_b, drawn_b) = made[True], made[False]
    assert scores_a == scores_b
    assert torch.equal(drawn_a, drawn_b)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", ["guided", "pemt", "uniform"])
def test_evidence_makes_the_single_expert_a_rival(tmp_path, method):
    base = tiny.loaded("bert")
    experts = [tiny.expert(base.model, name, seed=i) for i, name in enumerate("ab", 1)]
    result = adapt(
        base, tiny.task(tmp_path), experts, shots=8, settings=tiny.settings(), config=CONFIG,
        method=method, progress=False,
    )  # fmt: skip
    result.model.detach()
    found = next(f for f in result.diagnosis.findings if f.name == "behind-single-expert")
    assert found.severity != "not checked"
    assert found.numbers["value"] == pytest.approx(result.validation)
    assert "16 validation rows" in found.evidence


def test_more_experts_than_a_diagnosis_judges_are_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("pemt.training.diagnosing.MOST_JUDGED", 1)
    base = tiny.loaded("bert")
    experts = [tiny.expert(base.model, name, seed=i) for i, name in enumerate("ab", 1)]
    result = adapt(
        base, tiny.task(tmp_path), experts, shots=8, settings=tiny.settings(), config=CONFIG,
        method="pemt", progress=False,
    )  # fmt: skip
    result.model.detach()
    found = next(f for f in result.diagnosis.findings if f.name == "behind-single-expert")
    assert found.severity == "not checked"
    assert "--method guided" in found.advice


@pytest.mark.parametrize(
    ("method", "checks"),
    [
        ("ensemble", {"gates-uniform", "adapter-dominates", "experts-collinear"}),
        ("instant", set()),
        ("uniform", {"adapter-dominates", "experts-collinear"}),
        ("single", {"adapter-dominates"}),
        ("pemt-no-mixture", {"prompt-unmoved"}),
        ("probe", set()),
    ],
)
def test_every_kind_of_method_is_diagnosed(method, checks, tmp_path):
    base = tiny.loaded("bert")
    experts = [tiny.expert(base.model, name, seed=i) for i, name in enumerate("ab", 1)]
    result = adapt(
        base, tiny.task(tmp_path), experts, shots=8, settings=tiny.settings(), config=CONFIG,
        method=method, progress=False,
    )  # fmt: skip
    result.model.detach()
    mixture = {"gates-uniform", "gates-on-one", "adapter-dominates", "experts-collinear"}
    names = {f.name for f in result.diagnosis.findings}
    assert checks <= names
    assert "labels-predicted" in names
    if not checks & mixture:
        assert not names & mixture
    result.write_report(tmp_path / "report.html")
    assert "Diagnosis" in (tmp_path / "report.html").read_text(encoding="utf-8")
