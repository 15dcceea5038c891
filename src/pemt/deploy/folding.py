"""A mixture whose gates are constants, as one LoRA.

    sum_k g_k s_k B_k A_k  =  [g_1 s_1 B_1 .. g_K s_K B_K] [A_1; ..; A_K]      rank sum_k R_k

Gates are constants where they depend on the task alone: in decoder-only bases, with gate="task",
with gate="uniform" and with one gate column. A target adapter that is a LoRA
(target_adapter="lora") is one more pair of blocks; the paper's serial one is not linear, and no
LoRA holds it.

A smaller rank is the singular value decomposition cut off, the closest there is in the Frobenius
norm. A run of the method lora is one LoRA already, and is written as it is.

Letters: C sum of ranks, D output width, F input width, K experts, L maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pemt.backbones import Site, norms
from pemt.errors import ConfigError
from pemt.experts import Expert, ExpertInfo, ExpertLayer
from pemt.guide.instant import InstantModel
from pemt.methods.lora import LoraModel
from pemt.model import AdaptedModel, PemtConfig, PemtModel
from pemt.nn import LoraBranch, MixtureLayer, TargetAdapter, TrainedNorm

NAME = "folded"
Blocks = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A mixture as one LoRA, and what trained beside it.

    Attributes:
        expert: the LoRA, as an expert that is alone.
        full_rank: largest sum of ranks of a map, C.
        errors: by map, the relative Frobenius error of the rank cut off; all 0 without.
        error: over all maps together.
        gates: by map, the gates that were folded in, by expert.
        gate_error: at mean gates: mean over examples and maps of the relative Frobenius distance
            between an example's own mixture and the one folded; None where gates are constants.
        prompt: the fused prompt, `[P, D]`; None where there is none.
        norms: trained norms: path -> tensors.
        head: of an encoder-only base.
        left_out: what the model has and no LoRA holds, in words.
    """

    expert: Expert
    full_rank: int
    errors: dict[str, float]
    error: float
    gates: dict[str, dict[str, float]]
    gate_error: float | None
    prompt: Tensor | None
    norms: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What was folded and how exact it is, in plain values."""
        return {
            "rank": self.expert.info.rank, "full_rank": self.full_rank, "error": self.error,
            "errors": self.errors, "gate_error": self.gate_error, "gates": self.gates,
            "left_out": list(self.left_out),
        }  # fmt: skip


def constant_gates(model: PemtModel) -> Tensor | None:
    """The gates, `[L, K]`, float32, where they do not depend on the example; else None."""
    constant = (
        model.pemt_config.gate in ("task", "uniform")
        or model.family == "decoder-only"
        or len(model.gate_names) == 1
    )
    if not constant:
        return None
    ids = torch.arange(1, 9, device=model.device).unsqueeze(0)
    return model.gates(ids % model.base.config.vocab_size)[:, 0]


def require_foldable(model: PemtModel, *, partial: bool = False) -> None:
    """Refuse what no LoRA can hold.

    Raises:
        ConfigError: an instant mixture, no mixture, bottleneck experts, or a serial target adapter
            that `partial` does not allow to leave out.
    """
    if isinstance(model, InstantModel):
        raise ConfigError(
            "An instant mixture is probes on each expert alone", "fold a run of pemt or guided"
        )
    if not model.gated_sites():
        raise ConfigError(
            "A model without a mixture has no gates to fold", "fold one that was adapted with it"
        )
    curved = [e.name for e in model.experts if e.kind != "lora"]
    if curved:
        raise ConfigError(
            f"Expert {curved[0]!r} is a bottleneck: it is not linear, so no LoRA holds it",
            "fold mixtures of LoRA experts",
        )
    if not partial and _serial(model):
        raise ConfigError(
            "This model has the serial target adapter, which is not linear: no LoRA holds it, and "
            "the folded model would be another one",
            "adapt with --pemt.target_adapter lora (or none), or pass --partial to leave it out",
        )


def fold_mixture(
    model: PemtModel, *, rank: int | None = None, gates: Tensor | None = None, partial: bool = False
) -> Folded:
    """Fold an adapted model; the model is only read.

    Args:
        model: in any mode.
        rank: cut off to this rank where a map has more; None: exact.
        gates: `[B, L, K]` of examples, to fold at their mean what depends on the example.
        partial: leave out a serial target adapter.

    Raises:
        ConfigError: see `require_foldable`; gates that depend on the example and none given; or a
            rank that is out of range.
    """
    require_foldable(model, partial=partial)
    training = model.training
    model.eval()
    try:
        constant = constant_gates(model)
        with torch.no_grad():
            prompt = model.prompt().detach().cpu().clone()
    finally:
        model.train(training)
    if constant is None and gates is None:
        raise ConfigError(
            "The gates of this model depend on the example, so it is no single LoRA",
            "adapt with --pemt.gate task, or fold at the mean gates (--at-mean-gates)",
        )
    used = constant if constant is not None else gates.mean(0)  # type: ignore[union-attr]
    by_site = dict(zip((s.path for s in model.gated_sites()), used.cpu(), strict=True))
    blocks = {site.path: _blocks(model, site, layer, by_site.get(site.path))
              for site, layer in zip(model.sites, model.mixtures, strict=True)}  # fmt: skip
    blocks = {path: found for path, found in blocks.items() if found}
    full = max(sum(len(A) for A, _ in found) for found in blocks.values())
    if rank is not None and not 1 <= rank <= full:
        raise ConfigError(
            f"rank={rank}", f"give 1 to {full}, the sum of the ranks, or leave it out"
        )
    layers, errors, lost, whole = [], {}, 0.0, 0.0
    for path, found in blocks.items():
        A, B, cut, norm = truncated(found, rank)
        layers.append(ExpertLayer(module=path, A=A, B=B, scale=1.0))
        errors[path] = math.sqrt(cut / norm) if norm else 0.0
        lost, whole = lost + cut, whole + norm
    names = model.gate_names
    like = model.experts[0].info
    return Folded(
        expert=_expert(
            model,
            tuple(layers),
            transposed=like.fan_in_fan_out,
            tokenizer=like.tokenizer_fingerprint,
        ),
        full_rank=full,
        errors=errors,
        error=math.sqrt(lost / whole) if whole else 0.0,
        gates={p: dict(zip(names, row.tolist(), strict=True)) for p, row in by_site.items()},
        gate_error=None if constant is not None else distance_from_mean(model, gates),
        prompt=prompt,
        norms=dict(_norms(model)),
        head={} if model.head is None else _cpu(model.head),
        left_out=("the serial target adapter",) if _serial(model) else (),
    )


def fold_lora(model: LoraModel) -> Folded:
    """The LoRA of a run without experts, and its head; the model is only read."""
    layers = model.branches()
    rank = max(len(layer.A) for layer in layers)
    return Folded(
        expert=_expert(model, layers, transposed=model.transposed),
        full_rank=rank,
        errors={layer.module: 0.0 for layer in layers},
        error=0.0,
        gates={},
        gate_error=None,
        prompt=None,
        head={} if model.head is None else _cpu(model.head),
    )


def _serial(model: PemtModel) -> bool:
    return any(isinstance(m.adapter, TargetAdapter) for m in model.mixtures)


def _blocks(model: PemtModel, site: Site, layer: MixtureLayer, gates: Tensor | None) -> Blocks:
    """What stands beside one map: pairs A `[R, F]`, B `[D, R]` with gates and scales in B."""
    found: Blocks = []
    for k, expert in enumerate(model.experts):
        here = next((y for y in expert.layers if y.module == site.path), None)
        if here is not None and gates is not None and gates[k] > 0:
            found.append(
                (here.A.float().cpu(), float(gates[k]) * here.scale * here.B.float().cpu())
            )
    if isinstance(layer.adapter, LoraBranch):
        own = layer.adapter.tensors()
        found.append((own.A.float().cpu(), own.scale * own.B.float().cpu()))
    return found


def truncated(blocks: Blocks, rank: int | None) -> tuple[Tensor, Tensor, float, float]:
    """One pair A `[r, F]`, B `[D, r]` for all: exact, or the closest of a rank.

    Returns:
        A, B, the squared Frobenius norm of what was cut off, and that of the whole.
    """
    A, B = torch.cat([a for a, _ in blocks]), torch.cat([b for _, b in blocks], 1)
    # B A = (Q_B R_B) (Q_A R_A)^T: the decomposition of a [C, C] matrix is that of the whole
    left, small_b = torch.linalg.qr(B.double())
    right, small_a = torch.linalg.qr(A.double().T)
    U, S, V = torch.linalg.svd(small_b @ small_a.T)
    squares = S.square()
    if rank is None or rank >= len(A):
        return A.contiguous(), B.contiguous(), 0.0, float(squares.sum())
    root = S[:rank].sqrt()
    smaller_b = left @ (U[:, :rank] * root)
    smaller_a = (V[:rank] * root.unsqueeze(1)) @ right.T
    return (
        smaller_a.float().contiguous(), smaller_b.float().contiguous(),
        float(squares[rank:].sum()), float(squares.sum()),
    )  # fmt: skip


def distance_from_mean(model: PemtModel, gates: Tensor | None) -> float:
    """Mean over examples and maps of `|M(g) - M(mean g)| / |M(g)|`, M the mixture's matrix.

    No matrix is built: with `T_ij = <B_i A_i, B_j A_j>`, `|M(d)|^2 = d^T T d`.

    Args:
        model: whose experts.
        gates: `[B, L, K]`.
    """
    assert gates is not None
    ratios = []
    for number, site in enumerate(model.gated_sites()):
        branches = {
            k: (y.A.float().cpu(), y.scale * y.B.float().cpu())
            for k, e in enumerate(model.experts) for y in e.layers if y.module == site.path
        }  # fmt: skip
        T = torch.zeros(len(model.gate_names), len(model.gate_names))
        for i, (A, B) in branches.items():
            for j, (C, D) in branches.items():
                T[i, j] = ((B.T @ D) * (A @ C.T)).sum()
        own = gates[:, number].float().cpu()
        off = own - own.mean(0)
        away = ((off @ T) * off).sum(-1).clamp_min(0)
        size = ((own @ T) * own).sum(-1).clamp_min(1e-20)
        ratios.append((away / size).sqrt().mean())
    return float(torch.stack(ratios).mean())


def folded_model(base: Any, folded: Folded, *, like: PemtModel) -> PemtModel:
    """The folded model as one of ours, on a base with nothing attached: what plain PEFT computes.

    Args:
        base: the model's base, detached.
        folded: of it, by `fold_mixture`.
        like: the model that was folded, for its outputs and its description of the base.
    """
    config = PemtConfig(
        gate="uniform", target_adapter=False, train_norms=bool(folded.norms),
        prompt_fusion="none", sparsity_weight=0.0,
    )  # fmt: skip
    assert folded.prompt is not None
    made = PemtModel(
        base, [folded.expert], config, prompt=folded.prompt, outputs=like.outputs,
        backbone=like.backbone,
    )  # fmt: skip
    for path, parent, attribute in norms(made.base, made.backbone):
        norm = getattr(parent, attribute)
        if isinstance(norm, TrainedNorm):
            norm.trained.load_state_dict(folded.norms[path])
    if made.head is not None:
        made.head.load_state_dict(folded.head)
    return made.eval()


def _expert(
    model: AdaptedModel, layers: tuple[ExpertLayer, ...], *, transposed: bool, tokenizer: str = ""
) -> Expert:
    rank = max(len(layer.A) for layer in layers)
    downs = {site.path for site in model.sites if site.is_down}
    info = ExpertInfo(
        name=NAME, kind="lora", task=NAME, base=NAME, base_family=model.family,
        base_fingerprint=model.base_fingerprint(), tokenizer_fingerprint=tokenizer,
        width=model.width, hidden=model.sites[0].hidden, rank=rank, alpha=layers[0].scale * rank,
        fan_in_fan_out=transposed,
        coverage="down" if {layer.module for layer in layers} == downs else "linear",
    )  # fmt: skip
    nothing = torch.zeros(0, model.width)
    return Expert(
        name=NAME, kind="lora", activation=None, layers=layers, prompt=nothing, head={}, info=info
    )


def _norms(model: PemtModel) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for path, parent, attribute in norms(model.base, model.backbone):
        norm = getattr(parent, attribute)
        if isinstance(norm, TrainedNorm):
            yield path, _cpu(norm.trained)


def _cpu(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", torch.float32).clone() for k, v in module.state_dict().items()}
