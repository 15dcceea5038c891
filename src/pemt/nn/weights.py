"""All weights of a base in training, with a way back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class TrainedWeights(nn.Module):
    """Trainable float32 copies in the place of a base's own parameters.

    A parameter that several modules share stays shared. The base's own parameters are kept as they
    are, once: nothing is written to them, so what `put_back` puts in place is the base bit for
    bit, in its own type and storage. As a module of the base it shows that something is attached.

    Args:
        base: whose parameters are exchanged, at once.
        idle: modules of the base whose parameters take the type but do not train.
    """

    def __init__(self, base: nn.Module, idle: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        resting = {id(p) for module in idle for p in module.parameters()}
        made: dict[int, nn.Parameter] = {}
        # plain tuples: neither the copies nor the originals become parameters of this module
        self.places: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        for module in base.modules():
            for name, own in module._parameters.items():
                if own is None:
                    continue
                if id(own) not in made:
                    trains = id(own) not in resting
                    copy = own.detach().to(torch.float32, copy=trains)
                    made[id(own)] = nn.Parameter(copy, requires_grad=trains)
                self.places.append((module, name, own, made[id(own)]))
        self.put_in()

    def put_in(self) -> None:
        """The base computes with the trained weights."""
        for module, name, _, trained in self.places:
            module._parameters[name] = trained

    def put_back(self) -> None:
        """The base computes with its own weights."""
        for module, name, own, _ in self.places:
            module._parameters[name] = own
