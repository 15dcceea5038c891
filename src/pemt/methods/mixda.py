"""MixDA (Diao et al. 2023, arXiv 2306.05406): domain adapters, a gate and a task adapter.

With x one token's feed-forward hidden `[F]`, f the down projection's output, e_k expert k's:

    g = softmax(MLP(x))                    over K + 1 columns: the experts, and the base alone
    h = g_K f + sum_k g_k (f + e_k) = f + sum_k g_k e_k
    y = h + U act(V h + v) + u             the task adapter

Taken from the paper and its code: adapters beside the feed-forward, frozen in the second stage; the
mixture-of-adapters gate that reads the feed-forward hidden (an MLP of three hidden layers, ReLU,
dropout 0.2, or the rate of a run that sets `dropout`), the feed-forward itself being one of its
choices; a task adapter behind the mixture; only gates, task adapters and head train.

What does not apply here, or differs:

- their first stage (domain adapters trained on unlabelled knowledge, with a loss that keeps the
  old domain's outputs) is replaced by our source experts. Those learnt to be added to f, so
  choosing one means f + e_k; in their code adapters and f are mixed as equals;
- their adapters sit in two layers (7 and 11), so their gate can afford hidden layers of 768. Our
  experts sit in every layer, so the gate is as narrow as the task adapter, D / reduction;
- their code gates a whole sequence by the hidden of one of its positions; here each token has its
  own gate, so that neither padding nor decoding step by step can change it;
- their task adapter is Houlsby's, in attention too; ours is PEMT's target adapter, behind the
  feed-forward alone. No norm trains, and there is no prompt.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from pemt.methods.frozen import FrozenExperts
from pemt.methods.method import Setting
from pemt.nn import ExpertBank, Slot, TargetAdapter, WrappedLinear

HIDDEN_LAYERS, DROPOUT = 3, 0.2


class TokenGate(nn.Module):
    """`softmax(MLP(x))` over K experts and the base alone.

    Args:
        hidden: F.
        middle: width of the hidden layers.
        experts: K.
    """

    def __init__(self, hidden: int, middle: int, experts: int) -> None:
        super().__init__()
        widths = [hidden, *[middle] * HIDDEN_LAYERS, experts + 1]
        self.mlp = nn.Sequential()
        for i, (a, b) in enumerate(pairwise(widths)):
            self.mlp.extend([nn.ReLU()] if i else [])
            self.mlp.extend([nn.Dropout(DROPOUT), nn.Linear(a, b)])

    def forward(self, x: Tensor) -> Tensor:
        """`[.., F]` -> `[.., K + 1]`, float32, rows sum to 1; the last column is the base's."""
        scores: Tensor = self.mlp(x.float())
        return scores.softmax(-1)


class MixDaLayer(WrappedLinear):
    """A linear map with gated experts beside it and a task adapter behind it, where there are.

    Args:
        down: the base's frozen linear map, `[.., F]` -> `[.., D]`.
        bank: the experts that are here, or None.
        gate: over all of them and the base, or None without a bank.
        adapter: the task adapter, or None.
        slot: of the model; while it is empty, the linear map answers alone.
    """

    def __init__(
        self,
        down: nn.Module,
        bank: ExpertBank | None,
        gate: TokenGate | None,
        adapter: TargetAdapter | None,
        slot: Slot,
    ) -> None:
        super().__init__(down, slot)
        self.bank, self.gate, self.adapter = bank, gate, adapter

    def forward(self, x: Tensor) -> Tensor:
        """`[.., F]` -> `[.., D]`."""
        y: Tensor = self.down(x)
        if self.slot.current() is None:
            return y
        if self.bank is not None and self.gate is not None:
            gates = self.gate(x)[..., :-1]  # [.., N]; the base's own column adds nothing to f
            y = y + self.bank.mix(self.bank.hidden_of(x), gates)
        if self.adapter is not None:
            y = self.adapter(y)
        return y


class MixDaModel(FrozenExperts):
    """The frozen base and experts with gates, and a task adapter behind every feed-forward."""

    @classmethod
    def build(cls, setting: Setting) -> MixDaModel:
        """Gates over the setting's experts; reduction and activation are PEMT's options."""
        config = setting.config
        model = cls.on(setting)
        with model.attaching():
            for site, bank, _ in model.banks():
                gate = adapter = None
                if bank is not None:
                    middle = model.width // config.reduction
                    gate = TokenGate(site.hidden, middle, bank.experts)
                if site.is_down:
                    adapter = TargetAdapter(
                        site.width, reduction=config.reduction, activation=config.activation
                    )
                layer = MixDaLayer(site.module, bank, gate, adapter, model.slot)
                model.replace(site.parent, site.attribute, layer.to(model.device))
        return model
