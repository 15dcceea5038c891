"""Stage 1: one expert and its prompt, or a prompt alone, trained on one source task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pemt.backbones import Backbone
from pemt.errors import ConfigError, ExpertError
from pemt.model.adapted import AdaptedModel
from pemt.model.config import SourceConfig
from pemt.model.coverage import expert_sites
from pemt.nn import BottleneckBranch, ExpertTensors, LoraBranch, ParallelExpert, TaskPrompt

if TYPE_CHECKING:
    from pemt.experts import Expert, ExpertInfo


class SourceModel(AdaptedModel):
    """A frozen base with one trainable branch beside every down projection, and a prompt.

    Of kind "prompt" there are no branches: that is prompt tuning (arXiv 2104.08691).

    Args:
        base: a transformers model of a described type.
        config: of stage 1.
        prompt: `[P, D]` first values of the prompt; None where `config.prompt` is "none".
        outputs: encoder-only: number of classes, or 1 for regression.
        backbone: the base's description; looked up by its type where None.
        places: put the branches where this expert has them, in its ranks and scales.

    Raises:
        ExpertError: `places` does not fit the base.
    """

    def __init__(
        self,
        base: Any,
        config: SourceConfig | None = None,
        *,
        prompt: Tensor | None = None,
        outputs: int | None = None,
        backbone: Backbone | None = None,
        places: Expert | None = None,
    ) -> None:
        config = config or SourceConfig()
        if (prompt is None) != (config.prompt == "none"):
            raise ConfigError(
                f"prompt={'None' if prompt is None else 'given'} with "
                f"config.prompt={config.prompt!r}",
                "pass the prompt's first values (pemt.model.description_prompt), or set "
                "prompt='none'",
            )
        super().__init__(base, outputs=outputs, backbone=backbone)
        self.source_config = config
        with self.attaching():
            if prompt is not None:
                self._check_prompt(prompt)
            self.task_prompt = None if prompt is None else TaskPrompt(prompt.to(base.device))
            if config.kind == "prompt":
                self._check_prompt_fits(config, places)
                self.sites = []
            ranks = [(config.rank, config.alpha)] * len(self.sites)
            if places is not None and config.kind != "prompt":
                others = expert_sites(
                    base, self.backbone, self.base_fingerprint(), self.sites, [places]
                )
                table = {layer.module: layer for layer in places.layers}
                self.sites = [site for site in (*self.sites, *others) if site.path in table]
                sizes = [(table[s.path].A.shape[0], table[s.path].scale) for s in self.sites]
                ranks = [(rank, scale * rank) for rank, scale in sizes]
            self.branches = nn.ModuleList()
            for site, (rank, alpha) in zip(self.sites, ranks, strict=True):
                branch = self._branch(site.hidden, site.width, rank, alpha).to(base.device)
                self.branches.append(branch)
                wrapped = ParallelExpert(site.module, branch, self.slot)
                self.replace(site.parent, site.attribute, wrapped)

    @classmethod
    def from_expert(
        cls,
        base: Any,
        expert: Expert,
        *,
        outputs: int | None = None,
        backbone: Backbone | None = None,
    ) -> SourceModel:
        """One expert alone on its base, whatever it covers: to evaluate it or train it further.

        Args:
            base: the base it was made for.
            expert: trained here or imported; its prompt is used where it has one.
            outputs: encoder-only: number of classes, or 1 for regression; a head that the expert
                does not carry starts fresh.
            backbone: the base's description; looked up by its type where None.

        Raises:
            ExpertError: it does not fit the base.
        """
        alone = expert.kind == "prompt"
        config = SourceConfig(
            kind=expert.kind,
            rank=SourceConfig.rank if alone else expert.info.rank,
            alpha=SourceConfig.alpha if alone else expert.info.alpha,
            activation=expert.activation or SourceConfig.activation,
            prompt="description" if len(expert.prompt) else "none",
            prompt_tokens=len(expert.prompt) if alone else SourceConfig.prompt_tokens,
        )
        prompt = expert.prompt if len(expert.prompt) else None
        model = cls(base, config, prompt=prompt, outputs=outputs, backbone=backbone, places=expert)
        with model.attaching():
            model.load_expert(expert)
        return model

    def _check_prompt_fits(self, config: SourceConfig, places: Expert | None) -> None:
        assert self.task_prompt is not None
        rows = len(self.task_prompt.embedding)
        if rows != config.prompt_tokens:
            raise ConfigError(
                f"A prompt of {rows} rows with prompt_tokens={config.prompt_tokens}",
                "give as many rows (pemt.model.vocabulary_prompt)",
            )
        if places is not None and places.info.base_fingerprint != self.base_fingerprint():
            raise ExpertError(
                f"Prompt {places.name!r} was tuned on the base {places.info.base!r} "
                f"({places.info.base_fingerprint[:12]}), this base is another",
                "tune it on this base: pemt train-source --source.kind prompt",
            )

    def _branch(
        self, hidden: int, width: int, rank: int, alpha: float
    ) -> LoraBranch | BottleneckBranch:
        config = self.source_config
        if config.kind == "bottleneck":
            return BottleneckBranch(hidden, width, rank, activation=config.activation)
        return LoraBranch(hidden, width, rank, alpha, kaiming_b=config.kaiming_b)

    def options(self) -> dict[str, Any]:
        """The configuration."""
        return {**super().options(), "config": self.source_config.to_dict()}

    def prompt(self) -> Tensor | None:
        """The task's prompt, `[P, D]`, or None."""
        return None if self.task_prompt is None else self.task_prompt()

    def to_expert(self, info: ExpertInfo) -> Expert:
        """What it has learnt, as an expert for a library."""
        from pemt.experts import Expert, ExpertLayer

        layers = []
        for site, branch in zip(self.sites, self.branches, strict=True):
            t: ExpertTensors = branch.tensors()  # type: ignore[operator]
            layers.append(
                ExpertLayer(
                    module=site.path,
                    A=_own(t.A),
                    B=_own(t.B),
                    scale=t.scale,
                    a=_own(t.a),
                    b=_own(t.b),
                )
            )
        prompt = self.prompt()
        head = {} if self.head is None else {k: _own(v) for k, v in self.head.state_dict().items()}
        return Expert(
            name=info.name,
            kind=self.source_config.kind,
            activation=self.source_config.activation
            if self.source_config.kind == "bottleneck"
            else None,
            layers=tuple(layers),
            prompt=torch.zeros(0, self.width) if prompt is None else _own(prompt),
            head=head,
            info=info,
        )

    def load_expert(self, expert: Expert) -> None:
        """Copy an expert's values in, to evaluate it or train it further.

        Raises:
            ExpertError: of another kind, with branches elsewhere than this model, or of other
                shapes; nothing is copied then.
        """
        by_module = {layer.module: layer for layer in expert.layers}
        if set(by_module) != {site.path for site in self.sites}:
            odd = sorted(set(by_module) ^ {site.path for site in self.sites})[:3]
            raise ExpertError(
                f"Expert {expert.name!r} and this model differ in where they have branches: {odd}",
                "build the model with SourceModel.from_expert(base, expert)",
            )
        self._check_shapes(expert)
        for site, branch in zip(self.sites, self.branches, strict=True):
            layer = by_module[site.path]
            branch.load(  # type: ignore[operator]
                ExpertTensors(A=layer.A, B=layer.B, scale=layer.scale, a=layer.a, b=layer.b)
            )
        with torch.no_grad():
            if self.task_prompt is not None:
                self.task_prompt.embedding.copy_(expert.prompt)
            if self.head is not None and expert.head:
                self.head.load_state_dict(expert.head)

    def _check_shapes(self, expert: Expert) -> None:
        """Copying would stretch one row over many, so shapes must be equal."""
        build = "build the model with SourceModel.from_expert(base, expert)"
        called, kind = f"Expert {expert.name!r}", self.source_config.kind
        if expert.kind != kind:
            raise ExpertError(f"{called} is of kind {expert.kind!r}, this model is {kind!r}", build)
        by_module = {layer.module: layer for layer in expert.layers}
        for site, branch in zip(self.sites, self.branches, strict=True):
            own: ExpertTensors = branch.tensors()  # type: ignore[operator]
            theirs = by_module[site.path]
            if theirs.A.shape != own.A.shape or theirs.B.shape != own.B.shape:
                raise ExpertError(
                    f"{called} at {site.path} has A {list(theirs.A.shape)}, B "
                    f"{list(theirs.B.shape)}; this model has A {list(own.A.shape)}, B "
                    f"{list(own.B.shape)}",
                    build,
                )
        rows = len(expert.prompt)
        if self.task_prompt is not None and rows != len(self.task_prompt.embedding):
            raise ExpertError(
                f"{called} has a prompt of {rows} rows, this model of "
                f"{len(self.task_prompt.embedding)}",
                build,
            )
        if self.head is not None and expert.head:
            outputs = len(expert.head["weight"])
            if outputs != len(self.head.weight):
                raise ExpertError(
                    f"{called} has a head of {outputs} outputs, this model of "
                    f"{len(self.head.weight)}",
                    f"give outputs={outputs}, or take its head off first",
                )


def _own(value: Any) -> Any:
    return None if value is None else value.detach().to("cpu", torch.float32).clone()
