"""How fast does a folded model decode? Beside plain LoRA of the same rank, the mixture, the base.

    python benchmarks/folded.py --output benchmarks/results/folded.json

Random experts beside every down projection of SmolLM2; each round every kind decodes the same
texts once, greedily and with a cache, on one base. Printed are tokens a second (median over rounds)
and the median of the rounds' ratios to plain LoRA. "folded" is what `PeftModel.from_pretrained`
loads, its norms and LoRA beside the base's weights; "merged" is after `merge_and_unload`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from pemt.backbones import down_projections, fingerprint
from pemt.bases import Base, load_base
from pemt.deploy import fold_mixture, write_folded
from pemt.experts import Expert, ExpertInfo, ExpertLayer
from pemt.model import PemtConfig, PemtModel
from pemt.training.record import machine, write_json

KINDS = ("base", "lora", "folded", "merged", "mixture")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--text", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    base = load_base(given.base, precision="float32")
    made = measure(base, given)
    for kind, numbers in made.items():
        rate, ratio = numbers["tokens_per_second"], numbers["of_lora"]
        print(f"{kind:>8}: {rate:.1f} tokens/s, {ratio:.2f} of plain LoRA's")
    if given.output is not None:
        asked = {k: v for k, v in vars(given).items() if k != "output"}
        write_json(given.output, {"asked": asked, "machine": machine(), "kinds": made})


def random_experts(base: Base, given: argparse.Namespace) -> list[Expert]:
    """Beside every down projection."""
    draw = torch.Generator().manual_seed(0)
    sites = down_projections(base.model, base.backbone)
    width, made = sites[0].width, fingerprint(base.model, base.backbone)
    experts = []
    for k in range(given.experts):
        info = ExpertInfo(
            name=f"e{k}", kind="lora", task=f"e{k}", base=base.name,
            base_family=base.backbone.family, base_fingerprint=made, tokenizer_fingerprint="none",
            width=width, hidden=sites[0].hidden, rank=given.rank, alpha=float(given.rank),
        )  # fmt: skip
        layers = tuple(
            ExpertLayer(
                module=s.path, scale=1.0,
                A=0.01 * torch.randn(given.rank, s.hidden, generator=draw),
                B=0.01 * torch.randn(s.width, given.rank, generator=draw),
            )
            for s in sites
        )  # fmt: skip
        prompt = 0.02 * torch.randn(given.prompt, width, generator=draw)
        experts.append(
            Expert(
                name=f"e{k}", kind="lora", activation=None, layers=layers, prompt=prompt, head={},
                info=info,
            )
        )  # fmt: skip
    return experts


def measure(base: Base, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Tokens a second of every kind."""
    experts = random_experts(base, given)
    config = PemtConfig(target_adapter="lora")
    start = experts[0].prompt

    def adapted() -> PemtModel:
        return PemtModel(base.model, experts, config, prompt=start, backbone=base.backbone).eval()

    vocabulary = base.model.config.vocab_size
    ids = torch.randint(5, vocabulary, (given.batch, given.text))
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as place:
        model = adapted()
        folded = fold_mixture(model)
        folder = write_folded(folded, Path(place) / "folded", base_name=base.name)
        model.detach()
        for number in range(given.rounds + 1):  # the first warms up
            for kind in KINDS:
                with ready(kind, base.model, adapted, folder, folded.expert) as (decoder, prompted):
                    # our prompt, or as many words: all kinds decode behind the same length
                    words = ids[:, :1].expand(-1, given.prompt)
                    text = ids if prompted else torch.cat([words, ids], 1)
                    began = time.perf_counter()
                    decoder.generate(
                        input_ids=text, attention_mask=torch.ones_like(text), do_sample=False,
                        max_new_tokens=given.tokens, min_new_tokens=given.tokens, pad_token_id=0,
                    )  # fmt: skip
                    if number:
                        seconds[kind].append(time.perf_counter() - began)
    count = given.batch * given.tokens
    return {
        kind: {
            "tokens_per_second": count / statistics.median(times),
            "of_lora": statistics.median(
                p / t for p, t in zip(seconds["lora"], times, strict=True)
            ),
        }
        for kind, times in seconds.items()
    }


@contextmanager
def ready(
    kind: str, base: Any, adapted: Any, folder: Path, folded: Expert
) -> Iterator[tuple[Any, bool]]:
    """What decodes, and whether it brings its own prompt; the base is clean afterwards."""
    if kind == "base":
        yield base, False
    elif kind == "mixture":
        model = adapted()
        yield model, True
        model.detach()
    elif kind == "lora":
        rank = folded.info.rank
        targets = [layer.module for layer in folded.layers]
        asked = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(base, asked).eval()
        yield model, False
        model.unload()
    else:
        maps = [base.get_submodule(layer.module).weight for layer in folded.layers]
        own = [weight.detach().clone() for weight in maps]
        model = PeftModel.from_pretrained(base, folder).eval()
        if kind == "merged":
            model.base_model.merge_adapter()
        yield model, False
        if kind == "merged":
            model.base_model.unmerge_adapter()
        model.unload()
        with torch.no_grad():  # what is merged and taken out again is off by rounding
            for weight, before in zip(maps, own, strict=True):
                weight.copy_(before)


if __name__ == "__main__":
    main()
