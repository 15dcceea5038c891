"""The library of trained experts: what an expert is, its folder, and many of them by name."""

from __future__ import annotations

from pemt.experts.expert import (
    FORMAT_VERSION,
    Expert,
    ExpertInfo,
    ExpertKind,
    ExpertLayer,
    PromptFactors,
    check_compatible,
    check_name,
)
from pemt.experts.folder import load_expert, read_info, save_expert
from pemt.experts.hub import HubLibrary, pull
from pemt.experts.hub_push import push
from pemt.experts.importing import expert_from_peft
from pemt.experts.library import ExpertLibrary
from pemt.experts.peft_format import lora_from_peft, lora_to_peft

__all__ = [
    "FORMAT_VERSION",
    "Expert",
    "ExpertInfo",
    "ExpertKind",
    "ExpertLayer",
    "ExpertLibrary",
    "HubLibrary",
    "PromptFactors",
    "check_compatible",
    "check_name",
    "expert_from_peft",
    "load_expert",
    "lora_from_peft",
    "lora_to_peft",
    "pull",
    "push",
    "read_info",
    "save_expert",
]
