"""What a run was: configuration, versions, seeds and code state, written beside its results."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from pemt.writing import write_whole

LIBRARIES = (
    "pemt", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors",
    "scikit-learn",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Version of Python and of every library that decides results."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """What a time was measured on: processor, threads, libraries; no names of hosts or folders."""
    import torch

    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {"cpu": cpu, "threads": torch.get_num_threads(), "versions": versions()}


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, and whether it was changed; else None."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments],
            check=True, capture_output=True, text=True, timeout=10,
        ).stdout.strip()  # fmt: skip

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def run_record(**parts: Any) -> dict[str, Any]:
    """The record of a run: its parts plus versions, code state, command and time (UTC)."""
    return {
        **parts,
        "versions": versions(),
        "git": git_state(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_json(path: Path, content: Any) -> None:
    """Write JSON; the file is there whole or not at all."""
    shown = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    write_whole(path, shown + "\n")
