"""The report of one run, from its folder alone: no base, no rows, no Hub."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pemt.analysis.report.curves import learning_curves, not_finite, points_of
from pemt.analysis.report.gates import EXPERTS, by_class, by_layer, finite, over_steps
from pemt.analysis.report.page import picture_file, render
from pemt.errors import DataError
from pemt.writing import write_named

RECORD, RESULTS, ERRORS = "run.json", "results.json", "errors.json"
LABELS, SHOWN_ERRORS = 12, 20
"""Labels of a confusion matrix, errors: what is readable on a phone."""
PICTURES = {
    "gates/examples.png": "Gates of single examples",
    "gates/masks.png": "With experts left out",
    "gates/correlations.png": "Sources beside the target",
}
"""What other commands draw into a run's folder, shown where it is there: file -> title."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run left.

    Attributes:
        record: run.json.
        results: results.json.
        errors: errors.json; None of runs that wrote none.
        pictures: title -> image as an address that holds it.
        classes: gates by class, as `report.gates.by_class` gives them.
        steps: gates over the steps as pictures, for light and dark.
    """

    record: dict[str, Any]
    results: dict[str, Any]
    errors: list[dict[str, Any]] | None = None
    pictures: dict[str, str] = field(default_factory=dict)
    classes: dict[str, Any] | None = None
    steps: tuple[str, str] | None = None


def read_run(folder: Path) -> RunFiles:
    """What is in a run's folder.

    Raises:
        DataError: no such folder, no run, one that is not finished, or damaged files.
    """
    if not (folder / RESULTS).is_file():
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder", "give one that `pemt adapt` wrote")
        places = (folder, *folder.glob("lr-*"))
        begun = any(
            p for at in places for p in (*at.glob("checkpoint-*"), *at.glob("identity.json"))
        )
        if begun:
            raise DataError(
                f"The run in {folder} is not finished",
                "run the same `pemt adapt` again: it goes on",
            )
        raise DataError(
            f"{folder} holds no run: it has no {RESULTS}",
            "give a folder that `pemt adapt` or `pemt bench run` wrote",
        )
    record, results = _read(folder / RECORD, dict), _read(folder / RESULTS, dict)
    if record.get("stage", "adapt") != "adapt" or "task" not in results:
        raise DataError(
            f"{folder} holds a run of `pemt train-source`", "reports are of `pemt adapt` and grids"
        )
    errors = _read(folder / ERRORS, list) if (folder / ERRORS).is_file() else None
    rate = (record.get("settings") or {}).get("learning_rate")
    pictures = {title: picture_file(folder / name) for name, title in PICTURES.items()}
    return RunFiles(
        record=record, results=results, errors=errors,
        pictures={title: shown for title, shown in pictures.items() if shown},
        classes=by_class(folder), steps=over_steps(folder, rate),
    )  # fmt: skip


def files_of(
    record: dict[str, Any], results: dict[str, Any], errors: list[dict[str, Any]]
) -> RunFiles:
    """The files of a run that was not written: through JSON, so that both show the same."""
    plain = json.loads(json.dumps([record, results, errors], default=str))
    return RunFiles(record=plain[0], results=plain[1], errors=plain[2])


def write_run_report(files: RunFiles, path: Path) -> Path:
    """Write the page of a run.

    Args:
        files: of `read_run` or `files_of`.
        path: of the file.

    Raises:
        DataError: values that are none of a run's.
        ConfigError: the file cannot be written.
    """
    write_named(path, run_page(files))
    return path


def run_page(files: RunFiles) -> str:
    """The page.

    Raises:
        DataError: values that are none of a run's.
    """
    from jinja2 import UndefinedError

    try:
        return render("run.html.j2", **_values(files))
    except (UndefinedError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"The run's {RECORD} and {RESULTS} do not hold what `pemt adapt` writes ({error!r})",
            "run it again with --overwrite",
        ) from error


def _read(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})", "run it again") from error
    if not isinstance(found, kind):
        raise DataError(f"{path} holds no {kind.__name__}", "run it again")
    return found


def _values(files: RunFiles) -> dict[str, Any]:
    """Everything the template asks for."""
    record, results = files.record, files.results
    about = {"description": "", "labels": [], "licence": "", **(results.get("about") or {})}
    metrics = results["metrics"]
    method = results.get("method", "")
    main = about.get("metric") or next(iter(metrics), None)
    if main is None:
        raise ValueError("no metrics")
    rows, fit = record.get("rows") or {}, results.get("fit") or {}
    trained, total = results.get("parameters") or (None, None)
    return {
        "task": results["task"], "about": about, "title": _title(method), "method": method,
        "base": record.get("base"), "created": record.get("created"), "main": main,
        "value": metrics.get(main), "interval": results.get("interval"),
        "metrics": {k: v for k, v in metrics.items() if k != "n"}, "n": metrics.get("n"),
        "constant": results.get("constant"), "counts": _counts(rows, metrics),
        "validation": results.get("validation"), "verdicts": results.get("verdicts") or [],
        "guide": _guide(results.get("notes") or {}), "findings": _findings(results),
        "per_class": results.get("per_class"), "confusion": _confusion(results),
        "invalid": results.get("invalid"), "invalid_texts": results.get("invalid_texts") or [],
        "curves": _curves(fit, main), "gates": by_layer(results.get("gates")),
        "classes": files.classes, "gate_steps": files.steps,
        "pictures": files.pictures, "errors": (files.errors or [])[:SHOWN_ERRORS],
        "wrong": _wrong(results), "has_errors": files.errors is not None, "trained": trained,
        "total": total, "seconds": fit.get("seconds"), "steps": fit.get("steps"),
        "tried": results.get("tried") or {}, "settings": record.get("settings") or {},
        "config": record.get("config") or {}, "library": record.get("library"),
        "experts": record.get("experts") or [], "versions": record.get("versions") or {},
        "git": record.get("git"), "command": shlex.join(map(str, record.get("command") or [])),
        "notes": _notes(results.get("notes") or {}),
    }  # fmt: skip


def _title(method: str) -> str:
    from pemt.methods import METHODS

    return METHODS[method].title if method in METHODS else method


def _counts(rows: dict[str, Any], metrics: dict[str, Any]) -> list[tuple[str, Any]]:
    """What the run was given, from the manifest of its rows."""
    shots = rows.get("shots")
    ids = {side: rows.get(f"{side}_ids") for side in ("train", "validation")}
    found: list[tuple[str, Any]] = [
        ("labels", "the full split" if shots is None else f"{shots} per class (or in all)"),
        ("training rows", len(ids["train"]) if ids["train"] is not None else rows.get("train")),
        ("validation rows",
         len(ids["validation"]) if ids["validation"] is not None else rows.get("validation")),
        ("test rows scored", None if metrics.get("n") is None else int(metrics["n"])),
        ("test rows there are", rows.get("test_rows", rows.get("test"))),
        ("data seed", rows.get("data_seed")), ("rows come from", rows.get("origin")),
    ]  # fmt: skip
    return [(name, value) for name, value in found if value is not None]


def _findings(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]] | None:
    found = results.get("diagnosis")
    if found is None:
        return None
    return {kind: [f for f in found if f["severity"] == kind]
            for kind in ("warning", "note", "not checked", "fine")}  # fmt: skip


def _confusion(results: dict[str, Any]) -> dict[str, Any] | None:
    """The matrix where it is small; the commonest confusions where it is not."""
    matrix = results.get("confusion")
    if not matrix:
        return None
    labels = list(results.get("per_class") or map(str, range(len(matrix))))
    answers = [*labels, "invalid"]
    if not any(row[-1] for row in matrix):
        answers = labels
    if len(labels) > LABELS:
        wrong = [
            (count, labels[i], [*labels, "invalid"][j])
            for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count
        ]  # fmt: skip
        wrong.sort(key=lambda entry: -entry[0])
        return {"commonest": wrong[:15], "labels": len(labels)}
    rows = []
    for i, row in enumerate(matrix):
        whole = max(1, sum(row))
        fields = [(count, count / whole, i == j) for j, count in enumerate(row[: len(answers)])]
        rows.append((labels[i], fields))
    return {"answers": answers, "rows": rows}


def _wrong(results: dict[str, Any]) -> int | None:
    matrix = results.get("confusion")
    if not matrix:
        return None
    return int(sum(sum(row) for row in matrix) - sum(row[i] for i, row in enumerate(matrix)))


def _curves(fit: dict[str, Any], main: str) -> dict[str, Any] | None:
    history = fit.get("history")
    train, loss = points_of(fit.get("losses"), "loss"), points_of(history, "loss")
    score = points_of(history, main)
    drawn = learning_curves(train, loss, score, metric=main, kept=fit.get("best_step"))
    bad = not_finite(train, loss, score)
    if drawn is None and not bad:
        return None
    return {"drawn": drawn, "kept": fit.get("best_step"), "bad": bad}


def _guide(notes: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Weight and gain of each expert, as the guide judged it."""
    guide = notes.get("guide")
    if not isinstance(guide, dict):
        return None
    gains, errors = guide.get("gains") or {}, guide.get("errors") or {}
    names = sorted(guide["weights"], key=lambda name: -finite(guide["weights"][name]))
    return [
        {"name": name, "weight": guide["weights"][name], "gain": gains.get(name),
         "error": errors.get(name)}
        for name in names[:EXPERTS]
    ]  # fmt: skip


def _notes(notes: dict[str, Any]) -> dict[str, str]:
    """What a method noted, but for what has a section of its own."""
    others = {k: v for k, v in notes.items() if k not in ("guide", "selection", "ranking")}
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in others.items()}
