"""Writing into a library: in turns, prepared aside, put in place in one step, or not at all.

A write prepares a whole folder under a hidden name in the library, without the lock; then it takes
the lock and moves the folder to its name. What a killed writer leaves is hidden, so no reader ever
sees it, and the next writer clears it up.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pemt.errors import ExpertError
from pemt.experts.folder import (
    _move,
    _replace,
    _sync,
    _write,
    discard,
    hidden_of,
    hidden_sibling,
)
from pemt.experts.manifest import CARD, MANIFEST, refuse

LEFTOVER_SECONDS = 3600.0  # a writer that has been silent for so long is dead
LOCK_SECONDS = 60.0
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def turn(root: Path) -> Iterator[None]:
    """One writer at a time, in whatever process; clears up after killed ones first.

    Raises:
        ExpertError: another process keeps the lock.
    """
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise ExpertError(
            f"The library {root} is being written by another process.",
            "wait for it, or end it if it hangs",
        ) from error
    try:
        _clear_leftovers(root)
        yield
    finally:
        lock.release()


@contextmanager
def staging(root: Path, label: str) -> Iterator[Path]:
    """A hidden folder inside the library to prepare experts in; it is gone afterwards."""
    root.mkdir(parents=True, exist_ok=True)
    place = hidden_sibling(root / label, "tmp")
    try:
        place.mkdir()
        yield place
    finally:
        discard(place)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the system says about a failed write into an error with file, reason and remedy.

    Raises:
        ExpertError: instead of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        path = error.filename2 or error.filename
        where = f", at the file {path}" if path else ""
        fix = "give yourself the right to write there, or use another library"
        if error.errno in NO_SPACE:
            fix = "free some disk space and run it again"
        elif error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            fix = "check the disk and run it again"
        raise ExpertError(
            f"{what} failed: {error.strerror or error}{where}.",
            f"{fix}; every expert in the library is whole, as it was or as asked",
        ) from error


def check_free(target: Path, *, overwrite: bool) -> None:
    """Refuse a name that is taken; `overwrite` allows it where an expert is, and nowhere else.

    Raises:
        ExpertError: it is taken.
    """
    if not (target.exists() or target.is_symlink()):
        return
    if not overwrite:
        refuse(target, "exists already", "choose another name, or overwrite it on purpose")
    if not (target / MANIFEST).exists():
        refuse(target, "is no expert, so it is not overwritten", "choose another name or folder")


def write_file(path: Path, content: bytes) -> None:
    """Write a file, to the disk itself, in a folder that nobody else sees yet."""
    _write(path, content)


def replace_card(root: Path, folder: Path, text: str) -> None:
    """Put a card into an expert's folder in one step; its readers never see half of it.

    Raises:
        ExpertError: the folder is a link, which may lead out of the library.
    """
    if folder != root and folder.is_symlink():
        refuse(folder, "is a symbolic link", "copy the expert itself into the library")
    with staging(root, "card") as place:
        write_file(place / CARD, text.encode())
        (place / CARD).replace(folder / CARD)


def install(fresh: Path, target: Path, *, overwrite: bool) -> None:
    """Move a prepared folder to its place, whole; call it inside a `turn`.

    Raises:
        ExpertError: the place is taken.
    """
    check_free(target, overwrite=overwrite)
    _sync(fresh)
    if target.exists():
        _replace(target, fresh)
    else:
        _move(fresh, target)
    _sync(target.parent)


def vanish(root: Path, folder: Path) -> None:
    """Delete a folder: it disappears in one step, then its bytes go; call it inside a `turn`."""
    doomed = hidden_sibling(root / folder.name, "tmp")
    folder.rename(doomed)
    try:
        _sync(root)
    finally:
        discard(doomed)


def parked(folder: Path) -> bool:
    """Whether a writer has moved this folder aside for a moment, to put a new one there."""
    return any(hidden_of(path, "old") == folder.name for path in folder.parent.glob(".*.old"))


def _clear_leftovers(root: Path) -> None:
    """Remove what killed writers left, and put back an expert they had only parked."""
    for path in root.glob(".*.old"):
        name = hidden_of(path, "old")
        if name is None:
            continue
        home = root / name
        if home.exists():
            discard(path)
        else:
            path.rename(home)
    for path in root.glob(".*.tmp"):
        if hidden_of(path, "tmp") is None:
            continue
        try:
            silent = time.time() - path.lstat().st_mtime
        except FileNotFoundError:  # another writer's, who prepares without the lock, and is done
            continue
        if silent > LEFTOVER_SECONDS:
            discard(path)
