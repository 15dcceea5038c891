"""Gates while a model trains: their means at each evaluation, in the log and in a file.

They are those of the validation passes that judge the model anyway, so they cost no pass of their
own, draw no random number and change none of the training. Without a folder nothing is watched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pemt.analysis.gates import effective
from pemt.analysis.history import HISTORY, GateStep, StackGates, as_line
from pemt.model import PemtModel
from pemt.model.gated import joined
from pemt.training import processes
from pemt.writing import write_whole

MOST_LOGGED = 16
"""With more experts the log gets the effective numbers alone; the file always holds all."""


class GateWatch:
    """Notes the gates of every evaluation of one run.

    Args:
        model: with gates.
        folder: of the run; the file there is begun anew.
        resumed: go on with the file that is there.
    """

    def __init__(self, model: PemtModel, folder: Path, *, resumed: bool) -> None:
        self.model = model
        self.path = folder / HISTORY
        self.lines: dict[int, str] = {}
        if resumed and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self.lines[int(json.loads(line)["step"])] = line
        elif processes.is_main():
            self.path.unlink(missing_ok=True)

    def scored(self, score: Callable[[], dict[str, float]], step: int) -> dict[str, float]:
        """Call `score`, write down the gates of its passes, and return both to be logged.

        Args:
            score: answers validation rows.
            step: optimiser steps done. Lines of this step and later ones, of a run that was killed
                after its last checkpoint, are replaced.
        """
        with self.model.recording() as record:
            metrics = score()
        record = joined(processes.gathered(record))  # of several processes each saw some rows
        mean, entropies = record.mean(), record.entropy()
        if mean is None or entropies is None:
            return metrics
        stacks, found = [site.stack for site in self.model.gated_sites()], {}
        for stack in dict.fromkeys(stacks):
            own = [i for i, name in enumerate(stacks) if name == stack]
            gates = mean[own].double().mean(0).numpy()
            found[stack] = StackGates(
                gates=dict(zip(self.model.gate_names, gates.tolist(), strict=True)),
                effective=float(effective(gates)),
                example_effective=float(entropies[own].double().mean().exp()),
            )
        self._write(GateStep(step=step, rows=record.rows, stacks=found))
        return metrics | logged(found)

    def _write(self, found: GateStep) -> None:
        if not processes.is_main():
            return
        self.lines = {step: line for step, line in self.lines.items() if step < found.step}
        self.lines[found.step] = json.dumps(as_line(found), ensure_ascii=False)
        write_whole(self.path, "\n".join(self.lines.values()) + "\n")


def logged(stacks: dict[str, StackGates]) -> dict[str, float]:
    """What the Trainer's log gets, such as "gates_encoder/NAME", "effective_experts/encoder"."""
    values = {}
    for stack, own in stacks.items():
        values[f"effective_experts/{stack}"] = own.effective
        values[f"effective_experts/{stack}_of_one_row"] = own.example_effective
        if len(own.gates) <= MOST_LOGGED:
            values |= {f"gates_{stack}/{name}": value for name, value in own.gates.items()}
    return values
