"""The keys of a grid's YAML file; every error says the file and the line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pemt.bench.grid import (
    FIXED,
    LIBRARIES,
    GridMethod,
    GridTask,
    as_task,
    at_least_one,
    check_rates,
    each_once,
)  # fmt: skip
from pemt.bench.located import Located
from pemt.bench.variant import GridVariant
from pemt.errors import ConfigError, PemtError, UnknownNameError
from pemt.methods import METHODS
from pemt.model.config import PemtConfig
from pemt.tasks import task_names
from pemt.tasks.fewshot import Validation
from pemt.training.choosing import best_of
from pemt.training.settings import TrainSettings


def read_keys(keys: dict[str, Located]) -> dict[str, Any]:
    """Arguments of `Grid` from keys of a file.

    Raises:
        ConfigError: a value of another type, or out of range.
        UnknownNameError: an unknown name in a value, with a suggestion.
    """
    return {name: _READERS[name](value) for name, value in keys.items()}


def placed(where: str, make: Any, /, *args: Any, **values: Any) -> Any:
    """Call `make`; an error says where."""
    try:
        return make(*args, **values)
    except PemtError as error:
        if error.what.startswith(where):
            raise
        raise ConfigError(f"{where}: {error.what}", error.fix) from None


def _tasks(given: Located) -> list[GridTask]:
    made = []
    for name, options in given.entries("tasks"):
        if not name.endswith((".yaml", ".yml")) and name not in task_names():
            plain = name.rpartition("-")[0]
            if plain not in task_names():
                fix = "or give a YAML file of your own"
                raise UnknownNameError(f"task in {options.where}", name, task_names(), fix)
        task = placed(options.where, as_task, name).task
        found = options.mapping([f.name for f in fields(GridTask)][1:], "a task")
        hints = {"validation": Validation, "score": str, "test_rows": int | None}
        values = {k: found[k].of(hint, k) for k, hint in hints.items() if k in found}
        if "settings" in found:
            values["settings"] = _overrides(found["settings"])
        made.append(placed(options.where, GridTask, task=task, **values))
    return made


def _methods(given: Located) -> list[GridMethod]:
    made = []
    for name, options in given.entries("methods"):
        if name not in METHODS:
            raise UnknownNameError(f"method in {options.where}", name, METHODS)
        found = options.mapping([f.name for f in fields(GridMethod)][1:], "a method")
        values: dict[str, Any] = {}
        if "learning_rates" in found:
            values["learning_rates"] = _rates(found["learning_rates"])
        if "settings" in found:
            values["settings"] = _overrides(found["settings"])
        made.append(placed(options.where, GridMethod, name=name, **values))
    return made


def _variants(given: Located) -> list[GridVariant]:
    made = []
    for name, options in given.entries("variants"):
        found = options.mapping([f.name for f in fields(GridVariant)][1:], "a variant")
        values: dict[str, Any] = {}
        if "pemt" in found:
            values["pemt"] = found["pemt"].fields_of(PemtConfig, "pemt")
        if "settings" in found:
            values["settings"] = _overrides(found["settings"])
        if "experts" in found:
            values["experts"] = _varied_experts(found["experts"])
        if "descriptions" in found:
            texts = found["descriptions"]
            named = texts.mapping(texts.value or (), "descriptions")
            values["descriptions"] = {t: v.of(str, "a description") for t, v in named.items()}
        made.append(placed(options.where, GridVariant, name=name, **values))
    return made


def _varied_experts(given: Located) -> Any:
    if isinstance(given.value, dict):  # by task or draw
        return {key: _named(names) for key, names in given.value.items()}
    return _named(given)


def _overrides(given: Located) -> dict[str, Any]:
    for key, value in given.mapping([f.name for f in fields(TrainSettings)], "settings").items():
        if key in FIXED:
            raise ConfigError(f"{value.where}: a grid decides settings.{key} itself", FIXED[key])
    values = given.fields_of(TrainSettings, "settings")
    placed(given.where, TrainSettings, **values)
    return values


def _settings(given: Located) -> TrainSettings:
    return TrainSettings(**_overrides(given))


def _pemt(given: Located) -> PemtConfig:
    values = given.fields_of(PemtConfig, "pemt")
    return placed(given.where, PemtConfig, **values)  # type: ignore[no-any-return]


def _rates(given: Located) -> tuple[float, ...]:
    rates = tuple(float(item.of(float, "learning_rates")) for item in given.items())
    placed(given.where, check_rates, rates)
    return rates


def _libraries(given: Located) -> dict[str, str]:
    found = given.mapping(LIBRARIES, "libraries")
    return {kind: place.of(str, f"libraries.{kind}") for kind, place in found.items()}


def _experts(given: Located) -> Any:
    if isinstance(given.value, dict):
        return {k: _named(v) for k, v in given.mapping(LIBRARIES, "experts").items()}
    return _named(given)


def _named(given: Located) -> Any:
    """A list of names, "auto:4", or None for all."""
    if given.value is None:
        return None
    if isinstance(given.value, str) and ":" in given.value:
        placed(given.where, best_of, given.value)
        return given.value
    names = [name.of(str, "experts") for name in given.items()]
    placed(given.where, each_once, "experts", names)
    return names


def _seeds(given: Located) -> list[int]:
    if isinstance(given.value, int):
        placed(given.where, at_least_one, "data_seeds", given.of(int, "data_seeds"))
        return list(range(given.value))
    return [item.of(int, "data_seeds") for item in given.items()]


def _path(given: Located) -> Path | None:
    text = given.of(str | None, "the folder")
    return None if text is None else Path(text).expanduser()


_READERS: dict[str, Any] = {
    "base": lambda v: v.of(str, "base"),
    "tasks": _tasks,
    "methods": _methods,
    "precision": lambda v: v.of(Literal["auto", "float32", "bfloat16"], "precision"),
    "libraries": _libraries,
    "experts": _experts,
    "variants": _variants,
    "shots": lambda v: [item.of(int | None, "shots") for item in v.items()],
    "data_seeds": _seeds,
    "learning_rates": _rates,
    "settings": _settings,
    "pemt": _pemt,
    "test_rows": lambda v: v.of(int | None, "test_rows"),
    "data_dir": _path,
    "output": _path,
}
