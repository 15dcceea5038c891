"""`pemt experts import`, from a folder that PEFT saved to a library."""

from __future__ import annotations

import json

import pytest

from pemt.cli import main
from pemt.experts import ExpertLibrary
from tests import adapters, tiny

SENTENCE = "Given a text judge it"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base and an adapter for it with a head, each in a folder."""
    folder = tmp_path_factory.mktemp("import")
    base = tiny.loaded("bert")
    base.model.save_pretrained(folder / "bert")
    base.tokenizer.save_pretrained(folder / "bert")
    adapters.saved(tiny.base("bert"), folder / "lora", "all-linear")
    tiny.task(folder, "judging")
    return folder


def run(capsys, place, library, *more, code=0):
    arguments = ["experts", "import", place / "lora", library, "--base", place / "bert", *more]
    assert main([str(a) for a in arguments]) == code
    return capsys.readouterr()


def test_with_a_description(place, tmp_path, capsys):
    out = run(
        capsys, place, tmp_path, "--name", "judge", "--description", SENTENCE, "--drop-head"
    ).out
    assert "Expert 'judge' is in" in out
    assert "Note: the head was left out: pooler.dense" in out
    info = ExpertLibrary(tmp_path).info("judge")
    assert info.description == SENTENCE
    assert main(["experts", "verify", str(tmp_path)]) == 0
    assert main(["experts", "show", str(tmp_path), "judge"]) == 0
    assert "linear" in capsys.readouterr().out


def test_with_a_task_as_json_and_again(place, tmp_path, capsys):
    flags = ["--name", "judge", "--task", place / "judging.yaml", "--drop-head", "--json"]
    info = json.loads(run(capsys, place, tmp_path, *flags).out)
    assert (info["task"], info["label_words"]) == ("judging", ["bad", "good"])
    assert info["origin"]["left_out"] == [
        "pooler.dense.lora_A.weight",
        "pooler.dense.lora_B.weight",
    ]
    assert "exists already" in run(capsys, place, tmp_path, *flags, code=1).err
    run(capsys, place, tmp_path, *flags, "--overwrite")


def test_without_a_prompt(place, tmp_path, capsys):
    run(capsys, place, tmp_path, "--name", "judge", "--prompt", "none", "--drop-head")
    assert ExpertLibrary(tmp_path).load("judge").prompt.shape == (0, 32)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--drop-head"], "--description"),
        (["--description", SENTENCE], "--drop_head"),
        (["--description", "good", "--drop-head"], "no sentence"),
        (["--description", SENTENCE, "--task", "sst2"], "both given"),
        (["--task", "sst3", "--drop-head"], "Did you mean: sst2"),
    ],
)
def test_what_is_missing_is_asked_for(place, tmp_path, capsys, flags, words):
    assert words in run(capsys, place, tmp_path, "--name", "judge", *flags, code=1).err
    assert ExpertLibrary(tmp_path).names() == []
