"""What every method must hold to, on one tiny base of each family."""

from __future__ import annotations

import gc
import sys
import weakref
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from pemt.errors import BackboneError, ConfigError, DataError, UnknownNameError
from pemt.methods import METHODS, Setting, method_named
from pemt.model import PemtConfig, PemtModel
from pemt.training import evaluate
from pemt.training.fitting import fit
from tests import tiny

FAMILIES = pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
FAMILY = {name: tiny.loaded(name).backbone.family for name in tiny.ONE_OF_EACH_FAMILY}
DEFINED = [
    (method, name)
    for method in METHODS
    for name in tiny.ONE_OF_EACH_FAMILY
    if METHODS[method].refusal(FAMILY[name], "classification") is None
]
EVERYWHERE = pytest.mark.parametrize(("method", "name"), DEFINED)


@pytest.fixture
def setting(tmp_path):
    """What a method gets, for a base and a kind of task."""

    def make(name, kind="classification", method="pemt", **changes):
        base = tiny.loaded(name)
        task = tiny.task(tmp_path, kind=kind)
        rows = tiny.splits(task)
        experts = tiny.library_for(METHODS[method], base)
        return Setting(
            **{
                "base": base, "task": task, "experts": experts, "train": rows.train,
                "validation": rows.validation, "config": PemtConfig(reduction=4, prompt_scale=0.1),
                "max_source_length": 24, **changes,
            }
        )  # fmt: skip

    return make


@EVERYWHERE
def test_build_train_answer_detach(setting, method, name):
    """Every method trains, answers, and gives back the base: modules, flags and every bit."""
    given = setting(name, method=method)
    base, task = given.base, given.task
    before = tiny.snapshot(base.model)
    model = METHODS[method].build(given)
    start = {k: v.clone() for k, v in model.trained_state().items()}
    if METHODS[method].trains:
        one = tiny.settings(max_steps=1)
        made = fit(
            model, task, base.tokenizer, given.train, given.validation, one, progress=False
        )  # fmt: skip
        assert made.steps == 1
        moved = [k for k, v in model.trained_state().items() if not torch.equal(v, start[k])]
        assert moved, "nothing moved"
    metrics, predictions = evaluate(
        model, task, base.tokenizer, given.validation, tiny.settings()
    )  # fmt: skip
    assert 0 <= metrics["accuracy"] <= 1
    assert len(predictions.values) == len(given.validation)
    trained, total = model.parameter_counts()
    assert trained > 0 or not METHODS[method].trains
    assert trained <= total
    assert tiny.snapshot(base.model) != before
    model.detach()
    assert tiny.snapshot(base.model) == before


class Watched(PemtConfig):
    """Options that note which of them a method looks at."""

    def __getattribute__(self, name):
        caller = sys._getframe(1).f_code.co_filename
        if name in PEMT_OPTIONS and not caller.endswith(("dataclasses.py", "model/config.py")):
            LOOKED_AT.add(name)
        return super().__getattribute__(name)


PEMT_OPTIONS = {f.name for f in fields(PemtConfig)}
LOOKED_AT: set[str] = set()


@EVERYWHERE
def test_no_option_is_called_unread_that_a_method_looks_at(setting, method, name):
    LOOKED_AT.clear()
    METHODS[method].build(setting(name, method=method, config=Watched(reduction=4))).detach()
    assert METHODS[method].reads >= LOOKED_AT
    if METHODS[method].is_pemt:
        assert "prompt_fusion" in LOOKED_AT
    elif len(METHODS[method].reads) < 3:
        assert METHODS[method].reads == LOOKED_AT, "a method does not look at what it says it does"


def test_unread_names_what_was_changed_and_is_ignored():
    config = PemtConfig(top_k=2, reduction=4, prompt_tokens=7)
    assert METHODS["lora"].unread(config) == ["reduction", "prompt_tokens", "top_k"]
    assert METHODS["adapter"].unread(config) == ["prompt_tokens", "top_k"]
    assert METHODS["pemt"].unread(config) == ["prompt_tokens"]
    assert not METHODS["lora"].unread(PemtConfig())


@EVERYWHERE
def test_disabled_is_the_base(setting, method, name):
    given = setting(name, method=method)
    base = given.base.model
    ids, mask = tiny.batch()
    inputs = {"input_ids": ids, "attention_mask": mask, **tiny.decode_inputs(base, len(ids))}

    def out(model):
        with torch.no_grad():
            answer = model(**inputs)
        return answer.last_hidden_state if name == "bert" else answer.logits

    wanted = out(base)
    model = tiny.stir(METHODS[method].build(given)).eval()
    enabled = model.trained_state()
    with model.disable():
        assert torch.equal(out(model), wanted)
    assert model.trained_state().keys() == enabled.keys(), "disabling changed what trains"
    if method != "probe":
        with torch.no_grad():
            answer = model(**inputs).logits
        assert name == "bert" or not torch.equal(answer, wanted)


@pytest.mark.parametrize("method", ["full", "lora", "adapter"])
def test_disable_nests(setting, method):
    given = setting("bert", method=method)
    ids, mask = tiny.batch()
    with torch.no_grad():
        wanted = given.base.model(input_ids=ids, attention_mask=mask).last_hidden_state
        model = tiny.stir(METHODS[method].build(given)).eval()
        adapted = model(ids, mask).logits
        trained = model.trained_state().keys()
        with model.disable():
            with model.disable():
                pass
            assert torch.equal(model(ids, mask).last_hidden_state, wanted)
        assert torch.equal(model(ids, mask).logits, adapted)
    assert model.trained_state().keys() == trained


@pytest.mark.parametrize("method", [m for m, name in DEFINED if name == "bert"])
def test_the_init_seed_decides_the_start(setting, method):
    def start(seed):
        model = METHODS[method].build(setting("bert", method=method, init_seed=seed))
        said = model.eval().label_scores(*tiny.batch(), [])  # some hold nothing but what they say
        return torch.cat([said.flatten(), *(v.flatten() for v in model.trained_state().values())])

    assert torch.equal(start(0), start(0))
    if METHODS[method].trains:
        assert not torch.equal(start(0), start(1))


@pytest.mark.parametrize("name", ["llama", "gpt2", "modernbert"])
def test_lora_is_on_every_linear_layer(setting, name):
    given = setting(name)
    linears = [
        n for n, m in given.base.model.named_modules()
        if type(m).__name__ in ("Linear", "Conv1D") and "lm_head" not in n
    ]  # fmt: skip
    model = METHODS["lora"].build(given)
    wrapped = {n.split(".lora_A")[0] for n in model.trained_state() if ".lora_A." in n}
    assert wrapped == {f"base.{n}" for n in linears}
    assert {v.dtype for v in model.trained_state().values()} == {torch.float32}


def test_lora_trains_nothing_of_the_base(setting):
    model = METHODS["lora"].build(setting("llama"))
    assert all("lora_" in n for n in model.trained_state())


def test_adapter_trains_adapters_norms_and_head(setting):
    given = setting("bert")
    named = METHODS["adapter"].build(given).trained_state()
    norms = {n for n in named if ".LayerNorm.trained." in n}
    adapters = {n for n in named if ".output.dense.adapter." in n}
    assert len(norms) == 2 * 5  # weight and bias of the embeddings' norm and of two in each layer
    assert len(adapters) == 4 * 2  # two weights and two biases in each layer
    assert named.keys() - norms - adapters == {"head.weight", "head.bias"}


# -- single ------------------------------------------------------------------------------------


def test_single_takes_the_expert_of_the_lowest_loss_and_notes_it(setting, monkeypatch):
    from pemt.methods import single

    given = setting("bert")
    losses = iter([0.7, 0.3])
    real = single.best_probe

    def best_probe(*args):
        return real(*args)[0], next(losses)

    monkeypatch.setattr(single, "best_probe", best_probe)
    model = METHODS["single"].build(given)
    assert isinstance(model, PemtModel)
    assert model.expert_names == ["b"]
    assert given.notes == {"expert": "b", "probe_losses": {"a": 0.7, "b": 0.3}}


@FAMILIES
def test_single_does_not_look_at_the_other_expert(setting, name):
    """Ranking an expert alone and beside another gives the same loss."""
    given = setting(name)
    METHODS["single"].build(given).detach()
    alone = setting(name, experts=[given.experts[1]])
    METHODS["single"].build(alone).detach()
    assert alone.notes["probe_losses"]["b"] == given.notes["probe_losses"]["b"]
    assert given.notes["probe_losses"]["a"] != given.notes["probe_losses"]["b"]


def broken(expert, value=float("nan")):
    layer = replace(expert.layers[0], B=torch.full_like(expert.layers[0].B, value))
    return replace(expert, layers=(layer, *expert.layers[1:]))


@FAMILIES
def test_single_leaves_out_what_is_not_finite_and_names_it(setting, name):
    given = setting(name)
    first, second = given.experts
    given = setting(name, experts=[broken(first), second])
    model = METHODS["single"].build(given)
    assert model.expert_names == ["b"]
    assert given.notes["refused"] == {
        "a": "Expert 'a' gives values that are not finite on these rows"
    }
    assert given.notes["probe_losses"].keys() == {"b"}
    model.detach()
    before = tiny.snapshot(given.base.model)
    given = replace(given, experts=[broken(first), broken(second, float("inf"))], shared={})
    with pytest.raises(ConfigError, match=r"(?s)Expert 'a'.*Expert 'b'.*verify"):
        METHODS["single"].build(given)
    assert tiny.snapshot(given.base.model) == before
    with pytest.raises(ConfigError, match="none was given"):
        METHODS["single"].build(replace(given, experts=[]))


def test_single_probes_once_for_all_learning_rates(setting, monkeypatch):
    """And anew for other experts: the best of these need not be among those."""
    from pemt.methods import single

    calls, real = [], single.features_of

    def features_of(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(single, "features_of", features_of)
    given = setting("bert")
    given = replace(given, experts=[broken(given.experts[0]), given.experts[1]])
    notes = []
    for _ in range(3):
        one = replace(given, notes={})
        METHODS["single"].build(one).detach()
        notes.append(one.notes)
    assert len(calls) == 3  # the broken one stops at the first rows, the other has two lots
    assert notes[0] == notes[1] == notes[2]
    assert notes[0].keys() == {"expert", "probe_losses", "refused"}
    fewer = replace(given, experts=given.experts[1:], notes={})
    METHODS["single"].build(fewer).detach()
    assert fewer.notes.keys() == {"expert", "probe_losses"}


def test_the_guide_of_single_counts_all_that_were_probed(setting):
    """The luckiest of many is no surer of helping than they were."""
    given = setting("bert", config=PemtConfig(reduction=4, guide="evidence"))
    METHODS["single"].build(given).detach()
    guide = given.notes["guide"]
    assert (len(guide["gains"]), guide["judged"]) == (1, 2)


# -- probe -------------------------------------------------------------------------------------


def sklearn_features(model, given, examples):
    """One example at a time, so that neither sorting nor padding can matter."""
    rows = []
    for e in examples:
        text = e.text if model.family != "decoder-only" else f"{e.text} answer:"
        ids = torch.tensor([given.base.tokenizer(text)["input_ids"]])
        rows.append(model.features(ids, torch.ones_like(ids))[0].numpy())
    return np.stack(rows).astype(np.float64)


@FAMILIES
def test_probe_answers_as_scikit_learn_does(setting, name):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    given = setting(name)
    model = METHODS["probe"].build(given)
    train, validation = (
        sklearn_features(model, given, rows) for rows in (given.train, given.validation)
    )
    mean = train.mean(0)
    scale = (train - mean).std()
    labels = [e.label for e in given.train]
    wanted = [e.label for e in given.validation]
    fitted = [
        LogisticRegression(C=c, max_iter=1000).fit((train - mean) / scale, labels)
        for c in (0.01, 0.1, 1.0, 10.0)
    ]
    chances = [f.predict_proba((validation - mean) / scale) for f in fitted]
    best = min(range(4), key=lambda i: log_loss(wanted, chances[i]))
    _, made = evaluate(
        model, given.task, given.base.tokenizer, given.validation, tiny.settings()
    )  # fmt: skip
    assert made.values == fitted[best].predict((validation - mean) / scale).tolist()
    np.testing.assert_allclose(made.log_probabilities.exp(), chances[best], atol=2e-3)


def test_probe_gives_its_answers_as_logits_too(setting):
    model = METHODS["probe"].build(setting("bert")).eval()
    ids, mask = tiny.batch()
    said = model(ids, mask).logits.log_softmax(-1)
    torch.testing.assert_close(said, model.label_scores(ids, mask, []), atol=1e-5, rtol=1e-4)


def test_probe_regresses_as_scikit_learn_does(setting):
    from sklearn.linear_model import Ridge

    given = setting("bert", "regression")
    model = METHODS["probe"].build(given)
    train, validation = (
        sklearn_features(model, given, rows) for rows in (given.train, given.validation)
    )
    mean = train.mean(0)
    scale = (train - mean).std()
    truth = np.array([e.label for e in given.validation])
    answers = [
        Ridge(alpha=1 / c)
        .fit((train - mean) / scale, [e.label for e in given.train])
        .predict((validation - mean) / scale)
        for c in (0.01, 0.1, 1.0, 10.0)
    ]
    best = min(answers, key=lambda a: ((a - truth) ** 2).mean())
    _, made = evaluate(
        model, given.task, given.base.tokenizer, given.validation, tiny.settings()
    )  # fmt: skip
    np.testing.assert_allclose(made.values, best, atol=1e-3)


@pytest.mark.parametrize("method", ["probe", "single"])
def test_probes_of_free_text_are_refused_and_the_base_is_clean(setting, method):
    given = setting("llama", "generation", method=method)
    before = tiny.snapshot(given.base.model)
    with pytest.raises(ConfigError, match="cannot answer a generation task"):
        METHODS[method].build(given)
    assert tiny.snapshot(given.base.model) == before


@pytest.mark.parametrize("method", ["probe", "single"])
def test_rows_of_one_class_are_refused_and_the_base_is_clean(setting, method):
    given = setting("bert")
    rows = [e for e in given.train if e.label == 1]
    given = setting("bert", train=rows)
    before = tiny.snapshot(given.base.model)
    with pytest.raises(DataError, match="all answered 'good'"):
        METHODS[method].build(given)
    assert tiny.snapshot(given.base.model) == before


# -- names and twice ---------------------------------------------------------------------------


def test_an_unknown_method_names_a_close_one():
    with pytest.raises(UnknownNameError, match=r"Unknown method 'lore'\. Did you mean: lora"):
        method_named("lore")


@pytest.mark.parametrize("first", ["lora", "adapter"])
@pytest.mark.parametrize("second", ["pemt", "lora", "probe"])
def test_nothing_is_attached_to_an_attached_base(setting, first, second):
    given = setting("bert")
    METHODS[first].build(given)
    with pytest.raises(BackboneError, match="already attached"):
        METHODS[second].build(given)


class Saved:
    """In place of a tensor that autograd keeps for a backward pass, which is never made."""


@EVERYWHERE
def test_a_pass_keeps_nothing_of_itself(setting, method, name):
    """Its graph is gone with its loss: a circle through autograd's graph is never collected."""
    if not METHODS[method].trains:
        return
    model = METHODS[method].build(setting(name, method=method)).train()
    ids, mask = tiny.batch()
    labels = tiny.labels_for(model.family, ids, mask, classes=2)
    kept = []

    def pack(_):
        saved = Saved()
        kept.append(weakref.ref(saved))
        return saved

    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            loss = model(ids, mask, labels).loss
        assert loss.requires_grad
        del loss
    gc.collect()
    assert kept
    assert not [saved for saved in kept if saved() is not None]
