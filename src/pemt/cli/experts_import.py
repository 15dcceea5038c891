"""`pemt experts import`: an existing PEFT LoRA becomes an expert."""

from __future__ import annotations

import json as json_format
from typing import Literal

from pemt.errors import ConfigError


def import_peft(
    folder: str,
    library: str,
    *,
    base: str,
    name: str,
    task: str | None = None,
    description: str | None = None,
    prompt: Literal["description", "none"] = "description",
    drop_head: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Make an existing PEFT LoRA an expert of a library.

    Any plain LoRA will do, whatever linear maps it is on. The expert's prompt starts from the
    description of its task, so give the task or one sentence about it.

    Example: pemt experts import my-lora experts --base minilm --name spam --task sms_spam

    Args:
        folder: of the adapter (adapter_config.json, adapter_model.safetensors), or on the Hub:
            someone/name, someone/name@revision, hf://someone/name/folder.
        library: folder of the library; made where it does not exist.
        base: the base it was trained on: minilm, smollm2, a folder, or a Hub id.
        name: for the expert.
        task: its source task: a name of `pemt tasks list`, or a YAML file of your own.
        description: instead of a task: "Given INPUT, the task is to GOAL."
        prompt: description, or none for an expert without a prompt.
        drop_head: leave out the head of a classifier; every target task trains its own.
        overwrite: replace an expert of the same name.
        json: print the expert's description as JSON.

    Returns:
        0.
    """
    from pemt.cli.choose import task_named
    from pemt.experts import ExpertLibrary

    if task is not None and description is not None:
        raise ConfigError("--task and --description are both given.", "a task has a description")
    if description is not None and " " not in description.strip():
        raise ConfigError(
            f"--description {description!r} is no sentence.",
            'write one: "Given INPUT, the task is to GOAL."',
        )
    info = ExpertLibrary(library).import_peft(
        folder, name=name, base=base, prompt=prompt, drop_head=drop_head, overwrite=overwrite,
        task=description if task is None else task_named(task),
    )  # fmt: skip
    if json:
        print(json_format.dumps(info.to_json(), indent=2, ensure_ascii=False))
        return 0
    print(f"Expert {name!r} is in {library}: rank {info.rank}, from {folder}.")
    for note in info.origin["notes"]:
        print(f"Note: {note}.")
    return 0
