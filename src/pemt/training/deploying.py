"""An adapted model read back with its task and settings, ready to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pemt.bases import Base, load_base
from pemt.errors import ConfigError
from pemt.experts import ExpertLibrary
from pemt.methods import METHODS, Setting
from pemt.model import AdaptedModel, PemtConfig, PemtModel, TaskPart, TaskRouter
from pemt.model.config import from_dict
from pemt.model.storage import CONFIG, fill, load_model, read_description, verify_files
from pemt.tasks import Task
from pemt.tasks.definition import task_keys
from pemt.tasks.sources import build
from pemt.training.settings import TrainSettings


@dataclass(frozen=True)
class Deployed:
    """What answering needs."""

    model: AdaptedModel
    base: Base
    task: Task
    settings: TrainSettings

    @property
    def mixture(self) -> PemtModel:
        """The model, where it is one of experts.

        Raises:
            ConfigError: it has none.
        """
        if not isinstance(self.model, PemtModel):
            raise ConfigError(
                f"A model of {type(self.model).__name__} has no experts",
                "give a run of pemt, guided or ensemble",
            )
        return self.model


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
        precision: of the base; "auto" is the one it was adapted in, where the run says so.

    Raises:
        ConfigError: no adapted model there, or one saved without its task.
        ExpertError: experts or base are not those it was adapted with.
    """
    folder, described = _described(run)
    loaded = _base_of(described, base, precision)
    return _loaded(folder, described, loaded, library)


def _base_of(described: dict[str, Any], base: str | None, precision: str) -> Base:
    kept = described["extra"].get("precision")
    if precision == "auto" and kept in ("float32", "bfloat16"):
        precision = kept
    return load_base(base or described["base"], precision=precision)  # type: ignore[arg-type]


def _described(run: str | Path) -> tuple[Path, dict[str, Any]]:
    """The model folder of a run, and its description with a task in it."""
    folder = model_folder(run)
    described = read_description(folder)
    if "task" not in described["extra"]:
        raise ConfigError(
            f"{folder} was saved without its task",
            "save it with extra={'task': task.to_dict()}, or use PemtModel.from_pretrained",
        )
    return folder, described


def _loaded(
    folder: Path, described: dict[str, Any], loaded: Base, library: str | Path | None
) -> Deployed:
    task = task_from_saved(described["extra"]["task"])
    settings = from_dict(TrainSettings, described["extra"].get("settings", {}))
    model: AdaptedModel
    if "method" in described:
        model = _rebuilt(folder, described, loaded, task, settings)
    else:
        model, loaded, _ = load_model(
            folder, base=loaded, library=None if library is None else ExpertLibrary(library)
        )
    return Deployed(model, loaded, task, settings)


def _rebuilt(
    folder: Path, described: dict[str, Any], base: Base, task: Task, settings: TrainSettings
) -> AdaptedModel:
    """A model without experts, made again by its method and filled with what was trained."""
    verify_files(folder, described)
    name = described["method"]
    if name not in METHODS or not METHODS[name].rebuilt:
        can = ", ".join(n for n, method in METHODS.items() if method.rebuilt)
        raise ConfigError(
            f"{folder} says it is of the method {name!r}", f"this version of pemt reads {can}"
        )
    model = METHODS[name].build(
        Setting(
            base=base, task=task, experts=[], train=[], validation=[],
            config=from_dict(PemtConfig, described["config"]),
            init_seed=int(described.get("init_seed", 0)),
            max_source_length=settings.max_source_length,
        )
    )  # fmt: skip
    fill(model, folder, described, base)
    return model


@dataclass(frozen=True)
class DeployedTasks:
    """What answering rows of several tasks needs; tasks and settings by the router's names."""

    router: TaskRouter
    base: Base
    tasks: dict[str, Task]
    settings: dict[str, TrainSettings]


def load_runs(
    runs: Sequence[str | Path], *, library: str | Path | None = None, base: str | None = None,
    precision: str = "auto",
) -> DeployedTasks:  # fmt: skip
    """Load several adapted models of one base and the same experts into one router.

    Args:
        runs: folders that `adapt` wrote; NAME=FOLDER names the task, which else keeps its name.
        library: where the experts are, if they were not saved with the models.
        base: load the base from here instead of from where the first model says.
        precision: of the base; "auto" is the one the first model was adapted in.

    Raises:
        ConfigError: two tasks of one name, or models that cannot answer together.
        ExpertError: models of different experts or bases.
    """
    parts, tasks, settings = [], {}, {}
    loaded: Base | None = None
    for given in runs:
        name, equals, place = str(given).partition("=")
        folder, described = _described(place if equals else given)
        if loaded is None:
            loaded = _base_of(described, base, precision)
        one = _loaded(folder, described, loaded, library)
        name = name if equals else one.task.name
        with one.model.attaching():
            if name in tasks:
                raise ConfigError(
                    f"Two runs of a task {name!r}", "name them: FIRST=FOLDER,SECOND=FOLDER"
                )
            parts.append(TaskPart.of(name, one.mixture))
        one.model.detach()
        tasks[name], settings[name] = one.task, one.settings
    if loaded is None:
        raise ConfigError("No runs", "give at least one folder that `pemt adapt` wrote")
    router = TaskRouter(loaded.model, parts, backbone=loaded.backbone)
    return DeployedTasks(router, loaded, tasks, settings)
