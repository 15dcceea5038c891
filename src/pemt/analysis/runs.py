"""A run's folder read back: what it is, whether it has gates, and the rows it was scored on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pemt.analysis.gates import GateReport
from pemt.analysis.history import HISTORY, GateHistory, read_history
from pemt.errors import ConfigError, DataError
from pemt.methods import METHODS
from pemt.model import PemtModel
from pemt.model.storage import CONFIG
from pemt.tasks import Example, Task, load_splits
from pemt.training.deploying import Deployed, load_run
from pemt.training.sourcing import some

OUTPUT = "gates"
"""The folder in a run that tables and figures go to."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What `pemt adapt` left in a folder.

    Attributes:
        path: of the run.
        record: `run.json`, empty where there is none.
        results: `results.json`, empty likewise.
        ids: of the test rows it was scored on, in order; empty likewise.
        has_model: whether the adapted model was saved.
    """

    path: Path
    record: dict[str, Any]
    results: dict[str, Any]
    ids: tuple[str, ...]
    has_model: bool

    @property
    def output(self) -> Path:
        """Where tables and figures go."""
        return self.path / OUTPUT

    @property
    def method(self) -> str:
        """That was used; empty where it was not recorded."""
        return str(self.results.get("method") or self.record.get("method") or "")

    @property
    def shots(self) -> int | None:
        """Labels per class; None for the full split."""
        shots = (self.record.get("rows") or {}).get("shots")
        return shots if isinstance(shots, int) else None

    def title(self) -> str:
        """For messages."""
        named = METHODS[self.method].title if self.method in METHODS else self.method
        return f"{self.path} ({named})" if named else str(self.path)

    def score(self) -> str:
        """The metrics it wrote down, as text."""
        metrics = self.results.get("metrics")
        if not isinstance(metrics, dict):
            return "no scores"
        return ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k not in ("n", "loss"))

    def recorded(self) -> GateReport:
        """The mean gates that it wrote down.

        Raises:
            ConfigError: it has none; what there is instead is said.
            DataError: gates that are no numbers.
        """
        if not self.results.get("gates"):
            raise _no_gates(self, "none were written down")
        note = "As the run wrote them down: means over at most 256 test rows, without their spread."
        return GateReport.from_results(self.results, [note])

    def history(self) -> GateHistory | None:
        """The gates at each evaluation; None where none were written down.

        Raises:
            DataError: a damaged file.
        """
        fit = self.results.get("fit") or {}
        rate = (self.record.get("settings") or {}).get("learning_rate")
        places = [self.path / HISTORY]
        if rate is not None:  # of several learning rates, the chosen one
            places.insert(0, self.path / f"lr-{rate:g}" / HISTORY)
        for place in places:
            if place.is_file():
                return read_history(place, kept=fit.get("best_step"))
        return None


def _no_gates(run: RunFolder, why: str) -> ConfigError:
    gated = [name for name, method in METHODS.items() if method.builder == METHODS["pemt"].builder]
    guide = (run.results.get("notes") or {}).get("guide") or {}
    weights = guide.get("weights") or {}
    has = f"it has {run.score()}"
    if weights:
        listed = ", ".join(f"{k} {v:.2f}" for k, v in weights.items())
        has += f", and weights of its guide ({listed})"
    return ConfigError(
        f"{run.title()} has no gates: {why}",
        f"{has}; see its results.json and predictions.json. "
        f"Methods with gates: {', '.join(g for g in gated if g != 'pemt-no-mixture')}",
    )


def load_gated(
    run: RunFolder, *, library: str | None = None, base: str | None = None, precision: str = "auto"
) -> Deployed:
    """Load a run's model; it has gates.

    Args:
        run: what was found in the folder.
        library: where the experts are, if they were not saved with the model.
        base: load the base from here instead of from where the model says.
        precision: of the base.

    Raises:
        ConfigError: no model was saved, or it has no gates: what there is instead is said.
        ExpertError: experts or base are not those it was adapted with.
    """
    if not run.has_model:
        raise _no_gates(run, "its method has none, so no model with experts was saved")
    loaded = load_run(run.path, library=library, base=base, precision=precision)
    if not isinstance(loaded.model, PemtModel):
        raise _no_gates(run, "its method has no experts")
    if loaded.model.gated_sites():
        return loaded
    why = "it was adapted without a mixture (config.mixture)"
    if loaded.model.pemt_config.mixture:
        why = "its answers come from the experts one by one, weighed by the guide"
    raise _no_gates(run, why)


def read_run(folder: str | Path) -> RunFolder:
    """Read a run's folder, or the model folder in one.

    Raises:
        ConfigError: no run there, or a file of it that is no JSON.
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {what}", "give the folder that `pemt adapt` wrote")
    if (path / CONFIG).is_file() and (path.parent / "results.json").is_file():
        path = path.parent
    own = (path / CONFIG).is_file()
    has_model = own or (path / "model" / CONFIG).is_file()
    record, results = (_json(path / name, dict) for name in ("run.json", "results.json"))
    if not has_model and not results:
        raise ConfigError(
            f"{path} holds no run: no results.json, and no model/{CONFIG}",
            "give the folder that `pemt adapt` wrote",
        )
    listed = _json(path / "predictions.json", list)
    ids = tuple(str(row["id"]) for row in listed if isinstance(row, dict) and "id" in row)
    return RunFolder(path=path, record=record, results=results, ids=ids, has_model=has_model)


def _json(path: Path, kind: type) -> Any:
    if not path.is_file():
        return kind()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}", "copy the run again") from None
    if not isinstance(found, kind):
        raise ConfigError(f"{path} holds something else than expected", "copy the run again")
    return found


def scored_rows(
    run: RunFolder, task: Task, *, rows: int | None = None, data_dir: str | Path | None = None
) -> tuple[list[Example], list[str]]:
    """The test rows that a run was scored on, and sentences about them.

    Args:
        run: whose predictions name them; the whole test split where it has none.
        task: of the run.
        rows: at most this many, drawn by seed 0.
        data_dir: local mirror of datasets.

    Raises:
        DataError: the rows cannot be had.
    """
    if rows is not None and rows < 1:
        raise ConfigError(f"rows={rows}", "give a whole number of at least 1")
    test = load_splits(task, data_dir=data_dir).test
    if not test:
        raise DataError(f"Task {task.name!r} has no test rows", "give a task that has some")
    said = []
    by_id = {e.id: e for e in test}
    if run.ids and all(name in by_id for name in run.ids):
        test = [by_id[name] for name in run.ids]
    elif run.ids:
        missing = next(name for name in run.ids if name not in by_id)
        said.append(
            f"The test rows are not those that the run was scored on (no row {missing}): all "
            f"{len(test)} of the test split were taken."
        )
    chosen: Sequence[Example] = some(test, rows, 0)
    if not chosen:  # whole questions, none of which fits
        raise ConfigError(f"rows={rows}", "give more: rows of one question stay together")
    return list(chosen), said
