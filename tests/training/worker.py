"""What each of several processes runs for test_processes.py: `python -m ... worker FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from pemt.errors import ConfigError, PemtError, UnknownNameError
from pemt.tasks import Task
from pemt.training import fitting, processes, trainer
from pemt.training.evaluating import evaluate
from pemt.training.fitting import fit
from pemt.training.shared_prompts import MixedBatches
from tests import tiny

CASES = {
    # name: base, training rows, settings, model settings
    "bert": ("bert", 32, {}, {}),
    "long-rows": ("bert", 32, {"batch_size": 4, "max_steps": 9}, {}),  # grouped by length
    "t5-accumulation": ("t5", 30, {"batch_size": 5, "accumulation": 2, "max_steps": 5}, {}),
    "llama-last-batch": ("llama", 9, {"batch_size": 8, "max_steps": 4}, {}),
    "llama-one-row": ("llama", 1, {"max_steps": 3}, {}),
    "guided-columns": ("bert", 16, {}, {"guide": "evidence"}),
    "recomputed": ("t5", 12, {"batch_size": 6, "gradient_checkpointing": True}, {}),
    "no-loss-of-layers": ("gpt2", 7, {"batch_size": 4}, {"sparsity_weight": 0.0}),
}  # fmt: skip


def build(name: str, more: dict):
    base = tiny.loaded(name)
    base.model.config.num_labels = 2
    if "guide" in more:
        guide = {"a": 0.2, "b": 0.3, "c": 0.4, "none": 0.1}
        experts = [tiny.expert(base.model, n, seed=i) for i, n in enumerate("abc")]
        from pemt.model import PemtConfig, PemtModel

        config = PemtConfig(prompt_dropout=0.0, prompt_scale=0.1, reduction=4, **more)
        torch.manual_seed(7)
        model = PemtModel(base.model, experts, config, prompt=tiny.prompt(), outputs=3, guide=guide)
        return base, tiny.stir(model, size=0.02)
    return base, tiny.stir(tiny.pemt(base.model, **more), size=0.02)


def run(name: str, task: Task, folder: Path | None = None):
    """One case: how it went, and the parameters after it."""
    kind, count, settings, more = CASES[name]
    few = tiny.splits(task)
    trainer.GROUPED_FROM = 2 if name == "long-rows" else 20
    base, model = build(kind, more)
    made = fit(
        model, task, base.tokenizer, few.train[:count], few.validation, tiny.settings(**settings),
        folder=folder, progress=False,
    )  # fmt: skip
    scores, answers = evaluate(
        model, task, base.tokenizer, few.test, tiny.settings(), shared=processes.world() > 1
    )
    state = {k: v.clone().contiguous() for k, v in model.trained_state().items()}
    return made, state, scores, answers.texts


class Killed(BaseException):
    """Stands for a signal."""


def resumed(task: Task, folder: Path) -> dict[str, torch.Tensor]:
    """Killed in every process after the second evaluation, then run again."""
    real, seen = trainer.PemtTrainer.evaluate, []

    def evaluate(self, *args, **kwargs):
        found = real(self, *args, **kwargs)
        seen.append(1)
        return found

    def step(self, *args, **kwargs):
        if seen:
            raise Killed
        return stepped(self, *args, **kwargs)

    stepped = trainer.PemtTrainer.training_step
    trainer.PemtTrainer.evaluate, trainer.PemtTrainer.training_step = evaluate, step
    try:
        run("bert", task, folder)
        raise AssertionError("not killed")
    except Killed:
        processes.wait()
        assert list(folder.glob("checkpoint-*"))
    finally:
        trainer.PemtTrainer.evaluate, trainer.PemtTrainer.training_step = real, stepped
    processes.wait()
    return run("bert", task, folder)[1]


def wrapped(name: str) -> dict[str, torch.Tensor]:
    """Gradients of a plain DistributedDataParallel around a model, for loops of one's own."""
    model = build(name, {})[1].train()
    around = torch.nn.parallel.DistributedDataParallel(
        model, find_unused_parameters=True, broadcast_buffers=False
    )
    ids, mask = tiny.batch(4)
    labels = tiny.labels_for(model.family, ids, mask)
    mine = slice(2 * processes.number(), 2 * processes.number() + 2)
    items = (
        (labels != -100).sum() if model.family != "decoder-only" else (labels[:, 1:] != -100).sum()
    )
    loss = around(
        ids[mine], mask[mine], labels[mine], num_items_in_batch=items, num_examples_in_batch=4
    ).loss
    (loss * processes.world()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def sharded(name: str) -> dict[str, torch.Tensor]:
    """Gradients of a model whose every parameter is cut in two by FSDP (version 2)."""
    from torch.distributed.fsdp import fully_shard

    model = build(name, {})[1].train()
    for layer in model.base.encoder.layer:
        fully_shard(layer)
    around = fully_shard(model)
    ids, mask = tiny.batch(4)
    labels = tiny.labels_for(model.family, ids, mask)
    mine = slice(2 * processes.number(), 2 * processes.number() + 2)
    loss = around(
        ids[mine], mask[mine], labels[mine], num_items_in_batch=4, num_examples_in_batch=4
    ).loss
    (loss * processes.world()).backward()
    return {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}


def refusals() -> list[str]:
    def unknown() -> None:
        raise UnknownNameError("task", "rtee", ["rte"])

    said = []
    for work in (unknown, lambda: 1 / 1):
        try:
            said.append(repr(processes.on_main(work)))
        except PemtError as error:
            said.append(f"{type(error).__name__}: {error}")
    try:
        fitting.run(
            build("bert", {})[1], MixedBatches([], None, 1, 0), None, tiny.settings(), total=1,
            metric="x", score=None, identity=dict,
        )  # fmt: skip
    except ConfigError as error:
        said.append(str(error))
    return said


def main(folder: Path) -> None:
    processes.start()
    assert processes.world() == 2
    task = Task.from_file(folder / "tiny.yaml")
    out = folder / f"process-{processes.number()}"
    out.mkdir()
    found = {}
    for name in CASES:
        made, state, scores, texts = run(name, task)
        save_file(state, out / f"{name}.safetensors")
        found[name] = {"history": made.history, "best": made.best, "step": made.best_step,
                       "scores": scores, "texts": texts}  # fmt: skip
    save_file(resumed(task, folder / "resumed"), out / "resumed.safetensors")
    for name in tiny.ONE_OF_EACH_FAMILY:
        save_file(wrapped(name), out / f"wrapped-{name}.safetensors")
    save_file(sharded("bert"), out / "sharded-bert.safetensors")
    found["refusals"] = refusals()
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
