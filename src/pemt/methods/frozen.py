"""What the baselines over frozen experts share: the base with the experts known to fit it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pemt.backbones import Site
from pemt.errors import ConfigError
from pemt.experts import Expert
from pemt.methods.method import Setting
from pemt.model import AdaptedModel
from pemt.model.coverage import banks, expert_sites
from pemt.nn import ExpertBank

if TYPE_CHECKING:
    from typing_extensions import Self


class FrozenExperts(AdaptedModel):
    """A frozen base that frozen experts will be put on, checked to fit it; no prompt."""

    experts: tuple[Expert, ...]

    @classmethod
    def on(cls, setting: Setting) -> Self:
        """The setting's base with its experts known and nothing wrapped yet; seeds new weights.

        Raises:
            ConfigError: no experts, or two of the same name.
            ExpertError: an expert of another base, other widths or places the base does not have.
        """
        base, names = setting.base, [e.name for e in setting.experts]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"Experts {names}", "give at least one expert, each name once")
        model = setting.bare(cls)
        with model.attaching():
            model.experts = tuple(setting.experts)
            model.sites += expert_sites(
                base.model, base.backbone, model.base_fingerprint(), model.sites, model.experts
            )
        return model

    def banks(self) -> Iterator[tuple[Site, ExpertBank | None, list[int]]]:
        """Each site with the bank of the experts there, if any, and their numbers."""
        return banks(self.sites, self.experts, self.base.dtype)

    def options(self) -> dict[str, Any]:
        """The experts, by name and content."""
        experts = [[e.name, e.info.content_hash] for e in self.experts]
        return {**super().options(), "experts": experts}

    def parameter_counts(self) -> tuple[int, int]:
        """(trained, all of the base and what was added, frozen experts included)."""
        trained, total = super().parameter_counts()
        frozen = sum(m.size for m in self.modules() if isinstance(m, ExpertBank))
        return trained, total + frozen
