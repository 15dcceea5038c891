"""Which experts a target task gets: by name, all that fit, or the best by a ranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pemt.backbones import down_projections, fingerprint
from pemt.bases import Base
from pemt.errors import ConfigError, UnknownNameError
from pemt.experts import Expert, ExpertLibrary, check_compatible
from pemt.guide.guide import looked_at
from pemt.model import PemtConfig
from pemt.tasks import Example, Task
from pemt.tasks.encoding import fingerprint as tokenizer_fingerprint

if TYPE_CHECKING:
    from pemt.methods.ranking import Ranking


def check_experts(base: Base, library: ExpertLibrary, names: Sequence[str] | None) -> list[str]:
    """Names of experts that fit a base; all of the library where `names` is None.

    Raises:
        ConfigError: an empty library.
        UnknownNameError: no expert of that name.
        ExpertError: one made for another base, width or tokenizer.
    """
    chosen = list(names) if names is not None else library.names()
    if not chosen:
        raise ConfigError(f"No experts in {library}", "train some first: pemt train-source --help")
    made = fingerprint(base.model, base.backbone)
    words = tokenizer_fingerprint(base.tokenizer)
    site = down_projections(base.model, base.backbone)[0]
    for name in chosen:
        check_compatible(
            library.info(name), base_fingerprint=made, tokenizer_fingerprint=words,
            width=site.width, hidden=site.hidden,
        )  # fmt: skip
    return chosen


def picked(
    base: Base, experts: ExpertLibrary | Sequence[Expert], names: Sequence[str] | None
) -> Sequence[Expert]:
    """The experts of these names, loaded and in this order; all where `names` is None.

    Raises:
        ConfigError: an empty library.
        UnknownNameError: no expert of that name.
        ExpertError: one that is altered, or does not fit the base.
    """
    if isinstance(experts, ExpertLibrary):
        return experts.load_many(check_experts(base, experts, names))
    if names is None:
        return experts
    by_name = {e.name: e for e in experts}
    for name in names:
        if name not in by_name:
            raise UnknownNameError("expert", name, by_name)
    return [by_name[name] for name in names]


def ranked(
    base: Base,
    task: Task,
    experts: ExpertLibrary | Sequence[Expert],
    rows: Sequence[Example],
    *,
    max_source_length: int | None = None,
) -> Ranking:
    """All experts, the best for a task first, judged on labelled rows; see `rank_experts`.

    Experts of a library are loaded one at a time, so a large one needs the memory of one expert.

    Args:
        base: the frozen base.
        task: the target task.
        experts: a library, or loaded experts.
        rows: labelled training rows; those of `pemt.guide.guide.looked_at` are read.
        max_source_length: tokens of text, as in `TrainSettings`.

    Raises:
        ConfigError: no experts.
        DataError: too few rows.
        ExpertError: an expert that is altered, or does not fit the base.
    """
    from pemt.methods.method import Setting
    from pemt.methods.ranking import rank_experts

    setting = Setting(
        base=base, task=task, experts=[], train=looked_at(task, rows), validation=[],
        config=PemtConfig(), max_source_length=max_source_length,
    )  # fmt: skip
    return rank_experts(setting, _one_by_one(base, experts))


def _one_by_one(base: Base, experts: ExpertLibrary | Sequence[Expert]) -> Iterator[Expert]:
    if isinstance(experts, ExpertLibrary):
        for name in check_experts(base, experts, None):
            yield experts.load(name)
    else:
        yield from experts


def best_experts(
    base: Base,
    task: Task,
    experts: ExpertLibrary | Sequence[Expert],
    asked: str,
    rows: Sequence[Example],
    *,
    max_source_length: int | None = None,
) -> tuple[list[str], Ranking]:
    """The names behind "auto:N": the N experts that rank best on labelled rows, best first.

    Raises:
        ConfigError: not of the form "auto:N", or N is more than there are.
    """
    count = best_of(asked)
    ranking = ranked(base, task, experts, rows, max_source_length=max_source_length)
    return ranking.best(count), ranking


def best_of(asked: str) -> int:
    """The 4 of "auto:4".

    Raises:
        ConfigError: another form, or 0.
    """
    word, _, count = asked.partition(":")
    if word != "auto" or not count.isdecimal() or not int(count):
        raise ConfigError(f"experts={asked!r}", "give names, or auto:4 for the four that rank best")
    return int(count)
