"""One LoRA instead of a mixture: the same answers, in our model and in plain PEFT."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from pemt.deploy import fold_lora, fold_mixture, folded_model, write_folded
from pemt.deploy.folding import distance_from_mean, truncated
from pemt.errors import ConfigError
from pemt.methods import METHODS, Setting
from pemt.model import PemtConfig
from tests import adapters, tiny

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
# those whose gates are constants: by their family, or by gate="task"
CASES = {"llama": {}, "gpt2": {}, "qwen3": {}, "t5": {"gate": "task"}, "bart": {"gate": "task"},
         "bert": {"gate": "task"}, "modernbert": {"gate": "task"}}  # fmt: skip


def built(name: str, experts=None, **settings):
    """Unequal ranks; gates, norms, adapters and prompt moved from their first values."""
    base = tiny.base(name)
    given = None if experts is None else experts(base)
    chosen = {"target_adapter": "lora", **CASES.get(name, {}), **settings}
    return tiny.stir(tiny.pemt(base, given, **chosen))


def unpadded(rows: int = 3):
    """Texts of one length, which every way of counting positions reads alike."""
    ids, _ = tiny.batch(rows=1, length=7)
    ids = torch.cat([ids.roll(i, 1) for i in range(rows)])
    return ids, torch.ones_like(ids)


def logits(model, ids, mask):
    with torch.no_grad():
        return model(ids, mask, **tiny.decode_inputs(model.base, len(ids))).logits


@pytest.mark.parametrize("which", [None, adapters.mixed])
@pytest.mark.parametrize("name", CASES)
def test_the_folded_model_is_the_mixture(name, which):
    model = built(name, which)
    ids, mask = tiny.batch()
    wanted = logits(model, ids, mask)
    generated = None
    if model.family != "encoder-only":
        generated = model.generate(ids, mask, max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    folded = fold_mixture(model)
    assert folded.error == 0
    assert not folded.left_out
    assert folded.gate_error is None
    twin = folded_model(model.detach(), folded, like=model)
    assert_close(logits(twin, ids, mask), wanted, **CLOSE)
    if generated is not None:
        again = twin.generate(ids, mask, max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
        assert torch.equal(again, generated)


def run_readme(folder, monkeypatch):
    """The names that the README's code makes, run in the folder above."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    monkeypatch.chdir(folder.parent)
    names: dict[str, object] = {}
    exec(code, names)
    return names


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("name", CASES)
def test_plain_peft_loads_it_as_the_readme_says(name, rank, tmp_path, monkeypatch):
    model = built(name)
    tiny.base(name).save_pretrained(tmp_path / "base")
    ids, mask = unpadded()
    more = tiny.decode_inputs(model.base, len(ids))
    wanted = logits(model, ids, mask)
    folded = fold_mixture(model, rank=rank)
    if rank is not None:
        wanted = logits(folded_model(model.detach(), folded, like=model), ids, mask)
    folder = write_folded(folded, tmp_path / "folded", base_name=str(tmp_path / "base"))
    made = run_readme(folder, monkeypatch)
    with torch.no_grad():
        if model.family == "encoder-only":
            theirs = made["logits"](ids, mask)
        else:
            theirs = made["model"](input_ids=ids, attention_mask=mask, **more).logits
            theirs = theirs[:, -wanted.shape[1] :]
    assert_close(theirs, wanted, **CLOSE)


def lora_run(name, folder):
    """A model of the method lora, its branches and head moved from their first values."""
    given = Setting(
        base=tiny.loaded(name), task=tiny.task(folder), experts=[], train=[], validation=[],
        config=PemtConfig(),
    )  # fmt: skip
    return tiny.stir(METHODS["lora"].build(given), size=0.1).eval()


@pytest.mark.parametrize("name", CASES)
def test_plain_peft_loads_the_lora_of_a_run_without_experts(name, tmp_path, monkeypatch):
    model = lora_run(name, tmp_path)
    tiny.base(name).save_pretrained(tmp_path / "base")
    ids, mask = tiny.batch() if model.family == "encoder-only" else unpadded()
    more = tiny.decode_inputs(model.base, len(ids))
    wanted = logits(model, ids, mask)
    assert all(layer.B.abs().max() > 0.01 for layer in model.branches())
    folder = write_folded(fold_lora(model), tmp_path / "folded", base_name=str(tmp_path / "base"))
    assert not list(folder.rglob("prompt*"))
    assert "prompt" not in (folder / "README.md").read_text()
    made = run_readme(folder, monkeypatch)
    with torch.no_grad():
        if model.family == "encoder-only":
            theirs = made["logits"](ids, mask)
        else:
            theirs = made["model"](input_ids=ids, attention_mask=mask, **more).logits
    assert_close(theirs, wanted, **CLOSE)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_merged_and_beside_are_the_same_and_hold_lora_and_norms(name, merge, tmp_path):
    """Without the prompt: the bare adapter on the base, against our model's layers on the base."""
    model = built(name)
    folded = fold_mixture(model)
    base = model.detach()
    folder = write_folded(folded, tmp_path / "folded", base_name="tiny")
    ids, mask = unpadded()
    more = tiny.decode_inputs(base, len(ids))
    twin = folded_model(base, folded, like=model)
    embedded = twin._embed(ids)
    twin.slot.active = twin._context()
    with torch.no_grad():
        ours = base(inputs_embeds=embedded, attention_mask=mask, **more)[0]
    twin.slot.active = None
    loaded = PeftModel.from_pretrained(twin.detach(), folder).eval()
    if merge:
        loaded = loaded.merge_and_unload()
    with torch.no_grad():
        theirs = loaded(inputs_embeds=embedded, attention_mask=mask, **more)[0]
    assert_close(theirs, ours, **CLOSE)
    with torch.no_grad():
        plain = tiny.base(name)(inputs_embeds=embedded, attention_mask=mask, **more)[0]
    assert not torch.allclose(plain, ours, atol=1e-2)


def test_plain_peft_generates_what_the_mixture_generates(tmp_path):
    for name in ("llama", "gpt2", "t5"):
        model = built(name)
        ids, mask = unpadded(2)
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        wanted = model.generate(ids, mask, **settings)
        folded = fold_mixture(model)
        folder = write_folded(folded, tmp_path / name, base_name="tiny")
        merged = PeftModel.from_pretrained(model.detach(), folder).merge_and_unload()
        loaded = PeftModel.from_pretrained(merged, folder / "prompt").eval()
        made = loaded.generate(input_ids=ids, attention_mask=mask, **settings)
        assert torch.equal(made[:, -4:], wanted[:, -4:])


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_a_smaller_rank_is_the_closest_there_is_and_says_how_far(rank):
    draw = torch.Generator().manual_seed(0)
    blocks = [(torch.randn(r, 14, generator=draw), torch.randn(11, r, generator=draw))
              for r in (4, 2, 4)]  # fmt: skip
    whole = sum(B @ A for A, B in blocks)
    A, B, lost, size = truncated(blocks, rank)
    assert (A.shape, B.shape) == ((rank, 14), (11, rank))
    U, S, V = torch.linalg.svd(whole)
    best = (U[:, :rank] * S[:rank]) @ V[:rank]
    assert_close(B @ A, best, atol=1e-4, rtol=1e-4)
    assert_close(torch.tensor(lost), (whole - best).square().sum(), atol=1e-3, rtol=1e-4)
    assert_close(torch.tensor(size), whole.square().sum(), atol=1e-3, rtol=1e-5)


def test_errors_fall_with_the_rank_and_the_overall_one_is_theirs():
    model = built("llama")
    full = fold_mixture(model)
    assert full.full_rank == full.expert.info.rank == 4 + 2 + 4 + 8  # and the target adapter's
    errors = [fold_mixture(model, rank=r).error for r in (1, 4, 12, 18)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0 < errors[0] < 1
    cut = fold_mixture(model, rank=4)
    sizes = {y.module: (y.B @ y.A).square().sum() for y in full.expert.layers}
    lost = sum(cut.errors[m] ** 2 * s for m, s in sizes.items())
    assert cut.error == pytest.approx(float((lost / sum(sizes.values())).sqrt()), rel=1e-4)


def test_top_k_folds_the_kept_experts_alone():
    whole = fold_mixture(built("llama"))
    model = built("llama", top_k=1)
    ids, mask = tiny.batch()
    wanted = logits(model, ids, mask)
    folded = fold_mixture(model)
    assert folded.full_rank < whole.full_rank
    assert_close(
        logits(folded_model(model.detach(), folded, like=model), ids, mask), wanted, **CLOSE
    )


def test_mean_gates_are_another_model_and_say_how_far():
    model = built("bert", gate="example")
    ids, mask = tiny.batch()
    gates = model.gates(ids, mask).transpose(0, 1)
    folded = fold_mixture(model, gates=gates)
    assert 0 < folded.gate_error < 1
    mean = gates.mean(0)
    fixed = {layer.index: mean[i] for i, layer in enumerate(model.mixtures)}
    with torch.no_grad():
        wanted = model(ids, mask, fixed_gates=fixed).logits
    ours = logits(folded_model(model.detach(), folded, like=model), ids, mask)
    assert_close(ours, wanted, **CLOSE)


def test_the_distance_from_the_mean_is_that_of_the_matrices():
    model = built("bert", gate="example")
    gates = model.gates(*tiny.batch()).transpose(0, 1)

    def matrix(site, weights):
        return sum(w * y.scale * (y.B @ y.A) for w, e in zip(weights, model.experts, strict=True)
                   for y in e.layers if y.module == site.path)  # fmt: skip

    ratios = []
    for number, site in enumerate(model.sites):
        middle = matrix(site, gates[:, number].mean(0))
        for row in gates[:, number]:
            own = matrix(site, row)
            ratios.append((own - middle).norm() / own.norm())
    assert distance_from_mean(model, gates) == pytest.approx(
        float(torch.stack(ratios).mean()), rel=1e-4
    )


@pytest.mark.parametrize(
    ("name", "settings", "more", "words"),
    [
        ("bert", {"gate": "example"}, {}, r"--pemt.gate task"),
        ("t5", {"gate": "example"}, {}, r"--pemt.gate task"),
        ("llama", {"target_adapter": True}, {}, "target_adapter lora"),
        ("llama", {"mixture": False}, {}, "no gates to fold"),
        ("llama", {}, {"rank": 0}, "rank=0"),
        ("llama", {}, {"rank": 19}, "1 to 18"),
    ],
)
def test_what_no_lora_can_hold_is_refused_with_the_way_out(name, settings, more, words):
    with pytest.raises(ConfigError, match=words):
        fold_mixture(built(name, **settings), **more)


def test_bottleneck_experts_are_refused():
    def curved(base):
        return [tiny.expert(base, "a", kind="bottleneck")]

    with pytest.raises(ConfigError, match="'a' is a bottleneck"):
        fold_mixture(built("llama", curved))


def test_a_serial_adapter_is_left_out_when_asked_and_named():
    model = built("llama", target_adapter=True)
    folded = fold_mixture(model, partial=True)
    assert folded.left_out == ("the serial target adapter",)
    ids, mask = tiny.batch()
    wanted = logits(model, ids, mask)
    for layer in model.mixtures:
        layer.adapter = None
    # without it, later layers would find other gates: what is folded are those it was trained with
    fixed = {i: torch.tensor(list(row.values())) for i, row in enumerate(folded.gates.values())}
    with torch.no_grad():
        bare = model(ids, mask, fixed_gates=fixed).logits
    assert not torch.allclose(bare, wanted, atol=1e-3)
    ours = logits(folded_model(model.detach(), folded, like=model), ids, mask)
    assert_close(ours, bare, **CLOSE)


def test_the_folder_says_what_is_in_it(tmp_path):
    model = built("bert")
    folded = fold_mixture(model, rank=5)
    scores = {"before": {"accuracy": 0.75, "n": 8.0}, "after": {"accuracy": 0.5, "n": 8.0}}
    about = {"task": "tiny", "scores": scores, "lora_adapter": True}
    folder = write_folded(folded, tmp_path / "folded", base_name="user/base", described=about)
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors", "fold.json",
                     "head.safetensors", "prompt.safetensors"]  # fmt: skip
    said = json.loads((folder / "fold.json").read_text())
    assert said["rank"] == 5
    assert said["full_rank"] == 18
    assert said["error"] == folded.error
    assert said["files"].keys() == set(files) - {"README.md", "fold.json"}
    card = (folder / "README.md").read_text()
    for words in ("rank 5 of 18", "0.7500", "0.5000", "user/base", f"{folded.error:.4f}"):
        assert words in card.replace("| 5 of", "| rank 5 of")
    partial = fold_mixture(built("llama", target_adapter=True), partial=True)
    other = write_folded(partial, tmp_path / "partial", base_name="user/base")
    assert "**Not in it**: the serial target adapter" in (other / "README.md").read_text()
    assert (other / "prompt" / "adapter_config.json").is_file()


def test_a_place_that_is_taken_is_refused_and_left_alone(tmp_path):
    folded = fold_mixture(built("llama"))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write_folded(folded, taken, base_name="tiny")
    assert [p.name for p in taken.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="not empty"):
        write_folded(folded, taken / "mine.txt", base_name="tiny")
    empty = tmp_path / "empty"
    empty.mkdir()
    write_folded(folded, empty, base_name="tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "taken"]


def test_folding_reads_the_model_and_changes_nothing():
    model = built("llama").train()
    before = {n: v.clone() for n, v in model.trained_state().items()}
    fold_mixture(model, rank=4)
    assert model.training
    assert all(torch.equal(v, before[n]) for n, v in model.trained_state().items())


def test_decoding_costs_what_plain_lora_of_its_rank_costs(tmp_path):
    """Counted, not timed: beside the weights a LoRA's products, merged the base's own."""
    model = built("llama", train_norms=False)
    folded = fold_mixture(model)
    base = model.detach()
    folder = write_folded(folded, tmp_path / "folded", base_name="tiny")
    ids, mask = unpadded(2)

    def products(decoder):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            decoder.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=4, min_new_tokens=4,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        return counter.get_total_flops()

    bare = products(base)
    targets = [layer.module for layer in folded.expert.layers]
    rank = folded.full_rank
    plain = get_peft_model(base, LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM"))
    wanted = products(plain)
    plain.unload()
    loaded = PeftModel.from_pretrained(base, folder).eval()
    assert products(loaded) == wanted > bare
    assert products(loaded.merge_and_unload()) == bare


def test_a_place_that_cannot_be_written_is_refused_in_words(tmp_path, monkeypatch):
    folded = fold_mixture(built("llama"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "here").mkdir()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path / "here")
    for place in (
        tmp_path / "file" / "x", tmp_path / "broken", ".", tmp_path / ("x" * 250), "/proc/none/x"
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"\n.*-> (give|name)"):
            write_folded(folded, place, base_name="tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert list((tmp_path / "here").iterdir()) == []


def test_a_link_to_an_empty_folder_is_a_place(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    folder = write_folded(fold_mixture(built("llama")), tmp_path / "link", base_name="tiny")
    assert (folder / "fold.json").is_file()
