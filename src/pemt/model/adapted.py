"""A frozen base with something added: the part that every model of this package shares.

It knows the three families: where the prompt goes, what the loss is, how to generate.

    encoder-decoder   [prompt, text]            -> decoder -> token cross-entropy
    decoder-only      [prompt, text, answer]               -> token cross-entropy on the answer
    encoder-only      [first, prompt, rest] -> mean of text -> head -> cross-entropy, squared error
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.module import _IncompatibleKeys
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from pemt.backbones import (
    Backbone,
    Family,
    Site,
    describe,
    down_projections,
    fingerprint,
    max_positions,
)
from pemt.backbones import norms as find_norms
from pemt.errors import BackboneError, ConfigError
from pemt.nn import (
    ForwardContext,
    MixtureLayer,
    ParallelExpert,
    Slot,
    TaskHead,
    TrainedNorm,
    bridge_summary,
    combine_loss,
    enter_backward,
)
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
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    task_loss: Tensor | None = None
    sparsity: Tensor | None = None
    gates: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None


class AdaptedModel(nn.Module):
    """Base class: attaches to a base, runs it, detaches.

    Args:
        base: a transformers model of a described type; frozen here, and given back by `detach`.
        outputs: encoder-only: number of classes, or 1 for regression; None for text to text.
        backbone: the base's description; looked up by its type where None.
    """

    def __init__(
        self, base: Any, *, outputs: int | None = None, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone or describe(base.config.model_type)
        encoder_only = self.backbone.family == "encoder-only"
        if encoder_only and outputs is None:
            raise ConfigError(
                f"An encoder-only base ({base.config.model_type}) cannot answer in free text",
                "give outputs=number of classes (1 for regression), or take a base that generates",
            )
        self.slot = Slot()
        self.base = base
        if any(isinstance(m, _attachments()) for m in base.modules()):
            raise BackboneError(
                "Something is already attached to this base",
                "call its detach() first (PEFT: unload or merge_and_unload)",
            )
        self.sites: list[Site] = down_projections(base, self.backbone)
        self._was_trained = {name: p.requires_grad for name, p in base.named_parameters()}
        self._was_training = {name: m.training for name, m in base.named_modules()}
        base.requires_grad_(False)
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []
        self._disabled = False
        self.width = self.sites[0].width
        self.head = TaskHead(self.width, outputs or 1).to(base.device) if encoder_only else None
        self.outputs = outputs if encoder_only else None
        self.sparsity_weight = 0.0
        self.sparsity_all_tokens = False
        self.task_gates = False

    # -- attaching ---------------------------------------------------------------------------

    def _check_prompt(self, start: Tensor) -> None:
        if start.ndim != 2 or len(start) == 0 or start.shape[1] != self.width:
            raise ConfigError(
                f"A prompt of shape {tuple(start.shape)}",
                f"give [P, {self.width}] with at least one row: the base's width",
            )

    def replace(self, parent: nn.Module, attribute: str, module: nn.Module) -> None:
        """Put `module` in the place of `parent.attribute`, to be undone by `detach`."""
        self._replaced.append((parent, attribute, getattr(parent, attribute)))
        setattr(parent, attribute, module)

    def train_norms(self) -> None:
        """Give every norm of the base a trainable float32 copy."""
        for _, parent, attribute in find_norms(self.base, self.backbone):
            self.replace(parent, attribute, TrainedNorm(getattr(parent, attribute), self.slot))

    def detach(self) -> Any:
        """Take everything off and return the base, bit for bit what it was; the model is spent."""
        for parent, attribute, original in reversed(self._replaced):
            setattr(parent, attribute, original)
        self._replaced.clear()
        for name, parameter in self.base.named_parameters():
            parameter.requires_grad_(self._was_trained[name])
        for name, module in self.base.named_modules():
            module.training = self._was_training[name]
        return self.base

    @contextmanager
    def attaching(self) -> Iterator[None]:
        """Inside, an error gives the base back as it was before it goes on."""
        try:
            yield
        except BaseException:
            self.detach()
            raise

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Inside, `forward` and `generate` are the base's own, bit for bit."""
        before, self._disabled = self._disabled, True
        try:
            yield
        finally:
            self._disabled = before

    # -- what PEFT users expect ----------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The base's configuration."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        device: torch.device = self.base.device
        return device

    @property
    def family(self) -> Family:
        """The base's family."""
        return self.backbone.family

    def base_fingerprint(self) -> str:
        """Identity of the base's weights, see `pemt.backbones.fingerprint`."""
        return fingerprint(self.base, self.backbone)

    def options(self) -> dict[str, Any]:
        """What it was built with, in plain values: two models with equal options are alike."""
        return {"outputs": self.outputs}

    def trained_state(self) -> dict[str, Tensor]:
        """The parameters that train, by name, detached."""
        return {n: p.detach() for n, p in self.named_parameters() if p.requires_grad}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Copy trained parameters in; names and shapes must be exactly those of `trained_state`."""
        own = {n: p for n, p in self.named_parameters() if p.requires_grad}
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise ConfigError(
                f"The saved parameters do not fit this model: missing {missing[:3]}, "
                f"unexpected {extra[:3]}",
                "build the model with the settings it was saved with",
            )
        for name, parameter in own.items():
            if state[name].shape != parameter.shape:
                raise ConfigError(
                    f"{name} is {tuple(state[name].shape)} in the file",
                    f"expected {tuple(parameter.shape)}",
                )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """What trains, and nothing frozen: what a plain `transformers.Trainer` writes and reads."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        trained = {prefix + n for n, p in self.named_parameters() if p.requires_grad}
        for name in [n for n in state if n.startswith(prefix) and n not in trained]:
            del state[name]
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Copy what `state_dict` gave; with `strict` names must be exactly those."""
        del assign  # always copied: what trains stays the optimiser's tensor
        own = self.trained_state()
        missing = sorted(own.keys() - state_dict.keys())
        unexpected = sorted(state_dict.keys() - own.keys())
        if strict or not (missing or unexpected):
            self.load_trained_state(dict(state_dict))
        else:
            self.load_trained_state({n: state_dict.get(n, value) for n, value in own.items()})
        return _IncompatibleKeys(missing, unexpected)

    def parameter_counts(self) -> tuple[int, int]:
        """(trained, all of the base and what was added, frozen experts included)."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        return trained, total

    def print_trainable_parameters(self) -> None:
        """Print the trained share of the parameters, as PEFT does."""
        trained, total = self.parameter_counts()
        print(
            f"trainable params: {trained:,} || all params: {total:,} || "
            f"trainable%: {100 * trained / total:.4f}"
        )

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute layers in the backward pass; both modes of torch.utils.checkpoint work."""
        self.base.activation_checkpointing_enable(
            gradient_checkpointing_kwargs or {"use_reentrant": False}
        )

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.base.activation_checkpointing_disable()
        self.base.disable_input_require_grads()

    def _reentrant(self) -> bool:
        if not self.training or not torch.is_grad_enabled():
            return False
        for module in self.base.modules():
            if getattr(module, "gradient_checkpointing", False):
                function = getattr(module, "_gradient_checkpointing_func", None)
                return bool(getattr(function, "keywords", {}).get("use_reentrant", False))
        return False

    @contextmanager
    def _answering(self) -> Iterator[ForwardContext]:
        """A pass that decodes: gates are reused (the slot stays empty inside `disable()`).

        Checkpointing pauses: in training mode transformers drops the cache of checkpointed layers,
        and goes on to decode from the last token alone.
        """
        context = ForwardContext(reuse_gates=True)
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

    # -- the forward pass ----------------------------------------------------------------------

    def prompt(self) -> Tensor | None:
        """The prompt `[P, D]` put into the input, or None."""
        return None

    def _embed(self, input_ids: Tensor) -> Tensor:
        owner = self.base.get_encoder() if self.family == "encoder-decoder" else self.base
        embedded: Tensor = owner.get_input_embeddings()(input_ids)
        return embedded

    def _prompted(
        self, input_ids: Tensor, attention_mask: Tensor | None, context: ForwardContext
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
        prompt = None if self._disabled else self.prompt()
        used = 0 if prompt is None else len(prompt)
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
        context.prompt_start, context.prompt_length = start, len(prompt)
        inserted = prompt.to(embedded.dtype).expand(rows, -1, -1)
        ones = mask.new_ones(rows, len(prompt))
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
        context = ForwardContext(
            sparsity=self.sparsity_weight > 0 and labels is not None,
            fixed_gates=fixed_gates or {},
        )
        previous, self.slot.active = self.slot.active, context
        try:
            output = self._run(input_ids, attention_mask, labels, decoder_input_ids, context)
        finally:
            self.slot.active = previous
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
        embedded, mask, text = self._prompted(input_ids, attention_mask, context)
        every = self.sparsity_all_tokens
        context.token_weights["encoder"] = None if every else text
        if self.family == "encoder-only":
            assert self.head is not None
            hidden = self.base(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
            return AdaptedOutput(logits=self.head(TaskHead.pool(hidden, text)))
        if self.family == "decoder-only":
            context.token_weights["decoder"] = None if every else text
            keep = 0 if labels is None else _label_columns(labels)
            hidden = self.base.base_model(
                inputs_embeds=embedded,
                attention_mask=mask,
                position_ids=_positions(mask),
                use_cache=False,
            ).last_hidden_state
            return AdaptedOutput(logits=self._logits(hidden, keep or input_ids.shape[1]))
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
        return AdaptedOutput(logits=logits, encoder_last_hidden_state=hidden)

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

    # -- answers -------------------------------------------------------------------------------

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
            Token ids `[B, L]`: encoder-decoder with the start token, decoder-only new tokens alone.
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
        return sequences[:, mask.shape[1] :] if isinstance(sequences, Tensor) else sequences

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
        context = ForwardContext()
        previous, self.slot.active = self.slot.active, None if self._disabled else context
        try:
            embedded, mask, text = self._prompted(input_ids, attention_mask, context)
            if self.family == "encoder-decoder":
                hidden = self._encode(embedded, mask, context)
            else:
                extra = {} if self.family == "encoder-only" else {"position_ids": _positions(mask)}
                body = self.base if self.family == "encoder-only" else self.base.base_model
                hidden = body(
                    inputs_embeds=embedded, attention_mask=mask, **extra
                ).last_hidden_state
        finally:
            self.slot.active = previous
        return TaskHead.pool(hidden, text)

    @torch.no_grad()
    def score_answers(
        self, input_ids: Tensor, attention_mask: Tensor | None, answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """Log-likelihood of each answer for each text: the text runs once, the answers share it.

        Args:
            input_ids: `[B, S]`, without the prompt.
            attention_mask: `[B, S]`, padding on either side.
            answers: C token id lists, the end token included.

        Returns:
            `[B, C]`, float32.
        """
        if self.family == "encoder-only":
            raise ConfigError("An encoder-only base scores no answers", "use the logits of forward")
        if not answers or not all(len(a) for a in answers):
            raise ConfigError(
                f"Answers {answers!r}", "give at least one, each of at least one token"
            )
        count, device = len(answers), input_ids.device
        longest = max(len(a) for a in answers)
        padded = torch.full((count, longest), -100, device=device)
        for c, answer in enumerate(answers):
            padded[c, : len(answer)] = torch.tensor(list(answer), device=device)
        labels = padded.repeat(len(input_ids), 1)  # [B*C, L]
        input_ids, attention_mask = self._answer_at_the_end(input_ids, attention_mask)
        with self._answering() as context:
            embedded, mask, _ = self._prompted(input_ids, attention_mask, context)
            if self.family == "encoder-decoder":
                hidden = self._encode(embedded, mask, context).repeat_interleave(count, 0)
                logits = self.base(
                    encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                    attention_mask=mask.repeat_interleave(count, 0),
                    decoder_input_ids=self.base.prepare_decoder_input_ids_from_labels(labels),
                    use_cache=False,
                ).logits
            else:
                first = self.base.base_model(
                    inputs_embeds=embedded,
                    attention_mask=mask,
                    position_ids=_positions(mask),
                    use_cache=True,
                )
                logits = self._logits(first.last_hidden_state, 1).repeat_interleave(count, 0)
                if longest > 1:
                    cache = first.past_key_values
                    cache.batch_repeat_interleave(count)
                    shown = labels[:, :-1]
                    full = torch.cat([mask.repeat_interleave(count, 0), (shown != -100).long()], 1)
                    rest = self.base(
                        input_ids=shown.clamp_min(0),
                        attention_mask=full,
                        position_ids=_positions(full)[:, -shown.shape[1] :],
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
        return -flat.view(len(input_ids), count, longest).sum(-1)


def _attachments() -> tuple[type[nn.Module], ...]:
    """Layers that only something attached puts into a base; PEFT's too, where it is in use."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    ours = (MixtureLayer, ParallelExpert, TrainedNorm)
    return ours if peft is None else (*ours, peft.BaseTunerLayer)


def _positions(mask: Tensor) -> Tensor:
    """Positions that do not count padding: `[B, T]` -> `[B, T]`."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def _label_columns(labels: Tensor) -> int:
    """How many last columns are needed to predict every label: from the one before the first on."""
    used = (labels != -100).any(0).nonzero()
    if len(used) == 0:
        return 1
    return min(labels.shape[1], int(labels.shape[1] - used[0].item() + 1))
