"""Random experts and inputs for the tests of `pemt.nn`."""

from __future__ import annotations

import torch
from torch import Tensor

from pemt.nn import ExpertTensors

HIDDEN, WIDTH = 24, 16


def expert(rank: int, *, kind: str = "lora", seed: int = 0, zero: bool = False) -> ExpertTensors:
    draw = torch.Generator().manual_seed(1000 + seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    size = 0.0 if zero else 1.0
    A, B = normal(rank, HIDDEN) / HIDDEN**0.5, size * normal(WIDTH, rank)
    if kind == "lora":
        return ExpertTensors(A=A, B=B, scale=0.5 + 0.25 * seed)
    return ExpertTensors(
        A=A, B=B, a=0.5 * normal(rank), b=size * 0.5 * normal(WIDTH), activation=kind
    )


def experts(kinds: str) -> list[ExpertTensors]:
    """ "l4 g2 r3": a LoRA of rank 4, bottlenecks of rank 2 (gelu_new) and 3 (relu)."""
    names = {"l": "lora", "g": "gelu_new", "r": "relu"}
    return [
        expert(int(word[1:]), kind=names[word[0]], seed=k) for k, word in enumerate(kinds.split())
    ]


def inputs(rows: int, length: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x `[B, T, F]`, y `[B, T, D]` and gates `[B, K]`; all of them want gradients."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, length, HIDDEN, generator=draw)
    y = torch.randn(rows, length, WIDTH, generator=draw)
    gates = torch.randn(rows, count, generator=draw).softmax(-1)
    return x.requires_grad_(), y.requires_grad_(), gates.requires_grad_()


def weights(rows: int, length: int) -> Tensor:
    """0/1 token weights with padding; row 0 is all text."""
    kept = torch.ones(rows, length)
    for row in range(rows):
        kept[row, length - min(row, length - 1) :] = 0
    return kept


# one of each way the bank stacks: any K, unequal ranks, kinds apart and between one another
MIXES = [
    "l4",
    "l1",
    "g3",
    "l4 l4",
    "l4 l2 l4",
    "l4 l2 l3 l4",  # stacked in an order that is not its own inverse
    "g2 g2 g5",
    "l4 g4 l4 r4",
    "g3 l2 g3 l2 r3",
    "l1 l2 l3 l4 l5 l6",
]
SHAPES = [(1, 1), (1, 5), (3, 1), (3, 5)]
