"""The bases we know, described in one table: where layers, down projections, norms and slots are.

To add a base, add a row; no modeling code is copied. Paths are attribute paths from the model that
`pemt` loads for the family (`AutoModelForSeq2SeqLM`, `AutoModelForCausalLM`, `AutoModel`), or from
a layer for the fields that say so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn

from pemt.errors import BackboneError

Family = Literal["encoder-decoder", "decoder-only", "encoder-only"]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One stack of layers of a base.

    Attributes:
        name: "encoder" or "decoder".
        layers: path of the ModuleList.
        down: path, from a layer, of the feed-forward down projection (Linear or Conv1D).
        norms: paths, from a layer, of its norms; one that a layer lacks (or has as Identity) is
            passed over.
        outer_norms: paths, from the model, of the norms outside the layers.
    """

    name: Literal["encoder", "decoder"]
    layers: str
    down: str
    norms: tuple[str, ...]
    outer_norms: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """How a `model_type` is built.

    Attributes:
        family: decides the prompt's place and the gates' input (METHOD.md).
        stacks: encoder first.
        positions: name of the configuration's field with the greatest length; None where the base
            has no such limit (relative positions).
        reserved_positions: positions of that number that no token can use (RoBERTa's offset).
    """

    family: Family
    stacks: tuple[Stack, ...]
    positions: str | None = "max_position_embeddings"
    reserved_positions: int = 0


def _t5() -> Backbone:
    return Backbone(
        family="encoder-decoder",
        positions=None,
        stacks=(
            Stack(
                name="encoder",
                layers="encoder.block",
                down="layer.1.DenseReluDense.wo",
                norms=("layer.0.layer_norm", "layer.1.layer_norm"),
                outer_norms=("encoder.final_layer_norm",),
            ),
            Stack(
                name="decoder",
                layers="decoder.block",
                down="layer.2.DenseReluDense.wo",
                norms=("layer.0.layer_norm", "layer.1.layer_norm", "layer.2.layer_norm"),
                outer_norms=("decoder.final_layer_norm",),
            ),
        ),
    )


def _llama() -> Backbone:
    return Backbone(
        family="decoder-only",
        stacks=(
            Stack(
                name="decoder",
                layers="model.layers",
                down="mlp.down_proj",
                norms=(
                    "input_layernorm",
                    "self_attn.q_norm",
                    "self_attn.k_norm",
                    "post_attention_layernorm",
                ),
                outer_norms=("model.norm",),
            ),
        ),
    )


def _bert(*, reserved: int = 0) -> Backbone:
    return Backbone(
        family="encoder-only",
        reserved_positions=reserved,
        stacks=(
            Stack(
                name="encoder",
                layers="encoder.layer",
                down="output.dense",
                norms=("attention.output.LayerNorm", "output.LayerNorm"),
                outer_norms=("embeddings.LayerNorm",),
            ),
        ),
    )


BACKBONES: dict[str, Backbone] = {
    # encoder-decoder; a gated feed-forward has its down projection at the same place
    "t5": _t5(),
    "mt5": _t5(),
    "bart": Backbone(
        family="encoder-decoder",
        stacks=(
            Stack(
                name="encoder",
                layers="model.encoder.layers",
                down="fc2",
                norms=("self_attn_layer_norm", "final_layer_norm"),
                outer_norms=("model.encoder.layernorm_embedding",),
            ),
            Stack(
                name="decoder",
                layers="model.decoder.layers",
                down="fc2",
                norms=("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
                outer_norms=("model.decoder.layernorm_embedding",),
            ),
        ),
    ),
    # decoder-only
    "llama": _llama(),
    "mistral": _llama(),
    "qwen2": _llama(),
    "qwen3": _llama(),
    "gpt2": Backbone(
        family="decoder-only",
        stacks=(
            Stack(
                name="decoder",
                layers="transformer.h",
                down="mlp.c_proj",
                norms=("ln_1", "ln_2"),
                outer_norms=("transformer.ln_f",),
            ),
        ),
    ),
    # encoder-only
    "bert": _bert(),
    "roberta": _bert(reserved=2),
    "modernbert": Backbone(
        family="encoder-only",
        stacks=(
            Stack(
                name="encoder",
                layers="layers",
                down="mlp.Wo",
                norms=("attn_norm", "mlp_norm"),
                outer_norms=("embeddings.norm", "final_norm"),
            ),
        ),
    ),
}


def describe(model_type: str) -> Backbone:
    """The table's row for a `model_type`.

    Raises:
        BackboneError: not in the table; the message names the fields that a new row needs.
    """
    if model_type in BACKBONES:
        return BACKBONES[model_type]
    asked = ", ".join(f.name for f in fields(Backbone))
    stack = ", ".join(f.name for f in fields(Stack))
    raise BackboneError(
        f"No description of bases of type {model_type!r}",
        f"known: {', '.join(sorted(BACKBONES))}. To add it, add a row to pemt.backbones.BACKBONES "
        f"or pass backbone=Backbone(...) with the fields {asked}; each stack "
        f"is a Stack with {stack}",
    )


@dataclass(frozen=True)
class Site:
    """One down projection of a base: where it is, and its widths.

    Attributes:
        index: among all sites, encoder first.
        stack: "encoder" or "decoder".
        path: of the module, from the base.
        parent: the module that holds it.
        attribute: its name there.
        hidden: F.
        width: D.
    """

    index: int
    stack: str
    path: str
    parent: nn.Module
    attribute: str
    hidden: int
    width: int

    @property
    def module(self) -> nn.Module:
        """What is there now: the down projection, or what wraps it."""
        module = getattr(self.parent, self.attribute)
        assert isinstance(module, nn.Module)
        return module


def submodule(model: nn.Module, path: str, field: str) -> nn.Module:
    """`model.path`, or a BackboneError that names the table's field that sent us there."""
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise BackboneError(
            f"{type(model).__name__} has no module {path!r}",
            f"the table's field {field!r} does not fit this model; load it with "
            f"pemt.bases.load_base, or correct the row ({error})",
        ) from None


def down_widths(down: nn.Module) -> tuple[int, int]:
    """(F, D) of a down projection: Linear, or Conv1D, which stores `[F, D]`."""
    if isinstance(down, nn.Linear):
        return down.in_features, down.out_features
    weight = getattr(down, "weight", None)
    if type(down).__name__ == "Conv1D" and isinstance(weight, torch.Tensor):
        return int(weight.shape[0]), int(weight.shape[1])
    hidden, width = getattr(down, "in_features", None), getattr(down, "out_features", None)
    if isinstance(hidden, int) and isinstance(width, int):  # quantised linears keep these names
        return hidden, width
    raise BackboneError(
        f"The down projection is a {type(down).__name__}", "a Linear or a Conv1D is expected there"
    )


def _layers(model: nn.Module, stack: Stack) -> Iterator[tuple[str, nn.Module]]:
    layers = submodule(model, stack.layers, "layers")
    if not isinstance(layers, nn.ModuleList):
        raise BackboneError(
            f"{stack.layers!r} is a {type(layers).__name__}", "expected a ModuleList"
        )
    for i, layer in enumerate(layers):
        yield f"{stack.layers}.{i}", layer


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition(".")
    return parent, name


def down_projections(model: nn.Module, backbone: Backbone) -> list[Site]:
    """All down projections of a base, encoder first."""
    sites: list[Site] = []
    for stack in backbone.stacks:
        for path, layer in _layers(model, stack):
            down = submodule(layer, stack.down, "down")
            parent, name = _split(stack.down)
            hidden, width = down_widths(down)
            sites.append(
                Site(
                    len(sites), stack.name, f"{path}.{stack.down}",
                    layer.get_submodule(parent), name, hidden, width,
                )
            )  # fmt: skip
    return sites


def norms(model: nn.Module, backbone: Backbone) -> list[tuple[str, nn.Module, str]]:
    """All norms of a base as (path, parent module, attribute)."""
    found: list[tuple[str, nn.Module, str]] = []
    for stack in backbone.stacks:
        paths = [f"{layer}.{norm}" for layer, _ in _layers(model, stack) for norm in stack.norms]
        for path in (*paths, *stack.outer_norms):
            parent, name = _split(path)
            try:
                module = model.get_submodule(path)
            except AttributeError:
                continue  # Llama has no q_norm, ModernBERT's first layer no attn_norm
            if isinstance(module, nn.Identity) or not list(module.parameters()):
                continue
            found.append((path, model.get_submodule(parent), name))
    if not found:
        raise BackboneError(
            f"No norms found in {type(model).__name__}", "correct the field 'norms'"
        )
    return found


def max_positions(config: Any, backbone: Backbone) -> int | None:
    """The greatest length of prompt and text together; None where there is no limit."""
    if backbone.positions is None:
        return None
    limit = getattr(config, backbone.positions, None)
    return None if limit is None else int(limit) - backbone.reserved_positions


def fingerprint(model: nn.Module, backbone: Backbone) -> str:
    """Identity of a base's weights: equal for copies in float32, bfloat16 and for attached models.

    Hashes the type, the widths, and in bfloat16 the first rows of the input embedding and of every
    down projection. Wrapped modules are seen through.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    config: Any = model.config
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    digest.update(f"{config.model_type}/{tuple(embedding.shape)}".encode())

    def add(tensor: torch.Tensor) -> None:
        kept = tensor.detach()[:16].to("cpu", torch.bfloat16).contiguous()
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(kept.view(torch.int16).numpy().tobytes())

    add(embedding)
    for site in down_projections_seen_through(model, backbone):
        weight = getattr(site, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.is_floating_point():
            add(weight)
    return digest.hexdigest()


def down_projections_seen_through(model: nn.Module, backbone: Backbone) -> Iterator[nn.Module]:
    """The base's own down projections, also where a wrapper stands in their place."""
    for stack in backbone.stacks:
        for _, layer in _layers(model, stack):
            down = submodule(layer, stack.down, "down")
            while isinstance(getattr(down, "down", None), nn.Module):
                down = down.down  # type: ignore[assignment]
            yield down
