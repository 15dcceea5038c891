"""`pemt experts rank`: which experts look useful for a task, before anything is trained."""

from __future__ import annotations

import json as json_format
from pathlib import Path


def rank(
    library: str,
    task: str,
    *,
    base: str = "minilm",
    shots: int | None = None,
    data_seed: int = 0,
    data_dir: Path | None = None,
    max_source_length: int | None = None,
    precision: str = "auto",
    json: bool = False,
) -> int:
    """Rank a library's experts for a target task from its labelled rows, without training.

    Each expert is put on the frozen base alone and the rows run through it once. The loss is that
    of cross-validated regressions on what comes out (generation: of the answers). `gain` is how
    much lower it is than without any expert, with its standard error; the last line names the
    experts whose gain is more than the luck of the best of so many. `weight` is where a guided
    mixture would start (pemt adapt --method guided).
    The two similarities compare the expert's task with the target's in the frozen base.

    Example: pemt experts rank experts product_reviews --shots 16

    Args:
        library: folder with the experts, or hf://user/repo@revision.
        task: a name of `pemt tasks list`, or a YAML file of your own.
        base: the base the experts were trained on.
        shots: labelled rows per class (regression and generation: in all); default: at most 512 of
            the training split, two of every class among them.
        data_seed: of the draw.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        max_source_length: tokens of text; longer texts lose their end.
        precision: of the frozen base: auto, float32 or bfloat16.
        json: print the ranking as JSON on stdout.
    """
    from pemt.bases import load_base
    from pemt.cli.choose import task_named
    from pemt.experts import ExpertLibrary
    from pemt.guide.guide import left_out
    from pemt.training.adapting import target_rows
    from pemt.training.choosing import ranked

    chosen = task_named(task)
    # the same draw as `adapt` makes; "full" only leaves its validation rows undrawn
    rows = target_rows(
        chosen, shots=shots, data_seed=data_seed, validation="full", data_dir=data_dir
    )
    ranking = ranked(
        load_base(base, precision=precision),  # type: ignore[arg-type]
        chosen, ExpertLibrary(library), rows.train, max_source_length=max_source_length,
    )  # fmt: skip
    if json:
        print(json_format.dumps({"task": chosen.name, **ranking.to_dict()}))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{chosen.name}: {ranking.measure} ({ranking.rows} rows)")
    for column in ("expert", "task", "loss", "gain", "weight", "description", "prompt"):
        table.add_column(column, justify="left" if column in ("expert", "task") else "right")
    table.add_row(
        "(none)", "", f"{ranking.none_loss:.3f}", "", f"{ranking.none_weight:.2f}", "", ""
    )
    for r in ranking.ranks:
        table.add_row(
            r.name, r.task, f"{r.loss:.3f}", f"{r.gain:+.3f} ± {r.gain_error:.3f}",
            f"{r.weight:.2f}",
            "-" if r.description is None else f"{r.description:.2f}",
            "-" if r.prompt is None else f"{r.prompt:.2f}",
        )  # fmt: skip
    Console().print(table)
    for line in left_out(ranking.refused):
        print(line)
    print(f"Better than no expert beyond noise: {', '.join(ranking.helpful) or 'none'}.")
    return 0
