"""What the methods that transfer prompts take from a library: prompts tuned on source tasks."""

from __future__ import annotations

from collections.abc import Sequence

from pemt.backbones import fingerprint
from pemt.errors import ConfigError, ExpertError
from pemt.experts import Expert, PromptFactors
from pemt.methods.method import Setting

HOW = "tune prompts first, one per source: pemt train-source TASK LIBRARY --source.kind prompt"
HOW_SHARED = (
    "tune them together first: pemt train-shared-prompt LIBRARY --sources a,b --teachers PROMPTS"
)


def source_prompts(setting: Setting, *, equal_lengths: bool = False) -> Sequence[Expert]:
    """The setting's experts, all of them prompts for its base.

    Args:
        setting: of the target task.
        equal_lengths: whether all must have the same number of rows.

    Raises:
        ConfigError: none, or prompts of different lengths where they must be equal.
        ExpertError: one that is no prompt, or was tuned on another base.
    """
    if not setting.experts:
        raise ConfigError("No source prompts", HOW)
    made = fingerprint(setting.base.model, setting.base.backbone)
    for expert in setting.experts:
        if expert.kind != "prompt":
            raise ExpertError(
                f"Expert {expert.name!r} is of kind {expert.kind!r}, and this method takes prompts",
                f"{HOW}; or name the prompts of a mixed library with --experts",
            )
        if expert.info.base_fingerprint != made:
            raise ExpertError(
                f"Prompt {expert.name!r} was tuned on the base {expert.info.base!r} "
                f"({expert.info.base_fingerprint[:12]}), this base is {made[:12]}",
                "tune it on this base, or load the base it was tuned on",
            )
    lengths = {e.name: len(e.prompt) for e in setting.experts}
    if equal_lengths and len(set(lengths.values())) > 1:
        raise ConfigError(
            f"Source prompts of {lengths} rows",
            "take prompts of one length (--source.prompt_tokens)",
        )
    return setting.experts


def shared_factors(setting: Setting) -> list[PromptFactors]:
    """The factors of prompts that were tuned together by MPT, in the experts' order.

    Raises:
        ExpertError: a prompt that was tuned alone, or in another run than the others.
    """
    found = []
    for expert in source_prompts(setting, equal_lengths=True):
        if expert.factors is None:
            raise ExpertError(
                f"Prompt {expert.name!r} was tuned alone, and MPT starts from a shared prompt",
                HOW_SHARED,
            )
        found.append(expert.factors)
        if not found[0].shared.equal(expert.factors.shared):
            raise ExpertError(
                f"Prompts {setting.experts[0].name!r} and {expert.name!r} share no prompt: they "
                "are of different runs",
                "take the prompts of one run of pemt train-shared-prompt",
            )
    return found


def identity(sources: Sequence[Expert]) -> list[list[str]]:
    """Names and content hashes, for `AttachedModel.options`."""
    return [[e.name, e.info.content_hash] for e in sources]
