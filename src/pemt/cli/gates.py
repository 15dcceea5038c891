"""`pemt gates`: whom an adapted model listens to."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pemt.analysis.gates import GateReport
    from pemt.analysis.runs import RunFolder


def gates(
    run: Path,
    *,
    rows: int | None = None,
    recorded: bool = False,
    library: str | None = None,
    base: str | None = None,
    data_dir: Path | None = None,
    precision: str = "auto",
    output: Path | None = None,
    json: bool = False,
) -> int:
    """Show whom an adapted model listens to: its gates by layer, class and example.

    Runs the adapted model over the test rows that it was scored on, and prints mean gates with
    their standard deviation over examples, and the effective number of experts (1: one alone, the
    number of experts: all alike). Writes layers.csv, examples.csv, gates.json and figures to
    gates/ in the run. Where gates were noted during training, steps.png shows them too.

    Example: pemt gates runs/product_reviews-pemt-16-0

    Args:
        run: folder that `pemt adapt` wrote, or the model folder in it.
        rows: at most this many test rows, drawn by seed 0.
        recorded: show the means that the run wrote down, without base, experts or rows.
        library: folder or hf:// address of the experts, if they were not saved with the model.
        base: load the base from here instead of from where the model says.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        precision: of the frozen base: float32, bfloat16, or auto: that it was adapted in.
        output: folder of tables and figures (default: gates/ in the run).
        json: print the report as JSON on stdout.
    """
    from pemt.analysis.heat_maps import class_heat_map, gate_heat_map
    from pemt.analysis.plots import spread_plot, steps_plot
    from pemt.analysis.runs import read_run
    from pemt.analysis.tables import write_gates
    from pemt.training.record import write_json

    found = read_run(run)
    report = found.recorded() if recorded else _measured(
        found, rows=rows, library=library, base=base, data_dir=data_dir, precision=precision
    )  # fmt: skip
    folder = output or found.output
    made = write_gates(report, folder)
    gate_heat_map(report, folder / "layers.png")
    made.append(folder / "layers.png")
    if len(report.classes) > 1:
        class_heat_map(report, folder / "classes.png")
        made.append(folder / "classes.png")
    if report.examples is not None and report.rows and report.rows > 1:
        spread_plot(report, folder / "examples.png")
        made.append(folder / "examples.png")
    history = found.history()
    if history is not None and history.steps:
        steps_plot(history, folder / "steps.png")
        made.append(folder / "steps.png")
    shown = report.to_dict()
    shown["history"] = None if history is None else history.to_dict()
    write_json(folder / "gates.json", shown)
    made.append(folder / "gates.json")
    if json:
        print(json_format.dumps({**shown, "files": [str(path) for path in made]}))
        return 0
    _print(found, report, [] if history is None else list(history.notes))
    names = ", ".join(path.name for path in made)
    print(f"In {folder}: {names}.")
    if history is None and not recorded:
        print("No gates over steps: none were noted while it trained.")
    return 0


def _measured(
    found: RunFolder, *, rows: int | None, library: str | None, base: str | None,
    data_dir: Path | None, precision: str,
) -> GateReport:  # fmt: skip
    """The gates of the run's test rows, measured now.

    Raises:
        ConfigError: the run has no gates, or no saved model.
        PemtError: base, experts or rows cannot be had.
    """
    from pemt.analysis.measuring import measure_gates
    from pemt.analysis.runs import load_gated, scored_rows
    from pemt.errors import AssetError, DataError

    loaded = load_gated(found, library=library, base=base, precision=precision)
    try:
        examples, notes = scored_rows(found, loaded.task, rows=rows, data_dir=data_dir)
    except (AssetError, DataError) as error:
        also = "or show the means that the run wrote down: --recorded"
        raise type(error)(error.what, f"{error.fix}; {also}" if error.fix else also) from None
    return measure_gates(
        loaded.mixture, loaded.task, loaded.base.tokenizer, examples, loaded.settings, notes=notes
    )


def _print(found: RunFolder, report: GateReport, notes: list[str]) -> None:
    from pemt.analysis.tables import class_table_of, gate_table_of, show

    over = "" if report.rows is None else f", {report.rows} test rows"
    spread = "" if report.deviation is None else " ± standard deviation over examples"
    print(f"{found.title()}{over}: mean gate{spread}; effective number of experts, of the mean "
          "gates and of one example.")  # fmt: skip
    show(gate_table_of(report))
    print(f"Over all layers {report.overall_effective:.2f} of {len(report.experts)} experts count.")
    if len(report.classes) > 1:
        show(class_table_of(report))
        for stack, share in report.class_share.items():
            print(f"{stack}: {share:.0%} of the variance over examples lies between classes.")
    for note in (*report.notes, *notes):
        print(note)
