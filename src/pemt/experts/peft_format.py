"""A LoRA expert as PEFT writes it, and back.

PEFT scales a branch by `lora_alpha / r` (`lora_alpha / sqrt(r)` under rsLoRA) and names its tensors
`base_model.model.<module>.lora_A.weight` `[R, F]` and `.lora_B.weight` `[D, R]`, which are this
package's A and B. Layers of another rank or alpha than the expert's go into its pattern tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pemt.errors import ExpertError
from pemt.experts.expert import Expert, ExpertLayer

if TYPE_CHECKING:
    from torch import Tensor

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<letter>[AB])\.weight")
# which of PEFT's wrappers suits the model that is loaded for a family
_TASK_TYPES = {
    "encoder-decoder": "SEQ_2_SEQ_LM",
    "decoder-only": "CAUSAL_LM",
    "encoder-only": "FEATURE_EXTRACTION",
}
# settings under which a PEFT adapter is no longer `W x + scale * B A x`, and why
NOT_PLAIN_LORA = {
    "use_dora": "DoRA also rescales the base's own weights",
    "lora_bias": "its branches have biases",
    "modules_to_save": "it replaces whole modules of the model it was trained on",
    "layer_replication": "it runs layers of the base more than once",
    "trainable_token_indices": "it replaces token embeddings",
    "target_parameters": "it adapts bare parameters instead of linear maps",
    "alora_invocation_tokens": "it acts on part of the tokens only",
    "arrow_config": "it routes between several adapters",
    "use_qalora": "it pools the inputs of its branches",
    "use_bdlora": "its matrices are block diagonal",
    "kasa_config": "it also changes the base's own weights",
    "monteclora_config": "its matrices are drawn at random",
}
_DEFAULT = 8  # PEFT's r and lora_alpha where the configuration does not say them
_SECONDS = 0.2  # for one path; an expression can be made to take longer than anyone waits
# first values under which W itself is kept; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take a part out
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def lora_to_peft(expert: Expert) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of `adapter_config.json` and the tensors of `adapter_model.safetensors`.

    The paths are those inside the model this package loads for the base's family, so plain PEFT
    loads the folder onto that class: sequence-to-sequence, causal, or without a head.

    Raises:
        ExpertError: a bottleneck expert, which PEFT's LoRA cannot hold.
    """
    if expert.kind != "lora":
        raise ExpertError(
            f"Expert {expert.name!r} is of kind {expert.kind!r}, which PEFT's LoRA cannot hold.",
            "only experts of kind 'lora' are PEFT adapters",
        )
    ranks, alphas = {}, {}
    state: dict[str, Tensor] = {}
    for layer in expert.layers:
        R = layer.A.shape[0]
        alpha = layer.scale * R
        if expert.info.rank != R:
            ranks[layer.module] = R
        if not math.isclose(alpha, expert.info.alpha, rel_tol=1e-9):
            alphas[layer.module] = _number(alpha)
        state[f"base_model.model.{layer.module}.lora_A.weight"] = layer.A
        state[f"base_model.model.{layer.module}.lora_B.weight"] = layer.B
    config = {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES.get(expert.info.base_family),
        "base_model_name_or_path": expert.info.base,
        "inference_mode": True,
        "r": expert.info.rank,
        "lora_alpha": _number(expert.info.alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": expert.info.fan_in_fan_out,
        "target_modules": [layer.module for layer in expert.layers],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    return config, state


def lora_from_peft(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    modules: Sequence[str] | None = None,
) -> tuple[ExpertLayer, ...]:
    """The branches of a PEFT LoRA adapter, whatever modules it is on.

    Args:
        config: the content of `adapter_config.json`.
        state: the tensors of `adapter_model.safetensors`.
        modules: the order to give the layers in, the base's; without it they are sorted by name,
            numbers as numbers.

    Raises:
        ExpertError: not a plain LoRA, tensors other than an A and a B for each module, or a pattern
            that is no regular expression or takes too long.
    """
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise ExpertError(
            f"The adapter has peft_type {config.get('peft_type')!r} and bias "
            f"{config.get('bias', 'none')!r}.",
            "an expert comes from peft_type 'LORA' with bias 'none'",
        )
    for setting, reason in NOT_PLAIN_LORA.items():
        if config.get(setting):
            raise ExpertError(
                f"The adapter sets {setting} = {config[setting]!r}: {reason}.",
                "an expert comes from plain LoRA: low-rank branches and nothing else",
            )
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise ExpertError(
            f"The adapter sets init_lora_weights = {start!r}: the base's own weights were changed "
            "when it began.",
            "convert it to plain LoRA where it was trained (PEFT: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...))",
        )
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ExpertError(
                f"The adapter holds the tensor {key!r}.",
                "it may hold base_model.model.<module>.lora_A.weight and .lora_B.weight only",
            )
        pairs.setdefault(match["module"], {})[match["letter"]] = tensor
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            lacking = "B" if "A" in pair else "A"
            raise ExpertError(
                f"The adapter lacks lora_{lacking} of {module}.", "get a complete copy of it"
            )
        if pair["A"].ndim != 2:
            raise ExpertError(
                f"The adapter's lora_A of {module} is {list(pair['A'].shape)}.", "it is [R, F]"
            )
    order = sorted(pairs, key=_natural) if modules is None else list(modules)
    if set(order) != set(pairs):
        differing = sorted(set(order) ^ set(pairs))
        raise ExpertError(
            f"The adapter is not on the modules expected: {', '.join(differing[:4])} differ.",
            f"it is on {len(pairs)} modules, {len(order)} were expected",
        )
    ranks, alphas = (_table(config.get(setting)) for setting in ("rank_pattern", "alpha_pattern"))
    layers = []
    for module in order:
        A, B = pairs[module]["A"], pairs[module]["B"]
        R = A.shape[0]
        rank = _looked_up(ranks, module, config.get("r", _DEFAULT))
        if rank != R:
            raise ExpertError(
                f"The adapter's lora_A of {module} has rank {R}.",
                f"its configuration says {rank}: get a matching pair of files",
            )
        alpha = float(_looked_up(alphas, module, config.get("lora_alpha", _DEFAULT)))
        scale = alpha / (math.sqrt(R) if config.get("use_rslora") else R)
        layers.append(ExpertLayer(module=module, A=A, B=B, scale=scale))
    return tuple(layers)


def expression(pattern: str) -> Any:
    """A regular expression of an adapter's configuration, for `matches`.

    Raises:
        ExpertError: it is none.
    """
    # like re, with a limit on the time: the pattern is whoever's the adapter is
    import regex

    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ExpertError(
            f"The pattern {_short(pattern)} in its adapter_config.json cannot be used: {error}.",
            "get a fresh copy of it",
        ) from None


def matches(compiled: Any, module: str) -> bool:
    """Whether an expression is a module's whole path.

    Raises:
        ExpertError: it takes too long.
    """
    try:
        return compiled.fullmatch(module, timeout=_SECONDS) is not None
    except TimeoutError:
        raise ExpertError(
            f"The pattern {_short(compiled.pattern)} in its adapter_config.json takes too long.",
            "write it without a repetition inside a repetition, or name the modules one by one",
        ) from None


def _table(said: Mapping[str, Any] | None) -> list[tuple[Any, Any]]:
    """PEFT's rule: a key is a regular expression for the end of a module's path."""
    return [(expression(rf"(.*\.)?({key})"), value) for key, value in (said or {}).items()]


def _looked_up(table: list[tuple[Any, Any]], module: str, default: Any) -> Any:
    return next((value for key, value in table if matches(key, module)), default)


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else f"{pattern[:80]}..")


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _natural(module: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in module.split(".")]
