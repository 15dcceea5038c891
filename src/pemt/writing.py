"""Files that are there whole or not at all, and values that any reader of JSON takes."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pemt.errors import ConfigError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and move it there; its folder is made.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        Path(name).chmod(0o644)  # temporary files are private
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_named(path: Path, content: str | bytes) -> None:
    """The same for a place that a user named.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror})", "give another file"
        ) from error


def without_nan(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have.

    Args:
        value: numbers, text and what holds them; tuples become lists.
    """
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
