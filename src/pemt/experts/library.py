"""A library: a local folder of experts, each a folder under its own name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pemt.errors import ConfigError, ExpertError, PemtError, UnknownNameError
from pemt.experts.expert import Expert, ExpertInfo, check_name
from pemt.experts.folder import discard, hidden_sibling, load_expert, read_info, save_expert
from pemt.experts.manifest import MANIFEST

if TYPE_CHECKING:
    from pemt.bases import Base
    from pemt.tasks import Task

_LEFTOVER_SECONDS = 3600.0  # a writer that has been silent for so long is dead
_LOCK_SECONDS = 60.0


class ExpertLibrary:
    """Experts by name, in a folder that is made by the first `add`.

    Readers need no lock: a folder appears and changes in one step. Writers take turns.

    Args:
        root: the library's folder.

    Raises:
        ConfigError: a Hub address (a later version reads those), or a file.
    """

    def __init__(self, root: str | Path) -> None:
        if str(root).startswith("hf:/"):
            raise ConfigError(
                f"The library {str(root)!r} is on the Hub, which is not supported yet.",
                "download it, and give the local folder",
            )
        self.root = Path(root).expanduser().absolute()
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(
                f"The library {str(root)!r} is a file.", "give the folder that holds the experts"
            )

    def __repr__(self) -> str:
        return f"ExpertLibrary({str(self.root)!r})"

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def names(self) -> list[str]:
        """The experts' names, sorted. A folder that a writer is still preparing is none of them."""
        return [path.name for path in self._folders() if (path / MANIFEST).exists()]

    def info(self, name: str) -> ExpertInfo:
        """One expert's provenance; reads `expert.json` only.

        Raises:
            UnknownNameError: no expert of that name.
            ExpertError: its `expert.json` is altered or of a newer format.
        """
        return read_info(self._folder(name))

    def load(self, name: str, *, verify: bool = True) -> Expert:
        """One expert with its tensors; see `load_expert`.

        Raises:
            UnknownNameError: no expert of that name.
            ExpertError: it is altered, incomplete or renamed.
        """
        return load_expert(self._folder(name), verify=verify)

    def load_many(self, names: Sequence[str]) -> list[Expert]:
        """Several experts, in the order of `names`: the order of a gate's columns.

        Raises:
            ConfigError: no name, or one name twice.
            UnknownNameError: no expert of one of the names; nothing is loaded then.
            ExpertError: one of them is altered, incomplete or renamed.
        """
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"Experts {list(names)} asked for.", "name at least one, each once")
        for name in names:
            self._folder(name)
        return [self.load(name) for name in names]

    def add(self, expert: Expert, *, overwrite: bool = False) -> ExpertInfo:
        """Save an expert under its name; see `save_expert`.

        Raises:
            ExpertError: the name is taken, a tensor is not finite, or the lock is not to be had.
        """
        with self._writing():
            return save_expert(expert, self.root / expert.name, overwrite=overwrite)

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
            source: the adapter's folder, or its Hub id.
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
        from pemt.bases import load_base
        from pemt.experts.importing import expert_from_peft

        if isinstance(base, str):
            base = load_base(base, precision="float32")
        expert = expert_from_peft(
            source, name=name, base=base, task=task, prompt=prompt, drop_head=drop_head
        )
        return self.add(expert, overwrite=overwrite)

    def remove(self, name: str) -> None:
        """Delete an expert; it disappears in one step.

        Raises:
            UnknownNameError: no expert of that name.
        """
        folder = self._folder(name)
        with self._writing():
            doomed = hidden_sibling(folder, "tmp")
            folder.rename(doomed)
            discard(doomed)

    def verify(self, name: str | None = None) -> list[str]:
        """Read one expert, or everything here, to the last byte.

        Returns:
            One sentence for each problem; empty when all is well.

        Raises:
            UnknownNameError: no expert of that name.
        """
        folders = list(self._folders()) if name is None else [self._folder(name)]
        problems = []
        for folder in folders:
            try:
                load_expert(folder)
            except PemtError as error:
                problems.append(str(error))
        return problems

    def _folders(self) -> Iterator[Path]:
        """What looks like an expert by its name, sorted; hidden folders do not."""
        if not self.root.is_dir():
            return
        for path in sorted(self.root.iterdir()):
            if not path.name.startswith(".") and path.is_dir():
                yield path

    def _folder(self, name: str) -> Path:
        known = self.names()
        if name not in known:
            raise UnknownNameError("expert", name, known, f"they are in {self.root}")
        return self.root / check_name(name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time, in whatever process; clears up after killed ones first."""
        from filelock import FileLock, Timeout

        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout as error:
            raise ExpertError(
                f"The library {self.root} is being written by another process.",
                "wait for it, or end it if it hangs",
            ) from error
        try:
            self._clear_leftovers()
            yield
        finally:
            lock.release()

    def _clear_leftovers(self) -> None:
        """Remove what killed writers left, and put back an expert they had only parked."""
        for path in self.root.glob(".*.old"):
            home = self.root / path.name[1:].rsplit(".", 2)[0]
            if home.exists():
                discard(path)
            else:
                path.rename(home)
        for path in self.root.glob(".*.tmp"):
            if time.time() - path.lstat().st_mtime > _LEFTOVER_SECONDS:
                discard(path)
