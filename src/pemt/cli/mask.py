"""`pemt mask`: what each expert of an adapted model is worth."""

from __future__ import annotations

import json as json_format
from pathlib import Path


def mask(
    run: Path,
    *,
    experts: list[str] | str | None = None,
    rows: int | None = None,
    library: str | None = None,
    base: str | None = None,
    data_dir: Path | None = None,
    precision: str = "auto",
    output: Path | None = None,
    json: bool = False,
) -> int:
    """Score an adapted model without each expert, with each alone, and with none; no retraining.

    Left out means: the gate's softmax over the other experts alone, in every layer. Alone means
    weight 1. Prompt, target adapter, norms and head stay as trained. Differences come with 95 %
    bootstrap intervals over the same test rows. Two evaluations for each expert, and two more.
    Writes masks.csv, masks.json and masks.png to gates/ in the run.

    Example: pemt mask runs/product_reviews-pemt-16-0 --rows 500

    Args:
        run: folder that `pemt adapt` wrote, or the model folder in it.
        experts: mask these alone (mnli,qqp); all by default.
        rows: at most this many of the test rows that it was scored on, drawn by seed 0.
        library: folder or hf:// address of the experts, if they were not saved with the model.
        base: load the base from here instead of from where the model says.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        precision: of the frozen base: float32, bfloat16, or auto: that it was adapted in.
        output: folder of tables and figures (default: gates/ in the run).
        json: print the report as JSON on stdout.
    """
    from pemt.analysis.masks import mask_scores
    from pemt.analysis.plots import mask_plot
    from pemt.analysis.runs import load_gated, read_run, scored_rows
    from pemt.analysis.tables import mask_table_of, show, write_masks
    from pemt.training.record import write_json

    found = read_run(run)
    loaded = load_gated(found, library=library, base=base, precision=precision)
    examples, notes = scored_rows(found, loaded.task, rows=rows, data_dir=data_dir)
    names = [n.strip() for n in experts.split(",")] if isinstance(experts, str) else experts
    report = mask_scores(
        loaded.mixture, loaded.task, loaded.base.tokenizer, examples, loaded.settings,
        experts=names, progress=not json, notes=notes,
    )  # fmt: skip
    folder = output or found.output
    write_masks(report, folder / "masks.csv")
    mask_plot(report, folder / "masks.png")
    write_json(folder / "masks.json", report.to_dict())
    if json:
        print(json_format.dumps(report.to_dict()))
        return 0
    print(f"{found.title()}: {report.task}, {report.rows} test rows, experts masked at evaluation.")
    show(mask_table_of(report))
    for note in report.notes:
        print(note)
    print(f"In {folder}: masks.csv, masks.json, masks.png.")
    return 0
