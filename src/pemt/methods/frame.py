"""What stands around texts that a base answers without training: a chat template's words, or plain.

`opening, text, reply, answer, turn, text, reply, answer, ...`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pemt.tasks import Task


def start_of(tokenizer: Any) -> list[int]:
    """The start token, for tokenizers that put one before every text (Llama), else nothing."""
    start = list(tokenizer("")["input_ids"][:1])
    return start if start == [tokenizer.bos_token_id] else []


@dataclass(frozen=True)
class Frame:
    """Token ids around texts: `opening, text, reply, answer, turn, text, reply, answer, ...`."""

    opening: list[int]
    reply: list[int]
    turn: list[int]


def frame_of(tokenizer: Any, task: Task) -> Frame:
    """The tokenizer's chat template cut at the texts; without one, plain words and blank lines."""
    from jinja2 import TemplateError

    said = instruction(task)
    user, assistant, again = (f"[[[{i}]]]" for i in range(3))
    turns = [
        {"role": "user", "content": user}, {"role": "assistant", "content": assistant},
        {"role": "user", "content": again},
    ]  # fmt: skip
    first = {"role": "user", "content": f"{said}\n\n{user}"}
    for messages in ([{"role": "system", "content": said}, *turns], [first, *turns[1:]]):
        if not getattr(tokenizer, "chat_template", None):
            break
        try:
            whole = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError:  # some templates have no system turn
            continue
        opening, _, rest = whole.partition(user)
        _, _, rest = rest.partition(assistant)
        turn, _, reply = rest.partition(again)
        if said in opening and reply:
            return Frame(*(_ids(tokenizer, part) for part in (opening, reply, turn)))
    plain = [*start_of(tokenizer), *_ids(tokenizer, f"{said}\n\n")]
    return Frame(plain, [], _ids(tokenizer, "\n\n"))


def instruction(task: Task) -> str:
    """What the task is, and the answers it allows, in words."""
    said = task.description.strip()
    # most descriptions name the answers already
    unnamed = not all(word in said for word in task.labels)
    if task.kind == "classification" and not task.option_columns and unnamed:
        said += f"\nAnswer with one of: {', '.join(task.labels)}."
    if task.kind == "regression" and task.score_range:
        low, high = task.score_range
        said += f"\nAnswer with a number from {low:g} to {high:g}."
    return said


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
