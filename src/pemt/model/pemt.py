"""Stage 2: the frozen base, a gated mixture of frozen experts, the target prompt and adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pemt.backbones import Backbone, Site
from pemt.errors import ConfigError
from pemt.model.config import PemtConfig
from pemt.model.coverage import banks, expert_sites
from pemt.model.gated import NONE, GatedModel
from pemt.nn import (
    CorrelationPrompt,
    LoraBranch,
    MixtureLayer,
    PromptGate,
    TargetAdapter,
    UniformGate,
)
from pemt.nn.mixture import GateInput

if TYPE_CHECKING:
    from pemt.bases import Base
    from pemt.experts import Expert, ExpertLibrary

__all__ = ["NONE", "PemtModel"]


class PemtModel(GatedModel):
    """PEMT's second stage on a base (METHOD.md, stage 2).

    Every down projection is wrapped: it has the target adapter and the Task Sparsity Loss. Each
    other linear map that at least one expert is beside is wrapped too, with a bank and a gate of
    its own. `sites` and the gates list the down projections first, then the others. Without a
    mixture (`config.mixture`) no layer has a bank or a gate: the experts give their prompts alone.

    Args:
        base: a transformers model of a described type.
        experts: in gate-column order; all made for this base. Imported ones may cover any of its
            linear maps; see `pemt.nn.MixtureLayer` for what an absent expert's gate means.
        config: of stage 2.
        prompt: `[P, D]` first values of the target prompt.
        outputs: encoder-only: number of classes, or 1 for regression.
        backbone: the base's description; looked up by its type where None.
        guide: by expert, and "none": where gates start and how much each source prompt counts;
            needed where `config.guide` is "evidence", see `pemt.guide`.

    Raises:
        ConfigError: no experts, two of the same name, or a guide of other experts.
        ExpertError: an expert of another base, other widths or places the base does not have.
    """

    def __init__(
        self,
        base: Any,
        experts: Sequence[Expert],
        config: PemtConfig | None = None,
        *,
        prompt: Tensor,
        outputs: int | None = None,
        backbone: Backbone | None = None,
        guide: Mapping[str, float] | None = None,
    ) -> None:
        names = [e.name for e in experts]
        if not experts or len(set(names)) != len(names):
            raise ConfigError(f"Experts {names}", "give at least one expert, each name once")
        super().__init__(base, outputs=outputs, backbone=backbone)
        with self.attaching():
            self._attach(base, experts, config or PemtConfig(), prompt, guide)

    def _attach(
        self, base: Any, experts: Sequence[Expert], config: PemtConfig, prompt: Tensor,
        guide: Mapping[str, float] | None,
    ) -> None:  # fmt: skip
        self.pemt_config = config
        self.experts = tuple(experts)
        self.guide = None if config.guide == "none" else _checked(guide, self.expert_names)
        others = expert_sites(
            base, self.backbone, self.base_fingerprint(), self.sites, self.experts
        )
        mixed: Sequence[Expert] = ()
        if config.mixture:
            self.sites += others
            self.sparsity_weight = config.sparsity_weight
            mixed = self.experts
        self._check_prompt(prompt)
        self.sparsity_all_tokens = config.sparsity_tokens == "all"
        self.task_gates = config.gate == "task" and config.mixture
        device = base.device
        prompted = [e for e in self.experts if len(e.prompt)]
        sources = [] if config.prompt_fusion == "none" else [e.prompt.to(device) for e in prompted]
        shares = None
        if self.guide is not None and config.guide_prompt and sources:
            shares = torch.tensor([self.guide[e.name] for e in prompted])
        self.correlation_prompt = CorrelationPrompt(
            prompt.to(device),
            sources,
            dropout=config.prompt_dropout,
            scale=config.prompt_scale,
            fusion=config.prompt_fusion,
            weights=shares,
        ).to(device)
        if config.train_norms:
            self.train_norms()
        self.mixtures: list[MixtureLayer] = []
        for site, bank, here in banks(self.sites, mixed, base.dtype):
            gate, gate_input = (None, None) if bank is None else self._gate(site)
            layer = MixtureLayer(
                site.module,
                bank,
                gate,
                self._target_adapter(site),
                self.slot,
                index=site.index,
                stack=site.stack,
                gate_input=gate_input or "none",
                averaging=config.sparsity_averaging,
                present=None if len(here) == len(self.gate_names) else here,
                sparsity=site.is_down,
                top_k=config.top_k,
                scope=config.top_k_scope,
                top_k_train=config.top_k_train,
            ).to(device)
            self.replace(site.parent, site.attribute, layer)
            self.mixtures.append(layer)

    def _gate(self, site: Site) -> tuple[PromptGate | UniformGate, GateInput]:
        """A site's gate and what it reads."""
        names, tau, kind = self.gate_names, self.pemt_config.tau, self.pemt_config.gate
        if kind == "uniform":
            return UniformGate(len(names)), "none"
        start = None
        if self.guide is not None and self.pemt_config.guide_gates:
            start = torch.tensor([self.guide[name] for name in names])
            start = start / start.sum()
        reads: GateInput = "hidden"
        if kind == "task":
            reads = "task"
        elif self.family == "encoder-decoder" and site.stack == "decoder":
            reads = "summary"
        width = site.hidden if reads == "hidden" else self.width
        return PromptGate(width, len(names), tau=tau, start=start), reads

    def _target_adapter(self, site: Site) -> TargetAdapter | LoraBranch | None:
        """What trains at a down projection for the target alone."""
        config = self.pemt_config
        if not config.target_adapter or not site.is_down:
            return None
        if config.target_adapter == "lora":
            rank = max(1, site.width // config.reduction)
            return LoraBranch(site.hidden, site.width, rank, alpha=rank)
        return TargetAdapter(site.width, reduction=config.reduction, activation=config.activation)

    def gated_sites(self) -> list[Site]:
        """The sites that at least one expert is beside, down projections first; maybe none."""
        pairs = zip(self.sites, self.mixtures, strict=True)
        return [site for site, layer in pairs if layer.gate is not None]

    @property
    def expert_names(self) -> list[str]:
        """Of the experts, in order."""
        return [e.name for e in self.experts]

    @property
    def gate_names(self) -> list[str]:
        """Gate columns, in order: the experts, and "none" where it is a choice.

        No layer has a branch for "none": what its gate gets, the mixture leaves out.
        """
        choice = self.guide is not None and self.pemt_config.guide_none
        return [*self.expert_names, NONE] if choice else self.expert_names

    def options(self) -> dict[str, Any]:
        """The configuration and the experts, by name and content."""
        experts = [[e.name, e.info.content_hash] for e in self.experts]
        made = {**super().options(), "config": self.pemt_config.to_dict(), "experts": experts}
        return made if self.guide is None else {**made, "guide": self.guide}

    def rate_factors(self) -> dict[nn.Parameter, float]:
        """The gates' weights and starts, as configured."""
        config = self.pemt_config
        made: dict[nn.Parameter, float] = {}
        for layer in self.mixtures:
            if isinstance(layer.gate, PromptGate):
                made[layer.gate.weight] = config.gate_factor
                if layer.gate.bias is not None:
                    made[layer.gate.bias] = config.guide_rate
        return made

    def prompt(self) -> Tensor:
        """The correlation-guided prompt, `[P, D]`."""
        fused: Tensor = self.correlation_prompt()
        return fused

    def prompt_rows(self) -> int:
        """The positions that the prompt takes, without making it."""
        return len(self.correlation_prompt.target.embedding)

    def beside(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a saved model needs besides what was trained: plain values, and tensors."""
        return {}, {}

    def parameter_counts(self) -> tuple[int, int]:
        """(trained, all of the base and what was added, frozen experts and prompts included)."""
        trained, total = super().parameter_counts()
        frozen = sum(m.bank.size for m in self.mixtures if m.bank is not None)
        return trained, total + frozen + sum(e.prompt.numel() for e in self.experts)

    def save_pretrained(
        self, folder: str | Path, *, base_name: str | None = None, include_experts: bool = True,
        extra: dict[str, Any] | None = None,
    ) -> Path:  # fmt: skip
        """Write the adapted model to a folder, see `pemt.model.storage`."""
        from pemt.model.storage import save_model

        name = base_name or str(getattr(self.base.config, "_name_or_path", ""))
        return save_model(
            self, folder, base_name=name, include_experts=include_experts, extra=extra
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, base: Base | None = None, library: ExpertLibrary | None = None,
        precision: str = "float32", device: str | None = None,
    ) -> PemtModel:  # fmt: skip
        """Read an adapted model from a folder, see `pemt.model.storage.load_model`."""
        from pemt.model.storage import load_model

        return load_model(folder, base=base, library=library, precision=precision, device=device)[0]

    def push_to_hub(self, repository: str, *, base_name: str | None = None, **settings: Any) -> Any:
        """Save to a temporary folder and upload it to the Hub.

        Args:
            repository: "user/name"; made where it does not exist.
            base_name: what readers load the base by: a Hub id.
            **settings: of huggingface_hub's `upload_folder`, such as `revision`.
        """
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as place:
            folder = self.save_pretrained(Path(place) / "model", base_name=base_name)
            api.create_repo(repository, exist_ok=True)
            return api.upload_folder(repo_id=repository, folder_path=folder, **settings)

    @torch.no_grad()
    def gates(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The gates that these inputs get, `[layers, B, K]`, float32; `gated_sites` says of which.

        Encoder-decoder: the decoder's gates do not depend on what is decoded. Without a mixture
        there are no layers with gates: `[0, B, K]`.
        """
        if not self.gated_sites():
            return torch.empty(0, len(input_ids), len(self.gate_names))
        extra: dict[str, Tensor] = {}
        if self.family == "encoder-decoder":
            start = self.base.config.decoder_start_token_id
            extra["decoder_input_ids"] = input_ids.new_full((len(input_ids), 1), start)
        output = self(input_ids, attention_mask, output_gates=True, **extra)
        return torch.stack([g.float() for g in output.gates])


def _checked(guide: Mapping[str, float] | None, names: Sequence[str]) -> dict[str, float]:
    """A guide for exactly these experts and none, as plain numbers that sum to 1.

    Raises:
        ConfigError: none given, other names, or weights that are no distribution.
    """
    if guide is None:
        raise ConfigError(
            "guide='evidence' without the weights of the experts",
            "adapt with labelled rows (pemt.training.adapt), or give guide={expert: weight, ..}",
        )
    if NONE in names:
        raise ConfigError(
            f"An expert named {NONE!r} under a guide", f"{NONE!r} stands for no expert: rename it"
        )
    values = {name: float(guide.get(name, 0.0 if name == NONE else float("nan")))
              for name in [*names, NONE]}  # fmt: skip
    missing = [name for name, value in values.items() if not 0 <= value <= 1]
    unknown = sorted(set(guide) - set(values))
    if missing or unknown or abs(sum(values.values()) - 1) > 1e-4:
        what = missing or unknown or [f"sum {sum(values.values()):.4f}"]
        raise ConfigError(
            f"A guide that does not fit these experts: {what[0]}",
            f"give one weight from 0 to 1 for each of {', '.join(names)} and {NONE!r}, sum 1",
        )
    return values
