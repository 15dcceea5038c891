"""Parameter counts on T5-base without storage: METHOD.md's, and those of docs/methods.md."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from pemt.backbones import describe, down_projections
from pemt.bases import Base
from pemt.experts import Expert, ExpertInfo, ExpertLayer, PromptFactors
from pemt.methods import METHODS, Setting
from pemt.methods.method import FAMILIES
from pemt.model import AdaptedModel, PemtConfig, PemtModel, SourceConfig, SourceModel
from pemt.nn import PromptGate, TargetAdapter, TaskPrompt, TrainedNorm
from tests import tiny

BASE = 222_903_552
WIDTH, PROMPT, SOURCES = 768, 30, 6


@pytest.fixture(autouse=True)
def weightless(monkeypatch):
    """A base on the meta device has no weights to take a fingerprint of."""
    monkeypatch.setattr(AdaptedModel, "base_fingerprint", lambda self: "0" * 64)


def t5_base():
    config = T5Config(
        vocab_size=32128, d_model=WIDTH, d_kv=64, d_ff=3072, num_layers=12, num_heads=12,
        decoder_start_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        return T5ForConditionalGeneration(config)


def count(model, kind) -> int:
    modules = [m for m in model.modules() if isinstance(m, kind)]
    return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)


def experts(base, lengths) -> list[Expert]:
    sites = down_projections(base, describe("t5"))
    made = []
    for k, length in enumerate(lengths):
        info = ExpertInfo(
            name=f"e{k}", kind="lora", task=f"e{k}", base="t5-base", base_family="encoder-decoder",
            base_fingerprint="0" * 64, tokenizer_fingerprint="none", width=WIDTH, hidden=3072,
            rank=64, alpha=64.0,
        )  # fmt: skip
        with torch.device("meta"):
            layers = tuple(
                ExpertLayer(
                    module=s.path, A=torch.empty(64, 3072), B=torch.empty(WIDTH, 64), scale=1.0
                )
                for s in sites
            )
            prompt = torch.empty(length, WIDTH)
        made.append(
            Expert(
                name=info.name, kind="lora", activation=None, layers=layers, prompt=prompt,
                head={}, info=info,
            )
        )  # fmt: skip
    return made


def test_an_expert_of_stage_one():
    base = t5_base()
    assert sum(p.numel() for p in base.parameters()) == BASE
    model = SourceModel(base, prompt=torch.empty(PROMPT, WIDTH, device="meta"))
    assert sum(p.numel() for p in model.branches.parameters()) == 5_898_240
    trained, total = model.parameter_counts()
    assert trained == 5_898_240 + WIDTH * PROMPT
    assert total == BASE + trained


def test_stage_two_trains_about_one_percent():
    base = t5_base()
    lengths = [20, 21, 22, 23, 24, 25]
    prompt = torch.empty(PROMPT, WIDTH, device="meta")
    model = PemtModel(base, experts(base, lengths), prompt=prompt)
    assert count(model, TargetAdapter) == 1_789_056
    assert count(model, PromptGate) == 276_480
    assert count(model, TrainedNorm) == 47_616
    assert count(model, TaskPrompt) == WIDTH * PROMPT
    trained, total = model.parameter_counts()
    assert trained == 1_789_056 + 276_480 + 47_616 + WIDTH * PROMPT
    # without the prompt, as METHOD.md counts it
    assert round(100 * (trained - WIDTH * PROMPT) / BASE, 2) == 0.95
    frozen = SOURCES * 5_898_240 + WIDTH * sum(lengths)
    assert total == BASE + trained + frozen


# -- docs/methods.md -------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
COLUMNS = ("title", "paper", "trains", "families", "library", "count")
BY_GRADIENT = [
    name for name, m in METHODS.items() if m.trains and "encoder-decoder" in m.families
]  # fmt: skip


def rows() -> dict[str, dict[str, str]]:
    """The page's lines on methods, by name."""
    found = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    lines = [(name, rest.split(" | ")) for name, rest in found]
    full = [(name, cells) for name, cells in lines if len(cells) == len(COLUMNS)]
    assert len({name for name, _ in full}) == len(full), "a method has two lines"
    return {name: dict(zip(COLUMNS, cells, strict=True)) for name, cells in full}


def test_every_method_has_its_line():
    listed = rows()
    assert listed.keys() == METHODS.keys()
    for name, method in METHODS.items():
        line = listed[name]
        families = "all" if method.families == FAMILIES else ", ".join(method.families)
        wanted = (method.title, method.paper, families, method.library)
        assert (line["title"], line["paper"], line["families"], line["library"]) == wanted
        assert line["trains"]
        numbered = re.fullmatch(r"[\d,]+", line["count"]) is not None
        assert numbered == (name in BY_GRADIENT), f"{name}: {line['count']}"


def library_of(method, base) -> list[Expert]:
    """Six experts of the kind that a method takes; prompts have 100 rows and values."""
    made = experts(base, [100] * SOURCES)
    if method.library in ("none", "experts"):
        return made
    if method.library == "bottleneck":
        with torch.device("meta"):
            a, b = torch.empty(64), torch.empty(WIDTH)
        return [
            replace(
                e, kind="bottleneck", activation="gelu_new",
                info=replace(e.info, kind="bottleneck"),
                layers=tuple(replace(layer, a=a, b=b) for layer in e.layers),
            )
            for e in made
        ]  # fmt: skip
    factors = {}
    if method.library == "shared-prompts":
        from pemt.experts import PromptFactors

        shared, u, v = torch.zeros(100, WIDTH), torch.zeros(100), torch.zeros(WIDTH)
        factors = {"factors": PromptFactors(shared=shared, u=u, v=v)}
    return [
        replace(
            e, kind="prompt", layers=(), prompt=torch.zeros(100, WIDTH),
            info=replace(e.info, kind="prompt", rank=0, alpha=0.0), **factors,
        )
        for e in made
    ]  # fmt: skip


def even_guide(setting):
    from pemt.guide import NONE, Guide

    names = [NONE, *(e.name for e in setting.experts)]
    even = {name: 1 / len(names) for name in names}
    return Guide(weights=even, shares=(), gains={}, errors={}, rows=0), None


def no_parts(setting, guide, evidence):
    from pemt.guide.instant import Instant

    return Instant(parts=(), sharpness=1.0, task=setting.task, viewers={})


COMPUTED = {  # what building works out from rows, which a base without storage cannot
    "single": [("single.probe_losses", lambda setting: {e.name: 0.0 for e in setting.experts})],
    "spot": [("spot.task_prompt", lambda setting, sources: torch.ones(100, WIDTH))],
    "guided": [("pemt.guide_of", even_guide)],
    "guided-no-tsl": [("pemt.guide_of", even_guide)],
    "ensemble": [("instant.guide_of", even_guide), ("instant._fitted", no_parts)],
}


def built(name, folder, monkeypatch) -> tuple[AdaptedModel, dict[str, object]]:
    """A method's model on T5-base without storage, and its notes."""
    method = METHODS[name]
    for function, answer in COMPUTED.get(name, []):
        monkeypatch.setattr(f"pemt.methods.{function}", answer)
    for module in [m for n, m in sys.modules.items() if n.startswith("pemt.methods.")]:
        monkeypatch.setattr(module, "fingerprint", lambda *_: "0" * 64, raising=False)
    description = " ".join(["text"] * (PROMPT - 1))  # and the end token
    base = Base(t5_base(), tiny.tokenizer("encoder-decoder"), describe("t5"), "t5-base")
    setting = Setting(
        base=base, task=replace(tiny.task(folder), description=description),
        experts=library_of(method, base.model), train=[], validation=[], config=PemtConfig(),
    )  # fmt: skip
    return method.build(setting), setting.notes


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_the_page_prints_what_trains_on_t5_base(name, tmp_path, monkeypatch):
    model, _ = built(name, tmp_path, monkeypatch)
    assert f"{model.parameter_counts()[0]:,}" == rows()[name]["count"]


def test_adamix_is_an_adapter_once_merged(tmp_path, monkeypatch):
    _, notes = built("adamix", tmp_path, monkeypatch)
    counts = {k: f"{notes[f'{k}_parameters']:,}" for k in ("trained", "merged")}
    assert counts == {"trained": rows()["adamix"]["count"], "merged": rows()["adapter"]["count"]}


def test_the_parts_of_bitfit(tmp_path, monkeypatch):
    """The sums that the published 280 K is made of."""
    state = built("bitfit", tmp_path, monkeypatch)[0].trained_state()
    norms = sum(v.numel() for n, v in state.items() if "norm" in n)
    vocabulary = sum(v.numel() for n, v in state.items() if "lm_head" in n)
    total = sum(v.numel() for v in state.values())
    assert (total - norms - vocabulary, norms, vocabulary) == (202_752, 47_616, 32_128)
    for number in ("202,752", "47,616", "32,128"):
        assert number in PAGE.read_text(encoding="utf-8")


def test_the_published_adapter():
    """Compacter's: a bottleneck of 24 twice in each of 24 layers, and the norms' scales."""
    one = sum(p.numel() for p in TargetAdapter(WIDTH, reduction=32).parameters())
    norms = sum(p.numel() for n, p in t5_base().named_parameters() if "norm" in n)
    page = PAGE.read_text(encoding="utf-8")
    for number in (one, 48 * one, norms, 48 * one + norms):
        assert f"{number:,}" in page
    assert round((48 * one + norms) / 1e6, 1) == 1.9


def test_the_other_loras():
    """Query and value of 36 attentions, at rank 8 and at rank 32."""
    linear = [m for m in t5_base().modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) - 1 == 192  # the map to the vocabulary aside
    for rank in (8, 32):
        count = 36 * 2 * rank * (WIDTH + WIDTH)
        assert f"{count:,}" in PAGE.read_text(encoding="utf-8")


def source_prompts(rows=100) -> list[Expert]:
    """Six of 100 rows, as if tuned together."""
    made = []
    for k in range(SOURCES):
        info = ExpertInfo(
            name=f"p{k}", kind="prompt", task=f"p{k}", base="t5-base",
            base_family="encoder-decoder", base_fingerprint="0" * 64,
            tokenizer_fingerprint="none", width=WIDTH, hidden=3072, rank=0, alpha=0.0,
        )  # fmt: skip
        factors = PromptFactors(
            shared=torch.zeros(rows, WIDTH), u=torch.ones(rows), v=torch.ones(WIDTH)
        )
        made.append(
            Expert(
                name=info.name, kind="prompt", activation=None, layers=(), head={}, info=info,
                prompt=factors.prompt(), factors=factors,
            )
        )  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("method", "published", "exact"),
    [
        ("prompt-tuning", "76.8 K", 76_800),
        ("mpt", "77.6 K", 76_800 + 100 + 768),
        ("attempt", "232 K", 76_800 + 2 * 76_800 + 1_536),
    ],
)
def test_methods_that_tune_prompts_train_as_much_as_published(
    tmp_path, monkeypatch, method, published, exact
):
    """100 rows of T5-base: MPT adds u and v, ATTEMPT two maps of rank 100 and a layer norm."""
    monkeypatch.setattr("pemt.methods.source_prompts.fingerprint", lambda *_: "0" * 64)
    base = Base(t5_base(), None, describe("t5"), "t5-base")
    setting = Setting(
        base=base, task=tiny.task(tmp_path), experts=source_prompts(), train=[], validation=[],
        config=PemtConfig(),
    )  # fmt: skip
    model = METHODS[method].build(setting)
    trained, total = model.parameter_counts()
    assert trained == exact
    number, unit = published.split()
    assert unit == "K"
    assert abs(trained / 1000 - float(number)) < (0.1 if "." in number else 1)
    frozen = SOURCES * 76_800 if method == "attempt" else 0
    assert total == BASE + trained + frozen


def test_a_source_prompt():
    prompt = torch.empty(100, WIDTH, device="meta")
    model = SourceModel(t5_base(), SourceConfig(kind="prompt"), prompt=prompt)
    assert model.parameter_counts() == (76_800, BASE + 76_800)
