"""Ranking experts before training: what it measures, what it leaves as it was, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold

from pemt.errors import ConfigError, DataError, UnknownNameError
from pemt.guide import gather, guide_from, guide_of
from pemt.guide.views import alone, features_of
from pemt.methods import Setting
from pemt.methods.ranking import rank_experts
from pemt.model import PemtConfig, SourceConfig
from pemt.training import adapt, train_source
from pemt.training.choosing import best_experts, ranked
from tests import tiny

FAMILIES = pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)


def setting(folder, name="bert", kind="classification", **changes):
    base = tiny.loaded(name)
    task = tiny.task(folder, kind=kind)
    return Setting(
        **{
            "base": base, "task": task, "experts": [], "train": tiny.splits(task).train[:24],
            "validation": [], "config": PemtConfig(), "max_source_length": 24, **changes,
        }
    )  # fmt: skip


def experts(base, names="abc"):
    return [tiny.expert(base.model, n, seed=i) for i, n in enumerate(names, 1)]


@FAMILIES
def test_an_expert_alone_is_its_source_model(tmp_path, name):
    """One expert at weight one with its own prompt: what stage 1 left, and nothing besides."""
    given = setting(tmp_path, name)
    expert = experts(given.base, "a")[0]
    with alone(given, expert) as model:
        mixed = features_of(model, given, given.train)
    source = tiny.SourceModel(
        given.base.model, SourceConfig(rank=4, alpha=8.0, prompt="random"), prompt=expert.prompt,
        outputs=2 if name == "bert" else None,
    )  # fmt: skip
    source.load_expert(expert)
    expected = features_of(source.eval(), given, given.train)
    source.detach()
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


@FAMILIES
@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_best_first_and_the_base_is_given_back(tmp_path, name, kind):
    if (name, kind) == ("bert", "generation"):
        pytest.skip("an encoder-only base generates nothing")
    given = setting(tmp_path, name, kind)
    before = tiny.snapshot(given.base.model)
    made = rank_experts(given, experts(given.base))
    assert tiny.snapshot(given.base.model) == before
    assert [r.loss for r in made.ranks] == sorted(r.loss for r in made.ranks)
    assert len({r.loss for r in made.ranks}) == 3, "experts differ, so must their losses"
    for rank in made.ranks:
        assert rank.gain == pytest.approx(made.none_loss - rank.loss)
        assert rank.gain_error > 0
        assert -1 <= rank.prompt <= 1
    assert made.rows == len(given.train)
    assert made.best(2) == [r.name for r in made.ranks[:2]]
    again = rank_experts(given, reversed(experts(given.base)))
    assert again == made, "the order experts come in must not matter"


def test_the_loss_is_that_of_a_cross_validated_probe(tmp_path):
    given = setting(tmp_path)
    expert = experts(given.base, "a")[0]
    with alone(given, expert) as model:
        features = features_of(model, given, given.train)
    truth = np.array([e.label for e in given.train])
    said = np.zeros((len(features), 2))
    folds = RepeatedStratifiedKFold(n_splits=8, n_repeats=2, random_state=0)
    for inside, outside in folds.split(features, truth):
        centred = features - features[inside].mean(0)
        x = centred / centred[inside].std()  # of the rows that are seen alone
        fitted = LogisticRegression(C=0.03, max_iter=1000).fit(x[inside], truth[inside])
        said[outside] += fitted.predict_proba(x[outside]) / 2
    expected = -np.log(said[np.arange(len(said)), truth]).mean()
    found = gather(given, [expert]).of("a")[0]
    assert found.view == "features"
    assert found.loss == pytest.approx(expected, abs=1e-6)


def test_generation_sums_the_answers_tokens(tmp_path):
    """Against the likelihood of each answer from `score_answers`."""
    given = setting(tmp_path, "llama", "generation")
    expert = experts(given.base, "a")[0]
    tokenizer = given.base.tokenizer
    losses = []
    with alone(given, expert) as model:
        for example in given.train:
            cue = tokenizer(f"{example.text}\nanswer:", return_tensors="pt")["input_ids"]
            answer = [*tokenizer(f" {example.target}")["input_ids"], tokenizer.eos_token_id]
            losses.append(-model.score_answers(cue, None, [answer]).item())
    assert rank_experts(given, [expert]).ranks[0].loss == pytest.approx(np.mean(losses), rel=1e-4)


def test_an_expert_of_the_same_task_is_first(tmp_path):
    """A trained expert of the target's own kind beats random ones and no expert."""
    given = setting(tmp_path)
    task = tiny.task(tmp_path, "source", seed=5)
    settings = tiny.settings(max_steps=150, evaluations=3)
    train_source(
        given.base, task, tmp_path / "library", name="good", settings=settings, progress=False,
        config=SourceConfig(rank=8, alpha=8.0),
    )  # fmt: skip
    from pemt.experts import ExpertLibrary

    library = ExpertLibrary(tmp_path / "library")
    good = library.load("good")
    made = rank_experts(given, [*experts(given.base), good])
    assert made.ranks[0].name == "good"
    assert made.ranks[0].gain > 0
    assert made.ranks[0].description is not None
    names, ranking = best_experts(given.base, given.task, library, "auto:1", given.train)
    assert names == ["good"]
    assert ranking == ranked(given.base, given.task, library, given.train)


def test_adapt_takes_the_best(tmp_path):
    base = tiny.loaded("bert")
    task = tiny.task(tmp_path)
    result = adapt(
        base, task, experts(base), names="auto:2", shots=4, progress=False, folder=tmp_path / "run",
        method="pemt", settings=tiny.settings(), config=PemtConfig(reduction=4),
    )  # fmt: skip
    ranks = result.notes["ranking"]["ranks"]
    assert result.experts == [r["name"] for r in ranks[:2]]
    assert len(ranks) == 3
    result.model.detach()


@pytest.mark.parametrize("method", ["ensemble", "instant", "guided", "auto"])
def test_a_guide_over_the_ranked_experts_gathers_nothing_again(tmp_path, monkeypatch, method):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    calls = []

    def counted(setting, experts):
        calls.append(len(setting.train))
        return gather(setting, experts)

    monkeypatch.setattr("pemt.methods.ranking.gather", counted)
    monkeypatch.setattr("pemt.guide.guide.gather", counted)

    def run(names):
        result = adapt(
            base, task, experts(base), names=names, shots=4, method=method, progress=False,
            settings=tiny.settings(max_steps=2), config=PemtConfig(reduction=4),
        )  # fmt: skip
        result.model.detach()
        return result

    picked = run("auto:2")
    assert calls == [8]
    chosen = [r["name"] for r in picked.notes["ranking"]["ranks"][:2]]
    named = run(chosen)
    assert calls == [8, 8]
    assert picked.notes["guide"].pop("judged") == 3
    assert named.notes["guide"].pop("judged") == 2
    assert named.notes["guide"] == picked.notes["guide"]
    assert named.metrics == picked.metrics


@pytest.mark.parametrize(
    "asked", ["best", "auto", "auto:", "auto:x", "auto:-1", "auto:0", "auto:4"]
)
def test_what_auto_cannot_mean(tmp_path, asked):
    given = setting(tmp_path)
    with pytest.raises(ConfigError, match=r"auto|experts"):
        best_experts(given.base, given.task, experts(given.base), asked, given.train)


def test_too_few_rows_say_how_many_are_needed(tmp_path):
    given = setting(tmp_path)
    one_label = [e for e in given.train if e.label == 1][:3]
    with pytest.raises(DataError, match=r"bad: 0, good: 3.*\n?.*at least two"):
        rank_experts(replace(given, train=one_label), experts(given.base))
    with pytest.raises(ConfigError, match="No experts"):
        rank_experts(given, [])


def test_a_rare_label_among_many_rows_is_looked_at(tmp_path):
    """Two rows of 1,500: a draw of 512 need not hold them, and none could be judged then."""
    given = setting(tmp_path)
    rows = [
        replace(e, id=str(i), text=f"{e.text} {i}", label=int(i < 2))
        for i, e in enumerate(given.train * 63)
    ]
    ranking = ranked(given.base, given.task, experts(given.base, "a"), rows)
    assert ranking.rows == 512
    assert ranking.evidence.truth.sum() == 2
    guide, evidence = guide_of(replace(given, train=rows, experts=experts(given.base, "a")))
    assert evidence.truth.sum() == 2
    assert guide.rows == 512


def test_the_best_of_all_that_were_ranked_is_said_to_help_no_more_easily(tmp_path):
    """Taking some of them does not undo that all were looked at."""
    given = setting(tmp_path)
    ranking = rank_experts(given, experts(given.base))
    some = ranking.evidence.among(ranking.best(1))
    assert (len(some.experts), some.judged) == (1, 3)
    assert guide_from(some).to_dict()["judged"] == 3


def test_a_broken_expert_is_named_as_the_cause(tmp_path):
    given = setting(tmp_path)
    broken = experts(given.base, "a")[0]
    layer = replace(broken.layers[0], B=torch.full_like(broken.layers[0].B, float("inf")))
    broken = replace(broken, layers=(layer, *broken.layers[1:]))
    before = tiny.snapshot(given.base.model)
    with pytest.raises(ConfigError, match="Expert 'a' gives values that are not finite"):
        rank_experts(given, [broken])
    assert tiny.snapshot(given.base.model) == before
    made = rank_experts(given, [broken, *experts(given.base)[1:]])
    assert [r.name for r in made.ranks] in (["b", "c"], ["c", "b"])
    assert "not finite" in made.refused["a"]


def test_a_name_or_several_need_no_list(tmp_path):
    base = tiny.loaded("bert")
    task = tiny.task(tmp_path)

    def adapted(names):
        result = adapt(
            base, task, experts(base), method="pemt", names=names, shots=4, progress=False,
            settings=tiny.settings(), config=PemtConfig(reduction=4),
        )  # fmt: skip
        result.model.detach()
        return result.experts

    assert adapted("b") == ["b"]
    assert adapted("c, a") == ["c", "a"]
    with pytest.raises(UnknownNameError, match="auto"):
        adapted("auto")
