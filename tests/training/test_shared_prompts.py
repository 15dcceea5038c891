"""MPT's source stage: tuned together, taught apart, kept as prompts with factors."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from pemt.errors import ConfigError, ExpertError
from pemt.experts import ExpertLibrary
from pemt.methods import METHODS, Setting
from pemt.model import PemtConfig, SourceConfig, SourceModel
from pemt.model.shared import SharedPromptModel
from pemt.tasks.encoding import Collator
from pemt.training import train_source
from pemt.training.shared_prompts import MixedBatches, train_shared_prompt
from tests import tiny

FAMILIES = pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
PROMPT = SourceConfig(kind="prompt", prompt_tokens=4)


def two_tasks(place, kinds=("classification", "classification")):
    return [
        tiny.task(place, n, seed=i, kind=k)
        for i, (n, k) in enumerate(zip("ab", kinds, strict=True))
    ]


def taught(base, tasks, place):
    library = ExpertLibrary(place / "prompts")
    for task in tasks:
        train_source(
            base, task, library, config=PROMPT, settings=tiny.settings(), progress=False
        )  # fmt: skip
    return library


@FAMILIES
def test_prompts_are_tuned_together_and_kept(tmp_path, name):
    base, tasks = tiny.loaded(name), two_tasks(tmp_path)
    before = tiny.snapshot(base.model)
    teachers = taught(base, tasks, tmp_path)
    made = train_shared_prompt(
        base, tasks, tmp_path / "shared", teachers, settings=tiny.settings(max_steps=12),
        progress=False, folder=tmp_path / "run",
    )  # fmt: skip
    assert tiny.snapshot(base.model) == before
    assert made.metrics.keys() == {"a", "b"}
    assert made.fit.steps == 12
    library = ExpertLibrary(tmp_path / "shared")
    assert library.verify() == []
    one, other = library.load_many(["a", "b"])
    assert one.factors.shared.equal(other.factors.shared)
    assert not one.factors.u.equal(other.factors.u)
    for expert in (one, other):
        assert expert.prompt.shape == (4, 32)
        assert expert.prompt.equal(expert.factors.prompt())
        assert bool(expert.head) == (name == "bert")
        assert expert.info.settings["teacher"][0] == expert.name
        assert expert.info.settings["shared_prompt"]["distillation"] == 0.9
    for k, task in enumerate(tasks):  # a source's prompt alone answers as it did together
        model = SourceModel.from_expert(base.model, (one, other)[k], outputs=task.num_labels)
        from pemt.training import evaluate

        again, _ = evaluate(model, task, base.tokenizer, tiny.splits(task).test, tiny.settings())
        model.detach()
        assert again == pytest.approx(made.metrics[task.name], abs=1e-5)
    setting = Setting(
        base=base, task=tasks[0], experts=[one, other], train=[], validation=[], config=PemtConfig()
    )
    model = METHODS["mpt"].build(setting)
    u, v = (torch.stack([getattr(e.factors, n) for e in (one, other)]).mean(0) for n in "uv")
    torch.testing.assert_close(model.prompt().detach(), one.factors.shared * torch.outer(u, v))
    model.detach()


def shared_model(name, kind="classification", **changes):
    base = tiny.base(name)
    experts = [tiny.source_prompt(base, n, seed=i) for i, n in enumerate("ab")]
    outputs = [None, None]
    if name == "bert":
        outputs = [3, 1 if kind == "regression" else 2]
        experts = [
            tiny.with_head(e, n, seed=i)
            for i, (e, n) in enumerate(zip(experts, outputs, strict=True))
        ]
    start = tiny.prompt(length=4)
    model = SharedPromptModel(base, experts, start, outputs=outputs, **changes)
    return base, experts, tiny.stir(model)


@FAMILIES
@pytest.mark.parametrize("source", [0, 1])
def test_the_loss_is_the_papers(name, source):
    """Against separate models: the student's own pass, and the teacher's, by the formula."""
    base, experts, model = shared_model(name)
    ids, mask = tiny.batch(4, 9)
    labels = tiny.labels_for(model.family, ids, mask, classes=(3, 2)[source])
    loss = model.train()(ids, mask, labels, source=source).loss.detach()
    model.eval()
    with torch.no_grad():
        student = model(ids, mask, labels)
        own = model.factors(source)
        expected = own.shared * torch.outer(own.u, own.v)
        torch.testing.assert_close(model.prompt(), expected)
    model.detach()
    teacher = SourceModel.from_expert(base, experts[source], outputs=model.outputs)
    with torch.no_grad():
        wanted = teacher.eval()(ids, mask, labels)
    teacher.detach()
    apart = 0.0
    kl, tokens = 0.0, 0
    for row in range(4):
        if name == "bert":
            places, logits = [()], (student.logits[row], wanted.logits[row])
        else:
            shift = 1 if name == "llama" else 0
            first = ids.shape[1] - student.logits.shape[1] if name == "llama" else 0
            places = [t - shift - first for t, y in enumerate(labels[row].tolist()) if y != -100]
            logits = (student.logits[row], wanted.logits[row])
        for t in places:
            p, q = (x[t].softmax(-1) for x in logits[::-1])
            kl += float((p * (p.log() - q.log())).sum())
            tokens += 1
        there = student.text_mask[row].bool()
        assert int(there.sum()) == int(mask[row].sum())
        d = student.last_hidden_state[row, there] - wanted.last_hidden_state[row, there]
        apart += float(d.square().sum())
    hidden = apart / (int(mask.sum()) * 32)
    assert kl > 0
    assert hidden > 0
    assert float(loss) == pytest.approx(
        float(student.task_loss) + 0.9 * (kl / tokens + hidden), rel=1e-4
    )


def test_a_regression_is_distilled_by_its_square():
    _, _, model = shared_model("bert", "regression")
    ids, mask = tiny.batch(4, 9)
    output = model.train()(ids, mask, torch.rand(4), source=1)
    model.eval()
    with torch.no_grad(), model._teacher():
        wanted = model(ids, mask).logits
    squares = (output.logits - wanted).square().mean()
    difference = (output.loss - output.task_loss).detach() / 0.9
    assert float(difference) > float(squares) > 0
    assert not model._teaching


def test_without_distillation_no_teacher_runs():
    _, _, model = shared_model("bert", distillation=0.0)
    ids, mask = tiny.batch()
    output = model.train()(ids, mask, torch.tensor([0, 1, 2]), source=0)
    assert output.loss.equal(output.task_loss)


@FAMILIES
def test_only_the_shared_prompt_and_the_sources_own_parts_learn(name):
    _, _, model = shared_model(name)
    ids, mask = tiny.batch()
    labels = tiny.labels_for(model.family, ids, mask, classes=2)
    model.train()(ids, mask, labels, source=1).loss.backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None}
    heads = {f"head.heads.1.{n}" for n in ("weight", "bias")} if name == "bert" else set()
    assert moved == {"shared", "u.1", "v.1"} | heads


def test_the_teacher_has_no_dropout_and_the_student_gets_its_own_back():
    _, _, model = shared_model("bert")
    for module in model.base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    ids, mask = tiny.batch()
    model.train()
    with torch.no_grad(), model._teacher():
        assert model(ids, mask).logits.equal(model(ids, mask).logits)
    assert not model(ids, mask).logits.equal(model(ids, mask).logits)


def test_batches_are_of_one_source_and_all_sources_come_equally_often():
    tokenizer = tiny.tokenizer("encoder-only")
    rows = [[{"input_ids": [5 + i], "labels": k} for i in range(n)] for k, n in enumerate((5, 50))]
    batches = MixedBatches(rows, Collator(tokenizer, "encoder-only"), 4, seed=0)
    drawn = list(islice(batches, 400))
    for batch in drawn:
        assert set(batch["labels"].tolist()) == {batch["source"]}
    often = sum(b["source"] for b in drawn) / len(drawn)
    assert 0.42 < often < 0.58
    seen = [i for b in drawn[:60] if b["source"] == 0 for i in b["input_ids"][:, 0].tolist()]
    assert sorted(seen[:5]) == sorted(seen[5:10]) == [5, 6, 7, 8, 9], (
        "each row once each time round"
    )
    again = list(islice(batches, 5))
    assert all(x["input_ids"].equal(y["input_ids"]) for x, y in zip(drawn, again, strict=False))


def test_a_killed_run_goes_on_and_ends_alike(tmp_path, monkeypatch):
    base, tasks = tiny.loaded("bert"), two_tasks(tmp_path)
    teachers = taught(base, tasks, tmp_path)
    settings = tiny.settings(max_steps=6, evaluations=3)

    def go(place, **more):
        train_shared_prompt(
            base, tasks, tmp_path / f"library-{place}", teachers, settings=settings, progress=False,
            folder=tmp_path / place, **more,
        )  # fmt: skip
        return ExpertLibrary(tmp_path / f"library-{place}").load("a")

    whole = go("whole")
    steps = []
    real = SharedPromptModel.forward

    def forward(self, *args, **kwargs):
        if self.training and "source" in kwargs:
            steps.append(1)
            if len(steps) == 5:
                raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(SharedPromptModel, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        go("killed")
    again = go("killed")
    assert len(steps) < 5 + 6, "it began anew"
    assert again.prompt.equal(whole.prompt)


def test_bad_requests_are_refused_before_anything_runs(tmp_path):
    base, tasks = tiny.loaded("bert"), two_tasks(tmp_path)
    prompts = [tiny.source_prompt(base.model, n) for n in "ab"]
    short = tiny.source_prompt(base.model, "b", rows=3)
    place = tmp_path / "shared"

    def go(tasks, teachers, **more):
        train_shared_prompt(base, tasks, place, teachers, progress=False, **more)

    with pytest.raises(ConfigError, match="at least two"):
        go(tasks[:1], prompts)
    with pytest.raises(ConfigError, match="each once"):
        go([tasks[0], tasks[0]], prompts)
    with pytest.raises(ConfigError, match=r"(?s)0 prompts tuned on 'b'.*--source\.kind prompt"):
        go(tasks, prompts[:1])
    with pytest.raises(ConfigError, match="0 prompts tuned on 'b'"):
        go(tasks, [prompts[0], tiny.expert(base.model, "b")])
    with pytest.raises(ConfigError, match="rows"):
        go(tasks, [prompts[0], short])
    with pytest.raises(ConfigError, match="distillation=-1"):
        go(tasks, prompts, distillation=-1)
    with pytest.raises(ExpertError, match="head"):
        go(tasks, prompts)
    ExpertLibrary(place).add(prompts[0])
    with pytest.raises(ConfigError, match="already has"):
        go(tasks, prompts)
