"""Tiny random bases of every described type, and random experts for them. Nothing is downloaded."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MT5Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from pemt.backbones import describe, down_projections, fingerprint
from pemt.bases import Base
from pemt.experts import Expert, ExpertInfo, ExpertLayer, PromptFactors
from pemt.model import PemtConfig, PemtModel, SourceConfig, SourceModel
from pemt.tasks import Splits, Task, load_examples, official_splits
from pemt.training import TrainSettings

VOCABULARY = 97
# initial weights as large as trained ones: at 0.02 a text hardly moves what comes out
_T5 = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "attention_dropout": 0.0,
    "initializer_range": 0.15,
}  # fmt: skip
_ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0,
    "initializer_range": 0.15,
}  # fmt: skip
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

CONFIGS = {
    "t5": lambda: T5Config(**_T5, feed_forward_proj="relu"),
    "t5-gated": lambda: T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": lambda: MT5Config(**_T5, feed_forward_proj="gated-gelu"),
    "bart": lambda: BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4, dropout=0.0,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=2, eos_token_id=1,
        decoder_start_token_id=1, forced_eos_token_id=None, scale_embedding=True,
        init_std=0.15,
    ),
    "llama": lambda: LlamaConfig(**_DECODER),
    "mistral": lambda: MistralConfig(**_DECODER, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**_DECODER),
    "qwen3": lambda: Qwen3Config(**_DECODER, head_dim=8),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=1, pad_token_id=0,
        initializer_range=0.15,
    ),
    "bert": lambda: BertConfig(**_ENCODER, **_NO_DROPOUT),
    "roberta": lambda: RobertaConfig(**_ENCODER, **_NO_DROPOUT),
    "modernbert": lambda: ModernBertConfig(
        **_ENCODER, bos_token_id=2, eos_token_id=1, cls_token_id=2, sep_token_id=1,
        global_attn_every_n_layers=2, local_attention=128,
    ),
}  # fmt: skip
ONE_OF_EACH_FAMILY = ["t5", "llama", "bert"]
ENCODER_ONLY = ["bert", "roberta", "modernbert"]
GENERATES = [name for name in CONFIGS if name not in ENCODER_ONLY]
_AUTO = {
    "encoder-decoder": AutoModelForSeq2SeqLM,
    "decoder-only": AutoModelForCausalLM,
    "encoder-only": AutoModel,
}


def base(name: str, seed: int = 0):
    """A tiny random base in evaluation mode."""
    config = CONFIGS[name]()
    torch.manual_seed(seed)
    model = _AUTO[describe(config.model_type).family].from_config(config)
    with torch.no_grad():  # some initial weights are too small to show a mistake
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def info(model, name: str, *, kind: str = "lora", rank: int = 4, alpha: float = 4.0) -> ExpertInfo:
    backbone = describe(model.config.model_type)
    site = down_projections(model, backbone)[0]
    return ExpertInfo(
        name=name, kind=kind, task=name, base="tiny", base_family=backbone.family,
        base_fingerprint=fingerprint(model, backbone), tokenizer_fingerprint="none",
        width=site.width, hidden=site.hidden, rank=rank, alpha=alpha,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )  # fmt: skip


def library_for(method, base) -> list[Expert]:
    """Two experts of the kind a method takes from its library."""
    if method.library in ("prompts", "shared-prompts"):
        together = method.library == "shared-prompts"
        return [source_prompt(base.model, n, seed=i, together=together) for i, n in enumerate("ab")]
    kind = "bottleneck" if method.library == "bottleneck" else "lora"
    return [expert(base.model, n, seed=i, kind=kind) for i, n in enumerate("ab", 1)]


def source_prompt(model, name: str, *, rows: int = 4, seed: int = 1, together: bool = False):
    """A random prompt tuned on a source; `together`: with factors of the shared one, as MPT's."""
    made = info(model, name, kind="prompt", rank=0, alpha=0.0)
    draw = torch.Generator().manual_seed(seed)
    prompt, factors = torch.randn(rows, made.width, generator=draw), None
    if together:
        shared = torch.randn(rows, made.width, generator=torch.Generator().manual_seed(99))
        u, v = (1 + 0.3 * torch.randn(n, generator=draw) for n in (rows, made.width))
        factors = PromptFactors(shared=shared, u=u, v=v)
        prompt = factors.prompt()
    return Expert(
        name=name, kind="prompt", activation=None, layers=(), prompt=prompt, head={}, info=made,
        factors=factors,
    )  # fmt: skip


def with_head(given: Expert, outputs: int, seed: int = 0) -> Expert:
    """The same expert with a random head."""
    draw = torch.Generator().manual_seed(seed)
    head = {
        "weight": torch.randn(outputs, given.info.width, generator=draw),
        "bias": torch.randn(outputs, generator=draw),
    }
    return dataclasses.replace(given, head=head)


def expert(
    model, name: str, *, rank: int = 4, alpha: float = 8.0, seed: int = 1, kind: str = "lora",
    prompt: int = 3, zero: bool = False,
) -> Expert:  # fmt: skip
    """A random expert for a base; `zero` gives one without effect."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    layers = []
    for site in down_projections(model, describe(model.config.model_type)):
        bottleneck = kind == "bottleneck"
        layers.append(
            ExpertLayer(
                module=site.path,
                A=normal(rank, site.hidden) / site.hidden**0.5,
                B=normal(site.width, rank) * (0.0 if zero else 0.5),
                scale=1.0 if bottleneck else alpha / rank,
                a=0.3 * normal(rank) if bottleneck else None,
                b=(0.0 if zero else 0.3) * normal(site.width) if bottleneck else None,
            )
        )
    return Expert(
        name=name, kind=kind, activation="gelu_new" if kind == "bottleneck" else None,
        layers=tuple(layers), prompt=normal(prompt, layers[0].B.shape[0]), head={},
        info=info(model, name, kind=kind, rank=rank, alpha=alpha),
    )  # fmt: skip


def batch(rows: int = 3, length: int = 7, *, side: str = "right", seed: int = 0):
    """Random ids and mask with padding; row lengths differ."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=draw)
    mask = torch.ones_like(ids)
    for row in range(rows):
        pad = min(row, length - 1)
        if pad:
            where = slice(length - pad, None) if side == "right" else slice(0, pad)
            ids[row, where], mask[row, where] = 0, 0
    return ids, mask


def labels_for(family: str, ids, mask, *, classes: int = 3, seed: int = 5):
    """Labels that fit a family: answers, answers at the text's end, or classes."""
    draw = torch.Generator().manual_seed(seed)
    if family == "encoder-only":
        return torch.randint(0, classes, (len(ids),), generator=draw)
    if family == "encoder-decoder":
        answer = torch.randint(3, VOCABULARY, (len(ids), 4), generator=draw)
        answer[-1, 3:] = -100
        return answer
    answer = torch.where(mask.bool(), ids, -100)
    answer[:, : ids.shape[1] // 2] = -100
    return answer


def prompt(width: int = 32, length: int = 3, seed: int = 11) -> torch.Tensor:
    return torch.randn(length, width, generator=torch.Generator().manual_seed(seed))


def outputs_of(model) -> int | None:
    """Three classes for an encoder-only base, text for the others."""
    encoder_only = describe(model.config.model_type).family == "encoder-only"
    return 3 if encoder_only else None


def pemt(base_model, experts=None, **settings) -> PemtModel:
    """A PemtModel of three unequal experts, in evaluation mode, prompt dropout 0."""
    if experts is None:
        experts = [
            expert(base_model, "a", rank=4, seed=1),
            expert(base_model, "b", rank=2, seed=2, prompt=2),
            expert(base_model, "c", rank=4, seed=3, prompt=5),
        ]
    torch.manual_seed(7)
    # a small scale: attention that sits on one source row would hide what the others give
    config = PemtConfig(**{"prompt_dropout": 0.0, "prompt_scale": 0.1, "reduction": 4, **settings})
    outputs = outputs_of(base_model)
    return PemtModel(base_model, experts, config, prompt=prompt(), outputs=outputs).eval()


def source(base_model, *, with_prompt: bool = True, **settings) -> SourceModel:
    """A SourceModel in evaluation mode."""
    torch.manual_seed(7)
    chosen = {"rank": 4, "alpha": 8.0, "prompt": "random" if with_prompt else "none"}
    return SourceModel(
        base_model, SourceConfig(**{**chosen, **settings}),
        prompt=prompt() if with_prompt else None, outputs=outputs_of(base_model),
    ).eval()  # fmt: skip


def stir(model, seed: int = 13, size: float = 0.2):
    """Move all that trains away from its first value: gates, norms, adapters, prompt, head."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=draw))
    return model


def train(model, steps: int = 2):
    """A few optimiser steps, large enough to move everything; the model's mode is kept."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.0)
    ids, mask = batch()
    labels = labels_for(model.family, ids, mask)
    mode = model.training
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(ids, mask, labels).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.train(mode)


def gradients(model) -> dict[str, torch.Tensor]:
    """Gradients of all that trains, by name, taken out of the model."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"no gradient reached {name}"
            found[name] = parameter.grad
        else:
            assert parameter.grad is None, f"a gradient reached the frozen {name}"
        parameter.grad = None
    return found


def decode_inputs(model, rows: int = 1) -> dict[str, torch.Tensor]:
    """What `forward` needs without labels: a decoder's first tokens, where there is one."""
    if describe(model.config.model_type).family != "encoder-decoder":
        return {}
    draw = torch.Generator().manual_seed(3)
    return {"decoder_input_ids": torch.randint(3, VOCABULARY, (rows, 4), generator=draw)}


@torch.no_grad()
def log_likelihood(model, text: torch.Tensor, answer: list[int]) -> torch.Tensor:
    """log p(answer | text) from one full forward pass: text `[1, S]` without padding."""
    given = torch.tensor([answer])
    if describe(model.config.model_type).family == "encoder-decoder":
        start = torch.tensor([[model.config.decoder_start_token_id]])
        shown = torch.cat([start, given[:, :-1]], 1)
        logits = model(input_ids=text, decoder_input_ids=shown).logits
    else:
        whole = torch.cat([text, given[:, :-1]], 1)
        logits = model(input_ids=whole).logits[:, text.shape[1] - 1 :]
    return logits.log_softmax(-1).gather(-1, given.unsqueeze(-1)).sum()


def move_padding(ids: torch.Tensor, mask: torch.Tensor, *more: torch.Tensor):
    """The same rows with right padding moved to the left; `[B, S]` labels move along."""
    shifts = (ids.shape[1] - mask.sum(1)).tolist()
    return tuple(
        torch.stack([row.roll(n) for row, n in zip(t, shifts, strict=True)])
        for t in (ids, mask, *more)
    )


# -- a tokenizer and tasks for the tiny bases ------------------------------------------------------

GOOD, BAD = ("nice", "lovely", "fine"), ("awful", "poor", "dull")
FILLERS = tuple(f"w{i}" for i in range(24))
_SPECIAL = ("<pad>", "</s>", "<unk>", "[CLS]", "[SEP]")
_TOKENS = (
    *_SPECIAL, "text:", "answer:", "bad", "good", "Given", "a", "text", "judge", "it", "0.0", "1.0",
    "2.0", "3.0", "4.0", *GOOD, *BAD, *FILLERS,
)  # fmt: skip


def tokenizer(family: str, *more: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer as a family has it; `more` words make it another one."""
    vocabulary = {token: i for i, token in enumerate((*_TOKENS, *more))}
    assert len(vocabulary) <= VOCABULARY
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    if family == "encoder-only":
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        special["eos_token"] = "</s>"
    frame = {"encoder-only": "[CLS] $A [SEP]", "encoder-decoder": "$A </s>"}.get(family)
    if frame is not None:
        marks = [(t, vocabulary[t]) for t in frame.split() if t != "$A"]
        inner.post_processor = processors.TemplateProcessing(single=frame, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def loaded(name: str, seed: int = 0, *more: str) -> Base:
    """A tiny base with its tokenizer."""
    model = base(name, seed)
    backbone = describe(model.config.model_type)
    return Base(model, tokenizer(backbone.family, *more), backbone, f"tiny-{name}")


def rows(kind: str, count: int, seed: int) -> list[dict[str, object]]:
    """Rows whose answer a good or bad word decides; texts differ in length."""
    draw = random.Random(seed)
    made: list[dict[str, object]] = []
    for i in range(count):
        words = [draw.choice(FILLERS) for _ in range(draw.randint(1, 9))]
        good = i % 2
        word = draw.choice(GOOD if good else BAD)
        words.insert(draw.randrange(len(words) + 1), word)
        score = float(good * 2 + draw.randint(0, 2))
        answer = {"classification": good, "regression": score, "generation": word}[kind]
        made.append({"text": " ".join(words), "label": answer})
    return made


def task(
    folder: Path,
    name: str = "tiny",
    *,
    kind: str = "classification",
    count: int = 32,
    seed: int = 0,
) -> Task:
    """A task on files: `count` training rows, half as many for validation and for test."""
    files = {}
    for i, (split, size) in enumerate(
        [("train", count), ("validation", count // 2), ("test", count // 2)]
    ):
        files[split] = f"{name}-{split}.jsonl"
        lines = [json.dumps(row) for row in rows(kind, size, 100 * seed + i)]
        (folder / files[split]).write_text("\n".join(lines), encoding="utf-8")
    described: dict[str, object] = {
        "kind": kind, "template": "text: {text}", "label_column": "label",
        "description": "Given a text judge it", "rows": {"files": files}, "split": {"rule": "own"},
    }  # fmt: skip
    described |= {
        "classification": {"labels": ["bad", "good"], "metrics": ["accuracy"]},
        "regression": {"score_range": [0, 4], "score_step": 1.0, "metrics": ["pearson"]},
        "generation": {"metrics": ["exact_match"]},
    }[kind]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    return Task.from_file(path)


def splits(given: Task) -> Splits:
    """The task's rows."""
    return official_splits(given, load_examples(given))


def settings(**changes: object) -> TrainSettings:
    """A run of four small steps that logs nowhere."""
    return TrainSettings(
        **{
            "max_steps": 4, "batch_size": 8, "evaluations": 2, "learning_rate": 1e-2,
            "eval_batch_size": 4, "max_source_length": 24, "max_target_length": 3,
            "report_to": "none", **changes,
        }
    )  # fmt: skip


def snapshot(model) -> dict[str, object]:
    """All that `detach` must give back: modules by identity, flags, and values bit for bit."""
    return {
        "modules": {n: id(m) for n, m in model.named_modules()},
        "gradients": {n: p.requires_grad for n, p in model.named_parameters()},
        "training": {n: m.training for n, m in model.named_modules()},
        "attributes": sorted(vars(model)),
        "values": {n: v.detach().numpy().tobytes() for n, v in model.state_dict().items()},
    }
