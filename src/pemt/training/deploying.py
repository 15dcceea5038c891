"""An adapted model read back with its task and settings, ready to answer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pemt.bases import Base, load_base
from pemt.errors import ConfigError
from pemt.experts import ExpertLibrary
from pemt.model import PemtModel
from pemt.model.config import from_dict
from pemt.model.storage import CONFIG, load_model, read_description
from pemt.tasks import Task
from pemt.tasks.definition import task_keys
from pemt.tasks.sources import build
from pemt.training.settings import TrainSettings


@dataclass(frozen=True)
class Deployed:
    """What answering needs."""

    model: PemtModel
    base: Base
    task: Task
    settings: TrainSettings


def task_from_saved(saved: dict[str, Any]) -> Task:
    """The task that an adapted model was saved with. Its rows need not be there to answer texts."""
    where, known = "the task saved with the model", {f.name for f in fields(Task)}
    stated = {k: v for k, v in _stated(saved).items() if k in known}
    return build(Task, task_keys(stated, where, Path()), where)


def _stated(saved: Any) -> Any:
    """What a task's YAML file would say: the saved fields that are not None."""
    if isinstance(saved, dict):
        return {key: _stated(value) for key, value in saved.items() if value is not None}
    return saved


def model_folder(run: str | Path) -> Path:
    """Where a run's adapted model is: the folder itself, or "model" in it."""
    inside = Path(run) / "model"
    return inside if (inside / CONFIG).is_file() else Path(run)


def load_run(
    run: str | Path, *, library: str | Path | None = None, base: str | None = None,
    precision: str = "auto",
) -> Deployed:  # fmt: skip
    """Load what `adapt` wrote.

    Args:
        run: the run's folder or the model folder in it.
        library: where the experts are, if they were not saved with the model.
        base: load the base from here instead of from where the model says.
        precision: of the base.

    Raises:
        ConfigError: no adapted model there, or one saved without its task.
        ExpertError: experts or base are not those it was adapted with.
    """
    folder = model_folder(run)
    described = read_description(folder)
    if "task" not in described["extra"]:
        raise ConfigError(
            f"{folder} was saved without its task",
            "save it with extra={'task': task.to_dict()}, or use PemtModel.from_pretrained",
        )
    loaded = load_base(base or described["base"], precision=precision)  # type: ignore[arg-type]
    model, loaded, described = load_model(
        folder, base=loaded, library=None if library is None else ExpertLibrary(library)
    )
    settings = from_dict(TrainSettings, described["extra"].get("settings", {}))
    return Deployed(model, loaded, task_from_saved(described["extra"]["task"]), settings)
