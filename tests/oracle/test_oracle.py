"""The authors' released code computed these tensors; we reproduce them (see data/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from pemt.experts import Expert, ExpertLayer
from pemt.model import PemtConfig, PemtModel, SourceConfig, SourceModel
from tests import tiny

DATA = Path(__file__).parent / "data"
STAGE2 = ["stage2_three_experts", "stage2_six_experts"]


def read(case: str):
    tensors = load_file(DATA / f"{case}.safetensors")
    meta = json.loads((DATA / f"{case}.json").read_text())

    def part(kind: str):
        return {
            k.removeprefix(f"{kind}/"): v for k, v in tensors.items() if k.startswith(f"{kind}/")
        }

    return meta, part


def build_base(meta, weights):
    model = T5ForConditionalGeneration(T5Config(**meta["config"])).eval()
    own = model.state_dict()
    model.load_state_dict(
        {k: weights[k] if k in weights else weights["shared.weight"] for k in own}
    )
    return model


def experts_of(model, meta, weights) -> list[Expert]:
    experts = []
    for k in range(meta["n_experts"]):
        template = tiny.expert(model, f"e{k}")
        layers = tuple(
            ExpertLayer(
                module=layer.module,
                A=weights[f"{layer.module}.lora_A.{k}"],
                B=weights[f"{layer.module}.lora_B.{k}"],
                scale=meta["lora_alpha"] / meta["rank"],
            )
            for layer in template.layers
        )
        experts.append(
            Expert(
                name=f"e{k}", kind="lora", activation=None, layers=layers,
                prompt=weights[f"task_list.{k}"], head={}, info=template.info,
            )
        )  # fmt: skip
    return experts


def names(model: PemtModel) -> dict[str, str]:
    """Our name of each trained parameter -> the authors' name."""
    table = {"correlation_prompt.target.embedding": "task_shared"}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name in table:
            continue
        theirs = name.removeprefix("base.")
        if theirs.endswith(".gate.weight"):
            theirs = theirs.replace(".gate.weight", ".w_gate")
        elif ".adapter." in theirs:
            site, inner = theirs.split(".DenseReluDense.wo.adapter.")
            kind, leaf = inner.split(".")
            theirs = f"{site}.adapter_controller.adapters.tgt.{kind}_sampler.{leaf}"
        else:
            theirs = theirs.replace(".trained.", ".")
        table[name] = theirs
    return table


def load_stage2(case: str):
    meta, part = read(case)
    weights = part("weights")
    base = build_base(meta, weights)
    config = PemtConfig.released(
        reduction=meta["config"]["d_model"] // meta["target_adapter_bottleneck"],
        activation=meta["target_adapter_activation"],
        sparsity_weight=meta["task_sparsity_weight"],
    )
    model = PemtModel(
        base, experts_of(base, meta, weights), config, prompt=weights["task_shared"]
    ).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for ours, theirs in names(model).items():
            parameters[ours].copy_(weights[theirs])
    return model, part


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b.to(a.dtype), atol=tolerance, rtol=tolerance)


def close_gradient(ours, theirs, name):
    error = (ours - theirs).norm() / theirs.norm().clamp_min(1e-8)
    assert error < 1e-4, f"{name}: relative error {error:.2e}"


def test_stage1():
    meta, part = read("stage1_single_task")
    weights = part("weights")
    base = build_base(meta, weights)
    model = SourceModel(
        base,
        SourceConfig(rank=meta["rank"], alpha=meta["lora_alpha"], prompt="random", kaiming_b=True),
        prompt=weights["task_shared"],
    ).eval()
    by_path = dict(zip([s.path for s in model.sites], model.branches, strict=True))
    with torch.no_grad():
        for path, branch in by_path.items():
            suffix = "" if f"{path}.lora_A" in weights else ".0"
            branch.A.copy_(weights[f"{path}.lora_A{suffix}"])
            branch.B.copy_(weights[f"{path}.lora_B{suffix}"])
    inputs, outputs, grads = part("inputs"), part("outputs"), part("grads")
    output = model(**inputs)
    close(output.logits, outputs["logits"])
    close(output.loss, outputs["loss"])
    close(output.encoder_last_hidden_state, outputs["encoder_last_hidden_state"])
    output.loss.backward()
    ours = {"task_shared": model.task_prompt.embedding.grad}
    for path, branch in by_path.items():
        suffix = "" if f"{path}.lora_A" in grads else ".0"
        ours[f"{path}.lora_A{suffix}"] = branch.A.grad
        ours[f"{path}.lora_B{suffix}"] = branch.B.grad
    assert ours.keys() == grads.keys()
    for name, gradient in grads.items():
        close_gradient(ours[name], gradient, name)
    check_greedy(model, inputs, outputs)


def check_greedy(model, inputs, outputs):
    want = outputs["greedy_ids"]
    got = model.generate(
        inputs["input_ids"], inputs["attention_mask"], max_new_tokens=want.shape[1] - 1,
        min_new_tokens=want.shape[1] - 1, do_sample=False, eos_token_id=-1,
    )  # fmt: skip
    assert torch.equal(got, want)


@pytest.mark.parametrize("case", STAGE2)
def test_stage2(case):
    model, part = load_stage2(case)
    inputs, outputs, grads = part("inputs"), part("outputs"), part("grads")
    output = model(**inputs, output_gates=True)
    close(output.logits, outputs["logits"])
    close(output.encoder_last_hidden_state, outputs["encoder_last_hidden_state"])
    for i, gate in enumerate(output.gates):
        close(gate, outputs[f"gate.{i:02d}"])
    close(output.task_loss, outputs["cross_entropy"])
    close(output.sparsity, outputs["task_sparsity_loss"])
    close(output.loss, outputs["loss"])
    output.loss.backward()
    table = names(model)
    assert set(table.values()) == set(grads)
    parameters = dict(model.named_parameters())
    for ours, theirs in table.items():
        close_gradient(parameters[ours].grad, grads[theirs], theirs)
    check_greedy(model, inputs, outputs)


def test_five_optimiser_steps():
    meta, part = read("stage2_five_steps")
    model, start = load_stage2(meta["start"])
    inputs = start("inputs")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=meta["lr"], betas=tuple(meta["betas"]), eps=meta["eps"], weight_decay=0.0
    )
    losses, norms = [], []
    for _ in range(meta["steps"]):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        losses.append(loss.detach())
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, meta["clip_norm"]))
        optimizer.step()
    last = model(**inputs, output_gates=True)
    losses.append(last.loss.detach())
    outputs, final = part("outputs"), part("final")
    close(torch.stack(losses), outputs["losses"])
    close(torch.stack(norms), outputs["grad_norms"], 1e-4)
    for i, gate in enumerate(last.gates):
        close(gate, outputs[f"gate.{i:02d}"], 1e-4)
    table = names(model)
    assert set(table.values()) == set(final)
    for ours, theirs in table.items():
        close(dict(model.named_parameters())[ours].detach(), final[theirs], 1e-4)
