"""Names that are imported on first use, so that `import pemt` and `pemt --help` are fast."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazy(package: str, home: dict[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__`.

    Args:
        package: the module's `__name__`.
        home: name -> module that defines it.
    """

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home[name]), name)

    return get
