"""ATTEMPT: the paper's formula, one prompt for each example, nothing read of padding or answers."""

from __future__ import annotations

import math

import pytest
import torch

from pemt.methods import METHODS, Setting
from pemt.model import PemtConfig
from tests import tiny

FAMILIES = pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
GENERATES = pytest.mark.parametrize("name", ["t5", "llama"])


@pytest.fixture
def built(tmp_path):
    def make(name):
        base = tiny.loaded(name)
        experts = [tiny.source_prompt(base.model, n, seed=i) for i, n in enumerate("abc")]
        setting = Setting(
            base=base, task=tiny.task(tmp_path), experts=experts, train=[], validation=[],
            config=PemtConfig(),
        )  # fmt: skip
        model = tiny.stir(METHODS["attempt"].build(setting)).eval()
        model.attention.temperature = 4.0  # else tiny widths make all weights nearly equal
        return experts, model

    return make


def mixed(model, experts, embedded):
    """The paper's formula for one example, in plain steps: embeddings `[S, D]` without padding."""
    own = model.prompt()
    prompts = [e.prompt for e in experts] + [own]
    x = torch.stack([embedded[:, d].max() for d in range(embedded.shape[1])])
    hidden = model.attention.down.weight @ x
    hidden = model.attention.up.weight @ (hidden * torch.sigmoid(hidden))
    norm = model.attention.norm
    query = (hidden - hidden.mean()) / (hidden.var(unbiased=False) + norm.eps).sqrt()
    query = query * norm.weight + norm.bias
    scores = [float(p.max(0).values @ query) / model.attention.temperature for p in prompts]
    total = sum(math.exp(s) for s in scores)
    made = own.clone()
    for score, prompt in zip(scores, prompts, strict=True):
        made = made + math.exp(score) / total * prompt
    return made


@FAMILIES
@torch.no_grad()
def test_each_example_gets_the_papers_prompt(built, name):
    experts, model = built(name)
    ids, mask = tiny.batch(4, 9)
    found = model.prompt_for(model._embed(ids), mask)
    for row in range(4):
        real = model._embed(ids[row][mask[row].bool()])
        torch.testing.assert_close(found[row], mixed(model, experts, real), rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3, "examples share a prompt"


def test_the_temperature_is_the_papers(tmp_path):
    base = tiny.loaded("bert")
    setting = Setting(
        base=base, task=tiny.task(tmp_path), experts=[tiny.source_prompt(base.model, "a")],
        train=[], validation=[], config=PemtConfig(),
    )  # fmt: skip
    assert METHODS["attempt"].build(setting).attention.temperature == pytest.approx(32 * math.e)


@FAMILIES
@torch.no_grad()
def test_the_logits_are_those_of_that_prompt(built, name):
    """Row by row, against the same base with that row's prompt put in as a fixed one."""
    from pemt.model import SourceConfig, SourceModel

    _, model = built(name)
    ids, mask = tiny.batch(3, 7)
    given = tiny.decode_inputs(model, 3)
    found = model(ids, mask, **given).logits
    prompts = model.prompt_for(model._embed(ids), mask)
    head = None if model.head is None else model.head.state_dict()
    base, outputs = model.detach(), model.outputs
    for row in range(3):
        config = SourceConfig(kind="prompt", prompt_tokens=4)
        one = SourceModel(base, config, prompt=prompts[row], outputs=outputs).eval()
        if head is not None:
            one.head.load_state_dict(head)
        real = mask[row : row + 1].bool()
        text = ids[row : row + 1][real].unsqueeze(0)
        wanted = one(text, **{k: v[row : row + 1] for k, v in given.items()}).logits
        shown = found[row : row + 1]
        if name == "llama":
            shown = shown[real].unsqueeze(0)
        torch.testing.assert_close(shown, wanted, rtol=1e-4, atol=1e-4)
        one.detach()


@FAMILIES
@torch.no_grad()
def test_padding_does_not_matter(built, name):
    _, model = built(name)
    ids, mask = tiny.batch(3, 7)
    moved_ids, moved_mask = tiny.move_padding(ids, mask)
    wider = torch.nn.functional.pad(ids, (0, 5), value=9), torch.nn.functional.pad(mask, (0, 5))
    given = tiny.decode_inputs(model, 3)
    last = {"llama": lambda x, m: x[torch.arange(3), m.cumsum(1).argmax(1)]}.get(
        name, lambda x, _: x
    )
    wanted = last(model(ids, mask, **given).logits, mask)
    for other_ids, other in ((moved_ids, moved_mask), wider):
        found = last(model(other_ids, other, **given).logits, other)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        features = model.features(other_ids, other)
        torch.testing.assert_close(features, model.features(ids, mask), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_prompt_does_not_know_the_answer(built):
    """Decoder-only, in training: other answers, equal prompts; and those are decoding's."""
    _, model = built("llama")
    ids, mask = tiny.batch(3, 8)
    labels = tiny.labels_for("decoder-only", ids, mask)
    seen = []
    real = model.prompt_for
    model.prompt_for = lambda *given: seen.append(real(*given)) or seen[-1]
    model(ids, mask, labels)
    other = torch.where(labels != -100, (ids + 7) % tiny.VOCABULARY, ids)
    model(other, mask, torch.where(labels != -100, other, -100))
    text = mask * (labels == -100)
    model.generate(ids[:, :4], text[:, :4], max_new_tokens=1, do_sample=False)
    assert seen[0].equal(seen[1])
    torch.testing.assert_close(seen[2], seen[0])


@GENERATES
@torch.no_grad()
def test_likelihoods_of_answers_agree_with_the_training_loss(built, name):
    _, model = built(name)
    ids, mask = tiny.batch(2, 6)
    answers = [[7, 9, 1], [11, 1]]
    scores = model.score_answers(ids, mask, answers)
    for row in range(2):
        text = ids[row][mask[row].bool()]
        for k, answer in enumerate(answers):
            end = torch.tensor(answer)
            if name == "t5":
                given, labels = text, end
            else:
                given = torch.cat([text, end])
                labels = torch.cat([torch.full_like(text, -100), end])
            loss = model(given[None], torch.ones_like(given)[None], labels[None]).loss
            assert float(scores[row, k]) == pytest.approx(-float(loss) * len(end), rel=1e-3)


@GENERATES
@torch.no_grad()
def test_cached_and_uncached_generation_agree(built, name):
    _, model = built(name)
    ids, mask = tiny.batch(3, 6)
    for settings in ({}, {"num_beams": 2}):
        made = [
            model.generate(
                ids, mask, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=cache,
                pad_token_id=0, **settings,
            )
            for cache in (True, False)
        ]  # fmt: skip
        assert made[0].equal(made[1])


@FAMILIES
def test_the_gradient_reaches_all_that_trains_and_no_source(built, name):
    _, model = built(name)
    ids, mask = tiny.batch()
    model(ids, mask, tiny.labels_for(model.family, ids, mask, classes=2)).loss.backward()
    grown = tiny.gradients(model)
    assert all(float(g.abs().max()) > 0 for g in grown.values())
    assert set(grown) - {"head.weight", "head.bias"} == {
        "target.embedding.weight", "attention.down.weight", "attention.up.weight",
        "attention.norm.weight", "attention.norm.bias",
    }  # fmt: skip
    assert not model.sources.requires_grad


@FAMILIES
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(built, name, reentrant):
    _, model = built(name)
    model.train()
    ids, mask = tiny.batch()
    labels = tiny.labels_for(model.family, ids, mask, classes=2)
    model(ids, mask, labels).loss.backward()
    wanted = tiny.gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(ids, mask, labels).loss.backward()
    model.gradient_checkpointing_disable()
    for key, value in tiny.gradients(model).items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=1e-6)


def test_a_row_without_text_stays_finite(built):
    _, model = built("bert")
    ids, mask = tiny.batch(2, 5)
    mask[1] = 0
    assert model.prompt_for(model._embed(ids), mask).isfinite().all()
