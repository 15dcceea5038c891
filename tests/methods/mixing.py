"""What the tests of methods over frozen experts share."""

from __future__ import annotations

import torch

from pemt.methods import Setting
from pemt.model import PemtConfig, SourceModel
from tests import tiny

INPUTS = {"t5": {"decoder_input_ids": torch.tensor([[0, 9, 11, 30]] * 3)}}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def promptless(model, **settings):
    """Three unequal experts without prompts."""
    return [
        tiny.expert(model, name, seed=seed, prompt=0, **{"rank": rank, **settings})
        for name, rank, seed in (("a", 4, 1), ("b", 2, 2), ("c", 4, 3))
    ]


def given(folder, name, *, kind="classification", experts=None, **changes) -> Setting:
    """What a method gets on a tiny base."""
    base = tiny.loaded(name)
    task = tiny.task(folder, kind=kind)
    rows = tiny.splits(task)
    return Setting(
        **{
            "base": base, "task": task,
            "experts": promptless(base.model) if experts is None else experts(base.model),
            "train": rows.train, "validation": rows.validation,
            "config": PemtConfig(reduction=4, prompt_scale=0.1), "max_source_length": 24,
            **changes,
        }
    )  # fmt: skip


@torch.no_grad()
def logits(model, **more):
    ids, mask = tiny.batch()
    name = model.base.config.model_type
    return model(ids, mask, **INPUTS.get(name, {}), **more).logits


def single(name, expert, outputs=None, head=None):
    """What one plain expert answers on a fresh base: the branch beside the down projections."""
    base = tiny.loaded(name)
    model = SourceModel.from_expert(base.model, expert, outputs=outputs).eval()
    if head is not None:
        model.head.load_state_dict(head.state_dict())
    return logits(model)
