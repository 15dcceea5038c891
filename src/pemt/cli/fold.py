"""`pemt fold`: an adapted model as one LoRA, for plain PEFT."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pemt.errors import ConfigError

if TYPE_CHECKING:
    from pemt.deploy import AtHand, Folded
    from pemt.methods.lora import LoraModel
    from pemt.training.deploying import Deployed


def fold(
    run: Path,
    *,
    output: Path | None = None,
    rank: int | None = None,
    at_mean_gates: bool = False,
    partial: bool = False,
    rows: int | None = 300,
    library: str | None = None,
    base: str | None = None,
    data_dir: Path | None = None,
    precision: str = "float32",
    json: bool = False,
) -> int:
    """Fold the mixture of an adapted model into one LoRA that plain PEFT loads.

    For models whose gates depend on the task alone: on decoder-only bases, or adapted with
    --pemt.gate task or --method uniform (docs/how-to/fold.md has the others). The folder holds the
    LoRA, the trained norms, the prompt, the head, and a README that says how to load them and what
    is not in them. A run of --method lora is one LoRA already, and is written as it is.

    Example: pemt fold runs/product_reviews-pemt-16-0 --rank 16

    Args:
        run: folder that `pemt adapt` wrote, or the model folder in it.
        output: folder to be made (default: RUN-folded).
        rank: of the LoRA; by default the sum of the ranks of the experts and of a LoRA target
            adapter, which is exact.
        at_mean_gates: fold a model whose gates depend on the example at their mean over the task's
            training rows: another model, whose distance and scores are printed.
        partial: leave out the serial target adapter, which no LoRA can hold: another model too.
        rows: score at most this many test rows before and after; 0: none.
        library: folder or hf:// address of the experts, if they were not saved with the model.
        base: load the base from here instead of from where the model says.
        data_dir: local mirror of datasets (default: the variable PEMT_DATA_DIR).
        precision: of the frozen base: float32, or bfloat16.
        json: print the result as JSON on stdout.
    """
    from pemt.cli.prune import print_scores
    from pemt.deploy import write_folded
    from pemt.deploy.folder import check_free
    from pemt.methods.lora import LoraModel
    from pemt.model.storage import read_description
    from pemt.training.deploying import load_run, model_folder

    described = read_description(model_folder(run))
    folder = output or run.parent / f"{run.name}-folded"
    check_free(folder)
    loaded = load_run(run, library=library, base=base, precision=precision)
    sought = {"rows": rows, "data_dir": data_dir}
    if isinstance(loaded.model, LoraModel):
        if rank is not None:
            raise ConfigError(
                f"rank={rank}: a run of the method lora is written as it was trained",
                "leave --rank out",
            )
        folded, here, about = _one_lora(loaded, loaded.model, sought)
    else:
        folded, here, about = _mixture(loaded, sought, rank, at_mean_gates, partial)
    write_folded(folded, folder, base_name=described["base"], described=about)
    if json:
        print(json_format.dumps({**folded.to_dict(), **about, "output": str(folder)}))
        return 0
    kept = folded.expert.info.rank
    exact = "exact" if kept == folded.full_rank else f"relative error {folded.error:.4f}"
    print(f"One LoRA of rank {kept} of {folded.full_rank} ({exact}).")
    if kept < folded.full_rank:
        for path, error in folded.errors.items():
            print(f"  {path}: {error:.4f}")
    if folded.gate_error is not None:
        off = folded.gate_error
        print(f"At mean gates: an example's own mixture is {off:.4f} away (relative).")
    for part in folded.left_out:
        print(f"Not in it: {part}. This is another model.")
    print_scores(about["scores"], here.missing)
    print(f"It is in {folder}; its README.md says how plain PEFT loads it.")
    return 0


def _one_lora(
    loaded: Deployed, model: LoraModel, sought: dict[str, Any]
) -> tuple[Folded, AtHand, dict[str, Any]]:
    """The LoRA of a run without experts, and its scores; there is nothing to compare them with."""
    from pemt.deploy import at_hand, fold_lora

    here = at_hand(loaded, **sought)
    scored = here.scores(loaded, model)
    scores = None if scored is None else {"before": scored}
    return fold_lora(model), here, {"task": loaded.task.name, "scores": scores}


def _mixture(
    loaded: Deployed, sought: dict[str, Any], rank: int | None, at_mean_gates: bool, partial: bool
) -> tuple[Folded, AtHand, dict[str, Any]]:
    """A mixture as one LoRA, and its scores before and after."""
    from pemt.deploy import at_hand, fold_mixture, folded_model
    from pemt.deploy.folding import constant_gates, require_foldable
    from pemt.nn import LoraBranch

    model = loaded.mixture
    require_foldable(model, partial=partial)
    here = at_hand(loaded, **sought)
    gates = None
    if at_mean_gates and constant_gates(model) is None:
        if not here.train:
            raise ConfigError(
                f"No rows to take mean gates over: {here.missing}", "give --data-dir, or --rows 1"
            )
        gates = here.every_gate(loaded, model)
    folded = fold_mixture(model, rank=rank, gates=gates, partial=partial)
    before = here.scores(loaded, model)
    scores = None
    if before is not None:
        after = here.scores(loaded, folded_model(model.detach(), folded, like=model))
        scores = {"before": before, "after": after or {}}
    lora = any(isinstance(m.adapter, LoraBranch) for m in model.mixtures)
    return folded, here, {"task": loaded.task.name, "scores": scores, "lora_adapter": lora}
