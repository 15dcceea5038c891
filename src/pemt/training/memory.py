"""Memory between runs of one process."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def give_back_memory() -> None:
    """Return freed memory to the system.

    Batches of many lengths leave glibc's heap full of holes: over a long comparison a process grows
    to several times what it uses. Where the C library has no `malloc_trim`, only garbage is
    collected.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
