"""Source prompts from the command line: one a task, then together, then the three methods."""

from __future__ import annotations

import json

import pytest

from pemt.cli import main
from tests.cli.test_commands import QUICK, place, run  # noqa: F401 - a fixture

PROMPTS = ["--source.kind", "prompt", "--source.prompt-tokens", "4"]


@pytest.fixture(scope="module")
def prompts(place):  # noqa: F811
    """The two tasks' prompts, alone and together."""
    for name in ("first", "second"):
        arguments = [
            "train-source", place / f"{name}.yaml", place / "prompts", "--base", place / "bert",
            "--precision", "float32", "--output", place / f"prompt-{name}", "--json", *PROMPTS,
            *QUICK,
        ]  # fmt: skip
        assert main([str(a) for a in arguments]) == 0
    return place


def test_an_expert_and_a_prompt_of_one_task_do_not_share_a_folder(
    prompts, capsys, tmp_path, monkeypatch
):
    """The commands that the recipes print, one after another and without --output."""
    monkeypatch.chdir(tmp_path)
    common = ["--precision", "float32", "--json", *QUICK]
    trained = [
        ("experts", "bert", ["--source.rank", "4"]), ("prompts", "bert", PROMPTS),
        ("experts", "llama", ["--source.rank", "4"]),
    ]  # fmt: skip
    for library, base, how in trained:
        arguments = [prompts / "first.yaml", tmp_path / base / library, "--base", prompts / base]
        run(capsys, "train-source", *arguments, *common, *how)
    for library in ("shared", "other"):
        flags = ["--teachers", prompts / "prompts", "--json"]
        run(capsys, *together(prompts, *flags, library=tmp_path / library))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "shared-prompt-first-second-other-bert", "shared-prompt-first-second-shared-bert",
        "source-first-experts-bert", "source-first-experts-llama", "source-first-prompts-bert",
    ]  # fmt: skip


def together(prompts, *more, library="shared"):
    sources = f"{prompts / 'first.yaml'},{prompts / 'second.yaml'}"
    return [
        "train-shared-prompt", prompts / library, "--sources", sources, "--base", prompts / "bert",
        "--precision", "float32", *QUICK, *more,
    ]  # fmt: skip


def test_prompts_are_tuned_kept_and_taken(prompts, capsys, tmp_path):
    listed = json.loads(run(capsys, "experts", "list", prompts / "prompts", "--json").out)
    assert [(x["name"], x["kind"]) for x in listed] == [("first", "prompt"), ("second", "prompt")]
    out = tmp_path / "together"
    flags = ["--teachers", prompts / "prompts", "--output", out, "--json"]
    made = json.loads(run(capsys, *together(prompts, *flags)).out)
    assert made["metrics"].keys() == {"first", "second"}
    record = json.loads((out / "run.json").read_text())
    assert [name for name, _ in record["teachers"]] == ["first", "second"]
    run(capsys, "experts", "verify", prompts / "shared")
    for method, library in (("spot", "prompts"), ("attempt", "prompts"), ("mpt", "shared")):
        arguments = [
            "adapt", prompts / "first.yaml", prompts / library, "--base", prompts / "bert",
            "--shots", "2", "--output", tmp_path / method, "--precision", "float32", *QUICK,
            "--method", method, "--json",
        ]  # fmt: skip
        adapted = json.loads(run(capsys, *arguments).out)
        assert 0 <= adapted["metrics"]["accuracy"] <= 1
        assert ("source" in adapted["notes"]) == (method == "spot")


def test_what_goes_wrong_is_said(prompts, capsys, tmp_path):
    flags = ["--teachers", prompts / "experts", "--output", tmp_path / "x"]
    said = run(capsys, *together(prompts, *flags, library="other"), code=1).err
    assert "0 prompts tuned on 'first'" in said
    assert "--source.kind prompt" in said
    one = ["train-shared-prompt", prompts / "shared", "--sources", prompts / "first.yaml"]
    said = run(capsys, *one, "--teachers", prompts / "prompts", code=1).err
    assert "at least two tasks" in said
    said = run(
        capsys, "adapt", prompts / "first.yaml", prompts / "prompts", "--base", prompts / "bert",
        "--shots", "2", "--output", tmp_path / "y", "--precision", "float32", code=1,
    ).err  # fmt: skip
    assert "is a prompt: it has no branches to mix" in said
