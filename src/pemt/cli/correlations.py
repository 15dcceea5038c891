"""`pemt correlations`: sources beside targets, what was foretold and what came of it."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pemt.analysis.correlations import Target
    from pemt.analysis.masks import MaskReport
    from pemt.analysis.runs import RunFolder
    from pemt.tasks import Example
    from pemt.training.deploying import Deployed


def correlations(
    runs: list[Path],
    *,
    bench: Path | None = None,
    rows: int | None = None,
    gain: bool = True,
    library: str | None = None,
    base: str | None = None,
    data_dir: Path | None = None,
    precision: str = "auto",
    output: Path | None = None,
    json: bool = False,
) -> int:
    """Show for sources x targets how alike they are, what was learnt, and what it was worth.

    Side by side: similarity of descriptions and prompts, attention of the target prompt, gate
    weights, and measured transfer gain, with Spearman's rank correlation of each two. The gain is
    that of each expert alone over none, masked at evaluation; with --bench it is what the grid's
    single experts gained, where it has them at the run's number of labels. Writes
    correlations.csv, spearman.csv, correlations.json and correlations.png.

    Example: pemt correlations runs/rte-pemt-16-0 runs/cb-pemt-16-0

    Args:
        runs: folders that `pemt adapt` wrote, one after the other; may be none with --bench.
        bench: output folder of `pemt bench run`; its targets without a run are shown too, with
            what its cells hold.
        rows: at most this many test rows of each run, drawn by seed 0.
        gain: whether to measure the gain, which takes two evaluations for each expert.
        library: folder or hf:// address of the experts, if they were not saved with the models.
        base: load the base from here instead of from where the models say.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        precision: of the frozen base: float32, bfloat16, or auto: that of each run.
        output: folder of tables and figures (default: gates/ in the run, runs/correlations for
            several).
        json: print everything as JSON on stdout.
    """
    from pemt.analysis.correlations import correlate
    from pemt.analysis.heat_maps import correlation_maps
    from pemt.analysis.runs import load_gated, read_run, scored_rows
    from pemt.analysis.tables import (
        correlation_table_of,
        rank_table_of,
        show,
        write_correlations,
    )
    from pemt.analysis.transfer import grid_targets, with_gains
    from pemt.errors import ConfigError
    from pemt.training.record import write_json

    if not runs and bench is None:
        raise ConfigError("Nothing to correlate", "give one or more runs, --bench FOLDER, or both")
    folders = [read_run(run) for run in runs]
    if len({f.path.resolve() for f in folders}) < len(folders):
        raise ConfigError("The same run twice", "give each run once")
    grid = [] if bench is None else grid_targets(bench)
    gained = {(t.task, t.shots): t for t in grid if t.values["gain"]}
    targets: list[Target] = []
    for found in folders:
        loaded = load_gated(found, library=library, base=base, precision=precision)
        examples, _ = scored_rows(found, loaded.task, rows=rows, data_dir=data_dir)
        own = gained.get((loaded.task.name, found.shots))
        target = _of_run(found, loaded, examples, masked=gain and own is None, progress=not json)
        targets.append(target if own is None else with_gains(target, own))
        loaded.mixture.detach()
    tasks = {t.task for t in targets}
    targets = _named(targets, folders) + [t for t in grid if t.task not in tasks]
    together = correlate(targets)
    folder = output or (
        folders[0].output if len(folders) == 1 else Path("runs") / "correlations"
    )  # fmt: skip
    made = write_correlations(together, folder)
    correlation_maps(together, folder / "correlations.png")
    write_json(folder / "correlations.json", together.to_dict())
    if json:
        print(json_format.dumps(together.to_dict()))
        return 0
    show(correlation_table_of(together))
    show(rank_table_of(together))
    for note in together.notes:
        print(note)
    names = ", ".join([*(path.name for path in made), "correlations.json", "correlations.png"])
    print(f"In {folder}: {names}.")
    return 0


def _of_run(
    found: RunFolder, loaded: Deployed, examples: list[Example], *, masked: bool, progress: bool
) -> Target:
    from pemt.analysis.masks import mask_scores
    from pemt.analysis.measuring import measure_gates
    from pemt.analysis.transfer import target_of

    model, task, tokenizer = loaded.mixture, loaded.task, loaded.base.tokenizer
    gates = measure_gates(model, task, tokenizer, examples, loaded.settings)
    masks = None
    if masked:
        masks = _kept(found, loaded, len(examples)) or mask_scores(
            model, task, tokenizer, examples, loaded.settings, progress=progress
        )
    return target_of(model, task, tokenizer, gates, name=task.name, masks=masks)


def _kept(found: RunFolder, loaded: Deployed, rows: int) -> MaskReport | None:
    """The masks that `pemt mask` wrote, if they are of all experts and as many rows."""
    from pemt.analysis.masks import MaskReport

    path = found.output / "masks.json"
    if not path.is_file():
        return None
    report = MaskReport.from_dict(json_format.loads(path.read_text(encoding="utf-8")))
    whole = set(report.gains()) == set(loaded.mixture.expert_names)
    return report if whole and report.rows == rows else None


def _named(targets: list[Target], folders: list[RunFolder]) -> list[Target]:
    """Targets that several runs share get their run's name."""
    from dataclasses import replace

    tasks = [t.task for t in targets]
    return [
        t if tasks.count(t.task) == 1 else replace(t, name=f"{t.task} ({f.path.resolve().name})")
        for t, f in zip(targets, folders, strict=True)
    ]
