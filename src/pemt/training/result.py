"""What adapting gave, and the files that are written of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pemt.analysis.findings import Diagnosis
from pemt.bases import Base
from pemt.guide import Guide
from pemt.guide.guide import left_out
from pemt.guide.instant import InstantModel
from pemt.methods import METHODS
from pemt.model import AdaptedModel, PemtConfig, PemtModel
from pemt.model.storage import save_rebuilt
from pemt.tasks import Example, Task
from pemt.tasks.reporting import ConstantAnswer, Report
from pemt.training.evaluating import Predictions
from pemt.training.fitting import Fit
from pemt.training.record import run_record, write_json
from pemt.training.selecting import Selection
from pemt.training.settings import TrainSettings


@dataclass
class AdaptResult:
    """What adapting gave.

    Attributes:
        model: trained, still on its base; `model.detach()` gives the base back.
        base: the base it is on.
        task: the target task.
        metrics: on the test rows, "n" among them.
        validation: of the main metric at the kept step, or its cross-validated score; None where
            nothing was selected.
        gates: mean gates over test examples, `[layers, K]`; None for methods without gates.
        gate_spread: how far each example's gates are spread over experts, see `gates_of`.
        experts: names of the gate columns.
        predictions: on the test rows.
        report: the interval of the main metric, scores per class, invalid answers.
        manifest: of the few-shot draw, or the sizes of the full splits.
        fit: how training went; None where nothing trains by gradient.
        parameters: (trained, total).
        notes: of the method, such as the expert it chose.
        settings: that were used, the chosen learning rate among them.
        tried: validation score by learning rate, each written as "0.001"; without validation rows,
            or where nothing trains by gradient, empty.
        train_seconds: of the training steps alone, over all learning rates; of building, where that
            already fits everything.
        method: that was used: the one chosen, where there were several.
        selection: of validation="cv".
        constant: what the best single answer to every test row scores; None without labels.
        diagnosis: signs that the run failed; None where it was not asked for.
        config: PEMT's options, as the method used them.
        test: the test rows, in the order of the predictions.
        library: where the experts came from; None where they were given.
        folder: where everything was written; None where nothing was.
    """

    model: AdaptedModel
    base: Base
    task: Task
    metrics: dict[str, float]
    validation: float | None
    gates: torch.Tensor | None
    experts: list[str]
    predictions: Predictions
    report: Report
    manifest: dict[str, Any]
    fit: Fit | None
    parameters: tuple[int, int]
    settings: TrainSettings
    notes: dict[str, Any] = field(default_factory=dict)
    tried: dict[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    method: str = "pemt"
    selection: Selection | None = None
    gate_spread: dict[str, float] | None = None
    constant: ConstantAnswer | None = None
    diagnosis: Diagnosis | None = None
    config: PemtConfig = PemtConfig()  # noqa: RUF009 - frozen
    test: Sequence[Example] = ()
    library: str | None = None
    folder: Path | None = None

    def verdicts(self) -> list[str]:
        """What guide and selection say, which options had no effect, what was left out.

        A sentence each.
        """
        lines = []
        if self.selection is not None:
            lines.append(self.selection.verdict())
        if "rule" in self.notes:
            lines.append(f"{self.notes['rule']} ({self.method})")
        if "unread" in self.notes:
            lines.append(
                f"Without effect on {self.method}, as it does not look at them: "
                f"{', '.join(self.notes['unread'])}."
            )
        if "guide" in self.notes:
            lines.append(Guide.from_dict(self.notes["guide"]).verdict())
        for rate, what in self.notes.get("diverged", {}).items():
            lines.append(f"The learning rate {rate} was left out: {what}.")
        refused: dict[str, str] = {}
        for of in (self.notes.get("ranking"), self.notes, self.notes.get("guide")):
            refused |= (of or {}).get("refused") or {}
        lines += left_out(refused)
        if isinstance(self.model, InstantModel):
            turns = self.model.turns()
            # six were as good as all on the development targets (docs/concepts/guided.md)
            fewer = "--pemt.guide_experts 6 asks fewer, and " if turns > 7 else ""
            lines.append(
                f"An answer asks the base {turns} times, with one expert after the other; where "
                f"its cost counts, {fewer}--method guided asks once."
            )
        return lines

    def write_report(self, path: str | Path) -> Path:
        """Write everything worth reading about the run as one HTML file.

        `pemt report` writes the same from a run's folder. Of a run without one there are no gates
        over the steps.
        """
        from pemt.analysis.report import files_of, read_run, write_run_report

        if self.folder is not None:
            files = read_run(self.folder)
        else:
            files = files_of(run_record_of(self), results_of(self), errors_of(self))
        return write_run_report(files, Path(path))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Answer source texts, rendered as the task's template renders them."""
        from pemt.training.evaluating import predict

        examples = [Example(str(i), t, None, "") for i, t in enumerate(texts)]
        return predict(self.model, self.task, self.base.tokenizer, examples, self.settings).texts


def run_record_of(result: AdaptResult) -> dict[str, Any]:
    """What the run was: the content of run.json."""
    return run_record(
        stage="adapt", method=result.method, task=result.task.name, base=result.base.name,
        experts=result.experts, config=result.config.to_dict(),
        settings=result.settings.to_dict(), rows=result.manifest, library=result.library,
    )  # fmt: skip


def results_of(result: AdaptResult) -> dict[str, Any]:
    """What it gave: the content of results.json."""
    from pemt.analysis.gates import gate_table

    shown, task = result.report.to_dict(), result.task
    return {
        "task": task.name, "method": result.method, "metrics": result.metrics,
        "validation": result.validation, "parameters": result.parameters,
        **{key: shown[key] for key in
           ("interval", "per_class", "confusion", "invalid", "invalid_texts")},
        "gates": None if result.gates is None
        else gate_table(result.gates, result.model, result.experts),
        "fit": None if result.fit is None else result.fit.__dict__, "notes": result.notes,
        "about": {"description": task.description, "kind": task.kind, "metric": task.metrics[0],
                  "labels": list(task.labels), "licence": task.licence},
        "constant": None if result.constant is None else asdict(result.constant),
        "tried": result.tried, "train_seconds": result.train_seconds,
        "verdicts": result.verdicts(),
        "diagnosis": None if result.diagnosis is None else result.diagnosis.to_list(),
    }  # fmt: skip


def errors_of(result: AdaptResult) -> list[dict[str, Any]]:
    """The wrong answers worth reading: the content of errors.json."""
    from pemt.analysis.errors import worst_errors

    return worst_errors(result.task, result.test, result.predictions)


def write_result(result: AdaptResult, folder: Path) -> None:
    """Everything a run leaves: the record, results, predictions and the adapted model.

    Models of methods that are neither PEMT's nor `rebuilt` are not kept.
    """
    from pemt.analysis.errors import probabilities_of

    write_json(folder / "run.json", run_record_of(result))
    answers = zip(
        result.test, result.predictions.texts, probabilities_of(result.predictions), strict=True
    )
    write_json(
        folder / "predictions.json",
        [{"id": e.id, "target": e.target, "answer": a, "probability": p} for e, a, p in answers],
    )
    write_json(folder / "errors.json", errors_of(result))
    write_json(folder / "results.json", results_of(result))
    extra = {
        "task": result.task.to_dict(), "settings": result.settings.to_dict(),
        "precision": str(result.base.model.dtype).removeprefix("torch."),
        "metrics": result.metrics, "interval": result.report.main_interval(),
    }  # fmt: skip
    place, base_name = folder / "model", result.base.name
    if METHODS[result.method].rebuilt:
        save_rebuilt(
            result.model, place, method=result.method, config=result.config,
            init_seed=result.settings.init_seed, base_name=base_name, extra=extra,
        )  # fmt: skip
    if isinstance(result.model, PemtModel):
        from pemt.analysis.gates import GateReport
        from pemt.analysis.heat_maps import gate_heat_map

        result.model.save_pretrained(place, base_name=base_name, extra=extra)
        if result.gates is not None:
            drawn = GateReport.from_means(result.gates, result.model, result.experts)
            gate_heat_map(drawn, folder / "gates.png")
