"""MPT's source stage: one prompt for all source tasks, a rank-1 factor and a head for each.

    prompt_k = P* * (u_k v_k^T)                                     (paper, section 3.2)
    loss     = task + lambda (KL(teacher || student) + |H_teacher - H_student|^2)

from Wang et al. 2023, arXiv 2303.02861, section 3.2, "prompt distillation". The teacher of a source
is the prompt that was tuned on it alone. Where the paper is silent: KL is taken at the positions
that predict an answer, at temperature 1; H are the final states of the real text, the encoder's in
an encoder-decoder, and the square is averaged over tokens and width; the teacher runs without
dropout. Factors start at 1, so that every source starts at P*. On an encoder-only base each source
has a head, which starts as its teacher's; scores of a regression are distilled by their square.

Letters: B batch, T prompted length, P prompt length, D model width, K sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pemt.backbones import Backbone
from pemt.errors import ConfigError, ExpertError
from pemt.experts import Expert, PromptFactors
from pemt.model.adapted import AdaptedModel, AdaptedOutput
from pemt.nn import TaskHead


class SourceHeads(nn.Module):
    """A head for each source and the frozen one of its teacher; one of them answers at a time."""

    def __init__(self, width: int, outputs: Sequence[int], teachers: Sequence[Expert]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(TaskHead(width, n) for n in outputs)
        self.teachers = nn.ModuleList(TaskHead(width, n) for n in outputs)
        for own, head, teacher in zip(self.heads, self.teachers, teachers, strict=True):
            shapes = {k: list(v.shape) for k, v in teacher.head.items()}
            if shapes != {k: list(v.shape) for k, v in head.state_dict().items()}:
                raise ExpertError(
                    f"The teacher {teacher.name!r} has a head of {shapes}",
                    f"its task wants {cast('TaskHead', head).weight.shape[0]} outputs: tune the "
                    "prompt on that task",
                )
            head.load_state_dict(teacher.head)
            own.load_state_dict(teacher.head)
        self.teachers.requires_grad_(False)
        self.source, self.teaching = 0, False

    def forward(self, pooled: Tensor) -> Tensor:
        """`[B, D]` -> `[B, outputs of the source]`."""
        heads = self.teachers if self.teaching else self.heads
        logits: Tensor = heads[self.source](pooled)
        return logits


class SharedPromptModel(AdaptedModel):
    """A frozen base with one prompt for K sources, each of which scales its rows and columns.

    Args:
        base: a transformers model of a described type.
        teachers: prompts tuned on each source alone, of equal length.
        start: `[P, D]` first values of the shared prompt.
        outputs: of each source's head; None for text to text.
        backbone: the base's description; looked up by its type where None.
        distillation: lambda; the paper's is 0.9. At 0 teachers do not run.
    """

    teachers: Tensor

    def __init__(
        self, base: Any, teachers: Sequence[Expert], start: Tensor, *,
        outputs: Sequence[int | None], backbone: Backbone | None = None, distillation: float = 0.9,
    ) -> None:  # fmt: skip
        if distillation < 0:
            raise ConfigError(f"distillation={distillation}", "give 0 or more")
        super().__init__(base, outputs=outputs[0], backbone=backbone)
        self.distillation = distillation
        with self.attaching():
            self._check_prompt(start)
            prompts = torch.stack([e.prompt.float() for e in teachers]).to(self.device)
            self.register_buffer("teachers", prompts, persistent=False)  # [K, P, D]
            self.shared = nn.Parameter(start.detach().float().clone().to(self.device))
            rows, width = start.shape
            ones = [torch.ones(n, device=self.device) for n in (rows, width)]
            # a list each: a source that is not in the batch then has no gradient, and stays
            self.u = nn.ParameterList(nn.Parameter(ones[0].clone()) for _ in teachers)
            self.v = nn.ParameterList(nn.Parameter(ones[1].clone()) for _ in teachers)
            self._outputs, self._teaching = list(outputs), False
            self.heads: SourceHeads | None = None
            if self.head is not None:
                self.heads = SourceHeads(self.width, [n or 1 for n in outputs], teachers)
                self.head = self.heads.to(self.device)  # type: ignore[assignment]
            self.choose(0)

    def choose(self, source: int) -> None:
        """From here on it is the model of this source."""
        self.source, self.outputs = source, self._outputs[source]
        if self.heads is not None:
            self.heads.source = source

    def options(self) -> dict[str, Any]:
        """The weight of distillation and the outputs of all sources."""
        return {"outputs": self._outputs, "distillation": self.distillation}

    def factors(self, source: int) -> PromptFactors:
        """What a source's prompt is made of."""
        return PromptFactors(shared=self.shared, u=self.u[source], v=self.v[source])

    def prompt(self) -> Tensor:
        """The chosen source's prompt, `[P, D]`."""
        return self.teachers[self.source] if self._teaching else self.factors(self.source).prompt()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        labels: Tensor | None = None, *, source: int | None = None, **more: Any,
    ) -> AdaptedOutput | Any:  # fmt: skip
        """One pass of one source; in training its loss includes the distillation.

        Args:
            input_ids: `[B, S]`, all of one source.
            attention_mask: `[B, S]`.
            labels: of `AdaptedModel.forward`.
            source: whose rows these are; the chosen one where None.
            **more: of `AdaptedModel.forward`.
        """
        if source is not None:
            self.choose(source)
        output = super().forward(input_ids, attention_mask, labels, **more)
        if labels is None or not self.training or self._disabled or not self.distillation:
            return output
        assert output.loss is not None
        with torch.no_grad(), self._teacher():
            teacher = super().forward(input_ids, attention_mask, labels)
        examples = more.get("num_examples_in_batch")
        share = 1.0 if examples is None else len(input_ids) / float(examples)
        difference = self._answers_apart(output, teacher, labels) + hidden_apart(output, teacher)
        output.loss = output.loss + self.distillation * share * difference
        return output

    @contextmanager
    def _teacher(self) -> Iterator[None]:
        """Inside, the source's teacher answers."""
        self._teaching = True
        if self.heads is not None:
            self.heads.teaching = True
        self.base.eval()
        try:
            yield
        finally:
            self.base.train(self.training)
            self._teaching = False
            if self.heads is not None:
                self.heads.teaching = False

    def _answers_apart(
        self, student: AdaptedOutput, teacher: AdaptedOutput, labels: Tensor
    ) -> Tensor:
        one, other = (self._answers(o.logits, labels) for o in (student, teacher))
        if self.outputs == 1:
            return (one - other).square().mean()
        return F.kl_div(
            one.log_softmax(-1), other.log_softmax(-1), log_target=True, reduction="batchmean"
        )

    def _answers(self, logits: Tensor | None, labels: Tensor) -> Tensor:
        """Logits that predict answers, `[N, V]`, float32."""
        assert logits is not None
        if self.heads is not None:
            return logits.float()
        if self.family == "decoder-only":
            labels, logits = labels[:, -logits.shape[1] :][:, 1:], logits[:, :-1]
        return logits[labels != -100].float()


def hidden_apart(student: AdaptedOutput, teacher: AdaptedOutput) -> Tensor:
    """Mean square between the final states of the real text, over tokens and width."""
    assert student.last_hidden_state is not None
    assert teacher.last_hidden_state is not None
    assert student.text_mask is not None
    there = student.text_mask.bool()
    apart = student.last_hidden_state[there].float() - teacher.last_hidden_state[there].float()
    return apart.square().mean()
