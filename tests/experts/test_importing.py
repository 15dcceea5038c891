"""A PEFT LoRA that was imported computes what PEFT computes, on every base and every layer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from torch.testing import assert_close
from transformers import (
    AutoModelForSequenceClassification,
    BartModel,
    GPT2Model,
    T5ForSequenceClassification,
)

from pemt.backbones import linear_paths
from pemt.errors import ConfigError, ExpertError, UnknownNameError
from pemt.experts import ExpertLibrary, expert_from_peft, save_expert
from pemt.model import SourceModel
from pemt.tasks import Task
from tests import adapters, tiny
from tests.laws.test_effect import answers, by_hand

from .fake_hub import FakeHub

SENTENCE = "Given a text judge it"


def same(ours: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest logit: the gated T5s' reach 30."""
    size = max(1.0, float(wanted.abs().max()))
    assert_close(ours / size, wanted / size, atol=1e-5, rtol=1e-5)


def imported(folder: Path, name: str, **settings):
    return expert_from_peft(
        folder, name="lora", base=tiny.loaded(name),
        **{"task": SENTENCE, "drop_head": name in tiny.ENCODER_ONLY, **settings},
    )  # fmt: skip


def mixture_of_one(name: str, expert):
    """The expert alone, at weight one: no target adapter, no fusion, a head that is not zero."""
    base = tiny.base(name)
    model = tiny.pemt(base, [expert], target_adapter=False, prompt_fusion="none")
    if model.head is not None:
        torch.nn.init.normal_(model.head.weight)
    return model


@torch.no_grad()
def difference(model, wrapped) -> torch.Tensor:
    """Checks the model against PEFT's; returns how far both are from the bare base."""
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(model.base, len(ids))
    ones = {site.index: torch.ones(1) for site in model.sites}
    output = model(ids, mask, fixed_gates=ones, **decode).logits
    ours = output[mask.bool()] if model.family == "decoder-only" else output
    same(ours, by_hand(model, wrapped, tiny.prompt(), ids, mask, decode))
    same(ours, answers(model, ids, mask, decode))  # K = 1: the gate is 1
    return ours


@pytest.mark.parametrize("kind", adapters.KINDS)
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_one_expert_at_weight_one_is_peft(tmp_path, name, kind):
    peft = adapters.saved(tiny.base(name), tmp_path / "lora", kind)
    expert = imported(tmp_path / "lora", name)
    model = mixture_of_one(name, expert)
    ours = difference(model, peft.base_model.model)
    ids, mask = tiny.batch()
    plain = by_hand(
        model, tiny.base(name), tiny.prompt(), ids, mask, tiny.decode_inputs(model.base, len(ids))
    )
    assert (ours - plain).abs().max() > 1e-2
    if kind == "all-linear":
        assert [layer.module for layer in expert.layers] == linear_paths(
            tiny.base(name), model.backbone
        )
    if kind == "regex":
        assert {layer.A.shape[0] for layer in expert.layers} == {2, 4}
        scales = {round(layer.scale, 6) for layer in expert.layers}
        assert scales == {round(a / r**0.5, 6) for a in (3, 5) for r in (2, 4)}


@pytest.mark.parametrize("kind", adapters.KINDS)
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_source_model_carries_it_alone_and_gives_it_back(tmp_path, name, kind):
    peft = adapters.saved(tiny.base(name), tmp_path / "lora", kind)
    expert = imported(tmp_path / "lora", name, prompt="none")
    base = tiny.base(name)
    model = SourceModel.from_expert(base, expert, outputs=tiny.outputs_of(base)).eval()
    if model.head is not None:
        torch.nn.init.normal_(model.head.weight)
    ids, mask = tiny.batch()
    decode = tiny.decode_inputs(base, len(ids))
    none = torch.zeros(0, 32)
    with torch.no_grad():
        wanted = by_hand(model, peft.base_model.model, none, ids, mask, decode)
        same(answers(model, ids, mask, decode), wanted)
    again = model.to_expert(expert.info)
    for one, other in zip(
        sorted(again.layers, key=lambda x: x.module),
        sorted(expert.layers, key=lambda x: x.module), strict=True,
    ):  # fmt: skip
        assert one.module == other.module
        assert one.scale == pytest.approx(other.scale)
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)


@pytest.mark.parametrize("kind", adapters.KINDS)
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_its_folder_is_a_peft_adapter_again(tmp_path, name, kind):
    adapters.saved(tiny.base(name), tmp_path / "first", kind)
    expert = imported(tmp_path / "first", name)
    ExpertLibrary(tmp_path / "library").add(expert)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns of keys it could not place
        peft = PeftModel.from_pretrained(tiny.base(name), tmp_path / "library" / "lora").eval()
    difference(mixture_of_one(name, expert), peft.base_model.model)
    read = ExpertLibrary(tmp_path / "library").load("lora")
    assert [y.module for y in read.layers] == [y.module for y in expert.layers]
    assert [y.scale for y in read.layers] == [y.scale for y in expert.layers]
    # and what was exported can be imported again, to the bit
    again = imported(tmp_path / "library" / "lora", name)
    for one, other in zip(again.layers, expert.layers, strict=True):
        assert (one.module, one.scale) == (other.module, pytest.approx(other.scale))
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_an_expert_trained_here_loads_in_plain_peft(tmp_path, name):
    expert = tiny.expert(tiny.base(name), "lora")
    save_expert(expert, tmp_path / "lora")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        peft = PeftModel.from_pretrained(tiny.base(name), tmp_path / "lora").eval()
    difference(mixture_of_one(name, expert), peft.base_model.model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*tiny.ONE_OF_EACH_FAMILY, "gpt2"])
def test_half_precision_weights_are_kept_as_they_were_saved(tmp_path, name, dtype):
    folder = tmp_path / "lora"
    adapters.saved(tiny.base(name), folder, "attention")
    adapters.rewrite(folder, {k: v.to(dtype) for k, v in adapters.weights(folder).items()})
    peft = PeftModel.from_pretrained(tiny.base(name), folder).eval()  # computes in float32
    expert = imported(folder, name)
    assert {layer.A.dtype for layer in expert.layers} == {dtype}
    difference(mixture_of_one(name, expert), peft.base_model.model)
    library = ExpertLibrary(tmp_path / "library")
    library.add(expert)
    assert {layer.B.dtype for layer in library.load("lora").layers} == {dtype}


@pytest.mark.parametrize("name", tiny.ENCODER_ONLY)
def test_a_classifiers_adapter_without_its_head(tmp_path, name):
    config = tiny.CONFIGS[name]()
    config.num_labels = 4
    whole = AutoModelForSequenceClassification.from_config(config).eval()
    inner = getattr(whole, whole.base_model_prefix)
    inner.load_state_dict(tiny.base(name).state_dict(), strict=False)
    peft = adapters.saved(whole, tmp_path / "lora", "all-linear", task_type="SEQ_CLS")
    with pytest.raises(ExpertError, match=r"modules_to_save.*head.*\n.*drop_head=True"):
        imported(tmp_path / "lora", name, drop_head=False)
    expert = imported(tmp_path / "lora", name)
    assert any("classifier" in path for path in expert.info.origin["left_out"])
    assert any("head was left out" in note for note in expert.info.origin["notes"])
    assert expert.head == {}
    difference(mixture_of_one(name, expert), getattr(peft.base_model.model, inner_name(whole)))


def inner_name(model) -> str:
    return model.base_model_prefix


@pytest.mark.parametrize(
    ("name", "make"),
    [("t5", T5ForSequenceClassification), ("bart", BartModel), ("gpt2", GPT2Model)],
)
def test_an_adapter_of_another_class_on_the_same_base(tmp_path, name, make):
    config = tiny.CONFIGS[name]()
    adapters.saved(make(config), tmp_path / "lora", "attention")
    expert = imported(tmp_path / "lora", name)
    state = adapters.weights(tmp_path / "lora")
    known = linear_paths(tiny.base(name), tiny.loaded(name).backbone)
    assert len(expert.layers) == len(state) // 2
    for layer in expert.layers:
        assert layer.module in known
        (key,) = [k for k in state if k.endswith(f"{short(layer.module)}.lora_A.weight")]
        assert torch.equal(state[key], layer.A)


def short(path: str) -> str:
    return path.removeprefix("transformer.").removeprefix("model.")


def test_layers_to_transform_and_exclude(tmp_path):
    adapters.saved(
        tiny.base("llama"), tmp_path / "one", "attention", layers_to_transform=[1],
        layers_pattern="layers",
    )  # fmt: skip
    expert = imported(tmp_path / "one", "llama")
    assert {layer.module.split(".")[2] for layer in expert.layers} == {"1"}
    adapters.saved(tiny.base("llama"), tmp_path / "two", "all-linear", exclude_modules=r".*mlp.*")
    assert all("self_attn" in y.module for y in imported(tmp_path / "two", "llama").layers)


# --- provenance and the prompt ------------------------------------------------------------------


def test_where_it_came_from(tmp_path):
    adapters.saved(tiny.base("bert"), tmp_path / "lora", "attention")
    adapters.configure(tmp_path / "lora", base_model_name_or_path="someone/another-bert")
    base = tiny.loaded("bert")
    library = ExpertLibrary(tmp_path / "library")
    info = library.import_peft(tmp_path / "lora", name="x", base=base, task=SENTENCE)
    assert info == library.info("x")
    assert (info.rank, info.alpha, info.coverage, info.format_version) == (4, 6.0, "linear", 2)
    assert (info.task, info.description) == ("x", SENTENCE)
    assert info.origin["base_model_name_or_path"] == "someone/another-bert"
    assert any("someone/another-bert" in note for note in info.origin["notes"])
    assert set(info.origin["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert info.settings["peft"]["lora_alpha"] == 6
    assert library.verify() == []
    with pytest.raises(ExpertError, match="exists already"):
        library.import_peft(tmp_path / "lora", name="x", base=base, task=SENTENCE)
    assert library.import_peft(
        tmp_path / "lora", name="x", base=base, task=SENTENCE, overwrite=True
    ).origin == info.origin  # fmt: skip


def test_a_lora_on_the_down_projections_is_like_one_trained_here(tmp_path):
    adapters.saved(tiny.base("t5"), tmp_path / "lora", "down")
    expert = imported(tmp_path / "lora", "t5")
    assert expert.info.coverage == "down"
    assert (expert.info.rank, expert.info.alpha) == (3, 6.0)
    model = tiny.pemt(tiny.base("t5"), [expert, tiny.expert(tiny.base("t5"), "b")])
    assert all(site.is_down for site in model.sites)


def test_the_prompt_comes_from_the_description(tmp_path):
    adapters.saved(tiny.base("bert"), tmp_path / "lora", "attention")
    base = tiny.loaded("bert")
    ids = base.tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]
    ids.append(base.tokenizer.sep_token_id)
    wanted = base.model.get_input_embeddings().weight[ids]
    assert torch.equal(imported(tmp_path / "lora", "bert").prompt, wanted)
    task = tiny.task(tmp_path, "judging")
    by_task = imported(tmp_path / "lora", "bert", task=task)
    assert torch.equal(by_task.prompt, wanted)
    assert (by_task.info.task, by_task.info.label_words) == ("judging", ("bad", "good"))
    assert imported(tmp_path / "lora", "bert", task=None, prompt="none").prompt.shape == (0, 32)
    with pytest.raises(ConfigError, match=r"(?s)there is none.*--description.*--prompt none"):
        imported(tmp_path / "lora", "bert", task=None)
    with pytest.raises(UnknownNameError, match="'nosuchtask'"):
        imported(tmp_path / "lora", "bert", task="nosuchtask")
    named = imported(tmp_path / "lora", "bert", task="sst2")
    assert named.info.description == Task.named("sst2").description
    with pytest.raises(ConfigError, match="prompt='x'"):
        imported(tmp_path / "lora", "bert", prompt="x")


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def lora(tmp_path):
    """An adapter on the attention of the tiny Llama, to spoil."""
    adapters.saved(tiny.base("llama"), tmp_path / "lora", "attention")
    return tmp_path / "lora"


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"use_dora": True}, "use_dora = True: DoRA"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"modules_to_save": ["embed_tokens"]}, r"modules_to_save = \['embed_tokens'\]"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"r": 8}, r"k_proj has rank 4.*\n.*configuration says 8"),
        ({"target_modules": ["k_proj", "v_proj", "o_proj"]}, "q_proj', which its target_modules"),
        ({"target_modules": r".*\.k_proj"}, "which its target_modules"),
        ({"target_modules": "(["}, "cannot be used"),
        ({"lora_alpha": "much"}, "cannot be used"),
        ({"rank_pattern": {"([": 3}}, "cannot be used"),
    ],
)
def test_settings_that_are_refused(lora, values, why):
    adapters.configure(lora, **values)
    with pytest.raises(ExpertError, match=why):
        imported(lora, "llama")


def at(path: str, *shape: int):
    return {f"base_model.model.{path}": torch.ones(*shape)}


@pytest.mark.parametrize(
    ("more", "values", "why"),
    [
        (at("model.layers.0.self_attn.q_proj.lora_magnitude_vector", 32), {}, "use_dora"),
        (at("model.layers.0.self_attn.q_proj.lora_B.bias", 32), {}, "lora_bias"),
        (at("model.layers.0.self_attn.q_proj.bias", 32), {"bias": "lora_only"}, "bias = 'lora_on"),
        (at("model.embed_tokens.lora_embedding_A", 4, 97), {}, "embedding"),
        (at("model.embed_tokens.weight", 97, 32), {}, r"holds 'model\.embed_tokens\.weight'"),
        (at("score.weight", 3, 32), {"modules_to_save": ["score"]}, r"holds 'score\.weight'"),
        (at("lm_head.lora_A.weight", 4, 32) | at("lm_head.lora_B.weight", 97, 4),
         {"target_modules": "all-linear"}, "'lm_head' is outside the layers"),
        (at("model.layers.0.self_attn.gate.lora_A.weight", 4, 32)
         | at("model.layers.0.self_attn.gate.lora_B.weight", 32, 4),
         {"target_modules": "all-linear"}, r"(?s)no module.*nearest.*model\.layers\.0\."),
        (at("model.layers.9.self_attn.q_proj.lora_A.weight", 4, 32)
         | at("model.layers.9.self_attn.q_proj.lora_B.weight", 32, 4),
         {}, r"(?s)layers\.9\.self_attn\.q_proj.*nearest.*\d\.self_attn\.q_proj"),
        (at("model.layers.0.input_layernorm.lora_A.weight", 4, 32)
         | at("model.layers.0.input_layernorm.lora_B.weight", 32, 4),
         {"target_modules": "all-linear"}, "is a LlamaRMSNorm"),
        ({KEY: torch.full((4, 32), float("nan"))}, {}, "NaN"),
        ({KEY: torch.ones(4, 31)}, {}, r"A is \[4, 31\].*takes A \[R, 32\]"),
        ({KEY: torch.ones(4, 32, dtype=torch.int8)}, {}, "int8"),
        ({KEY: torch.ones(0, 32)}, {}, "empty.*\n.*ZeRO-3"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(lora, more, values, why):
    adapters.configure(lora, **values)
    adapters.rewrite(lora, {**adapters.weights(lora), **more})
    with pytest.raises(ExpertError, match=why):
        imported(lora, "llama")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices: it replaces token embed"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "target_modules: it adapts an embedding"),
        ({"target_modules": ["lm_head", "q_proj"]}, "target_modules: it adapts an embedding or"),
        ({"modules_to_save": ["embed_tokens"]}, r"modules_to_save = \['embed_tokens'\]: it holds"),
    ],
)
def test_what_peft_saves_beside_branches_is_refused_by_its_own_setting(tmp_path, changes, why):
    adapters.saved(tiny.base("llama"), tmp_path / "lora", "attention", **changes)
    with pytest.raises(ExpertError, match=f"lora: {why}"):
        imported(tmp_path / "lora", "llama")


def test_tensors_without_peft_s_names_are_not_called_modules_to_save(lora):
    state = adapters.weights(lora)
    adapters.rewrite(lora, {k.removeprefix("base_model.model."): v for k, v in state.items()})
    with pytest.raises(
        ExpertError, match=r"lora: it holds 'model\.layers.*\n.*base_model\.model\."
    ):
        imported(lora, "llama")


def test_a_bias_setting_that_trained_nothing_is_fine(lora):
    adapters.configure(lora, bias="all")  # Llama's linear maps have no biases
    assert len(imported(lora, "llama").layers) == 8


def test_half_a_branch_is_refused(lora):
    state = adapters.weights(lora)
    del state[KEY]
    adapters.rewrite(lora, state)
    with pytest.raises(ExpertError, match=r"lacks lora_A of model\.layers\.0"):
        imported(lora, "llama")


def test_an_empty_adapter_is_refused(lora):
    adapters.rewrite(lora, {})
    with pytest.raises(ExpertError, match="holds no lora_A"):
        imported(lora, "llama")


def test_another_base_is_refused(lora):
    with pytest.raises(
        ExpertError, match=r"(?s)model\.layers\.0.*BertModel has no module.*nearest"
    ):
        imported(lora, "bert")


def test_files_that_are_refused(lora, tmp_path):
    with pytest.raises(ConfigError, match="no adapter folder"):
        imported(tmp_path / "nowhere", "llama")
    weights = lora / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(ExpertError, match="not a safetensors file"):
        imported(lora, "llama")
    weights.unlink()
    with pytest.raises(ExpertError, match=r"adapter_model\.safetensors is missing"):
        imported(lora, "llama")
    (lora / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ExpertError, match="is a pickle"):
        imported(lora, "llama")
    weights.write_bytes(content)
    (lora / "adapter_config.json").write_text("[1]")
    with pytest.raises(ExpertError, match="holds no settings"):
        imported(lora, "llama")
    (lora / "adapter_config.json").write_text("{")
    with pytest.raises(ExpertError, match="is not JSON"):
        imported(lora, "llama")
    with pytest.raises(ExpertError, match=r"(?s)adapter_config\.json is missing.*: lora"):
        imported(tmp_path, "llama")


def nested(count: int) -> str:
    return "[" * count + "]" * count


@pytest.mark.parametrize(
    "content",
    [
        nested(100_000),
        '{"peft_type": "LORA", "lora_dropout": ' + nested(700) + "}",
        '{"peft_type": "LORA", "base_model_name_or_path": ["a"]}',
        '{"peft_type": "LORA", "base_model_name_or_path": {"a": 1}}',
        '{"peft_type": "LORA", "base_model_name_or_path": "\\ud800"}',
        '{"peft_type": "LORA", "lora_dropout": "\\ud800"}',
        '{"peft_type": "LORA", "lora_alpha": 1' + "0" * 400 + "}",
        '{"peft_type": "LORA", "rank_pattern": {"' + "(" * 2000 + ")" * 2000 + '": 4}}',
        '{"peft_type": "LORA", "rank_pattern": {"a{99999999999999999999}": 4}}',
    ],
)
def test_a_malformed_configuration_is_refused_and_leaves_nothing(lora, tmp_path, content):
    file = lora / "adapter_config.json"
    if content.startswith("{"):
        content = content.replace("{", '{"r": 4, "target_modules": "all-linear", ', 1)
        if "lora_alpha" not in content:
            content = content.replace("{", '{"lora_alpha": 4, ', 1)
    file.write_text(content)
    library = ExpertLibrary(tmp_path / "library")
    with pytest.raises(ExpertError, match=r"(?s)The adapter in .*lora: .*adapter_config\.json"):
        library.import_peft(lora, name="x", base=tiny.loaded("llama"), task=SENTENCE)
    assert not (tmp_path / "library").exists()


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern", "target_modules"])
def test_a_pattern_that_takes_for_ever_is_refused(lora, key):
    slow = "(.|..)+[A-Z]"
    adapters.configure(lora, **{key: slow if key == "target_modules" else {slow: 4}})
    with pytest.raises(ExpertError, match=r"(?s)The adapter in .*lora: .*\[A-Z\].*takes too long"):
        imported(lora, "llama")


def test_settings_that_are_not_said_are_peft_s_defaults(tmp_path):
    adapters.saved(tiny.base("llama"), tmp_path / "lora", "attention", lora_alpha=8)
    path = tmp_path / "lora" / "adapter_config.json"
    said = json.loads(path.read_text())
    path.write_text(
        json.dumps({k: said[k] for k in ("peft_type", "task_type", "r", "target_modules")})
    )
    peft = PeftModel.from_pretrained(tiny.base("llama"), tmp_path / "lora").eval()
    expert = imported(tmp_path / "lora", "llama")
    difference(mixture_of_one("llama", expert), peft.base_model.model)


def test_tensors_without_a_row_or_of_a_type_that_torch_has_not(lora):
    adapters.rewrite(lora, {**adapters.weights(lora), KEY: torch.tensor(1.0)})
    with pytest.raises(ExpertError, match=r"lora_A of .*self_attn\.q_proj is \[\]"):
        imported(lora, "llama")
    described = {KEY: {"dtype": "F4", "shape": [4, 32], "data_offsets": [0, 64]}}
    header = json.dumps(described).encode()
    (lora / "adapter_model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(64)
    )
    with pytest.raises(ExpertError, match=r"The adapter in .*lora: .*F4"):
        imported(lora, "llama")


@pytest.mark.parametrize(
    "source",
    ["my loras/film lora", "loras/film--lora", "loras/film.git", "~nobody-here/lora", "x" * 300],
)
def test_a_folder_that_is_not_there_and_no_hub_id_either(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"There is no adapter folder '{source}'"):
        imported(source, "llama")


def test_a_file_is_no_adapter_folder_and_is_not_looked_for_on_the_hub(lora, monkeypatch):
    monkeypatch.chdir(lora.parent)
    with pytest.raises(ConfigError, match=r"no adapter folder 'lora/adapter_model\.safetensors'"):
        imported("lora/adapter_model.safetensors", "llama")


def test_files_that_may_not_be_read_are_named(lora, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ExpertError, match=r"lora: .*json cannot be read.*Permission denied"):
        imported(lora, "llama")


@pytest.fixture
def hub(lora, monkeypatch, tmp_path):
    """A stand-in of the Hub with the adapter in a repository, and in a folder of another."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        files = {path.name: path.read_bytes() for path in lora.iterdir()}
        hub.commit("someone/lora", files)
        hub.commit("someone/many", {f"qqp/{name}": content for name, content in files.items()})
        yield hub


def test_from_the_hub(lora, hub):
    wanted = imported(lora, "llama")
    first = hub.branches["someone/lora"]["main"]
    expert = imported("someone/lora", "llama")
    assert expert.info.origin["source"] == f"hf://someone/lora@{first}"
    assert expert.info.origin["files"] == wanted.info.origin["files"]
    for ours, theirs in zip(expert.layers, wanted.layers, strict=True):
        assert torch.equal(ours.A, theirs.A)
        assert torch.equal(ours.B, theirs.B)
    # a later commit is another adapter; the first one stays where it is, without a network too
    files = dict(hub.head("someone/lora"))
    other = json.loads(files["adapter_config.json"])
    files["adapter_config.json"] = json.dumps({**other, "lora_alpha": 99}).encode()
    second = hub.commit("someone/lora", {**files, "README.md": b""})
    assert imported("someone/lora", "llama").info.origin["source"].endswith(second)
    hub.stop()
    pinned = imported(f"someone/lora@{first}", "llama")
    assert pinned.info.alpha == wanted.info.alpha != 99


def test_a_folder_of_a_repository(lora, hub):
    expert = imported("hf://someone/many/qqp", "llama")
    assert expert.info.origin["source"].startswith("hf://someone/many/qqp@")
    with pytest.raises(ExpertError, match=r"(?s)adapter_config.json is missing.*qqp"):
        imported("someone/many", "llama")


def test_a_pickle_on_the_hub_is_not_fetched(hub):
    files = hub.head("someone/lora")
    hub.commit("someone/lora", {
        "adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"pickle",
    })  # fmt: skip
    with pytest.raises(ExpertError, match="is a pickle"):
        imported("someone/lora", "llama")
    assert not hub.asked("GET", ".bin")


def test_an_adapter_that_was_altered_on_its_way_is_refused(hub):
    hub.faults.altered.add("adapter_model.safetensors")
    with pytest.raises(ExpertError, match=r"hf://someone/lora@\w+ has another sha256"):
        imported("someone/lora", "llama")


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(ExpertError, match="no repository 'nobody/none'"):
        imported("nobody/none", "llama")
    with pytest.raises(ExpertError, match="no revision 'v9'"):
        imported("someone/lora@v9", "llama")


def test_without_a_network(hub):
    hub.stop()
    with pytest.raises(ExpertError, match=r"(?s)someone/lora cannot be fetched.*doctor"):
        imported("someone/lora", "llama")


@pytest.mark.parametrize("source", ["runs/my/lora", "lora", "a/../b", "hf://one", "a/b@"])
def test_what_cannot_be_on_the_hub_is_a_folder_that_is_not_there(source):
    with pytest.raises(ConfigError, match=r"(?s)no adapter folder.*someone/name@revision"):
        imported(source, "llama")


def test_the_base_is_left_as_it_was(tmp_path):
    adapters.saved(tiny.base("bert"), tmp_path / "lora", "attention")
    base = tiny.loaded("bert")
    before = tiny.snapshot(base.model)
    expert_from_peft(tmp_path / "lora", name="x", base=base, task=SENTENCE)
    assert tiny.snapshot(base.model) == before
