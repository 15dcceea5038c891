"""ATTEMPT (Asai et al. 2022, arXiv 2205.11961): each example mixes the source prompts anew.

    q   = LayerNorm(W_up SiLU(W_down x)),     x = max over the text of its input embeddings
    a   = softmax_j(k_j . q / T),             k_j = max over the rows of P_j,  T = e D
    P   = P_target + sum_j a_j P_j            j over the frozen sources and P_target itself

Trained: the target prompt P_target, W_down `[100, D]`, W_up `[D, 100]` and the norm. The target
prompt starts from the vocabulary, as prompt tuning does. Of a decoder-only base the text is what
comes before the answer, in training too: else the prompt would tell the answer.

The paper trains the attention and the prompt at two rates; here both have one.

Letters: B batch, S text length, P prompt length, D model width, K sources.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pemt.methods.method import Setting
from pemt.methods.prompt_tuning import prompt_embedding
from pemt.methods.source_prompts import identity, source_prompts
from pemt.model import AdaptedModel, vocabulary_prompt

BOTTLENECK = 100


class PromptAttention(nn.Module):
    """The weights that an example gives to the prompts (the paper's sub-network G)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, BOTTLENECK, bias=False)
        self.up = nn.Linear(BOTTLENECK, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.temperature = width * math.e

    def forward(self, embedded: Tensor, text: Tensor, prompts: Tensor) -> Tensor:
        """Embeddings `[B, S, D]`, 0/1 mask `[B, S]`, prompts `[K, P, D]` -> weights `[B, K]`."""
        there = text.bool().unsqueeze(-1)  # [B, S, 1]
        x = embedded.float().masked_fill(~there, -torch.inf).amax(1)  # [B, D]
        x = x.masked_fill(~there.any(1), 0.0)  # a row without text
        query = self.norm(self.up(nn.functional.silu(self.down(x))))
        keys = prompts.amax(1)  # [K, D]
        weights: Tensor = (query @ keys.T / self.temperature).softmax(-1)
        return weights


class AttemptModel(AdaptedModel):
    """The frozen base with a prompt that each example mixes from the sources and the target's."""

    sources: Tensor

    @classmethod
    def build(cls, setting: Setting) -> AttemptModel:
        """Over the setting's source prompts, in their length."""
        base = setting.base
        experts = source_prompts(setting, equal_lengths=True)
        start = vocabulary_prompt(base.model, len(experts[0].prompt), seed=setting.init_seed)
        model = setting.bare(cls)
        with model.attaching():
            device = model.device
            model.target = prompt_embedding(start.to(device))
            model.attention = PromptAttention(model.width).to(device)
            frozen = torch.stack([e.prompt.float() for e in experts]).to(device)
            model.register_buffer("sources", frozen, persistent=False)
            model.names = identity(experts)
        return model

    target: Any
    attention: PromptAttention
    names: list[list[str]]

    def options(self) -> dict[str, Any]:
        """The sources, by name and content."""
        return {**super().options(), "sources": self.names}

    def parameter_counts(self) -> tuple[int, int]:
        """(trained, all of the base and what was added, frozen source prompts included)."""
        trained, total = super().parameter_counts()
        return trained, total + self.sources.numel()

    def prompt(self) -> Tensor:
        """The target prompt, `[P, D]`: what all examples share."""
        weight: Tensor = self.target.embedding.weight
        rows: Tensor = self.target(torch.arange(len(weight), device=weight.device))
        return rows

    def prompt_for(self, embedded: Tensor, text: Tensor) -> Tensor:
        """Each example's prompt, `[B, P, D]`."""
        own = self.prompt()
        prompts = torch.cat([self.sources, own.unsqueeze(0)])  # [K+1, P, D]
        weights = self.attention(embedded, text, prompts)  # [B, K+1]
        return own + torch.einsum("bk,kpd->bpd", weights, prompts)
