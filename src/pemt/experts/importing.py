"""Any plain PEFT LoRA becomes an expert.

The tensors' names are the truth about what is adapted; the configuration gives ranks and scales,
and must not contradict them. PEFT wraps the class that the adapter was trained on, so its paths may
have a prefix more or less than those inside the model this package loads:

    bert.encoder.layer.0.attention.self.query    a sequence classifier
         encoder.layer.0.attention.self.query    AutoModel, which is loaded for encoder-only bases
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pemt.errors import BackboneError, ConfigError, ExpertError
from pemt.experts.expert import Expert, ExpertInfo, ExpertLayer, check_name
from pemt.experts.manifest import ADAPTER, ADAPTER_CONFIG, MALFORMED, readable, sha256
from pemt.experts.peft_files import (
    adapter_config,
    adapter_files,
    adapter_tensors,
    refuse_adapter,
)
from pemt.experts.peft_format import expression, lora_from_peft, matches

if TYPE_CHECKING:
    from torch import Tensor

    from pemt.backbones import Site
    from pemt.bases import Base
    from pemt.tasks import Task

_KEY = re.compile(r"base_model\.model\.(?P<path>.+)")
_BRANCH = re.compile(r"(?P<module>.+)\.lora_[AB]\.weight")
# names under which encoder-only classes hold what comes after the layers
_HEADS = {
    "classifier", "score", "pooler", "head", "cls", "lm_head", "decoder", "qa_outputs",
}  # fmt: skip
# tensors that a plain LoRA does not have: (end of the name, the setting, why it is refused)
_ODD = (
    ("lora_magnitude_vector", "use_dora", "DoRA also rescales the base's own weights"),
    ("lora_embedding_A", "target_modules", "it adapts an embedding, which is no linear map"),
    ("lora_embedding_B", "target_modules", "it adapts an embedding, which is no linear map"),
    ("lora_B.bias", "lora_bias", "its branches have biases"),
    ("lora_A.bias", "lora_bias", "its branches have biases"),
)
# what PEFT saves beside branches: of the base's own tensors, unless of a head
_COPIES = (
    ("trainable_tokens_delta", "trainable_token_indices", "it replaces token embeddings"),
    ("base_layer.weight", "target_modules", "it adapts an embedding or the output layer"),
)
_KEPT_SETTINGS = (
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "lora_dropout", "task_type", "revision", "peft_version",
)  # fmt: skip


def expert_from_peft(
    source: str | Path,
    *,
    name: str,
    base: Base,
    task: Task | str | None = None,
    prompt: Literal["description", "none"] = "description",
    drop_head: bool = False,
) -> Expert:
    """Read a PEFT LoRA adapter as an expert for a base.

    Tensors keep the type they were saved in: a float32 copy of bfloat16 weights would hold nothing
    more and take twice the room. They are cast where they are put on a base.

    Args:
        source: a folder with `adapter_config.json` and `adapter_model.safetensors`, or one on the
            Hub: "user/name", "user/name@revision", "hf://user/name/folder@revision". Both files are
            of one commit, which `info.origin` keeps.
        name: for the expert.
        base: the base it was trained on. An adapter does not say which weights it was trained on,
            so this is taken on trust, shapes apart; another name is noted in `info.origin`.
        task: its source task: a `Task`, the name of one in the registry, or a description (any text
            with a space in it).
        prompt: "description": start the expert's prompt from the task's description; "none".
        drop_head: encoder-only: leave the adapter's head out. Each target task trains its own.

    Returns:
        The expert, in no library yet.

    Raises:
        ConfigError: no such folder, or nothing to make a prompt from.
        UnknownNameError: no such task.
        ExpertError: a file is missing or pickled, the adapter is no plain LoRA, does not fit the
            base, or holds NaN or infinity. The message names the setting or tensor.
    """
    from pemt.backbones import down_projections, fingerprint
    from pemt.tasks.encoding import fingerprint as tokenizer_fingerprint

    check_name(name)
    about = _about(task, prompt)
    where, content, written = adapter_files(source)
    config = adapter_config(where, content[ADAPTER_CONFIG])
    state = adapter_tensors(where, content[ADAPTER])
    try:
        state, config, dropped = _plain(where, config, state, base, drop_head=drop_head)
        layers, sites = _layers(where, config, state, base)
        said = config.get("base_model_name_or_path") or ""
        if not isinstance(said, str):
            raise TypeError(f"base_model_name_or_path = {said!r}")
    except MALFORMED as error:
        refuse_adapter(where, f"{ADAPTER_CONFIG} cannot be used: {error}", "get a fresh copy of it")
    downs = down_projections(base.model, base.backbone)
    common = Counter((y.A.shape[0], y.scale * y.A.shape[0]) for y in layers).most_common(1)[0][0]
    info = ExpertInfo(
        name=name,
        kind="lora",
        task=about.get("task", name),
        task_version=about.get("version", ""),
        description=about.get("description", ""),
        label_words=about.get("labels", ()),
        base=base.name,
        base_family=base.backbone.family,
        base_fingerprint=fingerprint(base.model, base.backbone),
        tokenizer_fingerprint=tokenizer_fingerprint(base.tokenizer),
        width=downs[0].width,
        hidden=downs[0].hidden,
        rank=common[0],
        alpha=common[1],
        fan_in_fan_out=type(sites[0].module).__name__ == "Conv1D",
        settings={"peft": {key: config[key] for key in _KEPT_SETTINGS if key in config}},
        versions=_versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        coverage="down" if {s.path for s in sites} == {s.path for s in downs} else "linear",
        origin={
            "format": "peft",
            "source": written,
            "files": {file: sha256(data) for file, data in content.items()},
            "base_model_name_or_path": said,
            "left_out": dropped,
            "notes": _notes(said, base, layers, dropped),
        },
    )
    try:
        readable(info.to_json())
    except MALFORMED as error:  # half a character, or lists in lists without end
        refuse_adapter(
            where, f"what it says cannot be written down: {error}",
            f"get a fresh copy of {ADAPTER_CONFIG}",
        )  # fmt: skip
    return Expert(
        name=name, kind="lora", activation=None, layers=layers,
        prompt=_prompt(base, info.description, prompt, downs[0].width), head={}, info=info,
    )  # fmt: skip


# --- the task and its prompt --------------------------------------------------------------------


def _about(task: Task | str | None, prompt: str) -> dict[str, Any]:
    """What is known of the source task; a sentence counts as its description."""
    if prompt not in ("description", "none"):
        raise ConfigError(f"prompt={prompt!r}", "give 'description' or 'none'")
    if isinstance(task, str):
        if " " in task.strip():
            return {"description": task.strip()}
        from pemt.tasks import Task as TaskType

        task = TaskType.named(task)
    if task is None:
        if prompt == "description":
            raise ConfigError(
                "An expert's prompt starts from a description of its task, and there is none.",
                'give task= a task or one sentence (--task, or --description "Given a ..., the '
                "task is to ...\"), or do without one: prompt='none' (--prompt none)",
            )
        return {}
    return {
        "task": task.name, "version": task.version, "description": task.description,
        "labels": tuple(task.labels),
    }  # fmt: skip


def _prompt(base: Base, description: str, kind: str, width: int) -> Tensor:
    import torch

    from pemt.model.description import description_prompt

    if kind == "none":
        return torch.zeros(0, width)
    return description_prompt(base.model, base.tokenizer, description).cpu()


# --- what is plain LoRA in it -------------------------------------------------------------------


def _plain(
    where: str, config: dict[str, Any], state: Mapping[str, Tensor], base: Base, *, drop_head: bool
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The branches alone, settings that describe them alone, and the head's names left out."""
    encoder_only = base.backbone.family == "encoder-only"
    kept: dict[str, Tensor] = {}
    head: list[str] = []
    for key, tensor in state.items():
        match = _KEY.fullmatch(key)
        path = match["path"] if match else key
        for end, setting, why in _ODD:
            if path.endswith(f".{end}"):
                refuse_adapter(where, f"{setting}: {why} ({path!r})", _ONLY_PLAIN)
        if encoder_only and _is_head(path, base):
            head.append(path)
        elif match and _BRANCH.fullmatch(path):
            kept[key] = tensor
        elif config.get("bias", "none") != "none" and path.endswith(".bias"):
            refuse_adapter(
                where,
                f"bias = {config['bias']!r}: it trained the base's own biases ({path!r})",
                _ONLY_PLAIN,
            )
        else:
            _refuse_tensor(where, config, key, path)
    saved = config.get("modules_to_save") or []
    foreign = [m for m in saved if not encoder_only or m.split(".")[0] not in _HEADS]
    if foreign:
        refuse_adapter(
            where,
            f"modules_to_save = {saved!r}: {foreign[0]!r} is no head that could be left out",
            _ONLY_PLAIN,
        )
    if (head or saved) and not drop_head:
        held = ", ".join(sorted(head)[:3]) or ", ".join(saved)
        refuse_adapter(
            where,
            f"modules_to_save = {saved!r}: it holds a head ({held})",
            "leave the head out with drop_head=True (--drop_head): each target task trains its own",
        )
    if not kept:
        refuse_adapter(
            where, "it holds no lora_A and lora_B inside the base", "give a trained adapter"
        )
    # without its tensors, "bias" trained nothing: a base that has no biases
    return kept, {**config, "modules_to_save": None, "bias": "none"}, sorted(head)


def _refuse_tensor(where: str, config: Mapping[str, Any], key: str, path: str) -> NoReturn:
    """Say which setting put a tensor there that is of no branch."""
    for end, setting, why in _COPIES:
        if path.endswith(f".{end}"):
            refuse_adapter(where, f"{setting}: {why} ({path!r})", _ONLY_PLAIN)
    if ".lora_" in key:
        refuse_adapter(
            where,
            f"it holds {key!r}, which is no name that PEFT's save_pretrained gives",
            "save it with PEFT: base_model.model.<module>.lora_A.weight and .lora_B.weight",
        )
    saved = config.get("modules_to_save")
    refuse_adapter(
        where,
        (f"modules_to_save = {saved!r}: " if saved else "")
        + f"it holds {path!r}, weights of the model itself that only fit the model it was trained "
        "as",
        _ONLY_PLAIN,
    )


_ONLY_PLAIN = (
    "an expert is low-rank branches beside frozen linear maps and nothing else: train the adapter "
    "again as plain LoRA (bias='none', modules_to_save=None, use_dora=False)"
)


def _is_head(path: str, base: Base) -> bool:
    prefix = f"{base.model.base_model_prefix}."
    return path.removeprefix(prefix).split(".")[0] in _HEADS


# --- where its branches are ---------------------------------------------------------------------


def _layers(
    where: str, config: Mapping[str, Any], state: Mapping[str, Tensor], base: Base
) -> tuple[tuple[ExpertLayer, ...], list[Site]]:
    """The branches in the base's order, and the linear maps they are beside."""
    from pemt.backbones import linear_paths, linear_site

    try:
        # ranks and scales go by the names that PEFT knew the modules by
        layers = lora_from_peft(config, state)
        is_target = _targets(config.get("target_modules"))
        foreign = [layer.module for layer in layers if not is_target(layer.module)]
    except ExpertError as error:
        refuse_adapter(where, error.what.rstrip("."), error.fix)
    if foreign:
        refuse_adapter(
            where,
            f"it has tensors for {foreign[0]!r}, which its target_modules "
            f"{config['target_modules']!r} leave out",
            f"get a matching pair of {ADAPTER_CONFIG} and {ADAPTER}",
        )
    prefix = _prefix([layer.module for layer in layers], base)
    placed: dict[str, tuple[ExpertLayer, Site]] = {}
    for layer in layers:
        path = prefix(layer.module)
        if path in placed:
            refuse_adapter(
                where, f"it has two branches at {path!r}", "get a fresh copy of the adapter"
            )
        try:
            site = linear_site(base.model, base.backbone, path, -1)
        except BackboneError as error:
            refuse_adapter(where, f"it has a branch at {layer.module!r}: {error.what}", error.fix)
        found = [list(layer.A.shape), list(layer.B.shape)]
        R = layer.A.shape[0]
        if found != [[R, site.hidden], [site.width, R]]:
            refuse_adapter(
                where,
                f"at {layer.module} its A is {found[0]} and its B {found[1]}, where this base "
                f"({base.name}) takes A [R, {site.hidden}] and B [{site.width}, R]",
                f"load the base it was trained on: {config.get('base_model_name_or_path')!r}",
            )
        placed[path] = replace(layer, module=path), site
    order = [p for p in linear_paths(base.model, base.backbone) if p in placed]
    return tuple(placed[p][0] for p in order), [placed[p][1] for p in order]


def _prefix(modules: list[str], base: Base) -> Any:
    """The rule that takes the adapter's paths into the model that is loaded for the family."""
    known = {name for name, _ in base.model.named_modules()}
    prefix = f"{base.model.base_model_prefix}."
    rules = [
        lambda path: path,
        lambda path: path.removeprefix(prefix),
        lambda path: prefix + path,
    ]
    return max(rules, key=lambda rule: sum(rule(module) in known for module in modules))


def _targets(said: Any) -> Callable[[str], bool]:
    """PEFT's rule: a string is a regular expression of the whole path, a list names its ends."""
    if said is None or said == "all-linear":
        return lambda _: True
    if isinstance(said, str):
        compiled = expression(said)
        return lambda module: matches(compiled, module)
    return lambda module: any(module == end or module.endswith(f".{end}") for end in said)


# --- provenance ---------------------------------------------------------------------------------


def _notes(said: str, base: Base, layers: tuple[ExpertLayer, ...], dropped: list[str]) -> list[str]:
    """What a reader should know, though it cannot make a result wrong by itself."""
    notes = []
    own = {base.name, str(getattr(base.model.config, "_name_or_path", "") or base.name)}
    if said and said not in own:
        notes.append(
            f"its configuration names the base {said!r}; it was imported for {base.name!r}, "
            "whose shapes fit"
        )
    if not any(bool(layer.B.any()) for layer in layers):
        notes.append("every B is zero: the adapter changes nothing")
    if dropped:
        notes.append(f"the head was left out: {', '.join(dropped)}")
    return notes


def _versions() -> dict[str, str]:
    import torch
    import transformers

    from pemt import __version__

    return {
        "pemt": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
