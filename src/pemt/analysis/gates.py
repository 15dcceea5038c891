"""Gates as numbers: by layer, stack, class and example, and how many experts they amount to.

Letters for dimensions: N examples, L layers with gates, K gate columns.

Two entropies answer two questions. That of the mean gates says how many experts the *task* uses;
the mean of the examples' entropies says how many *one example* uses. Where they are equal, every
example has the same gates. Both are shown as effective numbers, exp(entropy): from 1, one expert
alone, to K, all alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pemt.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from pemt.model import AdaptedModel

Array = NDArray[np.float64]


def layer_names(model: AdaptedModel) -> list[str]:
    """Short names of the layers that have gates, in the gates' order.

    "encoder 0" is a layer's down projection, "encoder 0 attention.self.query" another of its linear
    maps. Down projections come first.
    """
    return [site.label for site in model.gated_sites()]


def entropy(gates: Tensor) -> Tensor:
    """Of gates, `[.., K]` -> `[..]`, in nats: from 0, one expert has all, to log K, all alike."""
    return -(gates * gates.clamp_min(1e-12).log()).sum(-1)


def gate_table(gates: Tensor, model: AdaptedModel, experts: list[str]) -> dict[str, Any]:
    """Mean gates with names: by layer and expert, over all layers, and how many experts count.

    Args:
        gates: `[layers, K]`, rows sum to 1.
        model: whose layers they are.
        experts: K names.
    """
    mean = gates.mean(0)
    rows = zip(layer_names(model), gates.tolist(), strict=True)
    return {
        "by_layer": {name: dict(zip(experts, row, strict=True)) for name, row in rows},
        "mean": dict(zip(experts, mean.tolist(), strict=True)),
        "effective_experts": math.exp(float(entropy(mean))),
    }


def effective(gates: Array) -> Array:
    """How many experts gates amount to, exp(entropy): `[.., K]` -> `[..]`, from 1 to K."""
    logs = np.log(np.where(gates > 0, gates, 1.0))
    result: Array = np.exp(-(gates * logs).sum(-1))
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class ExampleGates:
    """Gates of single examples: the mean over the layers of each stack.

    Attributes:
        ids: of the examples, `[N]`.
        labels: what is right, as text, `[N]`; empty where it is not known.
        by_stack: stack -> `[N, K]`.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    by_stack: dict[str, Array]


@dataclass(frozen=True, kw_only=True, eq=False)
class GateReport:
    """What the gates of one adapted model look like.

    Attributes:
        experts: gate columns in order; "none" is the choice of no expert.
        layers: names in order, such as "encoder 0".
        stacks: "encoder" or "decoder", of each layer.
        mean: mean gates over the examples, `[L, K]`.
        rows: how many examples; None where it was not recorded.
        deviation: standard deviation over the examples, `[L, K]`; None where only means are known.
        example_effective: exp of the mean over examples of their entropy, `[L]`; None likewise.
        spread: stack -> standard deviation over the examples of their mean over its layers, `[K]`.
        classes: class -> mean gates of its examples, `[L, K]`; empty without classes.
        class_rows: class -> how many examples.
        class_share: stack -> share of the examples' variance that lies between classes, 0 to 1.
        examples: of single examples; not part of `to_dict`.
        notes: what a reader must know, one sentence each.
    """

    experts: tuple[str, ...]
    layers: tuple[str, ...]
    stacks: tuple[str, ...]
    mean: Array
    rows: int | None = None
    deviation: Array | None = None
    example_effective: Array | None = None
    spread: dict[str, Array] = field(default_factory=dict)
    classes: dict[str, Array] = field(default_factory=dict)
    class_rows: dict[str, int] = field(default_factory=dict)
    class_share: dict[str, float] = field(default_factory=dict)
    examples: ExampleGates | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mean.shape != (len(self.layers), len(self.experts)) or not len(self.layers):
            raise DataError(
                f"Gates of shape {self.mean.shape} for {len(self.layers)} layers and "
                f"{len(self.experts)} experts",
                "give one row for each layer and one column for each expert, at least one of both",
            )
        check_finite(self.mean, self.layers)

    # -- in short -----------------------------------------------------------------------------

    @property
    def effective(self) -> Array:
        """Effective number of experts of each layer's mean gates, `[L]`."""
        return effective(self.mean)

    @property
    def overall(self) -> Array:
        """Mean gates over all layers, `[K]`."""
        result: Array = self.mean.mean(0)
        return result

    @property
    def overall_effective(self) -> float:
        """Effective number of experts of the mean over all layers."""
        return float(effective(self.overall))

    @property
    def stack_names(self) -> tuple[str, ...]:
        """The stacks there are, encoder first."""
        return tuple(dict.fromkeys(self.stacks))

    def of_stack(self, stack: str, gates: Array | None = None) -> Array:
        """Mean over the layers of one stack, `[K]`.

        Args:
            stack: one of `stack_names`.
            gates: `[L, K]`, such as those of a class; the mean gates where None.
        """
        rows = [i for i, own in enumerate(self.stacks) if own == stack]
        result: Array = (self.mean if gates is None else gates)[rows].mean(0)
        return result

    # -- as plain values ----------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without the single examples."""
        return {
            "experts": list(self.experts), "layers": list(self.layers),
            "stacks": list(self.stacks), "rows": self.rows, "mean": self.mean.tolist(),
            "deviation": _listed(self.deviation), "effective": self.effective.tolist(),
            "example_effective": _listed(self.example_effective),
            "spread": {name: values.tolist() for name, values in self.spread.items()},
            "classes": {name: values.tolist() for name, values in self.classes.items()},
            "class_rows": self.class_rows, "class_share": self.class_share,
            "overall": {
                "mean": dict(zip(self.experts, self.overall.tolist(), strict=True)),
                "effective": self.overall_effective,
                "by_stack": {
                    stack: {
                        "mean": dict(
                            zip(self.experts, self.of_stack(stack).tolist(), strict=True)
                        ),
                        "effective": float(effective(self.of_stack(stack))),
                    }
                    for stack in self.stack_names
                },
            },
            "notes": list(self.notes),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GateReport:
        """What `to_dict` gave.

        Raises:
            DataError: it is something else, or holds what is no number.
        """
        try:
            return cls(
                experts=tuple(values["experts"]), layers=tuple(values["layers"]),
                stacks=tuple(values["stacks"]), rows=values["rows"],
                mean=np.array(values["mean"], dtype=np.float64).reshape(
                    len(values["layers"]), len(values["experts"])
                ),
                deviation=_array(values["deviation"]),
                example_effective=_array(values["example_effective"]),
                spread={k: np.array(v) for k, v in values["spread"].items()},
                classes={k: np.array(v) for k, v in values["classes"].items()},
                class_rows=dict(values["class_rows"]), class_share=dict(values["class_share"]),
                notes=tuple(values["notes"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"No gate report ({error!r})", "run `pemt gates` again") from None

    @classmethod
    def from_results(cls, results: Mapping[str, Any], notes: Sequence[str] = ()) -> GateReport:
        """What a run wrote down when it was made (`results.json`): the means, no spread.

        Args:
            results: the file's content.
            notes: sentences to keep with it.

        Raises:
            DataError: no gates in it, or gates that are no numbers.
        """
        try:
            by_layer = results["gates"]["by_layer"]
            layers = tuple(by_layer)
            experts = tuple(next(iter(by_layer.values())))
            values = [[row[name] for name in experts] for row in by_layer.values()]
            mean = np.array(values, dtype=np.float64)
        except (KeyError, TypeError, ValueError, StopIteration, AttributeError):
            raise DataError("No gates in these results", "adapt again, or give a run of pemt") \
                from None  # fmt: skip
        stacks = tuple(name.split(" ", 1)[0] for name in layers)
        return cls(experts=experts, layers=layers, stacks=stacks, mean=mean, notes=tuple(notes))

    @classmethod
    def from_means(cls, gates: Tensor, model: AdaptedModel, experts: Sequence[str]) -> GateReport:
        """Of a model in memory.

        Args:
            gates: mean gates `[L, K]`.
            model: whose layers they are.
            experts: K names.
        """
        sites = model.gated_sites()
        return cls(
            experts=tuple(experts), layers=tuple(s.label for s in sites),
            stacks=tuple(s.stack for s in sites), mean=gates.double().numpy(),
        )  # fmt: skip


def check_finite(gates: Array, layers: Sequence[str]) -> None:
    """Refuse gates that are no numbers.

    Raises:
        DataError: naming the layer.
    """
    bad = ~np.isfinite(gates).reshape(len(layers), -1).all(1)
    if bad.any():
        raise DataError(
            f"The gates of {layers[int(bad.argmax())]} are not finite "
            f"({int(bad.sum())} of {len(layers)} layers)",
            "the model is broken: adapt again, with a lower learning rate or in float32",
        )


def _listed(values: Array | None) -> Any:
    return None if values is None else values.tolist()


def _array(values: Any) -> Array | None:
    return None if values is None else np.array(values, dtype=np.float64)
