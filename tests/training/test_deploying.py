"""Models without experts are kept too: read back, they answer as they did."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from pemt.cli import main
from pemt.errors import ConfigError, ExpertError
from pemt.methods import METHODS
from pemt.model import PemtConfig, PemtModel
from pemt.model.storage import CONFIG, WEIGHTS
from pemt.training import adapt, evaluate, load_run
from tests import tiny

KEPT = [name for name, method in METHODS.items() if method.rebuilt]
SMALL = PemtConfig(reduction=4, prompt_tokens=3)


def run(name, method, place):
    """A finished run, and what its model answers."""
    base, task = tiny.loaded(name), tiny.task(place)
    result = adapt(
        base, task, [], shots=4, method=method, config=SMALL, folder=place / "run",
        settings=tiny.settings(max_steps=3, init_seed=5), progress=False, diagnose=False,
    )  # fmt: skip
    said = result.predictions.log_probabilities
    result.model.detach()
    return base, result, said


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of an adapter that nobody changes, and its base's."""
    place = tmp_path_factory.mktemp("kept")
    base = tiny.loaded("bert")
    base.model.save_pretrained(place / "bert")
    base.tokenizer.save_pretrained(place / "bert")
    run("bert", "adapter", place)
    return place


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
@pytest.mark.parametrize("method", KEPT)
def test_read_back_it_answers_as_it_did(name, method, tmp_path, monkeypatch):
    base, result, said = run(name, method, tmp_path)
    before = tiny.snapshot(base.model)
    monkeypatch.setattr("pemt.training.deploying.load_base", lambda *_, **__: base)
    again = load_run(tmp_path / "run")
    assert not isinstance(again.model, PemtModel)
    assert again.task.labels == result.task.labels
    assert again.settings == result.settings
    metrics, predictions = evaluate(
        again.model, again.task, base.tokenizer, result.test, again.settings
    )
    assert torch.equal(predictions.log_probabilities, said)
    assert metrics == result.metrics
    with pytest.raises(ConfigError, match="has no experts"):
        _ = again.mixture
    again.model.detach()
    assert tiny.snapshot(base.model) == before


def test_what_is_trained_is_kept_and_nothing_else(kept):
    from safetensors.torch import load_file

    names = load_file(kept / "run" / "model" / WEIGHTS)
    assert names
    assert all("adapter" in n or "norm" in n.lower() or n.startswith("head") for n in names)
    card = (kept / "run" / "model" / "README.md").read_text()
    assert "by the method adapter" in card
    assert "load_run(" in card
    assert "Experts" not in card


def test_it_answers_from_the_command_line(kept, capsys):
    flags = ["--base", str(kept / "bert"), "--precision", "float32", "--json"]
    assert main(["predict", str(kept / "run"), "--text", '["good"]', *flags]) == 0
    said = json.loads(capsys.readouterr().out)
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["prune"], "no experts"),
        (["fold"], "no experts"),
        (["gates"], "has no gates"),
        (["mask"], "has no gates"),
    ],
)
def test_commands_about_experts_say_that_there_are_none(kept, tmp_path, capsys, command, words):
    more = ["--output", str(tmp_path / "out")] if command[0] in ("prune", "fold") else []
    place = ["--base", str(kept / "bert"), "--precision", "float32"]
    assert main([*command, str(kept / "run"), *place, *more]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pemt_does_not_read_it(kept):
    with pytest.raises(ConfigError, match="'adapter', without experts"):
        PemtModel.from_pretrained(kept / "run" / "model", base=tiny.loaded("bert"))


@pytest.mark.parametrize("name", ["pemt", "probe", "os.system"])
def test_a_method_that_cannot_be_made_again_is_refused(kept, tmp_path, name):
    place = shutil.copytree(kept / "run" / "model", tmp_path / "model")
    described = json.loads((place / CONFIG).read_text())
    (place / CONFIG).write_text(json.dumps({**described, "method": name}))
    with pytest.raises(ConfigError, match=f"method '{name}'.*"):
        load_run(place, base=str(kept / "bert"), precision="float32")


def test_altered_weights_are_refused(kept, tmp_path):
    place = shutil.copytree(kept / "run" / "model", tmp_path / "model")
    content = bytearray((place / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (place / WEIGHTS).write_bytes(content)
    with pytest.raises(ConfigError, match="missing or altered"):
        load_run(place, base=str(kept / "bert"), precision="float32")


def test_another_base_is_refused(kept, tmp_path):
    other = tiny.loaded("bert")
    with torch.no_grad():
        other.model.get_input_embeddings().weight.add_(1)
    other.model.save_pretrained(tmp_path / "bert")
    other.tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(ExpertError, match="not the one"):
        load_run(kept / "run", base=str(tmp_path / "bert"), precision="float32")
