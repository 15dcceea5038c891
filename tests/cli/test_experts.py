from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import auto_cli

import pemt.experts
from pemt.cli.experts import list_experts, show, verify
from pemt.errors import ConfigError, UnknownNameError
from pemt.experts import Expert, ExpertInfo, ExpertLayer, ExpertLibrary

COMMANDS = {"list": list_experts, "show": show, "verify": verify}


def make_expert(name: str) -> Expert:
    info = ExpertInfo(
        name=name,
        kind="lora",
        task="film_reviews",
        description="Tell [good] from [/bad].",
        label_words=("negative", "positive"),
        base="tiny-bert",
        base_family="encoder-only",
        base_fingerprint="b",
        tokenizer_fingerprint="t",
        width=3,
        hidden=4,
        rank=2,
        alpha=2.0,
        metrics={"accuracy": 0.875},
    )
    layer = ExpertLayer(module="down", A=torch.ones(2, 4), B=torch.ones(3, 2), scale=1.0)
    return Expert(
        name=name,
        kind="lora",
        activation=None,
        layers=(layer,),
        prompt=torch.ones(1, 3),
        head={},
        info=info,
    )


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name in ("films", "questions"):
        ExpertLibrary(tmp_path).add(make_expert(name))
    return tmp_path


def test_list_prints_a_row_for_each(library, capsys):
    assert list_experts(library) == 0
    out = capsys.readouterr().out
    for cell in ("films", "questions", "lora", "0.875"):
        assert cell in out


def test_list_as_json_gives_the_descriptions(library, capsys):
    assert list_experts(library, json=True) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [ExpertInfo.from_json(row).name for row in rows] == ["films", "questions"]


def test_list_shows_a_broken_expert_with_the_reason(library, capsys):
    (library / "films" / "expert.json").write_text("{}")
    list_experts(library, json=True)
    films, questions = json.loads(capsys.readouterr().out)
    assert films["name"] == "films"
    assert "expert.json" in films["problem"]
    assert questions["task"] == "film_reviews"
    list_experts(library)
    assert "films" in capsys.readouterr().out


def test_show_prints_brackets_as_they_are(library, capsys):
    assert show(library, "films") == 0
    out = capsys.readouterr().out
    assert "Tell [good] from [/bad]." in out
    assert "negative, positive" in out


def test_show_as_json(library, capsys):
    assert show(library, "films", json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("size") == pytest.approx(ExpertLibrary(library).load("films").size, abs=1e-3)
    assert ExpertInfo.from_json(shown) == ExpertLibrary(library).info("films")


def test_show_tells_of_an_expert_whose_tensors_are_damaged(library, capsys):
    (library / "films" / "adapter_model.safetensors").write_bytes(b"no tensors")
    assert show(library, "films", json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert "size" not in shown
    assert shown["task"] == ExpertLibrary(library).info("films").task


def test_verify_exits_with_1_on_any_problem(library, capsys):
    assert verify(library) == 0
    assert "2 checked, no problem" in capsys.readouterr().out
    prompt = library / "films" / "prompt.safetensors"
    prompt.write_bytes(prompt.read_bytes() + b" ")
    assert verify(library) == 1
    assert "prompt.safetensors" in capsys.readouterr().out
    assert verify(library, "questions") == 0
    capsys.readouterr()
    assert verify(library, json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["checked"] == ["films", "questions"]
    assert "prompt.safetensors is altered" in report["problems"][0]


@pytest.mark.parametrize("command", [show, verify])
def test_an_unknown_name_gets_a_suggestion(library, command):
    with pytest.raises(UnknownNameError, match="Did you mean: films"):
        command(library, "film")


@pytest.mark.parametrize("command", [list_experts, verify])
def test_a_library_that_is_not_there_is_an_error(tmp_path, command):
    with pytest.raises(ConfigError, match="There is no library"):
        command(tmp_path / "nowhere")


def test_flags_and_help_come_from_the_signatures(library, capsys):
    assert auto_cli(COMMANDS, args=["verify", str(library), "--name", "films", "--json=true"]) == 0
    assert json.loads(capsys.readouterr().out) == {"checked": ["films"], "problems": []}
    with pytest.raises(SystemExit):
        auto_cli(COMMANDS, args=["show", "--help"])
    assert "as `pemt experts list` gives it" in capsys.readouterr().out


def test_help_needs_no_heavy_import():
    code = "import sys, pemt.cli.experts; sys.exit('torch' in sys.modules or 'peft' in sys.modules)"
    src = Path(pemt.experts.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(src)}, check=False
    )
    assert done.returncode == 0
