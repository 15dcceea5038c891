"""One family of errors: what happened, the offending value, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PemtWarning(UserWarning):
    """Something of ours that deserves a look but cannot make a result wrong."""


class PemtError(Exception):
    """Base class of every error this package raises on purpose.

    Args:
        what: what happened, naming the offending value.
        fix: what is allowed, or what to do about it.
    """

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what}\n  -> {fix}" if fix else what)
        self.what = what
        self.fix = fix


class UnknownNameError(PemtError):
    """A name that is in no list: base, task, expert, metric, method or key.

    Args:
        kind: what the name should have named ("task", "metric", ...).
        name: the name given.
        known: every name that would have been accepted.
        fix: what else to do, appended after the list.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str], fix: str = "") -> None:
        names = sorted(known)
        close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
        hint = f" Did you mean: {close[0]}?" if close else ""
        listed = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
        super().__init__(
            f"Unknown {kind} {name!r}.{hint}",
            f"known: {listed or 'none'}" + (f"; {fix}" if fix else ""),
        )
        self.name = str(name)
        self.suggestion = close[0] if close else None


class ConfigError(PemtError):
    """A setting with a value that is not allowed, or two settings that contradict each other."""


class DataError(PemtError):
    """Rows that cannot be used: file, line and remedy are in the message."""


class AssetError(PemtError):
    """A pinned offline asset that is missing, truncated or altered."""


class BackboneError(PemtError):
    """A base model that is not described, or does not look as described."""


class ExpertError(PemtError):
    """An expert that is missing, altered, or made for another base, width or tokenizer."""


class TrainingError(PemtError):
    """A run that cannot go on: non-finite loss, a checkpoint of another configuration."""


class DivergedError(TrainingError):
    """A run whose loss is no longer a finite number: of several, the others can go on."""
