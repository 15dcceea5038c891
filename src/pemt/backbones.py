"""The bases we know, described in one table: where layers, down projections, norms and slots are.

To add a base, add a row; no modeling code is copied. Paths are attribute paths from the model that
`pemt` loads for the family (`AutoModelForSeq2SeqLM`, `AutoModelForCausalLM`, `AutoModel`), or from
a layer for the fields that say so.
"""

from __future__ import annotations

import difflib
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
    """One linear map of a base, mostly a down projection: where it is, and its widths.

    Attributes:
        index: among all sites of a model: down projections first, encoder before decoder.
        stack: "encoder" or "decoder".
        path: of the module, from the base.
        parent: the module that holds it.
        attribute: its name there.
        hidden: width of its input; F at a down projection.
        width: width of its output; D at a down projection.
        layer: number of its layer in the stack.
        inner: its path from the layer; empty at the down projection.
    """

    index: int
    stack: str
    path: str
    parent: nn.Module
    attribute: str
    hidden: int
    width: int
    layer: int = 0
    inner: str = ""

    @property
    def is_down(self) -> bool:
        """Whether it is its layer's feed-forward down projection."""
        return not self.inner

    @property
    def label(self) -> str:
        """For tables: "encoder 0" (its down projection), "encoder 0 attention.self.query"."""
        return f"{self.stack} {self.layer} {self.inner}".rstrip()

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


def linear_widths(module: nn.Module) -> tuple[int, int] | None:
    """(input, output) width of a Linear, or of a Conv1D, which stores `[F, D]`; None of others."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, torch.Tensor):
        return int(weight.shape[0]), int(weight.shape[1])
    hidden, width = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(hidden, int) and isinstance(width, int):  # quantised linears keep these names
        return hidden, width
    return None


def down_widths(down: nn.Module) -> tuple[int, int]:
    """(F, D) of a down projection.

    Raises:
        BackboneError: it is neither a Linear nor a Conv1D.
    """
    widths = linear_widths(down)
    if widths is None:
        raise BackboneError(
            f"The down projection is a {type(down).__name__}",
            "a Linear or a Conv1D is expected there",
        )
    return widths


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
        for number, (path, layer) in enumerate(_layers(model, stack)):
            down = submodule(layer, stack.down, "down")
            parent, name = _split(stack.down)
            hidden, width = down_widths(down)
            sites.append(
                Site(
                    len(sites), stack.name, f"{path}.{stack.down}",
                    layer.get_submodule(parent), name, hidden, width, number,
                )
            )  # fmt: skip
    return sites


def linear_paths(model: nn.Module, backbone: Backbone) -> list[str]:
    """Paths of all linear maps inside the layers of a base, in its order, encoder first."""
    return [
        f"{path}.{inner}"
        for stack in backbone.stacks
        for path, layer in _layers(model, stack)
        for inner, module in layer.named_modules()
        if linear_widths(module) is not None
    ]


def linear_site(model: nn.Module, backbone: Backbone, path: str, index: int) -> Site:
    """The linear map at a path inside the layers of a base.

    Args:
        model: the base, with nothing attached.
        backbone: its description.
        path: from the base.
        index: for the site.

    Raises:
        BackboneError: nothing there (with the nearest path that exists), no linear map, or one
            outside the layers.
    """
    for stack in backbone.stacks:
        for number, (layer_path, layer) in enumerate(_layers(model, stack)):
            if not path.startswith(f"{layer_path}."):
                continue
            inner = path[len(layer_path) + 1 :]
            try:
                module = layer.get_submodule(inner)
            except AttributeError:
                break
            widths = linear_widths(module)
            if widths is None:
                raise BackboneError(
                    f"{path!r} is a {type(module).__name__}",
                    "an expert sits beside a Linear or a Conv1D",
                )
            parent, name = _split(inner)
            return Site(
                index, stack.name, path, layer.get_submodule(parent), name, *widths, number,
                "" if inner == stack.down else inner,
            )  # fmt: skip
    if any(name == path for name, _ in model.named_modules()):
        where = ", ".join(f"{stack.layers}.*" for stack in backbone.stacks)
        raise BackboneError(
            f"{path!r} is outside the layers of this {type(model).__name__}",
            f"experts and gates are per layer: they sit beside linear maps in {where}",
        )
    known = linear_paths(model, backbone)
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    raise BackboneError(
        f"{type(model).__name__} has no module {path!r}",
        f"the nearest linear map is {near[0]!r}" if near else "its layers hold no linear map",
    )


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
        # quantised weights, which some libraries keep in tensors of their own kind, are left out
        floating = isinstance(weight, torch.Tensor) and weight.is_floating_point()
        if floating and type(plain := weight.detach()) is torch.Tensor:  # type: ignore[union-attr]
            add(plain)
    return digest.hexdigest()


def down_projections_seen_through(model: nn.Module, backbone: Backbone) -> Iterator[nn.Module]:
    """The base's own down projections, also where a wrapper stands in their place."""
    for stack in backbone.stacks:
        for _, layer in _layers(model, stack):
            down = submodule(layer, stack.down, "down")
            while isinstance(getattr(down, "down", None), nn.Module):
                down = down.down  # type: ignore[assignment]
            yield down
