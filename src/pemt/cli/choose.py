"""What several commands ask for in the same way: a task by name or file, a folder for a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pemt.errors import ConfigError

if TYPE_CHECKING:
    from pemt.tasks import Task


def task_from(name: str) -> Task:
    """A task of the registry, or a YAML file of the user's.

    Raises:
        UnknownNameError: neither.
    """
    from pemt.tasks import Task

    if name.endswith((".yaml", ".yml")):
        return Task.from_file(name)
    return Task.named(name)


def run_folder(folder: Path | None, default: str, *, overwrite: bool) -> Path:
    """Where a run goes; a finished run there is only replaced when asked.

    Raises:
        ConfigError: a finished run is there.
    """
    import shutil

    folder = folder or Path("runs") / default
    if (folder / "results.json").is_file():
        if not overwrite:
            raise ConfigError(
                f"{folder} holds a finished run", "give another --output, or --overwrite true"
            )
        shutil.rmtree(folder)
    return folder
