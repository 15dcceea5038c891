"""The measures of `pemt.analysis.correlations` for one adapted model, or from a grid's cells."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from pemt.analysis.correlations import Target
from pemt.analysis.gates import GateReport
from pemt.analysis.masks import MaskReport
from pemt.bench.asked import shots_title
from pemt.bench.results import Results, read_results, title_of
from pemt.model import PemtModel
from pemt.model.pemt import NONE
from pemt.tasks import Example, Task
from pemt.tasks.encoding import Collator, encode_prompts_only
from pemt.training.evaluating import evaluating, lengths, side_of
from pemt.training.settings import TrainSettings

REFERENCES = ("pemt-no-mixture", "adapter")
"""What a grid's single experts are compared with: PEMT without experts, else an adapter."""


def target_of(
    model: PemtModel, task: Task, tokenizer: Any, gates: GateReport, *, name: str,
    masks: MaskReport | None = None,
) -> Target:  # fmt: skip
    """All measures of one adapted model's experts.

    Args:
        model: stage 2, with gates.
        task: its target.
        tokenizer: the base's.
        gates: of its test rows.
        name: for tables.
        masks: of its test rows, for the gain.
    """
    values: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    with evaluating(model):
        values["description"] = description_similarity(model, task, tokenizer)
        values |= prompt_measures(model)
    if not values["description"]:
        missing["description"] = "the experts came without a description"
    if not values["prompt"]:
        missing["prompt"] = "the experts came without a prompt"
    if not values["attention"]:
        why = {
            "none": "no source prompts are read (prompt_fusion='none')",
            "init": "source prompts were read once, before training (prompt_fusion='init')",
            "live": "the experts came without a prompt",
        }[model.pemt_config.prompt_fusion]
        missing |= {"attention": why, "added": why}
    values["gate"] = {
        expert: float(value)
        for expert, value in zip(gates.experts, gates.overall, strict=True)
        if expert != NONE
    }
    gain_from = ""
    if masks is None:
        missing["gain"] = "it was not measured"
    else:
        values["gain"] = masks.gains()
        gain_from = (
            f"{masks.metric} with this expert alone minus with none, masked at evaluation on "
            f"{masks.rows} test rows"
        )
    return Target(
        name=name, task=task.name, values=values, gain_from=gain_from, missing=missing
    )  # fmt: skip


@torch.no_grad()
def description_similarity(model: PemtModel, task: Task, tokenizer: Any) -> dict[str, float]:
    """Cosine of the target's description with each expert's: mean final states of the frozen base.

    Args:
        model: whose experts they are.
        task: the target.
        tokenizer: the base's.
    """
    described = {e.name: e.info.description for e in model.experts if e.info.description}
    if not described or not task.description:
        return {}
    settings = TrainSettings(max_source_length=None)
    collate = Collator(tokenizer, model.family, side=side_of(model.family))
    vectors = []
    for text in (task.description, *described.values()):
        encoded = encode_prompts_only(
            [Example("0", text, None, "")], task, tokenizer, model.family,
            **lengths(model, settings),
        )  # fmt: skip
        batch = collate(encoded)
        ids, mask = (batch[k].to(model.device) for k in ("input_ids", "attention_mask"))
        with model.disable():
            vectors.append(model.features(ids, mask)[0])
    return {
        name: float(F.cosine_similarity(vectors[0], vector, dim=0))
        for name, vector in zip(described, vectors[1:], strict=True)
    }


@torch.no_grad()
def prompt_measures(model: PemtModel) -> dict[str, dict[str, float]]:
    """Similarity of prompts, attention and what source prompts add, by source.

    Attention is the softmax of the correlation prompt's own scores, taken over the positions of all
    sources together, summed within each source and averaged over the target prompt's rows. Added is
    the length of `w_k softmax_rows(P_t E_k^T) E_k` as a share of the sum over sources, averaged
    likewise.
    """
    fused = model.correlation_prompt
    target = fused.target.embedding.float()  # [P, D]
    prompted = [e for e in model.experts if len(e.prompt)]
    sources = [e.prompt.to(target) for e in prompted]
    names = [e.name for e in prompted]
    similar = [
        float(F.cosine_similarity(target.mean(0), source.mean(0), dim=0)) for source in sources
    ]
    made: dict[str, dict[str, float]] = {
        "prompt": dict(zip(names, similar, strict=True)), "attention": {}, "added": {}
    }  # fmt: skip
    if model.pemt_config.prompt_fusion != "live" or not sources:
        return made
    scores = [fused.scale * target @ source.T for source in sources]  # [P, P_k] each
    joint = torch.cat(scores, 1).softmax(-1)
    shares_of = [part.sum(1).mean() for part in torch.tensor_split(joint, _ends(scores), dim=1)]
    weights = torch.ones(len(sources)) if fused.weights is None else fused.weights.cpu()
    added = torch.stack(
        [
            w * (s.softmax(-1) @ source).norm(dim=-1)
            for w, s, source in zip(weights.to(target), scores, sources, strict=True)
        ]
    )  # [K, P]
    shares = (added / added.sum(0).clamp_min(1e-12)).mean(1)
    made["attention"] = {n: float(s) for n, s in zip(names, shares_of, strict=True)}
    made["added"] = dict(zip(names, shares.tolist(), strict=True))
    return made


def _ends(scores: list[torch.Tensor]) -> list[int]:
    """Where one source's columns end and the next one's begin."""
    return torch.tensor([s.shape[1] for s in scores]).cumsum(0)[:-1].tolist()


def grid_targets(output: Path) -> list[Target]:
    """What a grid's cells tell: mean gates of `pemt`, gains of the experts that `single` chose.

    Args:
        output: what `pemt bench run` wrote.

    Raises:
        DataError: no cells there, or damaged ones.
    """
    results = read_results(output)
    targets = []
    for shots in results.shots:
        for task in results.tasks_at(shots):
            gates, gains, gain_from = (
                _grid_gates(results, task, shots),
                *_gains(results, task, shots),
            )
            why = "a grid's cells hold no model"
            missing = dict.fromkeys(("description", "prompt", "attention", "added"), why)
            if not gates:
                missing["gate"] = "the grid has no cells of pemt there"
            if not gains:
                missing["gain"] = (
                    f"the grid has no cells of single and of {' or '.join(REFERENCES)} there"
                )
            if gates or gains:
                name = task if len(results.shots) == 1 else f"{task}, {shots_title(shots)}"
                targets.append(
                    Target(
                        name=name, task=task, values={"gate": gates, "gain": gains},
                        gain_from=gain_from, missing=missing, shots=shots,
                    )
                )  # fmt: skip
    return targets


def with_gains(target: Target, grid: Target) -> Target:
    """A run's target with a grid's gains.

    Args:
        target: of a run.
        grid: of `grid_targets`, the same task.
    """
    missing = {k: v for k, v in target.missing.items() if k != "gain"}
    values = {**target.values, "gain": grid.values["gain"]}
    return replace(target, values=values, gain_from=grid.gain_from, missing=missing)


def _grid_gates(results: Results, task: str, shots: int | None) -> dict[str, float]:
    """By expert: the mean over the seeds that mix it; `auto:4` takes others at each."""
    cells = [c.gates for c in results.of(task, "pemt", shots).values() if c.gates]
    names = dict.fromkeys(name for gates in cells for name in gates if name != NONE)
    return {name: fmean(gates[name] for gates in cells if name in gates) for name in names}


def _gains(results: Results, task: str, shots: int | None) -> tuple[dict[str, float], str]:
    """By expert: the mean over the seeds that chose it of `single` minus the reference."""
    singles = results.of(task, "single", shots)
    for reference in REFERENCES:
        others = results.scores(task, reference, shots)
        found: dict[str, list[float]] = defaultdict(list)
        for seed in singles.keys() & others.keys():
            gain = singles[seed].value - others[seed]
            chosen = singles[seed].notes.get("expert")
            if chosen and math.isfinite(gain):
                found[str(chosen)].append(gain)
        if found:
            counts = ", ".join(f"{name} {len(found[name])}" for name in sorted(found))
            return (
                {name: fmean(found[name]) for name in sorted(found)},
                f"the grid's best single expert minus {title_of(reference)}, {shots_title(shots)}, "
                f"over the data seeds that chose it ({counts}); no other expert was measured",
            )
    return {}, ""
