"""Loading bases from folders: whole ones as they are, the others refused in words."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from pemt.bases import load_base, load_tokenizer
from pemt.errors import BackboneError
from tests import tiny

INDEX = "model.safetensors.index.json"


def saved(folder, name, **options):
    """A tiny base in a folder, and its tensors."""
    base = tiny.loaded(name)
    base.model.save_pretrained(folder, **options)
    base.tokenizer.save_pretrained(folder)
    return base.model.state_dict()


def weights(folder, change):
    """Change the tensors in a folder's file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder, match):
    with pytest.raises(BackboneError, match=match) as caught:
        load_base(folder, precision="float32")
    return caught.value


@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_a_saved_base_is_read_as_it_was(tmp_path, name, size):
    """In one file or in several, with tied weights or without."""
    before = saved(tmp_path, name, max_shard_size=size)
    assert (size == "1GB") == (len(list(tmp_path.glob("*.safetensors"))) == 1)
    now = load_base(tmp_path, precision="float32").model.state_dict()
    assert all(torch.equal(now[key], value) for key, value in before.items())


def test_without_a_pad_token_the_end_token_pads(tmp_path):
    base = tiny.loaded("llama")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.pad_token = None
    base.tokenizer.save_pretrained(tmp_path)
    assert load_base(tmp_path).tokenizer.pad_token == "</s>"


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_weights_that_are_not_there_are_not_drawn_at_random(tmp_path, name):
    key = next(
        key
        for key in saved(tmp_path, name)
        if key.endswith(("wo.weight", "output.dense.weight", "down_proj.weight"))
    )
    weights(tmp_path, lambda tensors: tensors.pop(key))
    refused(tmp_path, f"lack 1 of its weights, such as {key}")


def test_an_encoder_alone_is_no_encoder_decoder(tmp_path):
    saved(tmp_path / "whole", "t5-gated")
    T5EncoderModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "part")
    tiny.tokenizer("encoder-decoder").save_pretrained(tmp_path / "part")
    refused(tmp_path / "part", r"such as decoder\.")


def test_the_pooler_is_not_needed(tmp_path):
    saved(tmp_path, "bert")
    weights(tmp_path, lambda t: [t.pop(key) for key in list(t) if key.startswith("pooler.")])
    load_base(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    """Neither by their usual name, nor where an index of safetensors names them."""
    tensors = saved(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "no file named model.safetensors")
    listed = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "pytorch_model.bin")}
    (tmp_path / INDEX).write_text(json.dumps(listed))
    refused(tmp_path, "'pytorch_model.bin', which is not safetensors beside it")


def test_an_index_of_a_name_of_its_own_is_looked_at_too(tmp_path):
    tensors = saved(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "own.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    own = "own.safetensors.index.json"
    (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_weights": own}))
    listed = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "own.bin")}
    (tmp_path / own).write_text(json.dumps(listed))
    refused(tmp_path, "'own.bin', which is not safetensors")


@pytest.mark.parametrize("absolute", [False, True])
def test_an_index_stays_in_its_folder(tmp_path, absolute):
    folder, outside = tmp_path / "base", tmp_path / "outside.safetensors"
    tensors = saved(folder, "bert")
    shutil.move(folder / "model.safetensors", outside)
    place = str(outside) if absolute else "../outside.safetensors"
    listed = {"metadata": {}, "weight_map": dict.fromkeys(tensors, place)}
    (folder / INDEX).write_text(json.dumps(listed))
    refused(folder, "not safetensors beside it")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "header too small"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "header"),
        (None, "Cannot load the base"),
    ],
)
def test_a_damaged_file_of_weights(tmp_path, content, match):
    saved(tmp_path, "bert")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    refused(tmp_path, match)


def test_weights_of_another_shape(tmp_path):
    saved(tmp_path, "bert")
    key = "encoder.layer.1.output.dense.weight"
    weights(tmp_path, lambda t: t.update({key: t[key][:5].contiguous()}))
    refused(tmp_path, "Cannot load the base")


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": []}', "[]"])
def test_a_damaged_index(tmp_path, content):
    saved(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / INDEX).write_text(content)
    refused(tmp_path, "Cannot load the base")


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"model_type": "bert", "hidden_size": "x"}'])
def test_a_damaged_configuration(tmp_path, content):
    saved(tmp_path, "bert")
    (tmp_path / "config.json").write_text(content)
    refused(tmp_path, "Cannot read a base from")
    with pytest.raises(BackboneError, match="Cannot read a base from"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_tokenizer(tmp_path, file, content):
    saved(tmp_path, "llama")
    (tmp_path / file).write_text(content)
    refused(tmp_path, "Cannot load the base")
    with pytest.raises(BackboneError, match="Cannot load the tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_library_that_quantised_weights_need(tmp_path, method):
    """Not installed here: the error says which to install."""
    saved(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "install" in refused(tmp_path, "Cannot load the base").fix


def test_code_beside_a_tokenizer_never_runs(tmp_path):
    saved(tmp_path, "llama")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass")
    path = tmp_path / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    refused(tmp_path, "Cannot load the base")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_there_is_named(tmp_path, device):
    saved(tmp_path, "bert")
    with pytest.raises(BackboneError, match=f"(?s)No device '{device}'.*'cpu'"):
        load_base(tmp_path, device=device)


def test_a_base_is_put_where_asked(tmp_path):
    saved(tmp_path, "bert")
    assert load_base(tmp_path, device="cpu").model.device.type == "cpu"
