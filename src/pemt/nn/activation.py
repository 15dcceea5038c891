"""Activations by the names that transformers has for them."""

from __future__ import annotations

from torch import nn
from transformers.activations import ACT2FN

from pemt.errors import UnknownNameError


def activation_named(name: str) -> nn.Module:
    """The activation of this name.

    Raises:
        UnknownNameError: transformers has none of this name.
    """
    if name not in ACT2FN:
        raise UnknownNameError("activation", name, ACT2FN)
    made: nn.Module = ACT2FN[name]
    return made
