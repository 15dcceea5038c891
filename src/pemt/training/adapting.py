"""Stage 2: adapt a base to a target task through a library of experts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pemt.analysis.diagnosis import Diagnosis
from pemt.bases import Base, load_base
from pemt.errors import ConfigError
from pemt.experts import Expert, ExpertLibrary
from pemt.guide import Guide, guide_of
from pemt.guide.rule import AUTO, Choice, choice_of, is_few
from pemt.methods import Setting, method_named
from pemt.model import AdaptedModel, PemtConfig, PemtModel
from pemt.model.storage import check_place
from pemt.tasks import Example, FewShot, Task, draw, load_splits
from pemt.tasks.encoding import Collator, encode_prompts_only
from pemt.tasks.fewshot import Validation
from pemt.tasks.reporting import ConstantAnswer, Report
from pemt.training import processes
from pemt.training.choosing import best_experts, picked
from pemt.training.diagnosing import constant_of, diagnosis_of, target_prompt
from pemt.training.evaluating import (
    Predictions,
    evaluate,
    evaluating,
    lengths,
    report_of,
    side_of,
)
from pemt.training.fitting import Fit, fit
from pemt.training.record import run_record, write_json
from pemt.training.selecting import Selection, cross_validate, settings_for
from pemt.training.settings import TrainSettings
from pemt.training.sourcing import some

if TYPE_CHECKING:
    from pemt.methods.ranking import Ranking


@dataclass
class AdaptResult:
    """What adapting gave.

    Attributes:
        model: trained, still on its base; `model.detach()` gives the base back.
        base: the base it is on.
        task: the target task.
        metrics: on the test rows, "n" among them.
        validation: of the main metric at the kept step, or its cross-validated mean; None where
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
        """What the guide and the selection say, one sentence each, if there were any."""
        lines = []
        if self.selection is not None:
            lines.append(self.selection.verdict())
        if "rule" in self.notes:
            lines.append(f"{self.notes['rule']} ({self.method})")
        if "guide" in self.notes:
            lines.append(Guide.from_dict(self.notes["guide"]).verdict())
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


def target_rows(
    task: Task,
    *,
    shots: int | None,
    data_seed: int,
    validation: Validation = "shots",
    data_dir: Path | None = None,
) -> FewShot:
    """Rows of a target task: a few-shot draw, or the full splits where `shots` is None."""
    splits = load_splits(task, data_dir=data_dir)
    if shots is not None:
        drawn = draw(splits, task, shots=shots, data_seed=data_seed, validation=validation)
        return replace(drawn, manifest={**drawn.manifest, "origin": splits.origin})
    manifest = {
        "task": task.name, "version": task.version, "shots": None, **splits.sizes,
        "origin": splits.origin,
    }  # fmt: skip
    held = [] if validation == "cv" else splits.validation
    return FewShot(splits.train, held, splits.test, manifest)


def adapt(
    base: Base | str,
    task: Task | str,
    experts: ExpertLibrary | str | Path | Sequence[Expert],
    *,
    names: Sequence[str] | str | None = None,
    shots: int | None = None,
    data_seed: int = 0,
    validation: Validation = "shots",
    rows: FewShot | None = None,
    method: str = "pemt",
    config: PemtConfig | None = None,
    settings: TrainSettings | None = None,
    learning_rates: Sequence[float] | None = None,
    cv_folds: int = 4,
    cv_repeats: int = 1,
    test_rows: int | None = None,
    data_dir: Path | None = None,
    folder: Path | None = None,
    diagnose: bool = True,
    progress: bool = True,
) -> AdaptResult:
    """Adapt a base to a target task (METHOD.md, stage 2), or run a baseline on the same rows.

    Under `torchrun` or `accelerate launch` all processes call it, and all get the result.

    Args:
        base: a loaded base, or its name.
        task: a task, or its name in the registry.
        experts: a library or its folder, or loaded experts.
        names: which experts and in which order ("a,b" is both); all by default; "auto:4" takes the
            four that rank best on the training rows (pemt.methods.ranking), best first.
        shots: labels per class (regression and generation: in all); None takes the full split.
        data_seed: of the few-shot draw.
        validation: "shots": as few validation rows as training rows; "full": the validation split;
            "cv": the training rows alone, cross-validated, see pemt.training.selecting.
        rows: drawn before; replaces shots and data_seed, and what validation would draw.
        method: a name in pemt.methods.METHODS; with validation="cv" several, as "guided,instant",
            of which the held-out rows choose one; or "auto", which pemt.guide.rule decides from how
            many labelled rows there are and what they say of the experts.
        config: PEMT's options.
        settings: of training; its learning rate is used unless `learning_rates` is given.
        learning_rates: several to choose from by validation; by default the method's own.
        cv_folds: of validation="cv".
        cv_repeats: of the whole division into folds.
        test_rows: at most this many test rows, drawn by seed 0.
        data_dir: local mirror of datasets.
        folder: for checkpoints, logs, the record, results and (PEMT) the adapted model.
        diagnose: look for signs that the run failed: one pass over 32 test rows' texts.
        progress: show progress bars.

    Returns:
        The model, its test metrics, gates and record.

    Raises:
        ConfigError: the method is not defined for this base or this kind of task.
    """
    processes.start()
    progress = progress and processes.is_main()
    if isinstance(base, str):
        with processes.main_first():
            base = load_base(base)
    task = Task.named(task) if isinstance(task, str) else task
    ruled = method == AUTO
    if ruled and validation == "cv":
        raise ConfigError(
            "method='auto' with validation='cv'",
            "name the methods that cross-validation is to choose from, as ensemble,guided,adapter",
        )
    names_of_methods = [name.strip() for name in ("guided" if ruled else method).split(",")]
    methods = [method_named(name) for name in names_of_methods]
    if len(methods) > 1 and validation != "cv":
        raise ConfigError(
            f"Several methods ({method}) with validation={validation!r}",
            "validation='cv' chooses among them; or name one",
        )
    if isinstance(experts, (str, Path)):
        experts = ExpertLibrary(experts)
    source = str(experts) if isinstance(experts, ExpertLibrary) else None  # a Hub's with its commit
    with processes.main_first():
        rows = rows or target_rows(
            task, shots=shots, data_seed=data_seed, validation=validation, data_dir=data_dir
        )
    if folder is not None:
        check_place(folder / "model")  # before the work, not after it
    for one in methods:
        reason = one.refusal(base.backbone.family, task.kind)
        if reason is not None:
            raise ConfigError(reason, "`pemt bench methods` lists what applies where")
    config = config or PemtConfig()
    chosen = settings or TrainSettings()
    ranking: Ranking | None = None
    if not any(one.transfers for one in methods):
        experts = []
    elif isinstance(names, str) and ":" not in names:  # no expert's name holds one
        names = [name.strip() for name in names.split(",")]
    elif isinstance(names, str):
        names, ranking = best_experts(
            base, task, experts, names, rows.train, max_source_length=chosen.max_source_length
        )
    with processes.main_first():
        experts = picked(base, experts, names)
    chosen_method, selection = methods[0], None
    shared: dict[str, Any] = {}
    choice: Choice | None = None
    if ruled:
        choice = processes.gathered(
            _ruled(base, task, experts, rows, config, chosen, shared)
        )[0]  # fmt: skip
        method = choice.method
        chosen_method = method_named(method)
    if validation == "cv":
        selection = cross_validate(
            base, task, experts, rows.train, names_of_methods, config, chosen,
            learning_rates=learning_rates, folds=cv_folds, repeats=cv_repeats, progress=progress,
        )  # fmt: skip
        selection = processes.gathered(selection)[0]
        rows = replace(rows, validation=[])
        method = selection.best.method
        chosen_method = method_named(method)
        if chosen_method.trains:
            chosen = settings_for(selection.best, len(rows.train), chosen)
            learning_rates = None
    if not chosen_method.transfers:
        experts = []
    config = chosen_method.configured(config)
    own = chosen_method.learning_rates[base.backbone.family]
    learning_rates = learning_rates or [chosen.learning_rate or own]
    test = some(rows.test, test_rows, 0)

    def build() -> tuple[AdaptedModel, dict[str, Any]]:
        setting = Setting(
            base=base, task=task, experts=experts, train=rows.train, validation=rows.validation,
            config=config, init_seed=chosen.init_seed,
            max_source_length=chosen.max_source_length, shared=shared,
        )  # fmt: skip
        return chosen_method.build(setting), setting.notes

    started = time.perf_counter()
    model, notes = build()
    processes.same_start(model)
    train_seconds = time.perf_counter() - started
    first_prompt = target_prompt(model)
    if choice is not None:
        notes["rule"] = choice.why
        if "guide" in shared:
            notes["guide"] = shared["guide"][0].to_dict()
    if ranking is not None:
        notes["ranking"] = asdict(ranking)
    if selection is not None:
        notes["selection"] = selection.to_dict()
    fitted: Fit | None = None
    tried: dict[str, float] = {}
    if chosen_method.trains:
        model, fitted, chosen, fits = _train(
            build, model, task, base, rows, chosen, learning_rates, folder, progress
        )
        tried = {f"{rate:g}": f.best for rate, f in fits.items() if f.best is not None}
        train_seconds = sum(f.train_seconds for f in fits.values())
    with model.attaching():
        metrics, predictions = evaluate(
            model, task, base.tokenizer, test, chosen, progress=progress, shared=True
        )
        gates, spread = gates_of(model, task, base, test[:256], chosen) or (None, None)
        result = AdaptResult(
            model=model, base=base, task=task, metrics=metrics,
            validation=_validation(fitted, selection),
            gates=gates, gate_spread=spread,
            experts=model.gate_names if isinstance(model, PemtModel) else [],
            predictions=predictions, report=report_of(task, test, predictions),
            manifest=rows.manifest, fit=fitted, parameters=model.parameter_counts(),
            settings=chosen, notes=notes, tried=tried, train_seconds=train_seconds,
            method=method, selection=selection, constant=constant_of(task, test), config=config,
            test=test, library=source, folder=folder,
        )  # fmt: skip
        if diagnose:
            result.diagnosis = diagnosis_of(
                result, first_prompt=first_prompt, validation_rows=len(rows.validation),
                shots=shots, evidence=shared.get("guide", (None, None))[1],
            )  # fmt: skip
        if folder is not None and processes.is_main():
            _write(result, folder)
    processes.wait()
    return result


def _ruled(
    base: Base, task: Task, experts: Sequence[Expert], rows: FewShot, config: PemtConfig,
    settings: TrainSettings, shared: dict[str, Any],
) -> Choice:  # fmt: skip
    """What the rule says of these rows; the guide it asks is kept in `shared`."""
    guide = None
    if is_few(len(rows.train)):
        setting = Setting(
            base=base, task=task, experts=experts, train=rows.train, validation=rows.validation,
            config=config, init_seed=settings.init_seed,
            max_source_length=settings.max_source_length, shared=shared,
        )  # fmt: skip
        guide = guide_of(setting)[0]
    family = base.backbone.family
    probes = task.kind == "classification" or (
        task.kind == "regression" and family == "encoder-only"
    )
    return choice_of(guide, len(rows.train), probes=probes)


def _validation(fitted: Fit | None, selection: Selection | None) -> float | None:
    if selection is not None:
        return selection.best.score
    return None if fitted is None else fitted.best


def _train(
    build: Any, model: AdaptedModel, task: Task, base: Base, rows: FewShot, settings: TrainSettings,
    learning_rates: Sequence[float], folder: Path | None, progress: bool,
) -> tuple[AdaptedModel, Fit, TrainSettings, dict[float, Fit]]:  # fmt: skip
    """Train at each learning rate; keep the one that is best on validation, and how all went."""
    fits: dict[float, Fit] = {}
    best: tuple[tuple[float, float], Fit, TrainSettings, dict[str, torch.Tensor]] | None = None
    for i, rate in enumerate(learning_rates):
        if i:
            model.detach()
            model, _ = build()
        tried = settings.changed(learning_rate=rate)
        place = (
            folder / f"lr-{rate:g}" if folder is not None and len(learning_rates) > 1 else folder
        )
        with model.attaching():
            fitted = fit(
                model, task, base.tokenizer, rows.train, rows.validation, tried,
                folder=place, progress=progress,
            )  # fmt: skip
        fits[rate] = fitted
        kept = min(
            (h for h in fitted.history if h["step"] == fitted.best_step),
            key=lambda h: h["loss"], default={"loss": 0.0},
        )  # fmt: skip
        key = (fitted.best if fitted.best is not None else 0.0, -kept["loss"])
        if best is None or key > best[0]:
            state = {k: v.cpu().clone() for k, v in model.trained_state().items()}
            best = (key, fitted, tried, state)
    assert best is not None
    model.load_trained_state(best[3])
    return model, best[1], best[2], fits


@torch.no_grad()
def gates_of(
    model: AdaptedModel,
    task: Task,
    base: Base,
    examples: Sequence[Example],
    settings: TrainSettings,
) -> tuple[torch.Tensor, dict[str, float]] | None:
    """Mean gates over examples, `[layers, K]`, and how far the gates of one example are spread.

    The spread is a mean over layers and examples: "entropy" in nats, "top", the largest weight, and
    "effective_experts", exp(entropy). A mean over examples is flatter than the gates that it is
    over. None for a model without gates.
    """
    from pemt.analysis.gates import entropy

    if not isinstance(model, PemtModel) or not examples or not model.gated_sites():
        return None
    total = torch.zeros(len(model.gated_sites()), len(model.gate_names))
    spread = torch.zeros(2)
    for gates in gates_of_rows(model, task, base, examples, settings):
        total += gates.sum(1).cpu()
        spread += torch.stack([entropy(gates).sum(), gates.amax(-1).sum()]).cpu()
    nats, top = (spread / (len(examples) * len(total))).tolist()
    spreads = {"entropy": nats, "effective_experts": math.exp(nats), "top": top}
    return total / len(examples), spreads


@torch.no_grad()
def gates_of_rows(
    model: PemtModel, task: Task, base: Base, examples: Sequence[Example], settings: TrainSettings
) -> Iterator[torch.Tensor]:
    """The gates of examples, batch by batch: `[layers, B, K]`."""
    encoded = encode_prompts_only(
        examples, task, base.tokenizer, model.family, **lengths(model, settings)
    )
    collate = Collator(base.tokenizer, model.family, side=side_of(model.family))
    with evaluating(model):
        for start in range(0, len(encoded), settings.eval_batch_size):
            batch = collate(encoded[start : start + settings.eval_batch_size])
            yield model.gates(
                batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
            )


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


def _write(result: AdaptResult, folder: Path) -> None:
    """Everything a run leaves: the record, results, predictions and (PEMT) the adapted model."""
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
    if isinstance(result.model, PemtModel):
        from pemt.analysis.gates import GateReport
        from pemt.analysis.heat_maps import gate_heat_map

        result.model.save_pretrained(
            folder / "model",
            base_name=result.base.name,
            extra={"task": result.task.to_dict(), "settings": result.settings.to_dict(),
                   "metrics": result.metrics, "interval": result.report.main_interval()},
        )  # fmt: skip
        if result.gates is not None:
            drawn = GateReport.from_means(result.gates, result.model, result.experts)
            gate_heat_map(drawn, folder / "gates.png")
