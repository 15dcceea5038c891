"""`pemt experts`: change a library of experts."""

from __future__ import annotations

from pathlib import Path

from pemt.cli.experts import open_library, print_json


def add(
    library: str,
    source: str,
    *,
    names: list[str] | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Copy an expert's folder, or experts of another library, into a library.

    Every expert is verified before it shows; either all of them are added or none. One that is
    there already, with the same content, stays as it is.

    Example: pemt experts add experts ../other/film_reviews

    Args:
        library: Folder of the library; made where it does not exist.
        source: Folder of one expert, or a library (a folder or hf://user/repo@revision).
        names: Which experts of the source, with commas between; all by default.
        overwrite: Replace experts of the same name.
        json: Print the added experts' names and content hashes as JSON.

    Returns:
        0.
    """
    from pemt.errors import ConfigError
    from pemt.experts import ExpertLibrary
    from pemt.experts.manifest import MANIFEST

    store = ExpertLibrary(library)
    store.require_writable()
    folder = Path(source).expanduser().absolute()
    if (folder / MANIFEST).is_file():
        if names is not None and names != [folder.name]:
            raise ConfigError(f"{source} is one expert.", "leave out --names")
        infos = store.add_from(ExpertLibrary(folder.parent), [folder.name], overwrite=overwrite)
    else:
        infos = store.add_from(open_library(source), names, overwrite=overwrite)
    if json:
        print_json([{"name": i.name, "content_hash": i.content_hash} for i in infos])
        return 0
    print(f"{len(infos)} in {store}: {', '.join(i.name for i in infos)}")
    return 0


def rename(library: str, name: str, new: str, *, json: bool = False) -> int:
    """Give an expert another name; its tensors stay, its content hash changes.

    Names are identity: adapted models that name the old expert, and were saved without their
    experts, refuse to load afterwards.

    Args:
        library: Folder that holds the experts, one folder each.
        name: The expert's name.
        new: Its new name.
        json: Print the new name and content hash as JSON.

    Returns:
        0.
    """
    store = open_library(library)
    old = store.info(name)
    info = store.rename(name, new)
    if json:
        print_json({"old": name, "name": info.name, "content_hash": info.content_hash})
        return 0
    print(f"{name} is now {new} (content hash {info.content_hash[:12]}).")
    print(
        f"Adapted models that name {name!r} ({old.content_hash[:12]}) and were saved without their "
        "experts will refuse to load: rename it back, or adapt again."
    )
    return 0


def remove(library: str, name: str, *, json: bool = False) -> int:
    """Delete an expert from a library.

    Args:
        library: Folder that holds the experts, one folder each.
        name: The expert's name.
        json: Print what was removed as JSON.

    Returns:
        0.
    """
    store = open_library(library)
    store.remove(name)
    if json:
        print_json({"removed": name, "left": store.names()})
        return 0
    print(f"{name} is removed; {len(store)} left in {store}.")
    return 0


def card(
    library: str,
    name: str | None = None,
    *,
    write: bool = False,
    licence: str | None = None,
) -> int:
    """Print the card of an expert or of a whole library, or write it as README.md.

    Args:
        library: Folder that holds the experts, one folder each, or hf://user/repo@revision.
        name: The expert; without it, the card is the library's.
        write: Write README.md beside what it describes instead of printing it.
        licence: Of the weights, as the Hub names it, such as apache-2.0; unknown by default.

    Returns:
        0.
    """
    from pemt.experts import ExpertInfo, HubLibrary
    from pemt.experts.card import expert_card, library_card

    store = open_library(library)
    where = str(store) if isinstance(store, HubLibrary) else None
    if write:
        store.require_writable()
    if name is not None:
        text = expert_card(store.info(name), where=where, licence=licence)
    else:
        infos = [info for _, info in store.infos() if isinstance(info, ExpertInfo)]
        text = library_card(infos, where=where, licence=licence)
    if not write:
        print(text, end="")
        return 0
    print(f"Written: {store.write_card(name, text)}")
    return 0
