"""A library: experts by name, each a folder under its own name, in a local folder or on the Hub."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pemt.errors import ConfigError, ExpertError, PemtError, UnknownNameError
from pemt.experts.address import is_hub_address
from pemt.experts.card import expert_card
from pemt.experts.expert import Expert, ExpertInfo, check_name
from pemt.experts.folder import discard, load_expert, read_info, save_expert
from pemt.experts.manifest import (
    CARD,
    MANIFEST,
    check_listing,
    content_hash,
    copy_file,
    read_manifest,
    readable,
)
from pemt.experts.writing import (
    check_free,
    explained,
    install,
    parked,
    replace_card,
    staging,
    turn,
    vanish,
    write_file,
)

if TYPE_CHECKING:
    from pemt.bases import Base
    from pemt.tasks import Task

T = TypeVar("T")

_READS = 20  # how often a reader starts again when a writer replaces what it reads


class ExpertLibrary:
    """Experts by name.

    A local library is a folder, made by the first `add`. Readers need no lock: a folder appears and
    changes in one step, and a reader that was overtaken by a writer starts again. Writers take
    turns. `ExpertLibrary("hf://user/repo@revision")` is a read-only view of a library on the Hub,
    see `pemt.experts.hub.HubLibrary`.

    Args:
        root: the library's folder, or a Hub address.

    Raises:
        ConfigError: a file, or a Hub address that is none.
        ExpertError: the Hub has no such library, or cannot be reached.
    """

    root: Path

    def __new__(cls, root: Any, **settings: Any) -> ExpertLibrary:  # noqa: ARG004
        """A Hub address gives the view of the Hub."""
        if cls is ExpertLibrary and is_hub_address(root):
            from pemt.experts.hub import HubLibrary

            return object.__new__(HubLibrary)
        return object.__new__(cls)

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(
                f"The library {str(root)!r} is a file.", "give the folder that holds the experts"
            )

    def __repr__(self) -> str:
        return f"ExpertLibrary({str(self)!r})"

    def __str__(self) -> str:
        return str(self.root)

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._has(name)

    # --- reading --------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The experts' names, sorted. A folder that a writer is still preparing is none of them."""
        return [name for name in self._folders() if (self.root / name / MANIFEST).exists()]

    def info(self, name: str) -> ExpertInfo:
        """One expert's provenance; reads `expert.json` only.

        Raises:
            UnknownNameError: no expert of that name.
            ExpertError: its `expert.json` is altered or of a newer format.
        """
        return self._steadily(name, read_info)

    def infos(self) -> Iterator[tuple[str, ExpertInfo | PemtError]]:
        """Every expert's provenance by name, sorted, or what is wrong with it."""
        for name in self.names():
            try:
                yield name, self.info(name)
            except PemtError as error:
                yield name, error

    def load(self, name: str, *, verify: bool = True) -> Expert:
        """One expert with its tensors; see `load_expert`.

        Raises:
            UnknownNameError: no expert of that name.
            ExpertError: it is altered, incomplete or renamed.
        """
        return self._steadily(name, lambda folder: load_expert(folder, verify=verify))

    def load_many(self, names: Sequence[str]) -> list[Expert]:
        """Several experts, in the order of `names`: the order of a gate's columns.

        Raises:
            ConfigError: no name, or one name twice.
            UnknownNameError: no expert of one of the names; nothing is loaded then.
            ExpertError: one of them is altered, incomplete or renamed.
        """
        return [self.load(name) for name in self._each_once(names)]

    def verify(self, name: str | None = None) -> list[str]:
        """Read one expert, or everything here, to the last byte.

        Returns:
            One sentence for each problem; empty when all is well.

        Raises:
            UnknownNameError: no expert of that name.
        """
        if name is not None:
            self._known(name)
        problems = []
        for each in self._folders() if name is None else [name]:
            try:
                self._steadily(each, load_expert, known=True)
            except PemtError as error:
                problems.append(str(error))
        return problems

    def copy_to(self, name: str, folder: Path) -> Path:
        """Copy an expert's files, byte for byte, into `folder/name`, which must not exist.

        Nothing but the recorded files and the card is copied. The copy is not checked: load it.

        Raises:
            UnknownNameError: no expert of that name.
            ExpertError: its listing is not that of an expert.
        """

        def copy(place: Path) -> Path:
            info, manifest = read_manifest(place)
            check_listing(place, info, manifest["files"])
            target = folder / name
            discard(target)  # of an attempt that a writer overtook
            target.mkdir()
            for file in (*manifest["files"], MANIFEST):
                copy_file(place, file, target)
            if (place / CARD).is_file():
                copy_file(place, CARD, target)
            return target

        return self._steadily(name, copy)

    # --- writing --------------------------------------------------------------------------------

    def require_writable(self) -> None:
        """Refuse a library that nothing can be added to, before work is done for it.

        Raises:
            ConfigError: it is on the Hub.
        """

    def add(self, expert: Expert, *, overwrite: bool = False) -> ExpertInfo:
        """Save an expert and its card under its name; see `save_expert`.

        Raises:
            ExpertError: the name is taken, a tensor is not finite, the lock is not to be had, or
                the disk is full. The library is then as it was.
        """
        self.require_writable()
        target = self.root / expert.name
        check_free(target, overwrite=overwrite)
        with (
            explained(f"Adding expert {expert.name!r} to {self.root}"),
            staging(self.root, expert.name) as place,
        ):
            info = save_expert(expert, place / expert.name)
            write_file(place / expert.name / CARD, expert_card(info).encode())
            with turn(self.root):
                install(place / expert.name, target, overwrite=overwrite)
        return info

    def import_peft(
        self,
        source: str | Path,
        *,
        name: str,
        base: Base | str,
        task: Task | str | None = None,
        prompt: Literal["description", "none"] = "description",
        drop_head: bool = False,
        overwrite: bool = False,
    ) -> ExpertInfo:
        """Make an existing PEFT LoRA an expert of this library; see `expert_from_peft`.

        Args:
            source: the adapter's folder, or where it is on the Hub, see ``expert_from_peft``.
            name: for the expert.
            base: the base it was trained on, loaded or by its name.
            task: its source task: a `Task`, the name of one, or a description.
            prompt: "description": the expert's prompt starts from it; "none".
            drop_head: encoder-only: leave the adapter's head out.
            overwrite: replace the expert of that name.

        Raises:
            ConfigError: no such folder, or nothing to make a prompt from.
            ExpertError: no plain LoRA for this base, or the name is taken.
        """
        self.require_writable()
        from pemt.bases import load_base
        from pemt.experts.importing import expert_from_peft

        if isinstance(base, str):
            base = load_base(base, precision="float32")
        expert = expert_from_peft(
            source, name=name, base=base, task=task, prompt=prompt, drop_head=drop_head
        )
        return self.add(expert, overwrite=overwrite)

    def add_from(
        self, source: ExpertLibrary, names: Sequence[str] | None = None, *, overwrite: bool = False
    ) -> list[ExpertInfo]:
        """Copy experts from another library, byte for byte; each is verified before it shows.

        Args:
            source: a local library, or a view of one on the Hub.
            names: which; all by default.
            overwrite: replace experts of the same name and another content. One of the same
                content is left as it is.

        Returns:
            The copied experts' infos, in the order asked for.

        Raises:
            ConfigError: nothing to copy.
            UnknownNameError: no expert of one of the names.
            ExpertError: one is altered or its name is taken; then none is added.
        """
        self.require_writable()
        chosen = source._each_once(source.names() if names is None else names)
        with ExitStack() as stack:
            stack.enter_context(explained(f"Copying experts into {self.root}"))
            place = stack.enter_context(staging(self.root, "copy"))
            infos = []
            for name in chosen:
                self._check_offer(source.info(name), overwrite=overwrite)
                infos.append(_checked_copy(source, name, place))
            stack.enter_context(turn(self.root))
            wanted = [i for i in infos if not self._check_offer(i, overwrite=overwrite)]
            for info in wanted:
                install(place / info.name, self.root / info.name, overwrite=overwrite)
        return infos

    def rename(self, name: str, new: str) -> ExpertInfo:
        """Give an expert another name: the same tensors under a new identity and content hash.

        Adapted models that name the old expert, and were saved without their experts, no longer
        load. A kill in the middle leaves both names, each whole.

        Raises:
            UnknownNameError: no expert of that name.
            ConfigError: the new name is no name.
            ExpertError: the new name is taken, or the expert is altered.
        """
        self.require_writable()
        self._known(name)
        target = self.root / check_name(new)
        check_free(target, overwrite=False)
        with (
            explained(f"Renaming expert {name!r} to {new!r} in {self.root}"),
            staging(self.root, new) as place,
            turn(self.root),
        ):
            fresh = self.copy_to(name, place).rename(place / new)
            manifest = json.loads((fresh / MANIFEST).read_bytes())
            manifest["info"]["name"] = new
            manifest["info"]["content_hash"] = content_hash(manifest)
            write_file(fresh / MANIFEST, readable(manifest))
            info = load_expert(fresh).info  # refuses what was altered before
            write_file(fresh / CARD, expert_card(info).encode())
            install(fresh, target, overwrite=False)
            vanish(self.root, self.root / name)
        return info

    def remove(self, name: str) -> None:
        """Delete an expert; it disappears in one step.

        Raises:
            UnknownNameError: no expert of that name.
        """
        self.require_writable()
        self._known(name)
        with explained(f"Removing expert {name!r} from {self.root}"), turn(self.root):
            self._known(name)  # another writer may have been faster
            vanish(self.root, self.root / name)

    def write_card(self, name: str | None, text: str) -> Path:
        """Replace the README.md of an expert, or of the library; no content hash covers it.

        Raises:
            UnknownNameError: no expert of that name.
            ExpertError: a link stands in the expert's place, or the card cannot be written.
        """
        self.require_writable()
        if name is not None:
            self._known(name)
        folder = self.root / (name or "")
        with explained(f"Writing {folder / CARD}"), turn(self.root):
            replace_card(self.root, folder, text)
        return folder / CARD

    # --- inside ---------------------------------------------------------------------------------

    def _has(self, name: str) -> bool:
        """Whether there is an expert of this name: one look at the disk, however many there are."""
        try:
            check_name(name)
        except ConfigError:
            return False
        return (self.root / name / MANIFEST).exists()

    def _known(self, name: str) -> None:
        if not self._has(name):
            raise UnknownNameError("expert", name, self.names(), f"they are in {self}")

    def _each_once(self, names: Sequence[str]) -> list[str]:
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"Experts {list(names)} asked for.", "name at least one, each once")
        for name in names:
            self._known(name)
        return list(names)

    def _check_offer(self, info: ExpertInfo, *, overwrite: bool) -> bool:
        """Whether this very expert is here already; refuses another one of its name."""
        if info.name in self and self.info(info.name).content_hash == info.content_hash:
            return True
        check_free(self.root / info.name, overwrite=overwrite)
        return False

    def _folders(self) -> Iterator[str]:
        """Names of what looks like an expert, sorted; hidden folders do not."""
        if not self.root.is_dir():
            return
        with os.scandir(self.root) as entries:
            found = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
        yield from sorted(found)

    def _steadily(self, name: str, read: Callable[[Path], T], *, known: bool = False) -> T:
        """Read a folder; start again if it was replaced meanwhile, which mixes old and new files.

        Raises:
            UnknownNameError: no expert of that name.
            ExpertError: what `read` raises, or the folder is replaced again and again.
        """
        folder = self.root / name
        for _ in range(_READS):
            if not known and not self._has(name):
                if not parked(folder):
                    self._known(name)
                time.sleep(0.05)
                continue
            before = _identity(folder)
            try:
                result = read(folder)
            except PemtError:
                if _identity(folder) == before:
                    raise
            else:
                if _identity(folder) == before:
                    return result
        raise ExpertError(
            f"Expert {name!r} in {self.root} is being replaced again and again.",
            "wait for the writer; if none runs, the next write puts the library in order",
        )


def _identity(folder: Path) -> tuple[int, int] | None:
    """What changes when another folder takes this one's place."""
    try:
        status = folder.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def _checked_copy(source: ExpertLibrary, name: str, place: Path) -> ExpertInfo:
    """Copy, read the copy to the last byte, and give it a card if it came without."""
    copy = source.copy_to(name, place)
    info = load_expert(copy).info
    if not (copy / CARD).exists():
        write_file(copy / CARD, expert_card(info).encode())
    return info
