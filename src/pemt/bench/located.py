"""Values of a YAML file that know their file and line, so that a mistake can be pointed at."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from pemt.errors import ConfigError, UnknownNameError

_NAMES = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false",
    type(None): "null",
}  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Plain values only; "1e-3" is a number, as everyone who writes it means."""


_Loader.yaml_implicit_resolvers = {k: [*v] for k, v in _Loader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


@dataclass(frozen=True)
class Located:
    """A value and where it stands.

    Attributes:
        value: a scalar, a list of `Located`, or a dict from text to `Located`.
        where: "grid.yaml:12".
    """

    value: Any
    where: str

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {k: v.plain() for k, v in self.value.items()}
        if isinstance(self.value, list):
            return [v.plain() for v in self.value]
        return self.value

    def refuse(self, fix: str) -> ConfigError:
        """The error that says what stands here and what may."""
        return ConfigError(f"{self.where}: {self.plain()!r}", fix)

    def mapping(self, known: Iterable[str], of: str) -> dict[str, Located]:
        """The value as a mapping with these keys at most.

        Raises:
            ConfigError: it is none.
            UnknownNameError: another key.
        """
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.refuse(f"{of} is a mapping of names to values")
        known = list(known)
        for key, value in self.value.items():
            if key not in known:
                raise UnknownNameError(f"key of {of} in {value.where}", key, known)
        return self.value

    def items(self) -> list[Located]:
        """The items of a list; anything else is a list of one."""
        return self.value if isinstance(self.value, list) else [self]

    def entries(self, of: str) -> list[tuple[str, Located]]:
        """Names with their options: from a mapping, or from a list of names and such mappings.

        Raises:
            ConfigError: an item that is neither.
        """
        found: list[tuple[str, Located]] = []
        for item in self.items():
            if isinstance(item.value, str):
                found.append((item.value, Located(None, item.where)))
            elif isinstance(item.value, dict):
                found += item.value.items()
            else:
                raise item.refuse(f"{of} are names, or names with options (lora: {{...}})")
        return found

    def of(self, hint: Any, name: str) -> Any:
        """The value, known to be of a type such as `int`, `float | None` or a `Literal`.

        Raises:
            ConfigError: it is of another.
        """
        value = self.plain()
        if not _fits(value, hint):
            raise ConfigError(f"{self.where}: {name} is {value!r}", f"give {_told(hint)}")
        return value

    def fields_of(self, kind: type, of: str, without: Iterable[str] = ()) -> dict[str, Any]:
        """Keyword arguments of a settings dataclass, each of its field's type.

        Raises:
            ConfigError: a value of another type.
            UnknownNameError: no such field, or one of `without`.
        """
        hints = get_type_hints(kind)
        names = [f.name for f in fields(kind) if f.name not in set(without)]
        return {
            key: value.of(hints[key], f"{of}.{key}")
            for key, value in self.mapping(names, of).items()
        }


def read_located(path: Path) -> Located:
    """Read a YAML file.

    Raises:
        ConfigError: it cannot be read, is no YAML, holds a key twice or a value that is not what
            it looks like, or something in it contains itself.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The file {path} cannot be read: {reason}", "check its name") from error
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return Located(None, f"{path}:1") if node is None else _located(loader, node, str(path))
    except RecursionError:
        raise ConfigError(
            f"{path}:1: something in this file stands too deep in lists and mappings",
            "take some of the brackets out",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{where} is no YAML: {problem}", "see its quotes, colons and indents") \
            from error  # fmt: skip


def _located(
    loader: _Loader, node: yaml.Node, file: str, around: tuple[yaml.Node, ...] = ()
) -> Located:
    where = f"{file}:{node.start_mark.line + 1}"
    if any(node is outer for outer in around):
        raise ConfigError(f"{where}: a value contains itself", "take its alias (*name) out of it")
    around = (*around, node)
    if isinstance(node, yaml.SequenceNode):
        return Located([_located(loader, item, file, around) for item in node.value], where)
    if not isinstance(node, yaml.MappingNode):
        return Located(_scalar(loader, node, where), where)
    found: dict[str, Located] = {}
    for key, value in node.value:
        name, line = str(key.value), f"{file}:{key.start_mark.line + 1}"
        if name in found:
            raise ConfigError(f"{line}: the key {name!r} stands here twice", "take one of them out")
        found[name] = Located(_located(loader, value, file, around).value, line)
    return Located(found, where)


def _scalar(loader: _Loader, node: yaml.Node, where: str) -> Any:
    try:
        return loader.construct_object(node)
    # what PyYAML lets through, for a day that no month has or a tag such as !!int on a text
    except (ValueError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"{where}: {node.value!r} is no value of its kind ({node.tag.rpartition(':')[2]})",
            "correct it, or put it in quotes where it is a text",
        ) from error


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _told(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_told(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return _NAMES[hint]
