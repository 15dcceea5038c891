"""Where experts sit on a base: which of its linear maps they have a branch beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pemt.backbones import Backbone, Site, linear_paths, linear_site
from pemt.errors import BackboneError, ExpertError

if TYPE_CHECKING:
    from pemt.experts import Expert


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
