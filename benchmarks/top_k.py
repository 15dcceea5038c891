"""What does top-k cost in accuracy? One dense training per target, scored under several k.

    python benchmarks/top_k.py EXPERTS --data-dir MIRROR --output benchmarks/results/top-k.json

The same trained gates, adapters and norms answer the same test rows each time; only how many
experts work changes. `agree` is the share of rows answered as the dense mixture answers them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from pemt.bases import load_base
from pemt.model import PemtConfig, PemtModel
from pemt.training import TrainSettings, adapt, evaluate
from pemt.training.adapting import target_rows
from pemt.training.record import versions, write_json
from pemt.training.sourcing import some


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experts", type=Path)
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--targets", nargs="*", default=["rotten_tomatoes", "rte"])
    parser.add_argument("--top", type=int, nargs="*", default=[1, 2, 4, 8, 11])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--test-rows", type=int, default=300)
    parser.add_argument("--max-source-length", type=int, default=96)
    parser.add_argument("--guide", default="none", choices=["none", "evidence"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    base = load_base(given.base, precision="float32")
    lines = []
    for target in given.targets:
        result = adapt(
            base, target, given.experts, shots=given.shots, data_seed=given.data_seed,
            config=PemtConfig(guide=given.guide), data_dir=given.data_dir,
            settings=TrainSettings(
                epochs=given.epochs, max_source_length=given.max_source_length, report_to="none"
            ),
            test_rows=given.test_rows, progress=False,
        )  # fmt: skip
        lines += sweep(result, given)
        result.model.detach()
    places = ("experts", "data_dir", "output")
    asked = {k: v for k, v in vars(given).items() if k not in places}
    command = "python benchmarks/top_k.py EXPERTS --data-dir MIRROR --output RESULT"
    write_json(
        given.output, {"command": command, "asked": asked, "versions": versions(), "rows": lines}
    )


def sweep(result: Any, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Scores of one trained model at every k and both scopes."""
    model, task = result.model, result.task
    assert isinstance(model, PemtModel)
    rows = target_rows(
        task, shots=given.shots, data_seed=given.data_seed, data_dir=given.data_dir
    ).test
    test = some(rows, given.test_rows, 0)
    dense = result.predictions.values
    lines: list[dict[str, Any]] = []
    gates = {n: round(float(v), 4) for n, v in zip(result.experts, result.gates.mean(0),
                                                   strict=True)}  # fmt: skip
    for scope in ("example", "batch"):
        for top in [*given.top, None]:
            if top is None and scope == "batch":
                continue
            for layer in model.mixtures:
                layer.top_k, layer.scope = top, scope  # type: ignore[assignment]
            metrics, made = evaluate(model, task, result.base.tokenizer, test, result.settings)
            agree = sum(a == b for a, b in zip(made.values, dense, strict=True)) / len(test)
            lines.append(
                {"task": task.name, "top": top, "scope": scope, "metrics": metrics, "agree": agree,
                 "gates": gates}
            )  # fmt: skip
            shown = ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k != "n")
            print(f"{task.name} top-{top or 'all'} by {scope}: {shown}, agree {agree:.3f}",
                  flush=True)  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
