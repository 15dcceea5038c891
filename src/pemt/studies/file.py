"""What a study is asked: a YAML file like a grid's, flags, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pemt.bench.grid import Grid
from pemt.bench.grid_file import read_keys
from pemt.bench.located import Located, read_located
from pemt.errors import ConfigError, PemtError
from pemt.methods import method_named
from pemt.studies.study import Kind, refuse_known_targets

DEFAULTS: dict[str, Any] = {
    "base": "minilm", "method": "pemt", "shots": 16, "data_seeds": 3, "test_rows": 250,
    "settings": {"epochs": 12, "batch_size": 8, "evaluations": 4, "dropout": 0.0,
                 "max_source_length": 96},
}  # fmt: skip
"""For what neither file nor flags say: about 20 s a cell on two cores with MiniLM."""

DECIDED = {"methods": "write method: pemt", "variants": "the study makes them"}
"""Keys of a grid that a study decides, and what to do instead."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked: a grid without variants, and the study's own options.

    Attributes:
        kind: of study.
        grid: with one method.
        options: by the keys of the kind.
        output: folder of the results.
    """

    kind: Kind
    grid: Grid
    options: dict[str, Any]
    output: Path


def read_question(kind: Kind, file: Path | None, flags: Mapping[str, Any]) -> Question:
    """Read a file, flags over it, and defaults under it.

    Args:
        kind: of study.
        file: YAML with a grid's keys, `method` and the study's own; paths are relative to the
            folder the program runs in.
        flags: key -> value, as they would stand in a file; None is not given.

    Raises:
        ConfigError: no tasks, no experts, a value of another type, or a target that a source was
            trained on.
        UnknownNameError: an unknown key or name, with a suggestion.
    """
    located = Located({}, "the flags") if file is None else read_located(file)
    known = [f.name for f in fields(Grid) if f.name not in DECIDED]
    for key, fix in DECIDED.items():
        if isinstance(located.value, dict) and key in located.value and key not in kind.keys:
            where = located.value[key].where
            raise ConfigError(f"{where}: a study of {kind.name} has no {key}", fix)
    keys = dict(located.mapping([*known, "method", *kind.keys], f"a study of {kind.name}"))
    for name, value in flags.items():
        if value is not None:
            keys[name] = _located(value, f"--{name.replace('_', '-')}")
    for name, value in DEFAULTS.items():
        keys.setdefault(name, _located(value, "the default"))
    for needed, flag in (("tasks", "--tasks rte,mrpc"), ("libraries", "--library FOLDER")):
        if needed not in keys:
            where = "" if file is None else f"{located.where}: "
            fix = f"write {needed}: in a file, or give {flag}"
            raise ConfigError(f"{where}a study of {kind.name} needs {needed}", fix)
    method = keys.pop("method").of(str, "method")
    if method_named(method).library != "experts":
        raise ConfigError(
            f"method: {method}, which mixes no experts", "take pemt, guided, or another that does"
        )
    options = {name: read(keys.pop(name)) for name, read in kind.keys.items() if name in keys}
    try:
        grid = Grid(**read_keys(keys), methods=[method])
        refuse_known_targets(grid)
    except PemtError as error:
        if file is None or str(file) in error.what:
            raise
        raise ConfigError(f"{file}: {error.what}", error.fix) from None
    name = kind.name if file is None else file.stem
    output = Path(grid.output or Path("runs") / "studies" / name)
    return Question(kind=kind, grid=grid, options=options, output=output)


def _located(value: Any, where: str) -> Located:
    """A plain value, as if it stood in a file."""
    if isinstance(value, dict):
        return Located({k: _located(v, where) for k, v in value.items()}, where)
    if isinstance(value, (list, tuple)):
        return Located([_located(v, where) for v in value], where)
    return Located(value, where)
