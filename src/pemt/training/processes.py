"""Several processes that train one model: `torchrun` or `accelerate launch` around a command.

Every process holds the whole model and takes its share of every batch; gradients are averaged once
an optimiser step. The model is not wrapped in DistributedDataParallel: what trains is about one per
cent, so one message a step is cheap, while a wrapper would send every buffer (all experts) at each
pass, could not run re-entrant checkpointing with unused parameters, and would wait forever for a
process without rows. Run alone, everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from pemt.errors import PemtError, TrainingError

T = TypeVar("T")


def launched() -> int:
    """How many processes a launcher started for this command; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def start() -> None:
    """Meet the other processes a launcher started; gloo on a CPU, NCCL on GPUs.

    Raises:
        TrainingError: there are others, and this torch cannot talk to them.
    """
    if launched() == 1 or world() > 1:
        return
    if not torch.distributed.is_available():
        raise TrainingError(
            f"WORLD_SIZE is {launched()}, and this torch has no torch.distributed",
            "run one process, or install a torch that has it",
        )
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())


def world() -> int:
    """How many processes train together."""
    distributed = torch.distributed
    on = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if on else 1


def number() -> int:
    """This process's number, from 0."""
    return torch.distributed.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return number() == 0


def wait() -> None:
    """Until all are here."""
    if world() > 1:
        torch.distributed.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The first process goes through alone, then the others: for what fills a cache on disk."""
    if not is_main():
        wait()
    try:
        yield
    finally:
        if is_main():
            wait()


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns or raises in the first process, in all of them."""
    if world() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except PemtError as error:
            outcome[1] = (type(error), error.what, error.fix)
    torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        kind, what, fix = outcome[1]
        raised = kind.__new__(kind)
        PemtError.__init__(raised, what, fix)  # kinds of their own arguments are rebuilt as well
        raise raised
    result: T = outcome[0]
    return result


def share(items: list[T]) -> list[T]:
    """This process's items: every n-th."""
    return items[number() :: world()]


def gathered(value: T) -> list[T]:
    """The value of every process, in the order of their numbers."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    torch.distributed.all_gather_object(values, value)
    return values


def total(count: int, device: torch.device) -> int:
    """The sum of a whole number over the processes."""
    if world() == 1:
        return count
    summed = torch.tensor(count, device=device)
    torch.distributed.all_reduce(summed)
    return int(summed)


@torch.no_grad()
def same_start(model: nn.Module) -> None:
    """Give every process the first one's trained parameters."""
    if world() == 1:
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.distributed.broadcast(parameter.data, 0)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; one that nobody has stays None.

    A process without a gradient, such as one without rows, counts as zero.
    """
    if world() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return
    there = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32)
    there = there.to(trained[0].device)
    torch.distributed.all_reduce(there, torch.distributed.ReduceOp.MAX)
    used = [p for p, somewhere in zip(trained, there.tolist(), strict=True) if somewhere]
    if not used:
        return
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in used]
    )
    torch.distributed.all_reduce(flat)
    flat /= world()
    for p, mean in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
        p.grad = mean.view_as(p).to(p.dtype)
