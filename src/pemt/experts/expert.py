"""An expert: low-rank branches beside linear maps of one frozen base, or a tuned prompt alone.

    x [.., F] --+--> W_o (frozen) ---------------------------+--> [.., D]
                |                                            |
                +--> A [R, F] --(act, + a: bottleneck)--> B [D, R] * scale (+ b)

One trained here is beside every feed-forward down projection; an imported LoRA may be beside any of
the base's linear maps, F and D then being that map's input and output width.
It carries the prompt that described its task and where it came from. Its name is its identity: a
gate column belongs to a name, never to a position in a folder listing.

An expert of kind "prompt" has no branches: its prompt is all that was trained (prompt tuning,
arXiv 2104.08691). One that was made together with others by MPT also holds the factors of its
prompt, `prompt = shared * (u v^T)` (arXiv 2303.02861).

Letters: D model width, F feed-forward width, R rank, P prompt length.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pemt.errors import ConfigError, ExpertError, UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor

# 2 added coverage and origin, 3 the kind "prompt". An expert that needs none of them is still
# written as 1, byte for byte as before, so that what reads version 1 goes on reading it.
FORMAT_VERSION = 3
Coverage = Literal["down", "linear"]
ExpertKind = Literal["lora", "bottleneck", "prompt"]
KINDS = ("lora", "bottleneck", "prompt")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# what expert.json may hold for a field, by the field's annotation
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | str": (int, str),
    "str": (str,),
    "bool": (bool,),
    "float": (int, float),
    "ExpertKind": (str,),
    "Coverage": (str,),
    "tuple[str, ...]": (list, tuple),
    "dict[str, Any]": (dict,),
}


def check_name(name: str) -> str:
    """Give an expert's name back, or say why it cannot be one.

    Raises:
        ConfigError: anything that is not 1 to 64 letters, digits, dots, dashes and underscores
            beginning with a letter or digit, or that holds two dots in a row.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"{name!r} cannot be an expert's name.",
            "use 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first and no '..'",
        )
    return name


@dataclass(frozen=True, kw_only=True)
class ExpertInfo:
    """Where an expert came from; JSON in and out.

    Args:
        name: identity of the expert, equal to its folder's name.
        kind: "lora" (linear), "bottleneck" (with a non-linearity) or "prompt" (no branches).
        task: name of the source task.
        task_version: that task's version.
        description: the sentence the prompt was initialised from.
        label_words: the words the task answers with; empty for generation and regression.
        base: name or path of the base model, as it was given.
        base_family: "encoder-decoder", "decoder-only" or "encoder-only".
        base_fingerprint: hash of the base's configuration and weights.
        tokenizer_fingerprint: hash of the tokenizer.
        width: model width D.
        hidden: feed-forward width F.
        rank: rank R; 0 for a prompt.
        alpha: LoRA alpha; a branch is scaled by alpha / rank. 0 for a prompt.
        fan_in_fan_out: True when the base's down projections store `[F, D]` (GPT-2's Conv1D).
        data_fingerprint: hash of the rows it was trained on.
        settings: the effective training settings.
        metrics: what it reached, by metric name; non-finite numbers are stored as null.
        versions: versions of the libraries that made it.
        created: ISO 8601 time of its making.
        coverage: "down": a branch at each feed-forward down projection; "linear": at some of the
            base's linear maps, whichever.
        origin: of an imported expert: the files it came from with their sha256, the base its
            configuration names, what was left out; empty for one trained here.
        content_hash: sha256 over all the above and every file; filled when saved.
        format_version: version of the folder format, the lowest that holds the fields in use.

    Raises:
        ConfigError: a name that is not allowed.
        ExpertError: sizes below one, or an unknown kind or coverage.
    """

    name: str
    kind: ExpertKind
    task: str
    task_version: int | str = ""
    description: str = ""
    label_words: tuple[str, ...] = ()
    base: str
    base_family: str
    base_fingerprint: str
    tokenizer_fingerprint: str
    width: int
    hidden: int
    rank: int
    alpha: float
    fan_in_fan_out: bool = False
    data_fingerprint: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    coverage: Coverage = "down"
    origin: dict[str, Any] = field(default_factory=dict)
    content_hash: str = ""
    format_version: int = 1

    def __post_init__(self) -> None:
        check_name(self.name)
        needed = 2 if self.origin or self.coverage != "down" else 1
        needed = 3 if self.kind == "prompt" else needed
        object.__setattr__(self, "format_version", needed)
        object.__setattr__(self, "label_words", tuple(self.label_words))
        if self.kind not in KINDS:
            raise ExpertError(
                f"Expert {self.name!r} has kind {self.kind!r}.",
                "it is 'lora', 'bottleneck' or 'prompt'",
            )
        if self.coverage not in ("down", "linear"):
            raise ExpertError(
                f"Expert {self.name!r} has coverage {self.coverage!r}.", "it is 'down' or 'linear'"
            )
        for size in ("width", "hidden", "rank"):
            if size == "rank" and self.kind == "prompt":
                continue
            if getattr(self, size) < 1:
                raise ExpertError(
                    f"Expert {self.name!r} has {size} {getattr(self, size)}.", "it is at least 1"
                )
        if self.kind == "prompt" and (self.rank, self.alpha) != (0, 0):
            raise ExpertError(
                f"Expert {self.name!r} is a prompt of rank {self.rank} and alpha {self.alpha}.",
                "a prompt has no branches: both are 0",
            )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, in declaration order; `from_json` takes them back."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.format_version == 1:
            del plain["coverage"], plain["origin"]
        return {name: _plain(value) for name, value in plain.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExpertInfo:
        """Build from what `to_json` gave.

        Raises:
            UnknownNameError: a field this version does not know.
            ExpertError: a newer format, a missing field, or a value of another type.
        """
        version = data.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ExpertError(
                f"It is in format {version}; this version of pemt reads up to {FORMAT_VERSION}.",
                "install a newer pemt",
            )
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for name in data:
            if name not in fields:
                raise UnknownNameError("field of an expert's info", name, fields)
        for name, f in fields.items():
            optional = f.default is not dataclasses.MISSING or callable(f.default_factory)
            if name not in data:
                if optional:
                    continue
                raise ExpertError(f"Its info lacks {name!r}.", "save the expert again")
            allowed = _JSON_TYPES[str(f.type)]
            value = data[name]
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise ExpertError(
                    f"Its info has {name} = {value!r}.",
                    f"it is of type {' or '.join(t.__name__ for t in allowed)}",
                )
        return cls(**data)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertLayer:
    """The branch beside one linear map: `scale * B A x`, or `B act(A x + a) + b`.

    Args:
        module: dotted path inside the base as it is loaded for its family, like
            "encoder.layer.0.output.dense".
        A: `[R, F]`, F the map's input width.
        B: `[D, R]`, not multiplied by `scale`; D the map's output width.
        scale: alpha / R (alpha / sqrt(R) under rsLoRA); 1.0 for a bottleneck.
        a: `[R]`, bottleneck only.
        b: `[D]`, bottleneck only.
    """

    module: str
    A: Tensor
    B: Tensor
    scale: float
    a: Tensor | None = None
    b: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptFactors:
    """What MPT makes a source's prompt of: `prompt = shared * (u v^T)`, element by element.

    Args:
        shared: `[P, D]`, the same for all sources of one run.
        u: `[P]`, this source's.
        v: `[D]`, this source's.
    """

    shared: Tensor
    u: Tensor
    v: Tensor

    def prompt(self) -> Tensor:
        """The source's prompt, `[P, D]`."""
        return self.shared * self.u.unsqueeze(1) * self.v


@dataclass(frozen=True, kw_only=True, eq=False)
class Expert:
    """One trained expert, in memory.

    Args:
        name: its identity, equal to `info.name`.
        kind: "lora", "bottleneck" or "prompt".
        activation: the bottleneck's non-linearity; None for the others.
        layers: one for each linear map it is beside, in the base's order; none for a prompt.
        prompt: `[P, D]`; P = 0 without one, which a prompt expert cannot be.
        head: an encoder-only task's head by tensor name; empty without one.
        info: provenance.
        factors: of a prompt that MPT made; None for all others.

    Raises:
        ExpertError: shapes, names or kinds that contradict each other.
    """

    name: str
    kind: ExpertKind
    activation: str | None
    layers: tuple[ExpertLayer, ...]
    prompt: Tensor
    head: dict[str, Tensor]
    info: ExpertInfo
    factors: PromptFactors | None = None

    def __post_init__(self) -> None:
        if (self.name, self.kind) != (self.info.name, self.info.kind):
            self._refuse(
                f"is {self.name!r}, {self.kind!r}",
                f"its info says {self.info.name!r}, {self.info.kind!r}: they must be equal",
            )
        if (self.kind == "bottleneck") != (self.activation is not None):
            self._refuse(
                f"is of kind {self.kind!r} with activation {self.activation!r}",
                "a bottleneck needs one and the others have none",
            )
        D, F = self.info.width, self.info.hidden
        if self.prompt.ndim != 2 or self.prompt.shape[1] != D:
            self._refuse(f"has a prompt of shape {list(self.prompt.shape)}", f"it is [P, {D}]")
        if self.kind == "prompt":
            self._check_prompt_alone()
            return
        if self.factors is not None:
            self._refuse("has factors of a prompt", "only an expert of kind 'prompt' has them")
        modules = [layer.module for layer in self.layers]
        if not modules or len(set(modules)) != len(modules):
            self._refuse(
                f"has layers {modules}", "there is at least one, and each module occurs once"
            )
        for layer in self.layers:
            if self.info.coverage == "down":
                self._check_layer(layer, D, F)
            else:  # the widths are each map's own, which only the base knows
                A, B = layer.A, layer.B
                own = (B.shape[0] if B.ndim else 0, A.shape[-1] if A.ndim else 0)
                self._check_layer(layer, *own)

    def _check_prompt_alone(self) -> None:
        if self.layers or not len(self.prompt):
            self._refuse(
                f"is a prompt of {len(self.prompt)} rows with {len(self.layers)} branches",
                "it has at least one row and no branches",
            )
        P, D = self.prompt.shape
        for name, shape in (("shared", [P, D]), ("u", [P]), ("v", [D])):
            found = None if self.factors is None else list(getattr(self.factors, name).shape)
            if found not in (None, shape):
                self._refuse(f"has the factor {name} of shape {found}", f"it is {shape}")

    def _check_layer(self, layer: ExpertLayer, D: int, F: int) -> None:
        R = layer.A.shape[0] if layer.A.ndim == 2 else 0
        shapes: list[tuple[str, Tensor | None, list[int]]] = [
            ("A", layer.A, [R, F]),
            ("B", layer.B, [D, R]),
        ]
        if self.kind == "bottleneck":
            shapes += [("a", layer.a, [R]), ("b", layer.b, [D])]
        elif layer.a is not None or layer.b is not None:
            self._refuse(f"has biases at {layer.module}", "a LoRA expert has none")
        for letter, tensor, shape in shapes:
            found = None if tensor is None else list(tensor.shape)
            if R < 1 or found != shape:
                self._refuse(
                    f"has {letter} of shape {found} at {layer.module}",
                    f"with width {D} and hidden {F} it is {shape}",
                )
        if not math.isfinite(layer.scale):
            self._refuse(f"has scale {layer.scale} at {layer.module}", "it is a finite number")

    def _refuse(self, what: str, fix: str) -> None:
        raise ExpertError(f"Expert {self.name!r} {what}.", fix)

    @property
    def num_params(self) -> int:
        """Parameters of the branches, without prompt and head."""
        tensors = [t for y in self.layers for t in (y.A, y.B, y.a, y.b) if t is not None]
        return sum(t.numel() for t in tensors)

    @property
    def size(self) -> float:
        """Frobenius norm of `scale * B A`, a mean over the branches; 0.0 for a prompt.

        For a bottleneck that is without its non-linearity and biases. The Task Sparsity Loss
        prefers experts that are large beside the others (docs/studies/sparsity.md).
        """
        norms = []
        for layer in self.layers:  # |B A|^2 = <B^T B, A A^T>: products of the rank's size
            A, B = layer.A.double(), layer.B.double()
            square = float((B.mT @ B * (A @ A.mT)).sum())
            norms.append(abs(layer.scale) * math.sqrt(max(0.0, square)))
        return sum(norms) / max(len(norms), 1)


def check_compatible(
    info: ExpertInfo,
    *,
    base_fingerprint: str,
    tokenizer_fingerprint: str,
    width: int,
    hidden: int,
) -> None:
    """Refuse an expert that was made for another base, width or tokenizer.

    Which of the base's linear maps it covers is its own choice; their shapes are checked when it is
    put on the base.

    Args:
        info: the expert's provenance.
        base_fingerprint: of the base at hand.
        tokenizer_fingerprint: of the tokenizer at hand.
        width: D of the base at hand.
        hidden: F of the base at hand.

    Raises:
        ExpertError: names everything that differs, with the expert's value and the one here.
    """
    here: dict[str, tuple[str | int, str | int]] = {
        "width (D)": (info.width, width),
        "hidden (F)": (info.hidden, hidden),
        "base fingerprint": (info.base_fingerprint, base_fingerprint),
        "tokenizer fingerprint": (info.tokenizer_fingerprint, tokenizer_fingerprint),
    }
    differing = [
        f"{what} is {there!r} in the expert and {now!r} here"
        for what, (there, now) in here.items()
        if there != now
    ]
    if differing:
        raise ExpertError(
            f"Expert {info.name!r} does not fit this base: {'; '.join(differing)}.",
            f"use the base and tokenizer it was trained on ({info.base!r}), "
            f"or train it again on this one: pemt train-source --task {info.task}",
        )


def _plain(value: Any) -> Any:
    """JSON values all the way down: tuples become lists, non-finite numbers null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ExpertError(
        f"{value!r} of type {type(value).__name__} cannot be written to expert.json.",
        "settings, metrics and versions hold text, numbers, booleans, lists and mappings",
    )
