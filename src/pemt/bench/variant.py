"""A variant: one setting of what a grid varies beside its methods.

A grid without variants runs each method once per draw. With them it runs each method once per draw
and variant, and its tables compare `pemt@short` with `pemt@long` as they compare methods.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pemt.errors import ConfigError, UnknownNameError
from pemt.model.config import PemtConfig
from pemt.tasks import Task

Named = Sequence[str] | str | None
Experts = Named | Mapping[str, Named]

_DRAW = re.compile(r"(.+)-(?:full|[1-9]\d*)-(?:0|[1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class GridVariant:
    """What differs from the grid; it goes before what the grid, its tasks and its methods say.

    Attributes:
        name: a part of the names of folders; "" is the grid itself.
        pemt: fields of `PemtConfig`.
        settings: fields of `TrainSettings`.
        experts: some of the grid's, in the order of gate columns; "auto:4"; or task ("rte") or draw
            ("rte-16-0": task, shots, data seed) -> either, a draw's before its task's. None is the
            grid's. Shared prompts, tuned together, are never some of them.
        descriptions: task -> the description that makes its prompt.

    Raises:
        ConfigError: a name that no folder can have, or experts that are none or named twice.
        UnknownNameError: no such field of `PemtConfig`.
    """

    name: str = ""
    pemt: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    experts: Experts = None
    descriptions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]*", self.name):
            raise ConfigError(
                f"The variant's name {self.name!r} cannot be a part of a folder's name",
                "use letters, digits, '.', '_' and '-'",
            )
        known = [f.name for f in fields(PemtConfig)]
        for key in self.pemt:
            if key not in known:
                raise UnknownNameError(f"pemt key of the variant {self.name!r}", key, known)
        if self.experts == {}:
            raise ConfigError(
                f"The variant {self.name!r} names experts for no task",
                "name them, or leave out the key",
            )
        for names in self._lists():
            if not names or len(set(names)) != len(names):
                raise ConfigError(
                    f"The experts of the variant {self.name!r}: {list(names)}",
                    "name at least one, and each once",
                )

    def _lists(self) -> list[Sequence[str]]:
        """Every list of names."""
        own = self.experts.values() if isinstance(self.experts, Mapping) else [self.experts]
        return [names for names in own if names is not None and not isinstance(names, str)]

    def configured(self, config: PemtConfig) -> PemtConfig:
        """PEMT's options in this variant."""
        return replace(config, **self.pemt)

    def told(self, task: Task) -> Task:
        """The task with the description of this variant."""
        if task.name not in self.descriptions:
            return task
        return replace(task, description=self.descriptions[task.name])

    def asked(self, task: str, draw: str) -> Named:
        """What is said of the experts of one draw; None is the grid's.

        Raises:
            ConfigError: the variant says it by task or draw, and nothing of this one.
        """
        if not isinstance(self.experts, Mapping):
            return self.experts
        said = draw if draw in self.experts else task
        if said not in self.experts:
            raise ConfigError(
                f"The variant {self.name!r} names no experts for the draw {draw}",
                f"it names them for {', '.join(self.experts)}",
            )
        return self.experts[said]

    def among(self, pool: dict[str, str], task: str, draw: str) -> dict[str, str]:
        """Of the grid's experts (name -> content hash) those of this variant, in its order.

        Raises:
            UnknownNameError: an expert that the grid does not have, here or for another draw.
            ConfigError: nothing is said for this draw, nor for its task.
        """
        for name in (name for names in self._lists() for name in names):
            if name not in pool:
                raise UnknownNameError(f"expert of the variant {self.name!r}", name, pool)
        names = self.asked(task, draw)
        if names is None or isinstance(names, str):
            return pool
        return {name: pool[name] for name in names}

    def check(self, tasks: Collection[str], changes: Mapping[str, dict[str, Any]]) -> None:
        """Refuse what the grid's tasks and methods make meaningless.

        Args:
            tasks: names of the grid's targets.
            changes: method -> the fields of `PemtConfig` that it decides itself.

        Raises:
            ConfigError: a field that a method decides, or experts for what is no draw.
            UnknownNameError: a description or experts of a task that the grid does not have.
        """
        for task in self.descriptions:
            if task not in tasks:
                raise UnknownNameError(f"task of the variant {self.name!r}", task, tasks)
        for key in self.experts if isinstance(self.experts, Mapping) else ():
            drawn = _DRAW.fullmatch(key)
            if key not in tasks and (drawn is None or drawn[1] not in tasks):
                raise UnknownNameError(
                    f"task or draw of the experts of the variant {self.name!r}", key, tasks
                )
        for method, own in changes.items():
            for key in self.pemt:
                if key in own:
                    raise ConfigError(
                        f"The variant {self.name!r} sets pemt.{key}, and the method {method!r} "
                        f"is pemt.{key}={own[key]!r}",
                        "take one of them out",
                    )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        experts: Any = self.experts
        if isinstance(experts, Mapping):
            experts = {key: _plain(names) for key, names in experts.items()}
        else:
            experts = _plain(experts)
        return {
            "name": self.name, "pemt": dict(self.pemt), "settings": dict(self.settings),
            "experts": experts, "descriptions": dict(self.descriptions),
        }  # fmt: skip


def _plain(names: Any) -> Any:
    return names if names is None or isinstance(names, str) else list(names)


PLAIN = GridVariant()
"""The grid itself."""
