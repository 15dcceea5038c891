"""AdaMix: a mixture of adapters that ends as one (Wang et al. 2022, arXiv 2205.12410).

Every feed-forward gets M = 4 bottleneck adapters with down projections of their own and one up
projection for all (section 3.4; the released runs share the same way):

    training     y = f + U act(V_i f + v_i) + u     i drawn per layer and batch (section 3.1)
    evaluation   the same with the means of V_i and v_i over i (section 3.3)

    loss = task loss of pass A + 1/2 (KL(A || B) + KL(B || A))     (section 3.2)

where B is a second pass over the same batch with other draws (and other dropout), and the KL is of
the answers' distributions: of the classes, or of the vocabulary at the label positions. As in the
released code each KL moves the pass that it is not an average over. A regression's one output has
no distribution over classes; there the KL is that of two normals of unit variance, 1/2 (a - b)^2.

Place, width and trained norms are those of the method `adapter`, so that the two differ in the
mixture alone. Draws come from torch's generator, whose state a checkpoint holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pemt.methods.method import Setting
from pemt.model import AdaptedModel
from pemt.nn import Slot, TargetAdapter, WrappedLinear

MODULES = 4


class RoutedAdapter(WrappedLinear):
    """A down projection followed by one of M adapters, or by their mean.

    Args:
        down: the base's down projection, `[..., F]` -> `[..., D]`.
        adapters: M of them, of one shape; they may share modules.
        slot: of the model; while it is empty, the down projection answers alone.
    """

    def __init__(self, down: nn.Module, adapters: list[TargetAdapter], slot: Slot) -> None:
        super().__init__(down, slot)
        self.adapters = nn.ModuleList(adapters)
        self._kept: tuple[list[Any], dict[str, Tensor]] | None = None

    def merged(self) -> dict[str, Tensor]:
        """Mean of the adapters' parameters, by name; without gradients it is computed once."""
        if torch.is_grad_enabled():
            return self._mean()
        # an optimiser's step counts versions up; a move to another device or type does not
        state = [(p._version, p.device, p.dtype) for p in self.parameters()]
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self._mean()
        return self._kept[1]

    def _mean(self) -> dict[str, Tensor]:
        each = [dict(adapter.named_parameters()) for adapter in self.adapters]
        return {name: torch.stack([own[name] for own in each]).mean(0) for name in each[0]}

    def train(self, mode: bool = True) -> RoutedAdapter:
        """Also forget the mean, whatever was written to the parameters."""
        self._kept = None
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """`[..., F]` -> `[..., D]`; all tokens of the batch take the same adapter."""
        f: Tensor = self.down(x)
        if self.slot.current() is None:
            return f
        if self.training:
            # drawn here: checkpointing puts the generator back before it runs a layer again
            y: Tensor = self.adapters[int(torch.randint(len(self.adapters), ()))](f)
        else:
            y = functional_call(self.adapters[0], self.merged(), (f,))
        return y


class AdaMixModel(AdaptedModel):
    """The base with M adapters after every feed-forward, its norms trained too."""

    @classmethod
    def build(cls, setting: Setting) -> AdaMixModel:
        """M adapters per layer; the counts before and after merging go into the notes."""
        config = setting.config
        model = setting.bare(cls)
        saved = 0  # parameters that merging takes away
        with model.attaching():
            model.train_norms()
            for site in model.sites:
                adapters = [
                    TargetAdapter(
                        site.width, reduction=config.reduction, activation=config.activation
                    ).to(model.device)
                    for _ in range(MODULES)
                ]
                for adapter in adapters[1:]:
                    adapter.up = adapters[0].up
                    saved += sum(p.numel() for p in adapter.down.parameters())
                wrapped = RoutedAdapter(site.module, adapters, model.slot)
                model.replace(site.parent, site.attribute, wrapped)
        trained, _ = model.parameter_counts()
        setting.notes.update(trained_parameters=trained, merged_parameters=trained - saved)
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        num_items_in_batch: Tensor | int | None = None,
        **more: Any,
    ) -> Any:
        """One pass; in training with labels two, with the consistency loss added."""
        given = {**more, "num_items_in_batch": num_items_in_batch}
        output: Any = super().forward(input_ids, attention_mask, labels, **given)
        if labels is None or self._disabled or not self.training:
            return output
        other: Any = super().forward(input_ids, attention_mask, labels, **given)
        each = self._divergences(output.logits, other.logits, labels)
        # one mean over the optimiser step, as the task loss has it
        items = len(each) if num_items_in_batch is None else num_items_in_batch
        output.loss = output.loss + each.sum() / items
        return output

    def _divergences(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        """Divergence of two passes at every label: `[B, C]` or `[B, T, V]` twice -> `[N]`."""
        if self.outputs == 1:
            return 0.5 * (a - b).squeeze(-1).square()
        if self.head is None:
            if self.family == "decoder-only":  # the column before a label predicts it
                labels = labels[:, -a.shape[1] :][:, 1:]
                a, b = a[:, :-1], b[:, :-1]
            a, b = a[labels != -100], b[labels != -100]  # [N, V]
        return symmetric_kl(a, b)


def symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """1/2 (KL(p || q) + KL(q || p)) of p = softmax(a) and q = softmax(b): `[N, C]` -> `[N]`.

    The distribution that a KL averages over is taken as given: no gradient goes through it.
    """
    p, q = a.float().log_softmax(-1), b.float().log_softmax(-1)
    fixed_p, fixed_q = p.detach(), q.detach()
    forward = (fixed_p.exp() * (fixed_p - q)).sum(-1)
    backward = (fixed_q.exp() * (fixed_q - p)).sum(-1)
    return 0.5 * (forward + backward)
