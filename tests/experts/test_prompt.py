"""Experts of kind "prompt": their folder, what plain PEFT makes of it, and who refuses them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pemt.errors import ConfigError, ExpertError
from pemt.experts import ExpertLibrary, load_expert, save_expert
from pemt.experts.card import expert_card
from pemt.methods import METHODS, Setting
from pemt.model import PemtConfig, PemtModel, SourceConfig, SourceModel, vocabulary_prompt
from pemt.training import train_source
from tests import tiny

TOGETHER = pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])


@pytest.mark.parametrize("name", ["t5", "gpt2", "bert"])
@TOGETHER
def test_a_folder_gives_the_prompt_back(tmp_path, name, together):
    expert = tiny.source_prompt(tiny.base(name), "reviews", together=together)
    if name == "bert":
        expert = tiny.with_head(expert, 2)
    info = save_expert(expert, tmp_path / "reviews")
    assert info.format_version == 3
    files = {p.name for p in (tmp_path / "reviews").iterdir()}
    peft = {"adapter_config.json", "adapter_model.safetensors"}
    own = {"prompt.safetensors", "expert.json"}
    assert files == own | ({"head.safetensors"} if name == "bert" else peft)
    again = load_expert(tmp_path / "reviews")
    assert (again.kind, again.layers, again.num_params) == ("prompt", (), 0)
    assert again.prompt.equal(expert.prompt)
    assert again.head.keys() == expert.head.keys()
    if together:
        for factor in ("shared", "u", "v"):
            assert getattr(again.factors, factor).equal(getattr(expert.factors, factor))
    else:
        assert again.factors is None


@pytest.mark.parametrize("name", ["t5", "llama", "gpt2"])
def test_plain_peft_loads_it_and_answers_alike(tmp_path, name):
    from peft import PeftModel

    base = tiny.base(name)
    expert = tiny.source_prompt(base, "reviews")
    save_expert(expert, tmp_path / "reviews")
    ids, _ = tiny.batch(2, 6)
    mask = torch.ones_like(ids)
    given = tiny.decode_inputs(base, 2)
    model = SourceModel.from_expert(base, load_expert(tmp_path / "reviews"))
    with torch.no_grad():
        wanted = model.eval()(ids, mask, **given).logits
        model.detach()
        plain = PeftModel.from_pretrained(base, tmp_path / "reviews").eval()
        found = plain(input_ids=ids, attention_mask=mask, **given).logits
    torch.testing.assert_close(found[:, -wanted.shape[1] :], wanted, rtol=1e-5, atol=1e-5)


@TOGETHER
def test_a_library_keeps_it_as_the_others(tmp_path, together):
    library = ExpertLibrary(tmp_path / "library")
    expert = tiny.source_prompt(tiny.base("t5"), "reviews", together=together)
    library.add(expert)
    library.add(tiny.expert(tiny.base("t5"), "branches"))
    assert library.names() == ["branches", "reviews"]
    assert library.verify() == []
    assert library.info("reviews").kind == "prompt"
    copy = ExpertLibrary(tmp_path / "copy")
    copy.add_from(library)
    copy.rename("reviews", "films")
    assert copy.load("films").prompt.equal(expert.prompt)
    assert (copy.load("films").factors is None) != together
    copy.remove("films")
    assert copy.names() == ["branches"]


def test_its_card_says_what_it_is():
    info = tiny.source_prompt(tiny.base("t5"), "reviews").info
    card = expert_card(info)
    assert "A source prompt" in card
    assert "rank" not in card
    assert "Plain PEFT loads the prompt too" in card
    silent = expert_card(dataclasses.replace(info, base_family="encoder-only"))
    assert "PeftModel" not in silent


def rewritten(place, file, change):
    tensors = load_file(place / file)
    change(tensors)
    save_file(tensors, place / file, metadata={"format": "pt"})


def resealed(place):
    """Record the files as they are, as somebody would who means to pass the checks."""
    from pemt.experts.folder import _shapes
    from pemt.experts.manifest import content_hash, sha256

    manifest = json.loads((place / "expert.json").read_text())
    for file in manifest["files"]:
        manifest["files"][file] = sha256((place / file).read_bytes())
        if file.endswith(".safetensors"):
            manifest["tensors"][file] = _shapes(load_file(place / file))
    manifest["info"]["content_hash"] = content_hash(manifest)
    (place / "expert.json").write_text(json.dumps(manifest))


def test_an_altered_prompt_is_refused(tmp_path):
    place = tmp_path / "reviews"
    save_expert(tiny.source_prompt(tiny.base("t5"), "reviews"), place)
    rewritten(place, "prompt.safetensors", lambda t: t["prompt"].add_(1))
    with pytest.raises(ExpertError, match=r"prompt\.safetensors is altered"):
        load_expert(place)


def test_peft_files_of_another_prompt_are_refused(tmp_path):
    place = tmp_path / "reviews"
    save_expert(tiny.source_prompt(tiny.base("t5"), "reviews"), place)
    rewritten(place, "adapter_model.safetensors", lambda t: t["prompt_embeddings"].add_(1))
    resealed(place)
    with pytest.raises(ExpertError, match="other values than its prompt"):
        load_expert(place)


def test_a_peft_configuration_of_another_length_is_refused(tmp_path):
    place = tmp_path / "reviews"
    save_expert(tiny.source_prompt(tiny.base("t5"), "reviews"), place)
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({**config, "num_virtual_tokens": 7}))
    resealed(place)
    with pytest.raises(ExpertError, match="PROMPT_TUNING with 7 rows"):
        load_expert(place)


def test_half_of_the_factors_is_refused(tmp_path):
    place = tmp_path / "reviews"
    save_expert(tiny.source_prompt(tiny.base("bert"), "reviews", together=True), place)
    rewritten(place, "prompt.safetensors", lambda t: t.pop("u"))
    resealed(place)
    with pytest.raises(ExpertError, match="holds"):
        load_expert(place)


def test_shapes_that_contradict_each_other_are_refused():
    base = tiny.base("t5")
    one = tiny.source_prompt(base, "reviews", together=True)
    wrong = dataclasses.replace(one.factors, u=torch.ones(3))
    with pytest.raises(ExpertError, match=r"factor u of shape \[3\]"):
        dataclasses.replace(one, factors=wrong)
    with pytest.raises(ExpertError, match="prompt of 0 rows"):
        dataclasses.replace(one, prompt=torch.zeros(0, 32), factors=None)
    with pytest.raises(ExpertError, match="with 4 branches"):
        dataclasses.replace(one, layers=tiny.expert(base, "x").layers)
    with pytest.raises(ExpertError, match="only an expert of kind 'prompt'"):
        dataclasses.replace(tiny.expert(base, "x"), factors=one.factors)
    with pytest.raises(ExpertError, match="rank 4"):
        dataclasses.replace(one.info, rank=4)


# -- who takes it, and who does not ----------------------------------------------------------------


def test_what_mixes_branches_refuses_it():
    base = tiny.base("bert")
    before = tiny.snapshot(base)
    mixed = [tiny.expert(base, "x"), tiny.source_prompt(base, "reviews")]
    with pytest.raises(ExpertError, match=r"(?s)'reviews' is a prompt.*spot, attempt, mpt"):
        PemtModel(base, mixed, prompt=tiny.prompt(), outputs=3)
    assert tiny.snapshot(base) == before


@pytest.mark.parametrize("method", ["spot", "attempt", "mpt"])
def test_what_transfers_prompts_refuses_the_others(tmp_path, method):
    base, task = tiny.loaded("bert"), tiny.task(tmp_path)
    rows = tiny.splits(task)
    setting = Setting(
        base=base, task=task, experts=[tiny.expert(base.model, "x")], train=rows.train,
        validation=rows.validation, config=PemtConfig(),
    )  # fmt: skip
    before = tiny.snapshot(base.model)

    def refused(error, said, *experts):
        with pytest.raises(error, match=said):
            METHODS[method].build(dataclasses.replace(setting, experts=experts))
        assert tiny.snapshot(base.model) == before

    refused(ExpertError, r"(?s)'x' is of kind 'lora'.*--source\.kind prompt", *setting.experts)
    refused(ConfigError, "No source prompts")
    foreign = tiny.source_prompt(tiny.base("bert", seed=5), "far", together=True)
    refused(ExpertError, "'far' was tuned on the base", foreign)
    if method != "spot":
        pair = [
            tiny.source_prompt(base.model, n, rows=r, together=True)
            for n, r in (("a", 3), ("b", 4))
        ]
        refused(ConfigError, r"\{'a': 3, 'b': 4\}", *pair)


# -- stage 1 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_prompt_tuning_of_a_source_trains_the_prompt_alone(tmp_path, name):
    base, task = tiny.loaded(name), tiny.task(tmp_path)
    before = tiny.snapshot(base.model)
    config = SourceConfig(kind="prompt", prompt_tokens=5)
    library = ExpertLibrary(tmp_path / "library")
    made = train_source(
        base, task, library, config=config, settings=tiny.settings(), progress=False
    )  # fmt: skip
    assert tiny.snapshot(base.model) == before
    expert = library.load(made.name)
    start = vocabulary_prompt(base.model, 5, seed=0)
    assert expert.prompt.shape == start.shape
    assert not expert.prompt.equal(start)
    assert bool(expert.head) == (name == "bert")
    assert expert.info.settings["source"]["prompt"] == "vocabulary"
    outputs = task.num_labels if name == "bert" else None
    model = SourceModel.from_expert(base.model, expert, outputs=outputs)
    names = {"task_prompt.embedding"} | ({"head.weight", "head.bias"} if name == "bert" else set())
    assert set(model.trained_state()) == names
    model.detach()


def test_a_prompt_of_another_base_is_not_put_on():
    base, other = tiny.base("bert"), tiny.base("bert", seed=4)
    before = tiny.snapshot(other)
    with pytest.raises(ExpertError, match="tuned on the base"):
        SourceModel.from_expert(other, tiny.source_prompt(base, "reviews"), outputs=2)
    assert tiny.snapshot(other) == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "prompt", "prompt": "none"}, "prompt='none' with kind='prompt'"),
        ({"kind": "lora", "prompt": "vocabulary"}, "prompt='vocabulary' with kind='lora'"),
        ({"kind": "prompt", "prompt_tokens": 0}, "prompt_tokens=0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        SourceConfig(**wrong)


def test_a_prompt_of_another_length_than_asked_is_refused():
    base = tiny.base("bert")
    config = SourceConfig(kind="prompt", prompt_tokens=9)
    with pytest.raises(ConfigError, match="3 rows with prompt_tokens=9"):
        SourceModel(base, config, prompt=tiny.prompt(), outputs=2)


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "bert"])
def test_the_first_rows_are_tokens_as_the_base_embeds_them(name):
    base = tiny.base(name)
    rows = vocabulary_prompt(base, 6, seed=3)
    every = SourceModel(base, SourceConfig(rank=2), prompt=tiny.prompt(), outputs=2)._embed(
        torch.arange(tiny.VOCABULARY)
    )
    assert ((rows.unsqueeze(1) - every).abs().sum(-1).amin(1) == 0).all()
    assert rows.equal(vocabulary_prompt(base, 6, seed=3))
    assert not rows.equal(vocabulary_prompt(base, 6, seed=4))
