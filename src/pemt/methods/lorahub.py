"""LoraHub (Huang et al. 2023, arXiv 2307.13269): one weight per expert, found without gradients.

    A = sum_k w_k A_k,  B = sum_k w_k s_k B_k            at every layer, the same w everywhere
    f = W_o x + B A x                                    s_k: the expert's scale, alpha / rank

    minimise  cross-entropy(training rows) + 0.05 sum_k |w_k|   over w in [-1.5, 1.5]^K, from w = 0,
              with 40 evaluations

The sums are multiplied, as in the paper: two experts of weight w give cross terms B_1 A_2, and one
alone gives w^2 times its output. So w and -w are the same model, and w = 0, the base, is a local
minimum that small steps cannot leave.

The paper's optimiser is nevergrad's NGOpt. Below a few hundred evaluations that hands over to
COBYLA, which scipy has: in `benchmarks/lorahub_search.py` both reach the same values, and no other
optimiser there is better at many experts. So no further package is needed. It is deterministic.

The paper penalises the sum of |w_k| (its code the mean) and puts no prompt before the text: nor
does this. Only LoRAs of the same places and rank can be added up. The rows that choose w are the
training rows; validation rows are not read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pemt.errors import ConfigError, DataError
from pemt.experts import Expert
from pemt.methods.frozen import FrozenExperts
from pemt.methods.method import Setting
from pemt.model.coverage import floating
from pemt.nn import Slot, WrappedLinear
from pemt.tasks.encoding import Collator, encode
from pemt.training.evaluating import evaluating, lengths, longest_first, side_of
from pemt.training.settings import TrainSettings

BOUND, BUDGET, PENALTY = 1.5, 40, 0.05
FIRST_STEP = 0.5
BATCH = 64

Weights = npt.NDArray[np.float64]


def search(
    loss: Callable[[Weights], float], count: int, *, budget: int = BUDGET
) -> tuple[Weights, float]:
    """The best weights that at most `budget` evaluations from 0 on find, and their value.

    Args:
        loss: of weights `[count]`, without the penalty.
        count: K.
        budget: evaluations.
    """
    from scipy.optimize import minimize

    best: tuple[float, Weights] = (float("inf"), np.zeros(count))
    done = 0

    class Spent(Exception):  # noqa: N818 - the end of the budget, no error
        pass

    def value(given: Weights) -> float:
        nonlocal best, done
        if done == budget:
            raise Spent
        done += 1
        weights = np.clip(given, -BOUND, BOUND)  # COBYLA may step over the bounds
        found = loss(weights) + PENALTY * float(np.abs(weights).sum())
        if found < best[0]:
            best = (found, weights)
        return found

    with contextlib.suppress(Spent):
        minimize(
            value, np.zeros(count), method="COBYLA", bounds=[(-BOUND, BOUND)] * count,
            options={"rhobeg": FIRST_STEP, "maxiter": max(budget, count + 2), "tol": 1e-3},
        )  # fmt: skip
    return best[1], best[0]


class ComposedLora(WrappedLinear):
    """A linear map with the weighted sum of LoRAs beside it.

    Args:
        down: the base's frozen linear map, `[.., F]` -> `[.., D]`.
        A: of all experts, `[K, R, F]`.
        B: of all experts, scale folded in, `[K, D, R]`.
        slot: of the model; while it is empty, the linear map answers alone.
        dtype: that the map computes in.
    """

    A: Tensor
    B: Tensor
    every_a: Tensor
    every_b: Tensor

    def __init__(
        self, down: nn.Module, A: Tensor, B: Tensor, slot: Slot, *, dtype: torch.dtype
    ) -> None:
        super().__init__(down, slot)
        for name, value in (("every_a", A.float()), ("every_b", B.float())):
            self.register_buffer(name, value, persistent=False)
        for name, value in (("A", A[0]), ("B", B[0])):
            self.register_buffer(name, torch.zeros_like(value, dtype=dtype), persistent=False)

    def compose(self, weights: Tensor) -> None:
        """Set A and B to the sums of weights `[K]`, in place."""
        self.A.copy_(torch.einsum("k,krf->rf", weights, self.every_a))
        self.B.copy_(torch.einsum("k,kdr->dr", weights, self.every_b))

    def forward(self, x: Tensor) -> Tensor:
        """`[.., F]` -> `[.., D]`."""
        f: Tensor = self.down(x)
        if self.slot.current() is None:
            return f
        return f + F.linear(F.linear(x, self.A), self.B)


class LoraHubModel(FrozenExperts):
    """The frozen base with one LoRA that is the weighted sum of the experts."""

    layers: list[ComposedLora]
    weights: Tensor

    @classmethod
    def build(cls, setting: Setting) -> LoraHubModel:
        """Search the weights on the training rows; notes them by the experts' names.

        Raises:
            ConfigError: experts that cannot be added up.
            DataError: no training rows, or a loss on them that is not finite.
        """
        check_alike(setting.experts)
        if not setting.train:
            raise DataError("No training rows to choose weights on", "give at least one")
        model = cls.on(setting)
        with model.attaching():
            model.attach()
            loss = model.loss_on(setting)
            with evaluating(model), torch.no_grad():
                weights, value = search(loss, len(model.experts))
            model.compose(weights)
        named = {e.name: float(w) for e, w in zip(model.experts, weights, strict=True)}
        setting.notes.update(weights=named, objective=value)
        return model

    def attach(self) -> None:
        """Put the composed LoRA beside every map that the experts are beside, at weights 0."""
        self.layers = []
        tables = [{layer.module: layer for layer in e.layers} for e in self.experts]
        for site in self.sites:
            if site.path not in tables[0]:
                continue
            here = [table[site.path] for table in tables]
            A = torch.stack([layer.A.float() for layer in here])
            B = torch.stack([layer.scale * layer.B.float() for layer in here])
            dtype = floating(site.module, self.base.dtype)
            wrapped = ComposedLora(site.module, A, B, self.slot, dtype=dtype).to(self.device)
            self.replace(site.parent, site.attribute, wrapped)
            self.layers.append(wrapped)
        self.compose(np.zeros(len(self.experts)))

    def compose(self, weights: Weights | Tensor) -> None:
        """Use these weights, `[K]`."""
        self.weights = torch.as_tensor(weights, dtype=torch.float32).clone()
        for layer in self.layers:
            layer.compose(self.weights.to(self.device))

    def loss_on(self, setting: Setting) -> Callable[[Weights], float]:
        """Mean cross-entropy of the training rows' answer tokens, by weights; encoded once."""
        settings = TrainSettings(max_source_length=setting.max_source_length, max_target_length=64)
        tokenizer, family = setting.base.tokenizer, self.family
        rows = encode(setting.train, setting.task, tokenizer, family, **lengths(self, settings))
        rows = [rows[i] for i in longest_first(rows)]
        collate = Collator(tokenizer, family, side=side_of(family))
        batches = []
        for start in range(0, len(rows), BATCH):
            made = collate(rows[start : start + BATCH])
            batch = [made[k].to(self.device) for k in ("input_ids", "attention_mask", "labels")]
            batches.append((batch, int((batch[2] != -100).sum())))
        tokens = sum(count for _, count in batches)

        def loss(weights: Weights) -> float:
            self.compose(weights)
            found = sum(float(self(*batch).task_loss) * count for batch, count in batches) / tokens
            if not np.isfinite(found):
                raise DataError(
                    f"The loss at the weights {np.round(weights, 2).tolist()} is not finite",
                    "verify the experts (pemt experts verify), or leave one out",
                )
            return found

        return loss

    # -- what was fitted: no gradient reaches it, and it is the model's state all the same

    def trained_state(self) -> dict[str, Tensor]:
        """The weights, `[K]`."""
        return {"weights": self.weights.clone()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Use the weights that `trained_state` gave."""
        if state.keys() != {"weights"} or state["weights"].shape != self.weights.shape:
            raise ConfigError(
                f"The saved state {sorted(state)} does not fit this model",
                f"it is the weights of {len(self.experts)} experts",
            )
        self.compose(state["weights"])

    def parameter_counts(self) -> tuple[int, int]:
        """(K weights, all of the base and the experts)."""
        total = super().parameter_counts()[1]
        frozen = sum(m.every_a.numel() + m.every_b.numel() for m in self.layers)
        return len(self.experts), total + frozen + len(self.experts)


def check_alike(experts: Sequence[Expert]) -> None:
    """Refuse experts that cannot be added up.

    Raises:
        ConfigError: one that is no LoRA, or whose places or ranks are not the first one's.
    """
    shapes = [{layer.module: len(layer.A) for layer in e.layers} for e in experts]
    for expert, own in zip(experts, shapes, strict=True):
        if expert.kind != "lora":
            raise ConfigError(
                f"LoraHub adds up LoRAs, and expert {expert.name!r} is of kind {expert.kind!r}",
                "name the LoRAs with --experts",
            )
        if own.keys() != shapes[0].keys():
            odd = sorted(own.keys() ^ shapes[0].keys())[0]
            raise ConfigError(
                f"LoraHub adds up LoRAs at the same places; {experts[0].name!r} and "
                f"{expert.name!r} differ at {odd}",
                "name experts that cover the same linear maps with --experts",
            )
        for module, rank in own.items():
            if rank != shapes[0][module]:
                raise ConfigError(
                    f"LoraHub adds up LoRAs of one rank; at {module} {experts[0].name!r} has rank "
                    f"{shapes[0][module]} and {expert.name!r} has rank {rank}",
                    "name experts of one rank with --experts",
                )
