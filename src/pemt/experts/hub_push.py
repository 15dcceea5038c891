"""Pushing experts to the Hub: one commit for all of them, whole or not at all."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pemt.errors import ConfigError
from pemt.experts.address import HubAddress
from pemt.experts.card import MARK, expert_card, library_card
from pemt.experts.expert import Expert, ExpertInfo
from pemt.experts.folder import read_info
from pemt.experts.hub import HubLibrary
from pemt.experts.hub_files import client, hub_errors
from pemt.experts.library import ExpertLibrary
from pemt.experts.manifest import CARD, MANIFEST


def push(
    source: ExpertLibrary | Expert | str | Path,
    repo: str,
    *,
    names: Sequence[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    licence: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
) -> str:
    """Upload experts to a repository on the Hub, in one commit, with their cards.

    An expert of the same name is replaced there; other experts stay. The commit is refused by the
    Hub if somebody else pushed meanwhile.

    Args:
        source: a library, or its folder, or one expert.
        repo: "user/repo" or "user/repo/folder"; made if it does not exist.
        names: which experts; all by default.
        private: whether a repository made here is private; by default what the account is set to.
        revision: the branch to push to, made if it does not exist; "main" by default.
        commit_message: of the commit.
        licence: of the weights, for the cards, as the Hub names it, such as "apache-2.0".
        endpoint: the Hub's URL; by default `HF_ENDPOINT` or huggingface.co.
        cache_dir: of huggingface_hub; by default `HF_HUB_CACHE` or its usual place.
        token: of the Hub; by default the one that `hf auth login` saved.

    Returns:
        The address with the new commit: what others pull or adapt with.

    Raises:
        ConfigError: nothing to push, or no repository's name.
        UnknownNameError: no expert of one of the names.
        ExpertError: an expert is altered, or the Hub refuses.
    """
    address = _target(repo, revision)
    where = f"hf://{address.repo}{'/' + address.folder if address.folder else ''}"
    where += f"@{address.revision}" if address.revision else ""
    settings: dict[str, Any] = {"endpoint": endpoint, "cache_dir": cache_dir, "token": token}
    with tempfile.TemporaryDirectory(prefix="pemt-push-") as scratch:
        place = Path(scratch)
        infos = _gather(source, names, place)  # verified copies: writers cannot change them
        there = _prepare(address, private=private, **settings)
        for info in infos:
            _card(place / info.name, info, where, licence)
        others = [i for name, i in there.infos() if name not in {x.name for x in infos}]
        known = [*infos, *(i for i in others if isinstance(i, ExpertInfo))]
        operations = _operations(there, place, infos)
        if _ours(there):
            (place / CARD).write_text(
                library_card(known, where=where, licence=licence), encoding="utf-8"
            )
            operations.append(_addition(address.prefix + CARD, place / CARD))
        message = commit_message or f"Add {', '.join(i.name for i in infos)}"
        with hub_errors(f"Pushing to {address.repo}", address):
            made = there.files.api().create_commit(
                address.repo, operations, commit_message=message[:200],
                revision=address.revision, parent_commit=there.commit,
            )  # fmt: skip
    return address.at(str(made.oid))


def _target(repo: str, revision: str | None) -> HubAddress:
    address = HubAddress.parse(repo)
    if revision is not None and address.revision not in (None, revision):
        raise ConfigError(
            f"The address says {address.revision!r}, the revision {revision!r}.", "give one of them"
        )
    address = dataclasses.replace(address, revision=revision or address.revision)
    if address.pinned:
        raise ConfigError(
            f"{address.revision!r} is a commit, which does not change.", "push to a branch"
        )
    return address


def _gather(
    source: ExpertLibrary | Expert | str | Path, names: Sequence[str] | None, place: Path
) -> list[ExpertInfo]:
    copies = ExpertLibrary(place)
    if isinstance(source, Expert):
        _require_only(source.name, names)
        return [copies.add(source)]
    if not isinstance(source, ExpertLibrary):
        folder = Path(source).expanduser().absolute()
        if (folder / MANIFEST).is_file():  # one expert's folder: its bytes, and its card
            name = read_info(folder).name  # which its folder has too
            _require_only(name, names)
            return copies.add_from(ExpertLibrary(folder.parent), [name])
        source = ExpertLibrary(folder)
    return copies.add_from(source, names)


def _require_only(name: str, names: Sequence[str] | None) -> None:
    if names is not None and list(names) != [name]:
        raise ConfigError(f"Experts {list(names)} of one expert.", f"it is {name!r}")


def _prepare(address: HubAddress, *, private: bool | None, **settings: Any) -> HubLibrary:
    """Make the repository and the branch where they are missing; look at what is there."""
    api = client(settings["endpoint"], settings["token"])
    with hub_errors(f"Pushing to {address.repo}", address):
        api.create_repo(address.repo, private=private, exist_ok=True)
        if address.revision not in (None, "main"):
            api.create_branch(address.repo, branch=str(address.revision), exist_ok=True)
    return HubLibrary(address, may_be_empty=True, **settings)


def _card(place: Path, info: ExpertInfo, where: str, licence: str | None) -> None:
    """Say in a card of ours where the expert is now; a card that somebody wrote stays."""
    card = place / CARD
    if MARK in card.read_text(encoding="utf-8", errors="replace"):
        card.write_text(expert_card(info, where=where, licence=licence), encoding="utf-8")


def _ours(there: HubLibrary) -> bool:
    """Whether the library's card is missing, or one that was written here."""
    path = there.address.prefix + CARD
    if path not in there.files.files:
        return True
    found = there.files.download([path])[path]
    return MARK in found.read_text(encoding="utf-8", errors="replace")


def _operations(there: HubLibrary, place: Path, infos: Sequence[ExpertInfo]) -> list[Any]:
    """Add every file of every expert; delete what an earlier version had besides."""
    from huggingface_hub import CommitOperationDelete

    operations: list[Any] = []
    for info in infos:
        own = f"{there.address.prefix}{info.name}/"
        fresh = {own + path.name: path for path in sorted((place / info.name).iterdir())}
        operations += [_addition(path, file) for path, file in fresh.items()]
        stale = [p for p in there.files.files if p.startswith(own) and p not in fresh]
        operations += [CommitOperationDelete(path) for path in stale]
    return operations


def _addition(path: str, file: Path) -> Any:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(file))
