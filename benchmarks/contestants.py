"""The programs that speed.py and memory.py compare, on bases of one shape with random weights.

base    the frozen base alone, its sequence as long as with the prompt; a gradient to its input
lora    PEFT LoRA of rank R on the down projections, norms trained, the same sequence length
xlora   PEFT X-LoRA over K LoRAs (arXiv 2402.07148), where the library supports the family
loop    the authors' algorithm: one expert after another, their full-width outputs stacked for the
        sum and again for the loss
pemt    ours; pemt-no-tsl without the Task Sparsity Loss
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from floor import Layer, counted
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    LlamaConfig,
    T5Config,
)

from pemt.backbones import describe, down_projections, fingerprint
from pemt.experts import Expert, ExpertInfo, ExpertLayer
from pemt.model import PemtConfig, PemtModel

NAMES = ("base", "lora", "pemt", "pemt-no-tsl", "loop", "xlora")
DISTINCT = 6
"""Experts with numbers of their own; further ones share these in memory until they are stacked."""


@dataclass(frozen=True)
class Shape:
    """A base and its batch: B rows of S tokens behind P of the prompt, L tokens answered."""

    config: Any
    rows: int = 16
    text: int = 96
    prompt: int = 24
    answer: int = 8
    rank: int = 64

    @property
    def family(self) -> str:
        """Of the base."""
        return str(describe(self.config.model_type).family)

    def base(self) -> Any:
        """The base, random, without dropout, in evaluation mode."""
        kind = {
            "encoder-decoder": AutoModelForSeq2SeqLM, "decoder-only": AutoModelForCausalLM,
            "encoder-only": AutoModel,
        }[self.family]  # fmt: skip
        torch.manual_seed(0)
        return kind.from_config(self.config, attn_implementation="eager").eval()

    def batch(self) -> dict[str, Tensor]:
        """Random rows without padding, and their labels."""
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(3, self.config.vocab_size, (self.rows, self.text), generator=draw)
        if self.family == "encoder-only":
            labels = torch.randint(0, 2, (self.rows,), generator=draw)
        elif self.family == "encoder-decoder":
            labels = torch.randint(
                3, self.config.vocab_size, (self.rows, self.answer), generator=draw
            )
        else:
            labels = ids.clone()
            labels[:, : -self.answer] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def shapes(quick: bool = False) -> dict[str, Shape]:
    """By name; `quick`: the same families, tiny."""
    if quick:
        small = {
            "num_attention_heads": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "vocab_size": 99,
        }
        cut = {"rows": 2, "text": 6, "prompt": 3, "answer": 2, "rank": 4}
        t5 = T5Config(
            vocab_size=99, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
            dropout_rate=0.0, decoder_start_token_id=0,
        )  # fmt: skip
        llama = LlamaConfig(**small, num_key_value_heads=2, num_hidden_layers=2)
        bert = BertConfig(
            **small, num_hidden_layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        return {
            "t5-base": Shape(t5, **cut),
            "smollm2": Shape(llama, **cut),
            "minilm": Shape(bert, **cut),
        }
    return {
        "t5-base": Shape(
            T5Config(
                vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12,
                dropout_rate=0.0, decoder_start_token_id=0,
            )
        ),
        "smollm2": Shape(
            LlamaConfig(
                vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
            )
        ),
        "minilm": Shape(
            BertConfig(
                vocab_size=30522, hidden_size=384, intermediate_size=1536, num_hidden_layers=6,
                num_attention_heads=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )
        ),
    }  # fmt: skip


def layers_of(shape: Shape) -> list[Layer]:
    """The down projections, and how many tokens pass each in a training step."""
    with torch.device("meta"):
        base = shape.base()
    prompted = shape.rows * (shape.prompt + shape.text)
    made = []
    for site in down_projections(base, describe(shape.config.model_type)):
        answered = shape.family == "encoder-decoder" and site.stack == "decoder"
        tokens = shape.rows * shape.answer if answered else prompted
        made.append(Layer(tokens, site.hidden, site.width))
    return made


def base_cost(shape: Shape) -> int:
    """Multiply-adds of the base's step."""
    return counted(Frozen(shape, torch.float32).step)


def experts_for(shape: Shape, base: Any, count: int) -> list[Expert]:
    """Random LoRA experts of the base."""
    backbone = describe(shape.config.model_type)
    sites = down_projections(base, backbone)
    made = fingerprint(base, backbone)
    draw = torch.Generator().manual_seed(1)
    drawn = []
    for _ in range(min(count, DISTINCT)):
        layers = [
            ExpertLayer(
                module=site.path,
                A=torch.randn(shape.rank, site.hidden, generator=draw) / site.hidden**0.5,
                B=0.05 * torch.randn(site.width, shape.rank, generator=draw),
                scale=1.0,
            )
            for site in sites
        ]
        drawn.append((tuple(layers), torch.randn(shape.prompt, sites[0].width, generator=draw)))
    experts = []
    for k in range(count):
        layers_, prompt = drawn[k % DISTINCT]
        info = ExpertInfo(
            name=f"e{k}", task=f"e{k}", base="random", base_family=shape.family,
            base_fingerprint=made, tokenizer_fingerprint="none", width=sites[0].width,
            hidden=sites[0].hidden, rank=shape.rank, alpha=shape.rank, kind="lora",
        )  # fmt: skip
        experts.append(
            Expert(
                name=info.name, kind="lora", activation=None, layers=layers_, prompt=prompt,
                head={}, info=info,
            )
        )  # fmt: skip
    return experts


class Contestant:
    """One program: a training step, and greedy decoding where its family decodes."""

    model: Any
    optimizer: torch.optim.Optimizer

    def ready(self) -> None:
        """Make the optimizer of what trains."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def loss(self) -> Tensor:
        """Of one batch."""
        raise NotImplementedError

    def step(self) -> None:
        """Forward, backward, optimizer."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def decode(self, tokens: int) -> Tensor:
        """Greedy, exactly so many tokens: `[B, ..]`."""
        raise NotImplementedError


def greedy(tokens: int, *, cache: bool = True) -> dict[str, Any]:
    """Arguments of `generate`."""
    return {
        "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1,
        "use_cache": cache,
    }  # fmt: skip


class Frozen(Contestant):
    """The base alone. Nothing in it trains; its input does, as a prompt would."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.shape = shape
        self.model = shape.base().to(dtype)
        self.model.requires_grad_(False)
        width = self.model.get_input_embeddings().weight.shape[1]
        rows = (shape.rows, shape.prompt + shape.text, width)
        self.given = torch.zeros(rows, dtype=dtype).requires_grad_()
        batch = shape.batch()
        self.labels = batch["labels"]
        self.ids = lengthened(shape, batch["input_ids"])
        self.mask = torch.ones_like(self.ids)
        self.head = None
        if shape.family == "encoder-only":
            self.head = nn.Linear(width, 2, dtype=dtype).requires_grad_(False)

    def loss(self) -> Tensor:
        if self.head is not None:
            hidden = self.model(
                inputs_embeds=self.given, attention_mask=self.mask
            ).last_hidden_state
            return F.cross_entropy(self.head(hidden.mean(1)).float(), self.labels)
        return answer_loss(self, inputs_embeds=self.given)

    def step(self) -> None:
        self.loss().backward()
        self.given.grad = None

    def decode(self, tokens: int) -> Tensor:
        made: Tensor = self.model.generate(self.ids, attention_mask=self.mask, **greedy(tokens))
        return made


def answer_loss(contestant: Any, **given: Tensor) -> Tensor:
    """Cross-entropy of the answer; a decoder-only model makes no other logits, as ours does."""
    shape = contestant.shape
    if shape.family == "encoder-decoder":
        loss: Tensor = contestant.model(
            attention_mask=contestant.mask, labels=contestant.labels, **given
        ).loss
        return loss
    out = contestant.model(
        attention_mask=contestant.mask, logits_to_keep=shape.answer + 1, **given
    ).logits
    wanted = contestant.labels[:, -shape.answer :]
    return F.cross_entropy(out[:, :-1].flatten(0, 1).float(), wanted.flatten())


def lengthened(shape: Shape, ids: Tensor) -> Tensor:
    """Ids `[B, P+S]`: what is measured without a prompt gets its length too."""
    return torch.cat([ids[:, : shape.prompt], ids], 1)


class PeftLora(Contestant):
    """PEFT's LoRA on the down projections, with all norms trained."""

    cache = True

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        from peft import LoraConfig, get_peft_model

        self.shape = shape
        base = shape.base().to(dtype)
        config = LoraConfig(
            r=shape.rank, lora_alpha=shape.rank, target_modules=targets(shape, base)
        )
        self.model = get_peft_model(base, config)
        for name, parameter in self.model.named_parameters():
            if "norm" in name.lower():
                parameter.requires_grad_(True)
        self._given(shape, dtype)
        self.ready()

    def _given(self, shape: Shape, dtype: torch.dtype) -> None:
        batch = shape.batch()
        self.ids, self.labels = lengthened(shape, batch["input_ids"]), batch["labels"]
        self.mask = torch.ones_like(self.ids)
        self.head = None
        if shape.family == "encoder-only":
            self.head = nn.Linear(self.model.config.hidden_size, 2).to(dtype)

    def ready(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        trained += list(self.head.parameters()) if self.head is not None else []
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def loss(self) -> Tensor:
        if self.head is not None:
            hidden = self.model(input_ids=self.ids, attention_mask=self.mask).last_hidden_state
            return F.cross_entropy(self.head(hidden.mean(1)).float(), self.labels)
        return answer_loss(self, input_ids=self.ids)

    def decode(self, tokens: int) -> Tensor:
        self.model.eval()
        made: Tensor = self.model.generate(
            input_ids=self.ids, attention_mask=self.mask, **greedy(tokens, cache=self.cache)
        )
        return made


def targets(shape: Shape, base: Any) -> str:
    """A pattern for the down projections' paths."""
    paths = [s.path for s in down_projections(base, describe(shape.config.model_type))]
    return "|".join(path.replace(".", r"\.") for path in paths)


class PeftXLora(PeftLora):
    """PEFT's X-LoRA over K LoRAs of the down projections: a first pass finds their weights."""

    cache = False  # the library refuses one

    def __init__(self, shape: Shape, dtype: torch.dtype, experts: int) -> None:
        from peft import LoraConfig, XLoraConfig, get_peft_model

        self.shape = shape
        with tempfile.TemporaryDirectory() as place:
            base = shape.base().to(dtype)
            config = LoraConfig(
                r=shape.rank,
                lora_alpha=shape.rank,
                target_modules=targets(shape, base),
                task_type="CAUSAL_LM",
            )
            get_peft_model(base, config).save_pretrained(place)
            base = shape.base().to(dtype)
            base.config.use_cache = False  # X-LoRA refuses a cache
            self.model = get_peft_model(
                base,
                XLoraConfig(
                    task_type="CAUSAL_LM", hidden_size=shape.config.hidden_size, xlora_depth=1,
                    adapters={str(k): str(Path(place)) for k in range(experts)},
                ),
            )  # fmt: skip
        self._given(shape, dtype)
        self.ready()


class LoopBank(nn.Module):
    """The authors' algorithm in the place of an `ExpertBank`: builds and stacks every output."""

    def __init__(self, experts: list[Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.experts = len(experts)
        for k, e in enumerate(experts):
            self.register_buffer(f"A{k}", e.A.to(dtype), persistent=False)
            self.register_buffer(f"B{k}", e.B.to(dtype), persistent=False)

    def hidden_of(self, x: Tensor) -> list[Tensor]:
        """Outputs, one after another: `[B, T, F]` -> K of `[B, T, D]`."""
        return [
            F.linear(F.linear(x, getattr(self, f"A{k}")), getattr(self, f"B{k}"))
            for k in range(self.experts)
        ]

    def mix(self, outputs: list[Tensor], gates: Tensor) -> Tensor:
        """Their weighted sum, `[B, T, D]`."""
        stacked = torch.stack(outputs, 1)  # [B, K, T, D]
        return (stacked * gates.to(stacked.dtype)[:, :, None, None]).sum(1)

    def cosines(self, y: Tensor, outputs: list[Tensor]) -> Tensor:
        """Of the layer's output with each, `[B, T, K]`."""
        stacked = torch.stack(outputs, 2)  # [B, T, K, D]
        return F.cosine_similarity(y.unsqueeze(2).float(), stacked.float(), dim=-1)


class Pemt(Contestant):
    """Ours. `loop`: with the authors' algorithm in its layers, and no cache where it decodes."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, experts: int, *, loop: bool = False
    ) -> None:
        self.shape, self.loop, self.weight = shape, loop, 0.1
        base = shape.base().to(dtype)
        outputs = 2 if shape.family == "encoder-only" else None
        given = experts_for(shape, base, experts)
        draw = torch.Generator().manual_seed(2)
        self.model = PemtModel(
            base, given, PemtConfig(prompt_dropout=0.0),
            prompt=torch.randn(shape.prompt, given[0].prompt.shape[1], generator=draw),
            outputs=outputs,
        )  # fmt: skip
        if loop:
            for i, layer in enumerate(self.model.mixtures):
                layer.bank = LoopBank([e.layers[i] for e in given], dtype)
        self.given = shape.batch()
        self.ready()

    def without_tsl(self) -> Pemt:
        """The same model, its loss left out: nothing is built or held twice."""
        other = copy.copy(self)
        other.weight = 0.0
        return other

    def loss(self) -> Tensor:
        self.model.sparsity_weight = self.weight
        loss: Tensor = self.model(**self.given).loss
        return loss

    def decode(self, tokens: int) -> Tensor:
        self.model.eval()
        made: Tensor = self.model.generate(
            self.given["input_ids"],
            self.given["attention_mask"],
            **greedy(tokens, cache=not self.loop),
        )
        return made


def contestants(
    shape: Shape, dtype: torch.dtype, experts: int, names: Iterable[str] = NAMES
) -> Iterator[tuple[str, Contestant]]:
    """Those of the names that the family has, made one after another."""
    pemt = Pemt(shape, dtype, experts) if {"pemt", "pemt-no-tsl"} & set(names) else None
    for name in names:
        if name == "base":
            yield name, Frozen(shape, dtype)
        elif name == "lora":
            yield name, PeftLora(shape, dtype)
        elif name == "pemt" and pemt is not None:
            yield name, pemt
        elif name == "pemt-no-tsl" and pemt is not None:
            yield name, pemt.without_tsl()
        elif name == "loop":
            yield name, Pemt(shape, dtype, experts, loop=True)
        elif name == "xlora" and shape.family == "decoder-only":
            yield name, PeftXLora(shape, dtype, experts)
