"""A prompt expert as PEFT's prompt tuning writes it, and back.

PEFT names the rows `prompt_embeddings` `[P, D]` and puts them before the text, of an
encoder-decoder before the encoder's alone (`num_transformer_submodules` 1): where this package puts
them for both families. For encoder-only bases it does not, so their experts have no PEFT files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pemt.errors import ExpertError
from pemt.experts.expert import Expert

if TYPE_CHECKING:
    from torch import Tensor

_TASK_TYPES = {"encoder-decoder": "SEQ_2_SEQ_LM", "decoder-only": "CAUSAL_LM"}
ROWS = "prompt_embeddings"


def prompt_to_peft(expert: Expert) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of `adapter_config.json` and the tensors of `adapter_model.safetensors`."""
    rows, width = expert.prompt.shape
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": _TASK_TYPES[expert.info.base_family],
        "base_model_name_or_path": expert.info.base,
        "inference_mode": True,
        "num_virtual_tokens": rows,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return config, {ROWS: expert.prompt}


def prompt_from_peft(
    config: Mapping[str, Any], state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """Refuse PEFT files that are not those of the prompt beside them.

    Args:
        config: the content of `adapter_config.json`.
        state: the tensors of `adapter_model.safetensors`.
        own: those of `prompt.safetensors`.

    Raises:
        ExpertError: plain PEFT would run another prompt.
    """
    prompt = own["prompt"]
    said = (config.get("peft_type"), config.get("num_virtual_tokens"))
    if said != ("PROMPT_TUNING", len(prompt)):
        raise ExpertError(
            f"Its adapter_config.json says {said[0]} with {said[1]} rows.",
            f"it is PROMPT_TUNING with {len(prompt)}: get a fresh copy of the expert",
        )
    if set(state) != {ROWS} or not prompt.equal(state[ROWS]):
        raise ExpertError(
            f"Its adapter_model.safetensors holds {sorted(state)}, other values than its prompt.",
            "get a fresh copy of the expert, or train it again",
        )
