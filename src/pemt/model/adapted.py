"""A frozen base with something added, ready to train and to answer: what every model here is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.modeling_outputs import BaseModelOutput

from pemt.errors import ConfigError
from pemt.model.prompted import AdaptedOutput, PromptedModel, text_positions
from pemt.nn import ForwardContext, TaskHead

__all__ = ["AdaptedModel", "AdaptedOutput"]


class AdaptedModel(PromptedModel):
    """Base class of all models: attaches to a base, runs it, answers with it, detaches.

    Args:
        base: a transformers model of a described type; frozen here, and given back by `detach`.
        outputs: encoder-only: number of classes, or 1 for regression; None for text to text.
        backbone: the base's description; looked up by its type where None.
    """

    @contextmanager
    def _answering(self) -> Iterator[ForwardContext]:
        """A pass that decodes: gates are reused (the slot stays empty inside `disable()`).

        Checkpointing pauses: in training mode transformers drops the cache of checkpointed layers,
        and goes on to decode from the last token alone.
        """
        context = self._context(reuse_gates=True)
        paused = [m for m in self.base.modules() if getattr(m, "gradient_checkpointing", False)]
        for module in paused:
            module.gradient_checkpointing = False
        previous, self.slot.active = self.slot.active, None if self._disabled else context
        try:
            yield context
        finally:
            self.slot.active = previous
            for module in paused:
                module.gradient_checkpointing = True
        self._passed(context)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **settings: Any
    ) -> Any:
        """Generate with the base's own `generate`: greedy, sampling, beams, cached or not.

        Gates are computed once per sequence and reused by every step and beam.

        Args:
            input_ids: `[B, S]`, without the prompt.
            attention_mask: `[B, S]`, padding on either side.
            **settings: of transformers' `generate`.

        Returns:
            Token ids `[B, L]`: encoder-decoder with the start token, decoder-only new tokens alone;
            with `return_dict_in_generate` transformers' output, whose `sequences` are these.
        """
        if self.family == "encoder-only":
            raise ConfigError(
                "An encoder-only base generates no text", "call forward and use the logits"
            )
        with self._answering() as context:
            if self._disabled:
                return self.base.generate(
                    input_ids=input_ids, attention_mask=attention_mask, **settings
                )
            input_ids, attention_mask = self._answer_at_the_end(input_ids, attention_mask)
            embedded, mask, _ = self._prompted(input_ids, attention_mask, context)
            if self.family == "encoder-decoder":
                hidden = BaseModelOutput(last_hidden_state=self._encode(embedded, mask, context))
                return self.base.generate(encoder_outputs=hidden, attention_mask=mask, **settings)
            if settings.get("use_cache", True):
                return self.base.generate(inputs_embeds=embedded, attention_mask=mask, **settings)
            return self._generate_uncached(input_ids, embedded, mask, settings)

    def _answer_at_the_end(
        self, input_ids: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Decoder-only: padding moved to the left, so that the answer follows each row's text."""
        if self.family != "decoder-only" or attention_mask is None:
            return input_ids, attention_mask
        order = torch.argsort(attention_mask.to(torch.long), dim=1, stable=True)
        return input_ids.gather(1, order), attention_mask.gather(1, order)

    def _generate_uncached(
        self, input_ids: Tensor, embedded: Tensor, mask: Tensor, settings: dict[str, Any]
    ) -> Any:
        """Decoder-only without a cache: transformers feeds ids alone, so the prompt joins them."""
        length = mask.shape[1] - input_ids.shape[1]
        placeholders = input_ids.new_zeros(len(input_ids), length)

        def insert(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            rows = output.shape[0] // embedded.shape[0]
            prompt = embedded[:, :length].repeat_interleave(rows, 0)
            return torch.cat([prompt.to(output.dtype), output[:, length:]], 1)

        hook = self.base.get_input_embeddings().register_forward_hook(insert)
        try:
            sequences = self.base.generate(
                input_ids=torch.cat([placeholders, input_ids], 1), attention_mask=mask, **settings
            )
        finally:
            hook.remove()
        if isinstance(sequences, Tensor):
            return sequences[:, mask.shape[1] :]
        sequences.sequences = sequences.sequences[:, mask.shape[1] :]
        return sequences

    @torch.no_grad()
    def label_scores(
        self, input_ids: Tensor, attention_mask: Tensor | None, answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """Log-probabilities over the labels, `[B, C]`, float32: the head's, or the label words'.

        Args:
            input_ids: `[B, S]`.
            attention_mask: `[B, S]`.
            answers: token ids of the C label words, end token included; unused with a head.
        """
        if self.head is not None:
            logits: Tensor = self(input_ids, attention_mask).logits
            return logits.float().log_softmax(-1)
        return self.score_answers(input_ids, attention_mask, answers).log_softmax(-1)

    @torch.no_grad()
    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean final hidden state of the text, `[B, D]`, float32: what a linear probe reads."""
        context = self._context()
        previous, self.slot.active = self.slot.active, None if self._disabled else context
        try:
            embedded, mask, text = self._prompted(input_ids, attention_mask, context)
            if self.family == "encoder-decoder":
                hidden = self._encode(embedded, mask, context)
            else:
                extra = (
                    {} if self.family == "encoder-only" else {"position_ids": text_positions(mask)}
                )
                body = self.base if self.family == "encoder-only" else self.base.base_model
                hidden = body(
                    inputs_embeds=embedded, attention_mask=mask, **extra
                ).last_hidden_state
        finally:
            self.slot.active = previous
        return TaskHead.pool(hidden, text[:, -hidden.shape[1] :])  # a kept prefix is not in it

    @torch.no_grad()
    def score_answers(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        answers: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]],
    ) -> Tensor:
        """Log-likelihood of each answer for each text: the text runs once, the answers share it.

        Args:
            input_ids: `[B, S]`, without the prompt.
            attention_mask: `[B, S]`, padding on either side.
            answers: C token id lists, the end token included, for every text; or B lists of C
                such lists, where each text has answers of its own.

        Returns:
            `[B, C]`, float32.
        """
        return self.score_and_read(input_ids, attention_mask, answers)[0]

    @torch.no_grad()
    def score_and_read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        answers: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]],
    ) -> tuple[Tensor, Tensor]:
        """What `score_answers` gives and what `features` gives, from one pass over the text.

        Args:
            input_ids: as of `score_answers`, like the others.
            attention_mask: `[B, S]`.
            answers: token ids.

        Returns:
            `[B, C]` and `[B, D]`, float32.
        """
        if self.family == "encoder-only":
            raise ConfigError("An encoder-only base scores no answers", "use the logits of forward")
        shared = not answers or not answers[0] or not isinstance(answers[0][0], Sequence)
        per_text = cast(
            "Sequence[Sequence[Sequence[int]]]",
            [answers] * len(input_ids) if shared else answers,
        )
        if not answers or not all(len(a) for own in per_text for a in own):
            raise ConfigError(
                f"Answers {answers!r}", "give at least one, each of at least one token"
            )
        counts = sorted({len(own) for own in per_text})
        if len(per_text) != len(input_ids) or len(counts) > 1:
            raise ConfigError(
                f"{len(per_text)} lists of {' and '.join(map(str, counts))} answers for "
                f"{len(input_ids)} texts",
                "give each text in the batch equally many answers",
            )
        count, device = counts[0], input_ids.device
        longest = max(len(a) for own in per_text for a in own)
        rows = [[*a, *[-100] * (longest - len(a))] for own in per_text for a in own]
        labels = torch.tensor(rows, device=device)  # [B*C, L]
        input_ids, attention_mask = self._answer_at_the_end(input_ids, attention_mask)
        with self._answering() as context:
            embedded, mask, text = self._prompted(input_ids, attention_mask, context)
            if self.family == "encoder-decoder":
                hidden = self._encode(embedded, mask, context)
                read = BaseModelOutput(last_hidden_state=hidden.repeat_interleave(count, 0))
                logits = self.base(
                    encoder_outputs=read,
                    attention_mask=mask.repeat_interleave(count, 0),
                    decoder_input_ids=self.base.prepare_decoder_input_ids_from_labels(labels),
                    use_cache=False,
                ).logits
            else:
                first = self.base.base_model(
                    inputs_embeds=embedded,
                    attention_mask=mask,
                    position_ids=text_positions(mask),
                    use_cache=True,
                )
                hidden = first.last_hidden_state
                logits = self._logits(hidden, 1).repeat_interleave(count, 0)
                if longest > 1:
                    cache = first.past_key_values
                    cache.batch_repeat_interleave(count)
                    shown = labels[:, :-1]
                    full = torch.cat([mask.repeat_interleave(count, 0), (shown != -100).long()], 1)
                    rest = self.base(
                        input_ids=shown.clamp_min(0),
                        attention_mask=full,
                        position_ids=text_positions(full)[:, -shown.shape[1] :],
                        past_key_values=cache,
                        use_cache=True,
                    ).logits
                    logits = torch.cat([logits, rest], 1)
        flat = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            labels.reshape(-1),
            ignore_index=-100,
            reduction="none",
        )
        scores = -flat.view(len(input_ids), count, longest).sum(-1)
        return scores, TaskHead.pool(hidden, text[:, -hidden.shape[1] :])
