"""`pemt adapt`: stage 2."""

from __future__ import annotations

import json as json_format
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pemt.cli.choose import run_folder, task_from
from pemt.errors import ConfigError
from pemt.model.config import PemtConfig
from pemt.tasks.fewshot import Validation
from pemt.training.settings import Answers, TrainSettings


def adapt(
    task: str,
    library: str,
    *,
    base: str = "minilm",
    experts: list[str] | str | None = None,
    shots: int | None = None,
    data_seed: int = 0,
    validation: Validation = "shots",
    method: str = "auto",
    instant: bool = False,
    learning_rates: list[float] | None = None,
    cv_folds: int = 4,
    cv_repeats: int = 1,
    test_rows: int | None = None,
    data_dir: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    precision: str = "auto",
    compat: Literal["none", "released"] = "none",
    pemt: PemtConfig = PemtConfig(),  # noqa: B008 - frozen
    settings: TrainSettings = TrainSettings(),  # noqa: B008 - frozen
    answers: Answers | None = None,
    report: bool = False,
    json: bool = False,
    **flags: Any,
) -> int:
    """Adapt a frozen base to a target task through a mixture of experts.

    Trains gates, a small target adapter, the target prompt and the norms; base and experts stay
    frozen. Writes the adapted model, its test metrics, its predictions and a heat map of its gates,
    and says at the end which signs of failure it found. The baselines run on the same rows
    with --method.

    Example: pemt adapt product_reviews experts --shots 16 --data-seed 0

    Your own rows: pemt adapt rows.csv experts --text-template "message: {text}" --label-column kind
    --description "Given a message after 'message:', the task is to ..." --shots 16

    Args:
        task: a name of `pemt tasks list`, a YAML file of your own, or a data file (.csv, .tsv,
            .jsonl, .parquet) with --text-template, --label-column and --description; --train FILE
            may stand in its place.
        library: folder with the experts, or hf://user/repo@revision.
        base: the base the experts were trained on.
        experts: which experts, in gate-column order: mnli,qqp, or auto:4 for the four that rank
            best on the training rows (`pemt experts rank` shows the ranking); all by default.
        shots: labels per class (regression and generation: in all); default: the whole split.
        data_seed: of the draw of labels.
        validation: "shots": select on as few labels as you train on; "full": on the whole split;
            "cv": on the training labels alone, by cross-validation.
        method: "auto": by a rule, from how many labels there are and what they say of the experts
            (docs/concepts/guided.md). "pemt": the paper's. Or another name of `pemt bench methods`,
            such as lora; docs/methods.md says what each trains. With --validation cv several, as
            guided,instant,adapter: held-out labels choose one.
        instant: answer without training: the experts' own answers and features, mixed by how well
            they foretell the labels (--method instant).
        learning_rates: choose among these on validation: 1e-3,2e-3.
        cv_folds: of --validation cv.
        cv_repeats: of the whole division into folds.
        test_rows: score at most this many test rows.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        output: folder of the run (default: runs/TASK-METHOD-...).
        overwrite: replace a finished run.
        precision: of the frozen base: auto, float32 or bfloat16.
        compat: "released" takes the authors' released code where it differs from the paper, beside
            what --pemt changes; the method is then pemt unless you name another.
        pemt: of the mixture, the prompt and the loss.
        settings: of training.
        answers: "rank" the label words, "generate" (the paper) or "auto", which ranks where there
            are label words; goes before settings.answers.
        report: write report.html into the run's folder (`pemt report` does so later).
        json: print the result as JSON on stdout.
        flags: of `choose.task_from`: how to read a data file.
    """
    from pemt import training
    from pemt.bases import load_base
    from pemt.guide.rule import AUTO
    from pemt.methods import method_named
    from pemt.training import processes

    chosen = task_from(task, **flags)
    if instant:
        if method not in (AUTO, "instant"):
            raise ConfigError(f"--instant with --method {method}", "give one of the two")
        method = "instant"
    for one in [] if method == AUTO else method.split(","):
        method_named(one.strip())  # before anything is made
    drawn = "full" if shots is None else f"{shots}-{data_seed}"
    default = f"{chosen.name}-{method.replace(',', '+')}-{drawn}"
    if compat == "released":
        plain = PemtConfig()
        asked = {f.name: getattr(pemt, f.name) for f in fields(pemt)}
        pemt = PemtConfig.released(
            **{name: v for name, v in asked.items() if v != getattr(plain, name)}
        )
        method = "pemt" if method == AUTO else method
    if answers is not None:
        settings = settings.changed(answers=answers)
    reads = (task, library, base, data_dir, *chosen.rows.files.values())
    with run_folder(output, default, overwrite=overwrite, reads=reads) as folder:
        with processes.main_first():
            loaded = load_base(base, precision=precision)  # type: ignore[arg-type]
        result = training.adapt(
            loaded, chosen, library, names=experts, shots=shots, data_seed=data_seed,
            validation=validation, method=method, config=pemt, settings=settings,
            learning_rates=learning_rates, cv_folds=cv_folds, cv_repeats=cv_repeats,
            test_rows=test_rows, data_dir=data_dir, folder=folder, progress=not json,
        )  # fmt: skip
    gates = None
    if result.gates is not None:
        gates = dict(zip(result.experts, result.gates.mean(0).tolist(), strict=True))
    if report:
        from pemt.analysis.report import read_run, write_run_report

        write_run_report(read_run(folder), folder / "report.html")
    found = result.diagnosis
    if json:
        shown = {
            "task": chosen.name, "method": result.method, "metrics": result.metrics, "gates": gates,
            "trained_parameters": result.parameters[0], "notes": result.notes, "run": str(folder),
            "diagnosis": None if found is None else found.to_list(),
        }  # fmt: skip
        print(json_format.dumps(shown | result.report.to_dict()))
        return 0
    trained, total = result.parameters
    scores = ", ".join(f"{k} {v:.3f}" for k, v in result.metrics.items() if k != "n")
    title, n = method_named(result.method).title, result.metrics["n"]
    print(f"{title} on {chosen.name}: {scores} on {n:.0f} test rows.")
    print("\n".join(result.report.lines()))
    done = "Trained" if method_named(result.method).trains else "Fitted"
    print(f"{done} {trained:,} parameters, {100 * trained / total:.2f} % of all.")
    for line in result.verdicts():
        print(line)
    if gates is not None:
        print("Mean gates: " + ", ".join(f"{k} {v:.2f}" for k, v in gates.items()))
    if found is not None:
        print("\n".join(found.lines()))
    print(f"Everything is in {folder}.")
    return 0
