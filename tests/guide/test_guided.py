"""PEMT under a guide, the instant mixture and their ensemble."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pemt.bases import load_base
from pemt.errors import ConfigError
from pemt.experts import ExpertLibrary
from pemt.guide import NONE, guide_of
from pemt.guide.instant import Instant, InstantModel, best_sharpness, sharpened
from pemt.guide.probes import fit_probe, truth_of
from pemt.guide.views import alone, views_of
from pemt.methods import METHODS
from pemt.model import AdaptedModel, PemtConfig, PemtModel
from pemt.model.storage import load_model
from pemt.tasks.encoding import fingerprint, label_word_ids
from pemt.training import adapt, evaluate
from pemt.training.deploying import load_run
from pemt.training.evaluating import predict
from pemt.training.fitting import fit
from pemt.training.selecting import cross_validate
from tests import adapters, tiny
from tests.guide.test_guide import FAMILIES, experts, setting

EVIDENCE = PemtConfig(guide="evidence", reduction=4, prompt_scale=0.1)


def guided(base, weights, config=EVIDENCE, **given):
    return PemtModel(
        base, [tiny.expert(base, n, seed=i) for i, n in enumerate("ab")], config,
        prompt=tiny.prompt(), outputs=tiny.outputs_of(base), guide=weights, **given,
    )  # fmt: skip


@FAMILIES
def test_gates_start_at_the_guide_for_every_input(name):
    weights = {"a": 0.5, "b": 0.2, NONE: 0.3}
    model = guided(tiny.base(name), weights).eval()
    assert model.gate_names == ["a", "b", NONE]
    gates = model.gates(*tiny.batch())
    wanted = torch.tensor([0.5, 0.2, 0.3]).expand_as(gates)
    torch.testing.assert_close(gates, wanted)
    model.detach()


@FAMILIES
def test_all_on_none_is_the_base_with_the_prompt(name):
    """A mixture that gives all to no expert leaves its layers as they are."""
    base = tiny.base(name)
    config = replace(EVIDENCE, target_adapter=False, train_norms=False, prompt_fusion="none")
    tiny_one = 1e-12
    model = guided(base, {"a": tiny_one, "b": tiny_one, NONE: 1 - 2 * tiny_one}, config).eval()
    for layer in model.mixtures:
        layer.gate.bias.data[:2] = -1e9
    without = PemtModel(
        tiny.base(name), model.experts, replace(config, guide="none", mixture=False),
        prompt=tiny.prompt(), outputs=tiny.outputs_of(base),
    ).eval()  # fmt: skip
    if model.head is not None:
        without.head.load_state_dict(model.head.state_dict())
    ids, mask = tiny.batch()
    given = tiny.decode_inputs(base, len(ids))
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids, mask, **given).logits, without(ids, mask, **given).logits
        )


def test_the_prompt_fusion_is_weighed():
    base = tiny.base("bert")
    whole = guided(base, {"a": 1.0, "b": 0.0, NONE: 0.0}, replace(EVIDENCE, prompt_dropout=0.0))
    prompt = whole.prompt()
    target = whole.correlation_prompt.target()
    source = whole.experts[0].prompt
    attended = torch.softmax(0.1 * target @ source.T, -1) @ source
    torch.testing.assert_close(prompt, target + attended)
    whole.detach()
    off = guided(base, {"a": 1.0, "b": 0.0, NONE: 0.0}, replace(EVIDENCE, guide_prompt=False))
    assert not torch.allclose(off.prompt(), prompt)
    off.detach()


def test_switches_off_one_by_one():
    base = tiny.base("bert")
    weights = {"a": 0.6, "b": 0.4, NONE: 0.0}
    model = guided(base, weights, replace(EVIDENCE, guide_none=False))
    assert model.gate_names == ["a", "b"]
    model.detach()
    model = guided(base, weights, replace(EVIDENCE, guide_gates=False))
    assert not [n for n in model.trained_state() if n.endswith("gate.bias")]
    model.detach()


def test_without_a_guide_nothing_is_new():
    """`guide="none"` is the paper: names, state and rates as they were."""
    base = tiny.base("bert")
    model = tiny.pemt(base)
    assert model.gate_names == model.expert_names
    assert set(model.rate_factors().values()) == {1.0}
    assert "guide" not in model.options()
    model.detach()


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (None, "without the weights"),
        ({"a": 1.0}, "b"),
        ({"a": 0.5, "b": 0.5, "c": 0.0}, "c"),
        ({"a": 0.5, "b": 0.2}, "sum 0.7"),
        ({"a": 1.5, "b": -0.5}, "0 to 1"),
        ({"a": float("nan"), "b": 1.0}, "a"),
    ],
)
def test_a_guide_of_other_experts_is_refused(weights, match):
    base = tiny.base("bert")
    before = tiny.snapshot(base)
    with pytest.raises(ConfigError, match=match):
        guided(base, weights)
    assert tiny.snapshot(base) == before


def test_gates_learn_at_their_own_rates(tmp_path):
    """One step of Adam moves a weight by its learning rate: so the rates can be read off."""
    base = tiny.loaded("bert")
    model = guided(base.model, {"a": 0.5, "b": 0.3, NONE: 0.2})
    rates = model.rate_factors()
    start = {n: v.clone() for n, v in model.trained_state().items()}
    task = tiny.task(tmp_path)
    settings = tiny.settings(max_steps=1, learning_rate=1e-3)
    fit(model, task, base.tokenizer, tiny.splits(task).train, [], settings, progress=False)
    moved = {n: float((v - start[n]).abs().max()) for n, v in model.trained_state().items()}
    biases = [v for n, v in moved.items() if n.endswith("gate.bias")]
    weights = [v for n, v in moved.items() if n.endswith("gate.weight")]
    adapters = [v for n, v in moved.items() if ".adapter." in n and v > 0]
    assert sorted(set(rates.values())) == [0.05, 5.0]
    assert max(biases) == pytest.approx(5e-3, rel=0.05)
    assert max(weights) == pytest.approx(5e-5, rel=0.05)
    assert max(adapters) == pytest.approx(1e-3, rel=0.05)
    model.detach()


# -- the instant mixture -------------------------------------------------------------------------


def built(tmp_path, name, method="instant", kind="classification", **changes):
    given = setting(tmp_path, name, kind, config=replace(EVIDENCE, guide="none"), **changes)
    given = replace(given, experts=experts(given.base))
    given = replace(given, config=METHODS[method].configured(given.config))
    return given, METHODS[method].build(given)


@FAMILIES
def test_instant_is_the_weighted_mean_of_the_probes(tmp_path, name):
    """The naive twin: every expert put on alone, its probes fitted, probabilities averaged."""
    given, model = built(tmp_path, name)
    rows = tiny.splits(given.task).test
    made = predict(model, given.task, given.base.tokenizer, rows, tiny.settings())
    parts, sharpness = model.instant.parts, model.instant.sharpness
    model.detach()
    truth = truth_of(given.train)
    total = 0.0
    by_name = {NONE: None, **{e.name: e for e in given.experts}}
    for part in parts:
        with alone(given, by_name[part.expert]) as one:
            seen = views_of(one, given, by_name[part.expert], given.train)[part.view]
            wanted = views_of(one, given, by_name[part.expert], rows)[part.view]
        if part.view == "named":
            chances = np.exp(wanted)
        else:
            strength = {"features": 0.03, "answers": 0.3, "words": 0.3}[part.view]
            scores = fit_probe(seen, truth, strength, 2).scores(wanted)
            chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        total = total + part.weight * chances
    powered = total**sharpness
    expected = powered / powered.sum(1, keepdims=True)
    np.testing.assert_allclose(made.log_probabilities.exp().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("method", ["instant", "ensemble"])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_only_the_experts_with_the_largest_shares_are_asked(tmp_path, count, method):
    given, model = built(tmp_path, "bert", method)
    shares: dict[str, float] = {}
    for part in model.instant.parts:
        shares[part.expert] = shares.get(part.expert, 0.0) + part.weight
    assert len(shares) == 3
    everything, experts_of = model.instant.parts, model.expert_names
    model.detach()
    largest = sorted(shares, key=shares.__getitem__)[-count:]
    config = replace(given.config, guide_experts=count)
    model = METHODS[method].build(replace(given, config=config, shared={}, notes={}))
    total = sum(shares[name] for name in largest)
    assert [(p.expert, p.view) for p in model.instant.parts] == [
        (p.expert, p.view) for p in everything if p.expert in largest
    ]
    for part in model.instant.parts:
        before = next(p for p in everything if (p.expert, p.view) == (part.expert, part.view))
        assert part.weight == pytest.approx(before.weight / total)
    assert model.turns() == min(count, 3) + (method == "ensemble")
    if method == "ensemble":
        assert model.expert_names == experts_of, "the trained part still has them all"
    assert PemtConfig(**model.pemt_config.to_dict()) == model.pemt_config
    model.detach()


def test_asking_no_expert_is_refused():
    with pytest.raises(ConfigError, match="guide_experts=0"):
        PemtConfig(guide_experts=0)
    assert "guide_experts" not in PemtConfig().to_dict()


@pytest.mark.parametrize("method", ["instant", "ensemble"])
def test_disabled_it_ranks_as_the_base_and_keeps_nothing(tmp_path, method):
    given, model = built(tmp_path, "llama", method)
    words = label_word_ids(given.task, given.base.tokenizer, model.family)
    ids, mask = tiny.batch()
    with model.disable():
        off = model.label_scores(ids, mask, words)
    assert not model._kept
    assert model.label_scores(ids, mask, words).isfinite().all()
    model.detach()
    bare = AdaptedModel(given.base.model)
    assert torch.equal(off, bare.label_scores(ids, mask, words))
    bare.detach()


@FAMILIES
def test_the_base_is_given_back(tmp_path, name):
    given = setting(tmp_path, name)
    before = tiny.snapshot(given.base.model)
    given = replace(given, experts=experts(given.base))
    for method in ("instant", "ensemble"):
        model = METHODS[method].build(
            replace(given, config=METHODS[method].configured(given.config), shared={})
        )
        model.detach()
        assert tiny.snapshot(given.base.model) == before


@FAMILIES
def test_training_never_changes_what_the_experts_say(tmp_path, name):
    _, model = built(tmp_path, name, "ensemble")
    ids, mask = tiny.batch()
    before = model.mixture(ids, mask).clone()
    tiny.stir(model)
    model._kept.clear()
    torch.testing.assert_close(model.mixture(ids, mask), before)
    answers = [[5], [6]]
    model.eval()
    both = model.label_scores(ids, mask, answers)
    if model.head is not None:  # what `forward` gives is what it answers
        with torch.no_grad():
            torch.testing.assert_close(model(ids, mask).logits, both)
    model.blend = 1.0
    trained = model.label_scores(ids, mask, answers)
    torch.testing.assert_close(both.exp(), (trained.exp() + before.exp()) / 2)
    model.detach()


@FAMILIES
@pytest.mark.parametrize("method", ["instant", "ensemble", "guided"])
def test_saved_and_read_answers_the_same(tmp_path, name, method):
    given, model = built(tmp_path, name, method)
    tiny.stir(model)
    base = given.base
    rows = tiny.splits(given.task).test
    wanted = predict(model, given.task, base.tokenizer, rows, tiny.settings()).log_probabilities
    folder = model.save_pretrained(tmp_path / "saved", base_name="tiny")
    guide = model.guide
    model.detach()
    again, _, described = load_model(folder, base=base)
    assert described["format_version"] == 2
    assert isinstance(again, InstantModel) == (method != "guided")
    assert again.guide == pytest.approx(guide)
    made = predict(again, given.task, base.tokenizer, rows, tiny.settings()).log_probabilities
    torch.testing.assert_close(made, wanted)
    again.detach()


def test_scores_are_averaged(tmp_path):
    _, model = built(tmp_path, "bert", "ensemble", "regression")
    model.eval()
    ids, mask = tiny.batch()
    instant = model.mixture(ids, mask)
    with torch.no_grad():
        both = model(ids, mask).logits
        model.blend = 1.0
        trained = model(ids, mask).logits
    torch.testing.assert_close(both, (instant + trained) / 2)
    assert not torch.allclose(both, trained)
    model.detach()
    metrics, _ = evaluate_instant(tmp_path)
    assert np.isfinite(list(metrics.values())).all()


def evaluate_instant(tmp_path):
    given, model = built(tmp_path, "bert", "instant", "regression")
    try:
        rows = tiny.splits(given.task).test
        return evaluate(model, given.task, given.base.tokenizer, rows, tiny.settings())
    finally:
        model.detach()


@pytest.mark.parametrize("method", ["instant", "ensemble"])
def test_written_scores_are_refused(tmp_path, method):
    with pytest.raises(ConfigError, match="writes its answers"):
        built(tmp_path, "llama", method, "regression")


def test_generation_mixes_by_the_guide(tmp_path):
    _, model = built(tmp_path, "t5", "instant", "generation")
    assert model.parameter_counts()[0] == 0
    gates = model.gates(*tiny.batch())
    wanted = torch.tensor([model.guide[n] for n in model.gate_names])
    torch.testing.assert_close(gates, wanted.expand_as(gates))
    assert METHODS["ensemble"].refusal(model.family, "generation")
    model.detach()


def test_an_instant_mixture_writes_no_text(tmp_path):
    _, model = built(tmp_path, "llama")
    with pytest.raises(ConfigError, match="writes no text"):
        model.generate(*tiny.batch())
    model.detach()


def test_sharpness_is_one_where_probabilities_are_right():
    generator = np.random.default_rng(0)
    p = generator.uniform(0.05, 0.95, size=2000)
    logs = np.log(np.stack([1 - p, p], 1))
    truth = (generator.uniform(size=2000) < p).astype(float)
    assert best_sharpness(logs, truth) == pytest.approx(1, abs=0.1)
    timid = sharpened(logs, 0.5)
    assert best_sharpness(timid, truth) == pytest.approx(2, abs=0.2)


def test_a_text_is_looked_at_once(tmp_path, monkeypatch):
    given, model = built(tmp_path, "bert")
    rows = tiny.splits(given.task).test
    passes, real = [], model._look

    def look(ids, mask):
        passes.append(len(ids))
        return real(ids, mask)

    monkeypatch.setattr(model, "_look", look)
    for _ in range(3):
        predict(model, given.task, given.base.tokenizer, rows, tiny.settings())
    assert sum(passes) == len({e.text for e in rows})
    model.detach()


@pytest.mark.parametrize("method", ["instant", "ensemble"])
@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_an_answer_asks_the_base_as_often_as_it_says(tmp_path, name, method):
    given, model = built(tmp_path, name, method)
    reads = model.base.get_encoder() if name == "t5" else model.base.base_model
    ids, mask = tiny.batch()
    lengths = []

    def passing(_module, _inputs, named):
        shown = named.get("inputs_embeds")
        lengths.append((named["input_ids"] if shown is None else shown).shape[1])

    hook = reads.register_forward_pre_hook(passing, with_kwargs=True)
    words = [] if name == "bert" else label_word_ids(given.task, given.base.tokenizer, model.family)
    model.label_scores(ids, mask, words)
    hook.remove()
    texts = [length for length in lengths if length >= ids.shape[1]]  # the others are answers
    assert len(texts) == model.turns() > 1
    model.detach()


def test_a_broken_expert_is_left_out_and_named(tmp_path):
    given = setting(tmp_path)
    good, bad = experts(given.base)
    layer = replace(bad.layers[0], B=torch.full_like(bad.layers[0].B, float("nan")))
    bad = replace(bad, layers=(layer, *bad.layers[1:]))
    for method in ("instant", "guided"):
        one = replace(
            given, experts=[good, bad], config=METHODS[method].configured(EVIDENCE), notes={},
            shared={},
        )  # fmt: skip
        model = METHODS[method].build(one)
        assert model.expert_names == ["a"]
        assert "not finite" in one.notes["guide"]["refused"]["b"]
        model.detach()


def broken(expert):
    layer = replace(expert.layers[0], B=torch.full_like(expert.layers[0].B, float("nan")))
    return replace(expert, layers=(layer, *expert.layers[1:]))


@pytest.mark.parametrize(
    ("method", "names"),
    [("auto", None), ("instant", None), ("guided", None), ("single", None), ("guided", "auto:2")],
)
def test_adapt_names_the_expert_that_it_left_out(tmp_path, method, names):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    given = experts(base, "abc")
    result = adapt(
        base, task, [broken(given[0]), *given[1:]], names=names, shots=4, method=method,
        config=PemtConfig(reduction=4), settings=tiny.settings(max_steps=1), progress=False,
    )  # fmt: skip
    result.model.detach()
    said = [line for line in result.verdicts() if "left out" in line]
    assert said == ["a was left out: Expert 'a' gives values that are not finite on these rows."]


@pytest.mark.parametrize("methods", [("guided", "single"), ("single", "guided")])
def test_methods_over_other_experts_have_a_guide_each(tmp_path, monkeypatch, methods):
    """`single` takes one expert of those that `guided` takes, on the same rows."""
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    built, real = [], PemtModel.__init__

    def noted(self, base, experts, config, **given):
        real(self, base, experts, config, **given)
        if given.get("guide"):
            built.append(set(given["guide"]))

    monkeypatch.setattr(PemtModel, "__init__", noted)
    made = cross_validate(
        base, task, experts(base, "abc"), tiny.splits(task).train[:12], methods, EVIDENCE,
        tiny.settings(max_steps=1), folds=2, progress=False,
    )  # fmt: skip
    assert {c.method for c in made.choices} == {"guided", "single"}
    everyone = {NONE, "a", "b", "c"}
    assert sum(names == everyone for names in built) == 2
    assert sum(len(names) == 2 for names in built) == 2


def test_the_guide_of_a_run_is_that_of_most_experts(tmp_path, monkeypatch):
    given = setting(tmp_path)
    given = replace(given, experts=experts(given.base, "abc"))
    some = replace(given, experts=given.experts[1:2])
    for first, second in ((given, some), (some, given)):
        given.shared.clear()
        guides = [guide_of(one) for one in (first, second)]
        assert [guide_of(one) for one in (first, second)] == guides, "found once"
        assert {len(guide.weights) for guide, _ in guides} == {2, 4}
        assert given.shared["guide"] is guide_of(given)


def test_adapt_at_once_and_answer_from_the_folder(tmp_path):

    base = tiny.loaded("bert")
    base.model.save_pretrained(tmp_path / "bert")
    base.tokenizer.save_pretrained(tmp_path / "bert")
    base = load_base(str(tmp_path / "bert"), precision="float32")
    task = tiny.task(tmp_path)
    library = ExpertLibrary(tmp_path / "library")
    own = fingerprint(base.tokenizer)
    for expert in experts(base):
        library.add(replace(expert, info=replace(expert.info, tokenizer_fingerprint=own)))
    result = adapt(
        base, task, library, shots=4, method="instant", folder=tmp_path / "run", progress=False,
        settings=tiny.settings(),
    )  # fmt: skip
    texts = [e.text for e in tiny.splits(task).test]
    said = result.predict(texts)
    assert f"asks the base {result.model.turns()} times" in result.verdicts()[-1]
    assert result.gates is None
    result.model.detach()
    again = load_run(tmp_path / "run")
    made = predict(
        again.model, again.task, again.base.tokenizer, tiny.splits(task).test, again.settings
    )
    assert made.texts == said


@FAMILIES
def test_experts_that_are_beside_other_maps(name):
    """Imported LoRAs cover some maps only: alone through the shared banks is alone by itself."""
    base = tiny.base(name)
    some = adapters.attention_paths(base)[:3]
    given = [
        adapters.partial(base, "a", some, seed=1), tiny.expert(base, "b", seed=2),
        adapters.partial(base, "c", some[1:], seed=3, prompt=0),
    ]  # fmt: skip
    lent = tiny.prompt(length=4, seed=5)
    ids, mask = tiny.batch()
    expected = []
    for expert in given:
        config = PemtConfig(prompt_fusion="none", target_adapter=False, train_norms=False)
        prompt = expert.prompt if len(expert.prompt) else lent
        one = PemtModel(base, [expert], config, prompt=prompt, outputs=tiny.outputs_of(base)).eval()
        expected.append(one.features(ids, mask))
        one.detach()
    instant = Instant(parts=(), sharpness=1.0, task=None, viewers={}, prompts={"c": lent})
    model = InstantModel(
        base, given, EVIDENCE, prompt=tiny.prompt(), outputs=tiny.outputs_of(base),
        guide={"a": 0.2, "b": 0.2, "c": 0.2, NONE: 0.4}, instant=instant, blend=0.5,
    )  # fmt: skip
    tiny.stir(model).eval()
    for expert, wanted in zip(given, expected, strict=True):
        with model.alone(expert.name):
            torch.testing.assert_close(model.features(ids, mask), wanted, atol=1e-5, rtol=1e-5)
    with model.alone(NONE):
        nothing = model.features(ids, mask)
    model.detach()
    bare = AdaptedModel(base, outputs=tiny.outputs_of(base)).eval()
    torch.testing.assert_close(bare.features(ids, mask), nothing)
    bare.detach()
