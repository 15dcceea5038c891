"""Memory of a process: the worst of a stretch of work, and what is given back after it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def give_back_memory() -> None:
    """Return freed memory to the system.

    Batches of many lengths leave glibc's heap full of holes: over a long comparison a process grows
    to several times what it uses. Where the C library has no `malloc_trim`, only garbage is
    collected.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


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
