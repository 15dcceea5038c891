"""Memory of a process: the worst of a stretch of work, and what is given back in it and after."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20


def give_back_memory() -> None:
    """Collect garbage and return freed memory to the system, at the end of a piece of work."""
    gc.collect()
    _trim()
    heap.needed = None  # the next piece of work may need less


def _trim() -> None:
    """Return freed memory to the system; nothing where the C library has no `malloc_trim`."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident() -> int | None:
    """Bytes of memory the process holds; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Heap:
    """Keeps freed memory from piling up between the steps of a loop.

    Batches of many lengths leave the C library's heap full of holes that fit no other batch, so a
    process grows while little is in use. They are returned when `slack` has piled up beyond what
    a step is known to need: a step's own memory is not given back and asked for again each time.

    Attributes:
        slack: bytes that may pile up.
        needed: bytes the process held after the first step since memory was last returned.
    """

    slack: int = 512 * MIB
    needed: int | None = None

    def settle(self) -> None:
        """To be called between two steps; costs a few microseconds unless memory is returned."""
        held = resident()
        if held is None:
            return
        if self.needed is None:
            self.needed = held
        elif held > self.needed + self.slack:
            _trim()
            self.needed = None


heap = Heap()
"""Of this process."""


@dataclass(frozen=True)
class PeakMemory:
    """The most memory a process held since a moment: resident, or allocated on a CUDA device.

    Attributes:
        cuda: the device measured; None measures the process.
        known: whether the system lets the mark be set back.
    """

    cuda: Any
    known: bool

    @classmethod
    def started(cls, device: Any) -> PeakMemory:
        """Begin to measure; one at a time in a process."""
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            return cls(device, True)
        try:
            # 5 sets the high-water mark VmHWM to what is resident now (proc(5), clear_refs)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return cls(None, False)
        return cls(None, True)

    def bytes(self) -> int | None:
        """The peak in bytes; None where the system does not say."""
        if self.cuda is not None:
            import torch

            return int(torch.cuda.max_memory_allocated(self.cuda))
        if not self.known:
            return None
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return int(found.group(1)) * 1024 if found else None
