"""A batch of several tasks equals each task's own model; the experts are there once."""

from __future__ import annotations

import pytest
import torch

from pemt.errors import ConfigError, ExpertError, UnknownNameError
from pemt.model import PemtConfig, PemtModel, TaskPart, TaskRouter
from tests import tiny

GUIDE = {"a": 0.2, "b": 0.3, "c": 0.4, "none": 0.1}


def library(base):
    return [
        tiny.expert(base, "a", rank=4, seed=1),
        tiny.expert(base, "b", rank=2, seed=2, prompt=2),
        tiny.expert(base, "c", rank=4, seed=3, prompt=5),
    ]


def adapted(base, experts, seed, *, guide=None, rows=3, outputs=3, order=(0, 1, 2), **settings):
    """A model of one task, trained parameters moved by seed."""
    config = PemtConfig(
        prompt_dropout=0.0, prompt_scale=0.1, reduction=4,
        guide="none" if guide is None else "evidence", **settings,
    )  # fmt: skip
    encoder_only = tiny.outputs_of(base) is not None
    model = PemtModel(
        base, [experts[i] for i in order], config, prompt=tiny.prompt(length=rows, seed=seed),
        outputs=outputs if encoder_only else None, guide=guide,
    )  # fmt: skip
    return tiny.stir(model, seed=seed)


TASKS = {
    "plain": {"seed": 1},
    "guided": {"seed": 2, "guide": GUIDE, "rows": 6, "outputs": 4},
    "bare": {"seed": 3, "rows": 1, "outputs": 1, "target_adapter": False, "order": (2, 0, 1)},
}


def parts_of(base, given=TASKS, look=lambda _name, _model: None, experts=None):
    experts = experts or library(base)
    parts, seen = [], {}
    for name, options in given.items():
        model = adapted(base, experts, **options)
        with torch.no_grad():
            seen[name] = look(name, model)
        parts.append(TaskPart.of(name, model))
        model.detach()
    return parts, seen


ROWS = ["guided", "plain", "bare", "plain", "guided"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_mixed_batch_equals_task_by_task(name, side):
    base = tiny.base(name)
    ids, mask = tiny.batch(len(ROWS), side=side)
    more = tiny.decode_inputs(base, len(ROWS))
    before = tiny.snapshot(base)
    parts, alone = parts_of(base, look=lambda _, model: model(ids, mask, output_gates=True, **more))
    router = TaskRouter(base, parts)
    with torch.no_grad(), router.on(ROWS):
        mixed = router(ids, mask, output_gates=True, **more)
    for i, task in enumerate(ROWS):
        own = alone[task].logits[i]
        torch.testing.assert_close(mixed.logits[i][..., : own.shape[-1]], own, atol=1e-5, rtol=1e-4)
        if router.head is not None:
            assert mixed.logits[i][own.shape[-1] :].eq(-torch.inf).all()
        for there, here in zip(mixed.gates, alone[task].gates, strict=True):
            columns = [router.gate_names.index(n) for n in parts_names(parts, task)]
            torch.testing.assert_close(there[i][columns], here[i], atol=1e-5, rtol=1e-4)
            assert float(there[i].sum()) == pytest.approx(1, abs=1e-5)
    width = 1 if router.head is not None else None
    plain, bare = (alone[task].logits[0, ..., :width] for task in ("plain", "bare"))
    assert not torch.allclose(plain, bare)
    router.detach()
    assert tiny.snapshot(base) == before


def parts_names(parts, task):
    return next(part.gate_names for part in parts if part.name == task)


@pytest.mark.parametrize("gate", ["task", "uniform", "none"])
@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_other_gates_and_no_mixture(name, gate):
    base = tiny.base(name)
    ids, mask = tiny.batch(4)
    more = tiny.decode_inputs(base, 4)
    kind = {"mixture": False} if gate == "none" else {"gate": gate}
    given = {"a": {"seed": 1, **kind}, "b": {"seed": 2, "rows": 5, **kind, "train_norms": True}}
    parts, alone = parts_of(base, given, lambda _, model: model(ids, mask, **more).logits)
    with torch.no_grad(), TaskRouter(base, parts).on(["a", "b", "b", "a"]) as router:
        mixed = router(ids, mask, **more).logits
    for i, task in enumerate(["a", "b", "b", "a"]):
        torch.testing.assert_close(mixed[i], alone[task][i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gate", ["example", "task"])
@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_a_batch_without_the_task_of_the_longest_prompt(name, gate):
    base = tiny.base(name)
    ids, mask = tiny.batch(2, length=4)
    more = tiny.decode_inputs(base, 2)
    given = {
        "long": {"seed": 1, "rows": 20, "gate": gate},
        "short": {"seed": 2, "rows": 2, "gate": gate},
    }
    parts, alone = parts_of(base, given, lambda _, model: model(ids, mask, **more).logits)
    with torch.no_grad(), TaskRouter(base, parts).on(["short", "short"]) as router:
        made = router(ids, mask, **more).logits
    torch.testing.assert_close(made, alone["short"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"use_cache": False}])
@pytest.mark.parametrize("name", ["t5", "bart", "llama", "gpt2"])
def test_generation_and_scores(name, settings):
    base = tiny.base(name)
    ids, mask = tiny.batch(len(ROWS), side="left")
    words = [[5, 1], [6, 7, 1]]
    asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, **settings}

    def look(_, model):
        return model.generate(ids, mask, **asked), model.score_answers(ids, mask, words)

    parts, alone = parts_of(base, look=look)
    with TaskRouter(base, parts).on(ROWS) as router:
        made, scores = look("", router)
    for i, task in enumerate(ROWS):
        own = alone[task][0][i]
        length = min(len(own), made.shape[1])
        assert made[i][:length].tolist() == own[:length].tolist()
        torch.testing.assert_close(scores[i], alone[task][1][i], atol=1e-4, rtol=1e-4)


def storages(model) -> dict[int, int]:
    """Bytes of every tensor storage that the model holds, each counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def test_experts_are_held_once_for_any_number_of_tasks():
    base = tiny.base("bert")
    experts = [tiny.expert(base, n, rank=16, seed=i) for i, n in enumerate("abc")]
    sizes = {}
    for count in (1, 2, 6):
        given = {f"t{i}": {"seed": i + 1} for i in range(count)}
        parts, _ = parts_of(base, given, experts=experts)
        router = TaskRouter(base, parts)
        banks = [layer.bank for layer in router.mixtures]
        assert len(banks) == len(router.sites)
        sizes[count] = (sum(storages(router).values()), sum(b.size for b in banks) * 4)
        own = sum(p.numel() for m in (*parts[0].gates, *parts[0].adapters, *parts[0].norms,
                                      parts[0].head) for p in m.parameters()) * 4  # fmt: skip
        router.detach()
    prompt = 3 * 32 * 4
    assert sizes[6][1] == sizes[1][1]
    # a task more is what it trained (and the length of its prompt), and nothing else
    assert sizes[2][0] - sizes[1][0] == pytest.approx(own + prompt, abs=64)
    assert sizes[6][0] - sizes[1][0] == pytest.approx(5 * (own + prompt), abs=64)
    assert own < sizes[1][1]


def test_refusals():
    base = tiny.base("bert")
    same = library(base)
    parts, _ = parts_of(base, experts=same)
    other = [tiny.expert(base, n, seed=9) for n in "abc"]
    stranger, _ = parts_of(base, {"stranger": {"seed": 4}}, experts=other)
    with pytest.raises(ExpertError, match="'plain' and 'stranger' mix different experts: 'a'"):
        TaskRouter(base, [parts[0], *stranger])
    fewer, _ = parts_of(base, {"fewer": {"seed": 4, "order": (0, 1)}}, experts=same)
    with pytest.raises(ExpertError, match="'c' is not the same in both"):
        TaskRouter(base, [parts[0], *fewer])
    one, _ = parts_of(base, {"one": {"seed": 1}}, experts=same)
    uniform, _ = parts_of(base, {"u": {"seed": 4, "gate": "uniform"}}, experts=same)
    with pytest.raises(ConfigError, match="gate='example' in 'one' and 'uniform' in 'u'"):
        TaskRouter(base, [*one, *uniform])
    with pytest.raises(ConfigError, match="each name once"):
        TaskRouter(base, [*one, *one])
    for settings, said in (({"top_k": 1}, "top_k=1"), ({"target_adapter": "lora"}, "lora")):
        model = adapted(base, same, 1, **settings)
        with pytest.raises(ConfigError, match=f"'one' was adapted with .*{said}"):
            TaskPart.of("one", model)
        model.detach()
    router = TaskRouter(base, parts)
    ids, mask = tiny.batch(2)
    with pytest.raises(ConfigError, match="2 rows and no tasks"):
        router(ids, mask)
    with router.on(["plain"]), pytest.raises(ConfigError, match="tasks for 1 rows"):
        router(ids, mask)
    with pytest.raises(UnknownNameError, match="Did you mean: plain"), router.on(["plan"]):
        pass
    with router.on(["plain", "bare"]), pytest.raises(ConfigError, match="it answers"):
        router(ids, mask, torch.tensor([0, 1]))
    assert router.generate  # still usable
    router.detach()
