"""What do more experts cost, and what does top-k save?

    python benchmarks/scale.py --output benchmarks/results/scale.json

One process; for every number of experts a model of MiniLM's size with random weights, on which the
dense mixture, top-k by example and top-k by batch take turns within each round. Printed are medians
and, as machines drift, the medians of the rounds' ratios to the dense mixture of the same round.
Every text has random gates of its own in every layer, so the texts of a batch choose different
experts: the worst case for top-k by example. Where texts agree it costs what top-k by batch costs.
Peak memory is how far the resident memory grew in one pass above the model at rest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from pemt.backbones import describe, down_projections, fingerprint
from pemt.experts import Expert, ExpertInfo, ExpertLayer
from pemt.model import PemtConfig, PemtModel
from pemt.nn import PromptGate
from pemt.training.memory import PeakMemory, give_back_memory
from pemt.training.record import machine, write_json

KINDS = ("batch", "example", "dense")
PASSES = ("evaluation", "training")
SIZES: dict[str, dict[str, Any]] = {
    "minilm": {
        "experts": [8, 16, 32, 64, 128, 256], "layers": 6, "width": 384, "hidden": 1536,
        "heads": 12, "batch": 16, "text": 96, "prompt": 24, "rank": 32, "top": 4,
    },
    "quick": {
        "experts": [4, 8], "layers": 2, "width": 32, "hidden": 64, "heads": 4, "batch": 4,
        "text": 8, "prompt": 3, "rank": 2, "top": 2,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON to write")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all")
    parser.add_argument("--experts", type=int, nargs="*", help="numbers of experts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    size = SIZES["quick" if given.quick else "minilm"]
    lines = []
    for count in sorted(given.experts or size["experts"]):
        lines.append(measure(count, size, given.rounds))
        print(shown(lines[-1]), flush=True)
    made = {"size": size, "rounds": given.rounds, "machine": machine(), "experts": lines}
    print(table(lines, size["top"]))
    if given.output is not None:
        write_json(given.output, made)


def built(count: int, size: dict[str, Any]) -> PemtModel:
    """A random base with `count` random experts, its gates drawn at random."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000, hidden_size=size["width"], intermediate_size=size["hidden"],
        num_hidden_layers=size["layers"], num_attention_heads=size["heads"],
        max_position_embeddings=512,
    )  # fmt: skip
    base = BertModel(config)
    backbone = describe(config.model_type)
    sites, rank = down_projections(base, backbone), size["rank"]
    made = fingerprint(base, backbone)
    experts = []
    for k in range(count):
        info = ExpertInfo(
            name=f"e{k}", kind="lora", task=f"e{k}", base="random", base_family=backbone.family,
            base_fingerprint=made, tokenizer_fingerprint="none", width=size["width"],
            hidden=size["hidden"], rank=rank, alpha=float(rank),
        )  # fmt: skip
        layers = tuple(
            ExpertLayer(
                module=site.path, scale=1.0, A=0.02 * torch.randn(rank, site.hidden),
                B=0.02 * torch.randn(site.width, rank),
            )
            for site in sites
        )  # fmt: skip
        experts.append(
            Expert(
                name=f"e{k}", kind="lora", activation=None, layers=layers, head={}, info=info,
                prompt=0.02 * torch.randn(size["prompt"], size["width"]),
            )
        )  # fmt: skip
    prompt = 0.02 * torch.randn(size["prompt"], size["width"])
    model = PemtModel(base, experts, PemtConfig(), prompt=prompt, outputs=2)
    for layer in model.mixtures:
        layer.gate = ScatteredGate(layer.gate.weight.shape[0], count, rows=size["batch"])
    return model


class ScatteredGate(PromptGate):
    """A gate whose rows choose different experts: on random weights all texts look alike to it."""

    def __init__(self, width: int, experts: int, *, rows: int) -> None:
        super().__init__(width, experts)
        self.own = 2 * torch.randn(rows, experts)

    def scores(self, u: torch.Tensor) -> torch.Tensor:
        """`[B, width]` -> `[B, K]`, B at most the rows it was made for."""
        return super().scores(u) + self.own[: len(u)]


def cut(model: PemtModel, kind: str, top: int) -> None:
    """Make every layer dense, or one with top-k in training and evaluation."""
    for layer in model.mixtures:
        layer.top_k = None if kind == "dense" else top
        layer.scope = "batch" if kind == "batch" else "example"
        layer.top_k_train = kind != "dense"


def once(model: PemtModel, way: str, batch: tuple[torch.Tensor, ...]) -> float:
    """Seconds of one optimiser step's passes, or of one evaluation pass."""
    ids, mask, labels = batch
    started = time.perf_counter()
    if way == "training":
        model.train()
        model(ids, mask, labels).loss.backward()
        for parameter in model.parameters():
            parameter.grad = None
    else:
        model.eval()
        with torch.no_grad():
            model(ids, mask)
    return time.perf_counter() - started


def measure(count: int, size: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds and memory of every kind and pass at this number of experts."""
    model = built(count, size)
    draw = torch.Generator().manual_seed(1)
    shape = (size["batch"], size["text"])
    ids = torch.randint(3, 1000, shape, generator=draw)
    batch = (ids, torch.ones_like(ids), torch.randint(0, 2, shape[:1], generator=draw))
    seconds: dict[str, dict[str, list[float]]] = {w: {k: [] for k in KINDS} for w in PASSES}
    memory: dict[str, dict[str, int | None]] = {w: {} for w in PASSES}
    for way in PASSES:
        for kind in KINDS:  # also what warms up
            cut(model, kind, size["top"])
            give_back_memory()
            peak = PeakMemory.started(model.device)
            before = peak.bytes()
            once(model, way, batch)
            worst = peak.bytes()
            known = before is not None and worst is not None
            memory[way][kind] = max(0, worst - before) if known else None  # type: ignore[operator]
    for _ in range(rounds):
        for way in PASSES:
            for kind in KINDS:
                cut(model, kind, size["top"])
                seconds[way][kind].append(once(model, way, batch))
    made: dict[str, Any] = {"experts": count}
    for way in PASSES:
        dense = seconds[way]["dense"]
        made[way] = {
            kind: {
                "seconds": statistics.median(times),
                "of_dense": statistics.median(t / d for t, d in zip(times, dense, strict=True)),
                "peak_bytes": memory[way][kind],
            }
            for kind, times in seconds[way].items()
        }
    return made


def shown(line: dict[str, Any]) -> str:
    parts = [f"{line['experts']:>4} experts"]
    for way in PASSES:
        times = ", ".join(f"{k} {line[way][k]['seconds']:.3f} s" for k in KINDS)
        parts.append(f"{way}: {times}")
    return "; ".join(parts)


def table(lines: list[dict[str, Any]], top: int) -> str:
    """Markdown: seconds (and memory) by number of experts; ratio to dense in brackets."""
    names = {"dense": "dense", "example": f"top-{top} by example", "batch": f"top-{top} by batch"}
    order = ("dense", "example", "batch")
    rows = []
    for way in PASSES:
        rows += ["", f"| {way}: experts | " + " | ".join(names[k] for k in order) + " |"]
        rows.append("| --- " * (len(order) + 1) + "|")
        for line in lines:
            cells = []
            for kind in order:
                cell = line[way][kind]
                grown = cell["peak_bytes"]
                space = "" if grown is None else f", {grown / 2**20:.0f} MiB"
                ratio = "" if kind == "dense" else f" ({cell['of_dense']:.2f})"
                cells.append(f"{cell['seconds']:.3f} s{ratio}{space}")
            rows.append(f"| {line['experts']} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
