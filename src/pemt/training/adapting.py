"""Stage 2: adapt a base to a target task through a library of experts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pemt.bases import Base, load_base
from pemt.errors import ConfigError, DivergedError
from pemt.experts import Expert, ExpertLibrary
from pemt.guide import guide_of
from pemt.guide.rule import AUTO, Choice, choice_of, is_few, takes_probes
from pemt.methods import Setting, method_named
from pemt.model import AdaptedModel, PemtConfig, PemtModel
from pemt.model.storage import check_place
from pemt.tasks import FewShot, Task, draw, load_splits
from pemt.tasks.fewshot import Validation
from pemt.training import processes
from pemt.training.choosing import best_experts, picked
from pemt.training.diagnosing import constant_of, diagnosis_of, judged_alone, target_prompt
from pemt.training.evaluating import evaluate, report_of
from pemt.training.fitting import Fit, fit
from pemt.training.gates import gates_of
from pemt.training.result import AdaptResult, write_result
from pemt.training.selecting import Selection, cross_validate, settings_for
from pemt.training.settings import TrainSettings
from pemt.training.sourcing import scored

if TYPE_CHECKING:
    from pemt.guide import Evidence
    from pemt.methods.ranking import Ranking


def target_rows(
    task: Task,
    *,
    shots: int | None,
    data_seed: int,
    validation: Validation = "shots",
    data_dir: str | Path | None = None,
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
    method: str = AUTO,
    config: PemtConfig | None = None,
    settings: TrainSettings | None = None,
    learning_rates: Sequence[float] | None = None,
    cv_folds: int = 4,
    cv_repeats: int = 1,
    test_rows: int | None = None,
    data_dir: str | Path | None = None,
    folder: str | Path | None = None,
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
        method: "auto": pemt.guide.rule decides from how many labelled rows there are and what they
            say of the experts; or a name in pemt.methods.METHODS, as "pemt", the paper's; with
            validation="cv" several, as "guided,instant", of which the held-out rows choose one.
        config: PEMT's options.
        settings: of training; its learning rate is used unless `learning_rates` is given.
        learning_rates: several to choose from by validation; by default the method's own.
        cv_folds: of validation="cv".
        cv_repeats: of the whole division into folds.
        test_rows: at most this many test rows, drawn by seed 0.
        data_dir: local mirror of datasets.
        folder: for checkpoints, logs, the record, results and (PEMT) the adapted model.
        diagnose: look for signs that the run failed: a pass over 32 test rows' texts and, with few
            labels, one per expert over at most 32 training rows.
        progress: show progress bars.

    Returns:
        The model, its test metrics, gates and record.

    Raises:
        ConfigError: the method is not defined for this base or this kind of task, or a learning
            rate or number of test rows that is not above 0.
    """
    processes.start()
    progress = progress and processes.is_main()
    if isinstance(base, str):
        with processes.main_first():
            base = load_base(base)
    task = Task.named(task) if isinstance(task, str) else task
    ruled = method == AUTO
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
    test = scored(rows.test, test_rows, 0)
    folder = None if folder is None else Path(folder).expanduser()
    if folder is not None:
        check_place(folder / "model")  # before the work, not after it
    for one in methods:
        reason = one.refusal(base.backbone.family, task.kind)
        if reason is not None:
            raise ConfigError(reason, "`pemt bench methods` lists what applies where")
    config = config or PemtConfig()
    chosen = settings or TrainSettings()
    for rate in learning_rates or ():
        chosen.changed(learning_rate=rate)  # refused before the first trains
    ranking: Ranking | None = None
    auto, pool = None, experts
    shared: dict[str, Any] = {}
    if not any(one.transfers for one in methods):
        experts, names = [], None
    elif isinstance(names, str) and ":" not in names:  # no expert's name holds one
        names = [name.strip() for name in names.split(",")]
    elif isinstance(names, str):
        auto = names
        names, ranking = best_experts(
            base, task, experts, names, rows.train, max_source_length=chosen.max_source_length
        )
        shared["evidence"] = ranking.evidence
    with processes.main_first():
        experts = picked(base, experts, names)
    chosen_method, selection = methods[0], None
    choice: Choice | None = None
    if ruled:
        choice = processes.gathered(
            _ruled(base, task, experts, rows, config, chosen, shared)
        )[0]  # fmt: skip
        method = choice.method
        chosen_method = method_named(method)
        names_of_methods = [method]
    if validation == "cv":
        selection = cross_validate(
            base, task, experts if auto is None else pool, rows.train, names_of_methods, config,
            chosen, learning_rates=learning_rates, folds=cv_folds, repeats=cv_repeats, auto=auto,
            progress=progress,
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
    unread = chosen_method.unread(config)
    config = chosen_method.configured(config)
    own = chosen_method.learning_rates[base.backbone.family]
    learning_rates = learning_rates or [chosen.learning_rate or own]

    def build() -> tuple[AdaptedModel, dict[str, Any]]:
        setting = Setting(
            base=base, task=task, experts=experts, train=rows.train, validation=rows.validation,
            config=config, init_seed=chosen.init_seed,
            max_source_length=chosen.max_source_length, shared=shared,
        )  # fmt: skip
        return chosen_method.build(setting), setting.notes

    judged: Evidence | None = None
    if diagnose and config.guide == "none" and rows.validation and chosen_method.is_pemt:
        if ranking is not None and ranking.evidence is not None:
            judged = ranking.evidence.among([e.name for e in experts])
        else:
            judged = judged_alone(base, task, experts, rows.train, chosen)
    started = time.perf_counter()
    model, notes = build()
    processes.same_start(model)
    train_seconds = time.perf_counter() - started
    first_prompt = target_prompt(model)
    if choice is not None:
        notes["rule"] = choice.why
        if "guide" in shared:
            notes["guide"] = shared["guide"][0].to_dict()
    own_sources = [e.name for e in experts if e.info.task == task.name]
    if own_sources:
        notes["own_sources"] = own_sources
    if unread:
        notes["unread"] = unread
    if ranking is not None:
        notes["ranking"] = ranking.to_dict()
    if selection is not None:
        notes["selection"] = selection.to_dict()
    fitted: Fit | None = None
    tried: dict[str, float] = {}
    if chosen_method.trains:
        model, fitted, chosen, fits, diverged = _train(
            build, model, task, base, rows, chosen, learning_rates, folder, progress
        )
        if diverged:
            notes["diverged"] = diverged
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
                shots=shots, evidence=shared.get("guide", (None, judged))[1],
                own_sources=own_sources if experts else None,
            )  # fmt: skip
        if folder is not None and processes.is_main():
            write_result(result, folder)
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
    probes = takes_probes(task, base.backbone.family)
    return choice_of(guide, len(rows.train), probes=probes)


def _validation(fitted: Fit | None, selection: Selection | None) -> float | None:
    if selection is not None:
        return selection.best.score
    return None if fitted is None else fitted.best


def _train(
    build: Any, model: AdaptedModel, task: Task, base: Base, rows: FewShot, settings: TrainSettings,
    learning_rates: Sequence[float], folder: Path | None, progress: bool,
) -> tuple[AdaptedModel, Fit, TrainSettings, dict[float, Fit], dict[str, str]]:  # fmt: skip
    """Train at each learning rate; keep the one that is best on validation, and how all went.

    Of several rates one that diverges is left out, and nothing of it is kept but what happened.

    Raises:
        DivergedError: every rate diverged.
    """
    fits: dict[float, Fit] = {}
    diverged: dict[str, str] = {}
    best: tuple[tuple[float, float], Fit, TrainSettings, dict[str, torch.Tensor]] | None = None
    for i, rate in enumerate(learning_rates):
        if i:
            model.detach()
            model, _ = build()
        tried = settings.changed(learning_rate=rate)
        place = (
            folder / f"lr-{rate:g}" if folder is not None and len(learning_rates) > 1 else folder
        )
        try:
            with model.attaching():
                fitted = fit(
                    model, task, base.tokenizer, rows.train, rows.validation, tried,
                    folder=place, progress=progress,
                )  # fmt: skip
        except DivergedError as error:
            # of several processes the others wait for this one's gradients: none can go on
            if len(learning_rates) == 1 or processes.world() > 1:
                raise
            diverged[f"{rate:g}"] = error.what
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
            continue
        fits[rate] = fitted
        kept = min(
            (h for h in fitted.history if h["step"] == fitted.best_step),
            key=lambda h: h["loss"], default={"loss": 0.0},
        )  # fmt: skip
        key = (fitted.best if fitted.best is not None else 0.0, -kept["loss"])
        if best is None or key > best[0]:
            state = {k: v.cpu().clone() for k, v in model.trained_state().items()}
            best = (key, fitted, tried, state)
    if best is None:
        raise DivergedError(
            "Every learning rate diverged: "
            + "; ".join(f"{rate}: {what}" for rate, what in diverged.items()),
            "give lower ones, look at the rows for empty labels, or train in float32",
        )
    if rate not in fits:  # the last one diverged, and its model is off the base
        model, _ = build()
    model.load_trained_state(best[3])
    return model, best[1], best[2], fits, diverged
