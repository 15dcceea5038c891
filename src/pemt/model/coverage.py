"""Where experts sit on a base: which of its linear maps they have a branch beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from pemt.backbones import Backbone, Site, linear_paths, linear_site
from pemt.errors import BackboneError, ExpertError
from pemt.nn import ExpertBank, ExpertTensors

if TYPE_CHECKING:
    import torch

    from pemt.experts import Expert, ExpertLayer

STACKS: WeakValueDictionary[tuple[Any, ...], ExpertBank] = WeakValueDictionary()
"""Banks in use, by what they were made from; one goes with the last model that has it."""


def expert_sites(
    base: Any, backbone: Backbone, made: str, downs: Sequence[Site], experts: Sequence[Expert]
) -> list[Site]:
    """The linear maps other than down projections that at least one of the experts is beside.

    Args:
        base: with nothing attached.
        backbone: its description.
        made: the base's fingerprint.
        downs: its down projections.
        experts: checked here against the base.

    Returns:
        Sites in the base's order, numbered on from the down projections: those keep their numbers
        whatever else the experts cover.

    Raises:
        ExpertError: a prompt, which has no branches; an expert of another base, of other widths,
            with a branch at a place the base does not have, or without one of the down projections
            it is said to cover.
    """
    known = {site.path: site for site in downs}
    for expert in experts:
        if expert.info.base_fingerprint != made:
            raise ExpertError(
                f"Expert {expert.name!r} was made for the base {expert.info.base!r} "
                f"({expert.info.base_fingerprint[:12]}), this base is {made[:12]}",
                "train or import it for this base, or load the base it was made for",
            )
        if expert.kind == "prompt":
            raise ExpertError(
                f"Expert {expert.name!r} is a prompt: it has no branches to mix",
                "take experts of kind lora or bottleneck (pemt train-source), or a method that "
                "takes prompts: spot, attempt, mpt",
            )
        modules = [layer.module for layer in expert.layers]
        if expert.info.coverage == "down" and set(modules) != {site.path for site in downs}:
            odd = sorted(set(modules) ^ {site.path for site in downs})[:3]
            raise ExpertError(
                f"Expert {expert.name!r} does not cover this base's down projections: {odd}",
                "an expert needs one branch at each feed-forward down projection",
            )
        for layer in expert.layers:
            site = known.get(layer.module)
            if site is None:
                try:
                    site = linear_site(base, backbone, layer.module, -1)
                except BackboneError as error:
                    raise ExpertError(f"Expert {expert.name!r}: {error.what}", error.fix) from None
                known[layer.module] = site
            if layer.A.shape[1] != site.hidden or layer.B.shape[0] != site.width:
                raise ExpertError(
                    f"Expert {expert.name!r} at {layer.module}: A {tuple(layer.A.shape)}, "
                    f"B {tuple(layer.B.shape)}",
                    f"this base takes A [R, {site.hidden}] and B [{site.width}, R]",
                )
    own = {site.path for site in downs}
    others = [p for p in linear_paths(base, backbone) if p in known and p not in own]
    return [linear_site(base, backbone, p, len(downs) + i) for i, p in enumerate(others)]


def banks(
    sites: Sequence[Site], experts: Sequence[Expert], default: torch.dtype
) -> Iterator[tuple[Site, ExpertBank | None, list[int]]]:
    """For each site the frozen experts that are there, stacked in the type of its linear map.

    Args:
        sites: of the base, checked by `expert_sites`.
        experts: in gate-column order.
        default: type of a bank beside a map whose weights are no floating point numbers.

    Yields:
        The site, its bank (None where no expert is) and which experts are in the bank, by number.
    """
    tables = [{layer.module: layer for layer in e.layers} for e in experts]
    for site in sites:
        here = [k for k, table in enumerate(tables) if site.path in table]
        bank = None
        if here:
            dtype = floating(site.module, default)
            bank = stacked([experts[k] for k in here], [tables[k][site.path] for k in here], dtype)
        yield site, bank, here


def stacked(
    experts: Sequence[Expert], layers: Sequence[ExpertLayer], dtype: torch.dtype
) -> ExpertBank:
    """The experts of one site in one bank; models of other tasks in this process share its tensors.

    Args:
        experts: that are at the site.
        layers: theirs there.
        dtype: of the bank.
    """
    kinds = ((e.kind, e.activation) for e in experts)
    key = (dtype, *kinds, *(_state(layer) for layer in layers))
    known = STACKS.get(key)
    if known is None:
        branches = [tensors_of(e, layer) for e, layer in zip(experts, layers, strict=True)]
        bank = ExpertBank(branches, dtype=dtype)
        bank.made_from = tuple(layers)  # while a bank lives, no other layer has one of their ids
    else:
        bank = known.sharing()
    STACKS[key] = bank
    return bank


def _state(layer: ExpertLayer) -> tuple[int, ...]:
    """Which layer it is, and torch's counts of changes in place."""
    tensors = [t for t in (layer.A, layer.B, layer.a, layer.b) if t is not None]
    return (id(layer), *(0 if t.is_inference() else t._version for t in tensors))


def floating(down: torch.nn.Module, default: torch.dtype) -> torch.dtype:
    """The type that a linear map computes in: its weight's, or `default` for quantised ones."""
    dtype: torch.dtype | None = getattr(getattr(down, "weight", None), "dtype", None)
    return dtype if dtype is not None and dtype.is_floating_point else default


def tensors_of(expert: Expert, layer: ExpertLayer) -> ExpertTensors:
    """What one layer of an expert computes."""
    return ExpertTensors(
        A=layer.A, B=layer.B, scale=layer.scale, a=layer.a, b=layer.b,
        activation=expert.activation if expert.kind == "bottleneck" else None,
    )  # fmt: skip
