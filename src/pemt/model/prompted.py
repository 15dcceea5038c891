"""The forward pass of a base with something attached, in the three families.

encoder-decoder   [prompt, text]            -> decoder -> token cross-entropy
decoder-only      [prompt, text, answer]               -> token cross-entropy on the answer
encoder-only      [first, prompt, rest] -> mean of text -> head -> cross-entropy, squared error
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from pemt.backbones import max_positions
from pemt.errors import ConfigError
from pemt.model.attached import AttachedModel
from pemt.nn import ForwardContext, TaskHead, bridge_summary, combine_loss, enter_backward
from pemt.nn.context import mean_sparsity


@dataclass
class AdaptedOutput(ModelOutput):  # type: ignore[misc]
    """What `forward` returns.

    Attributes:
        loss: cross-entropy or squared error, plus the weighted Task Sparsity Loss; with labels.
        logits: `[B, T, V]` (text to text) or `[B, outputs]` (encoder-only), float32 or the base's
            type. Decoder-only with labels: only the columns that predict labels, the last of the
            sequence.
        task_loss: the loss without the Task Sparsity Loss.
        sparsity: the Task Sparsity Loss, mean over layers, unweighted and detached.
        gates: with `output_gates`: `[B, K]` per layer, encoder first.
        encoder_last_hidden_state: `[B, P+S, D]`, encoder-decoder only.
        last_hidden_state: `[B, P+S, D]`, of whatever read the prompted text.
        text_mask: `[B, P+S]`, 1 at its real text, 0 at prompt and padding.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    task_loss: Tensor | None = None
    sparsity: Tensor | None = None
    gates: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    last_hidden_state: Tensor | None = None
    text_mask: Tensor | None = None


class PromptedModel(AttachedModel):
    """An attached base that runs: the prompt in its place, the pass, the loss."""

    def prompt(self) -> Tensor | None:
        """The prompt `[P, D]` put into the input, or None."""
        return None

    def prompt_rows(self) -> int:
        """The most positions that a prompt takes."""
        prompt = self.prompt()
        return 0 if prompt is None else len(prompt)

    def _context(self, **given: Any) -> ForwardContext:
        """What a pass begins with."""
        return ForwardContext(**given)

    def _passed(self, context: ForwardContext) -> None:
        """Called with what a finished pass has left in its context."""

    def prompt_for(self, embedded: Tensor, text: Tensor) -> Tensor | None:
        """The prompt of each example: by default the one that all share.

        Args:
            embedded: `[B, S, D]` the text's input embeddings.
            text: `[B, S]`, 1 at what is known of an example before it is answered: padding is 0,
                and so is the answer that a decoder-only model is trained on.

        Returns:
            `[P, D]`, or `[B, P, D]` with P the length of `prompt()`, or None.
        """
        del embedded, text
        return self.prompt()

    def _embed(self, input_ids: Tensor) -> Tensor:
        owner = self.base.get_encoder() if self.family == "encoder-decoder" else self.base
        embedded: Tensor = owner.get_input_embeddings()(input_ids)
        return embedded

    def _prompted(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        context: ForwardContext,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Input embeddings, attention mask and text mask with the prompt in place.

        Returns:
            `[B, P+S, D]`, `[B, P+S]` and `[B, P+S]` (1 at real text, 0 at prompt and padding).
        """
        mask = (
            torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(torch.long)
        )
        if self.family != "decoder-only":
            # real tokens first: an encoder then sees the same rows wherever the padding was
            order = torch.argsort(mask, dim=1, descending=True, stable=True)
            input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
        embedded = self._embed(input_ids)
        asked = mask
        if self.family == "decoder-only" and labels is not None:
            asked = mask * (labels == -100)
        prompt = None if self._disabled else self.prompt_for(embedded, asked)
        used = 0 if prompt is None else prompt.shape[-2]
        limit = max_positions(self.base.config, self.backbone)
        length = used + input_ids.shape[1]
        if limit is not None and length > limit:
            raise ConfigError(
                f"Prompt ({used}) and text ({input_ids.shape[1]}) make {length} positions",
                f"this base has {limit}: shorten the text to {limit - used} tokens",
            )
        if prompt is None:
            context.prompt_length = 0
            return embedded, mask, mask
        rows = embedded.shape[0]
        start = 1 if self.family == "encoder-only" else 0
        context.prompt_start, context.prompt_length = start, used
        inserted = prompt.to(embedded.dtype).expand(rows, -1, -1)
        ones = mask.new_ones(rows, used)
        embedded = torch.cat([embedded[:, :start], inserted, embedded[:, start:]], 1)
        text = torch.cat([mask[:, :start], torch.zeros_like(ones), mask[:, start:]], 1)
        mask = torch.cat([mask[:, :start], ones, mask[:, start:]], 1)
        if self.task_gates:
            embedded = bridge_summary(
                embedded, context, reentrant=self._reentrant(), field="task_summary"
            )
        return embedded, mask, text

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        decoder_input_ids: Tensor | None = None,
        output_gates: bool = False,
        fixed_gates: dict[int, Tensor] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_examples_in_batch: Tensor | int | None = None,
    ) -> AdaptedOutput | Any:
        """One pass.

        Args:
            input_ids: `[B, S]`, without the prompt.
            attention_mask: `[B, S]`, 1 at real tokens; padding may be on either side.
            labels: `[B, L]` token ids, -100 ignored (encoder-decoder: the answer; decoder-only:
                L = S); encoder-only: `[B]` class numbers, or scores where the head has one output.
            decoder_input_ids: encoder-decoder only, instead of labels: `[B, L]`.
            output_gates: return the gates.
            fixed_gates: gates `[K]` by layer, instead of the computed ones.
            num_items_in_batch: labels of the whole optimiser step, for gradient accumulation.
            num_examples_in_batch: examples of the whole optimiser step, likewise.

        Returns:
            `AdaptedOutput`; inside `disable()` whatever the base returns.
        """
        if self._disabled:
            given = {"labels": labels} if self.head is None and labels is not None else {}
            if decoder_input_ids is not None:
                given["decoder_input_ids"] = decoder_input_ids
            return self.base(input_ids=input_ids, attention_mask=attention_mask, **given)
        context = self._context(
            sparsity=self.sparsity_weight > 0 and labels is not None,
            fixed_gates=fixed_gates or {},
        )
        previous, self.slot.active = self.slot.active, context
        try:
            output = self._run(input_ids, attention_mask, labels, decoder_input_ids, context)
        finally:
            self.slot.active = previous
        self._passed(context)
        if torch.is_grad_enabled() and output.logits is not None and output.logits.requires_grad:
            output.logits = enter_backward(output.logits, self.slot, context)
        if labels is not None:
            task_loss = self._task_loss(output.logits, labels, num_items_in_batch)
            share: Tensor | float = 1.0
            if num_examples_in_batch is not None:
                share = len(input_ids) / num_examples_in_batch
            output.task_loss = task_loss
            output.loss = combine_loss(task_loss, self.sparsity_weight * float(share), context)
            output.sparsity = mean_sparsity(context)
        if output_gates:
            output.gates = tuple(context.gates[i] for i in sorted(context.gates))
        return output

    def _run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        decoder_input_ids: Tensor | None,
        context: ForwardContext,
    ) -> AdaptedOutput:
        embedded, mask, text = self._prompted(input_ids, attention_mask, context, labels)
        every = self.sparsity_all_tokens
        context.token_weights["encoder"] = None if every else text
        if self.family == "encoder-only":
            assert self.head is not None
            hidden = self.base(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
            return AdaptedOutput(
                logits=self.head(TaskHead.pool(hidden, text)),
                last_hidden_state=hidden,
                text_mask=text,
            )
        if self.family == "decoder-only":
            context.token_weights["decoder"] = None if every else text
            keep = 0 if labels is None else _label_columns(labels)
            hidden = self.base.base_model(
                inputs_embeds=embedded,
                attention_mask=mask,
                position_ids=text_positions(mask),
                use_cache=False,
            ).last_hidden_state
            return AdaptedOutput(
                logits=self._logits(hidden, keep or input_ids.shape[1]),
                last_hidden_state=hidden,
                text_mask=text,
            )
        hidden = self._encode(embedded, mask, context)
        if labels is not None:
            context.token_weights["decoder"] = None if every else (labels != -100)
            if decoder_input_ids is None:
                decoder_input_ids = self.base.prepare_decoder_input_ids_from_labels(labels)
        limit = max_positions(self.base.config, self.backbone)
        if limit is not None and decoder_input_ids is not None:
            length = decoder_input_ids.shape[1]
            if length > limit:
                raise ConfigError(
                    f"An answer of {length} tokens", f"this base has {limit} positions: shorten it"
                )
        logits = self.base(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        ).logits
        return AdaptedOutput(
            logits=logits,
            encoder_last_hidden_state=hidden,
            last_hidden_state=hidden,
            text_mask=text,
        )

    def _logits(self, hidden: Tensor, keep: int) -> Tensor:
        """Logits of the last `keep` columns: `[B, T, D]` -> `[B, keep, V]`, decoder-only.

        The columns are copied first: given a slice, the product with the vocabulary's weights would
        copy those once per row instead.
        """
        logits: Tensor = self.base.get_output_embeddings()(hidden[:, -keep:].contiguous())
        return logits

    def _encode(self, embedded: Tensor, mask: Tensor, context: ForwardContext) -> Tensor:
        hidden: Tensor = self.base.get_encoder()(
            inputs_embeds=embedded, attention_mask=mask
        ).last_hidden_state
        if context.prompt_length:
            hidden = bridge_summary(hidden, context, reentrant=self._reentrant())
        return hidden

    def _task_loss(
        self, logits: Tensor | None, labels: Tensor, items: Tensor | int | None
    ) -> Tensor:
        assert logits is not None
        if self.head is not None:
            if self.outputs == 1:
                losses = (logits.squeeze(-1) - labels.float()).square()
            else:
                losses = F.cross_entropy(logits, labels, reduction="none")
            return losses.mean() if items is None else losses.sum() / items
        if self.family == "decoder-only":
            labels = labels[:, -logits.shape[1] :][:, 1:]
            logits = logits[:, :-1]
        flat, wanted = logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1)
        if items is None:
            return F.cross_entropy(flat, wanted, ignore_index=-100)
        return F.cross_entropy(flat, wanted, ignore_index=-100, reduction="sum") / items


def text_positions(mask: Tensor) -> Tensor:
    """Positions that do not count padding: `[B, T]` -> `[B, T]`."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def _label_columns(labels: Tensor) -> int:
    """How many last columns are needed to predict every label: from the one before the first on."""
    used = (labels != -100).any(0).nonzero()
    if len(used) == 0:
        return 1
    return min(labels.shape[1], int(labels.shape[1] - used[0].item() + 1))
