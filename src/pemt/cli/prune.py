"""`pemt prune`: an adapted model without the experts that hardly count."""

from __future__ import annotations

import json as json_format
from pathlib import Path


def prune(
    run: Path,
    *,
    below: float = 0.02,
    output: Path | None = None,
    rows: int | None = 300,
    library: str | None = None,
    base: str | None = None,
    data_dir: Path | None = None,
    precision: str = "auto",
    json: bool = False,
) -> int:
    """Leave out of an adapted model the experts whose mean gate is small in every layer.

    The others' gates are made to sum to 1 again; the prompt stays as it is. Writes a smaller model
    to a new folder, and says what it scores before and after where the task's rows are at hand.

    Example: pemt prune runs/product_reviews-pemt-16-0 --below 0.05

    Args:
        run: folder that `pemt adapt` wrote, or the model folder in it.
        below: experts with a smaller mean gate in every layer go.
        output: folder to be made (default: RUN-pruned).
        rows: score at most this many test rows; 0: none, and gates as the run recorded them.
        library: folder or hf:// address of the experts, if they were not saved with the model.
        base: load the base from here instead of from where the model says.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        precision: of the frozen base: float32, bfloat16, or auto: that it was adapted in.
        json: print the result as JSON on stdout.
    """
    from pemt.deploy import at_hand, prune_model, pruning_of
    from pemt.deploy.folder import check_free
    from pemt.deploy.measuring import recorded_gates
    from pemt.errors import ConfigError
    from pemt.model.storage import EXPERTS, read_description
    from pemt.training.deploying import load_run, model_folder
    from pemt.training.record import write_json

    place = model_folder(run)
    described = read_description(place)
    folder = output or run.parent / f"{run.name}-pruned"
    check_free(folder)
    loaded = load_run(run, library=library, base=base, precision=precision)
    here = at_hand(loaded, rows=rows, data_dir=data_dir)
    gates = here.gates(loaded, loaded.mixture)
    if gates is None:
        gates = recorded_gates(place, loaded.mixture)
    if gates is None:
        raise ConfigError(
            f"No gates to judge the experts of {run} by: {here.missing or 'it has no mixture'}",
            "make the task's rows available (--data-dir), or give the run's whole folder, whose "
            "results.json has them",
        )
    found = pruning_of(loaded.mixture, gates, below=below)
    shown = {"run": str(run), "below": below, "shares": found.shares, "kept": found.kept,
             "dropped": found.dropped}  # fmt: skip
    if not found.dropped:
        least = min(found.shares, key=lambda n: found.shares[n])
        if json:
            print(json_format.dumps({**shown, "output": None}))
        else:
            print(f"No expert is below {below:g} everywhere: the least is {least} with "
                  f"{found.shares[least]:.3f}. Nothing was written.")  # fmt: skip
        return 0
    before = here.scores(loaded, loaded.mixture)
    model = prune_model(loaded.mixture, found.dropped)
    after = here.scores(loaded, model)
    scores = None if before is None or after is None else {"before": before, "after": after}
    extra = {**described["extra"], "pruned": {"below": below, "dropped": found.dropped}}
    extra |= {"metrics": after or {}, "interval": None}  # the whole model's are not its own
    model.save_pretrained(
        folder / "model", base_name=described["base"], extra=extra,
        include_experts=(place / EXPERTS).is_dir(),
    )  # fmt: skip
    write_json(folder / "prune.json", {**shown, "scores": scores})
    if json:
        print(json_format.dumps({**shown, "scores": scores, "output": str(folder)}))
        return 0
    dropped = ", ".join(f"{n} ({found.shares[n]:.3f})" for n in found.dropped)
    print(f"Dropped {len(found.dropped)} of {len(found.shares)} experts: {dropped}.")
    print_scores(scores, here.missing)
    print(f"The smaller model is in {folder}.")
    return 0


def print_scores(scores: dict[str, dict[str, float]] | None, missing: str) -> None:
    """Scores before and after, of what did not change once, or why there are none."""
    if scores is None:
        print(f"Not scored: {missing or 'no test rows'}.")
        return
    for name, value in scores["before"].items():
        if name != "n":
            after = f" before, {scores['after'][name]:.3f} after" if "after" in scores else ""
            print(f"{name}: {value:.3f}{after}")
    print(f"on {scores['before']['n']:.0f} test rows.")
