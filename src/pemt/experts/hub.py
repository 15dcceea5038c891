"""A library on the Hub: read in place, pushed to, pulled from.

A repository holds one folder per expert, exactly as a local library does. Only the files that an
expert is made of are ever downloaded, and only of the experts that are used:

    expert.json  adapter_config.json  *.safetensors  README.md
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from pemt.errors import ConfigError, ExpertError, PemtError
from pemt.experts.address import HubAddress
from pemt.experts.expert import Expert, ExpertInfo, check_name
from pemt.experts.folder import load_expert, read_info
from pemt.experts.hub_files import HubFile, HubFiles
from pemt.experts.library import ExpertLibrary
from pemt.experts.manifest import (
    ADAPTER_CONFIG,
    CARD,
    MANIFEST,
    check_listing,
    may_hold_pickle,
    read_manifest,
)


class HubLibrary(ExpertLibrary):
    """A read-only view of a library on the Hub, at one commit.

    The revision is resolved once, when the view is made: a branch that moves later changes nothing.

    Args:
        root: "hf://user/repo", "hf://user/repo/folder@revision".
        may_be_empty: take a folder that does not exist yet.
        endpoint: the Hub's URL; by default `HF_ENDPOINT` or huggingface.co.
        cache_dir: of huggingface_hub; by default `HF_HUB_CACHE` or its usual place.
        token: of the Hub; by default the one that `hf auth login` saved.

    Attributes:
        revision: as it was asked for; None for the default branch.
        commit: what it was resolved to.

    Raises:
        ConfigError: no Hub address.
        ExpertError: no such library, no connection, or a repository that cannot be trusted.
    """

    def __init__(
        self,
        root: str | PurePath | HubAddress,
        *,
        may_be_empty: bool = False,
        endpoint: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
    ) -> None:
        self.address = root if isinstance(root, HubAddress) else HubAddress.parse(root)
        self.files = HubFiles(self.address, endpoint=endpoint, cache_dir=cache_dir, token=token)
        self.revision = self.address.revision
        self.commit = self.files.commit
        self._experts = self._by_expert(may_be_empty)

    def __str__(self) -> str:
        return self.address.at(self.commit)

    def names(self) -> list[str]:
        """The experts' names, sorted; from the listing, nothing is downloaded."""
        return sorted(self._experts)

    def info(self, name: str) -> ExpertInfo:
        """One expert's provenance; downloads its `expert.json` only.

        Raises:
            UnknownNameError: no expert of that name.
            ExpertError: it cannot be had, or is altered or of a newer format.
        """
        self._known(name)
        with self._scratch() as place:
            return read_info(self._fetch(name, place, (MANIFEST,), _link))

    def infos(self) -> Iterator[tuple[str, ExpertInfo | PemtError]]:
        """Every expert's provenance, or what is wrong with it; downloads many at a time."""
        paths = [self._path(name, MANIFEST) for name in self.names()]
        with suppress(ExpertError):  # `info` says which, and goes on with the others
            self.files.download(paths)
        yield from super().infos()

    def load(self, name: str, *, verify: bool = True) -> Expert:
        """One expert with its tensors; downloads its files if they are not in the cache.

        Raises:
            UnknownNameError: no expert of that name.
            ExpertError: it cannot be had, is altered or incomplete, or has a pickle beside it.
        """
        self._known(name)
        with self._scratch() as place:
            return load_expert(self._gather(name, place, _link), verify=verify)

    def verify(self, name: str | None = None) -> list[str]:
        """Download and read one expert, or all, to the last byte; see `ExpertLibrary.verify`."""
        problems = []
        for each in self.names() if name is None else self._each_once([name]):
            try:
                self.load(each)
            except PemtError as error:
                problems.append(str(error))
        return problems

    def copy_to(self, name: str, folder: Path) -> Path:
        """Copy an expert's files into `folder/name`; see `ExpertLibrary.copy_to`."""
        self._known(name)
        return self._gather(name, folder, _copy)

    def require_writable(self) -> None:
        """Refuse: this is a view.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"The library {self} is a view of the Hub, which cannot be written to.",
            "work in a local folder, then `pemt experts push` it",
        )

    # --- inside ---------------------------------------------------------------------------------

    def _has(self, name: str) -> bool:
        return name in self._experts

    def _path(self, name: str, file: str) -> str:
        return f"{self.address.prefix}{name}/{file}"

    def _by_expert(self, may_be_empty: bool) -> dict[str, dict[str, HubFile]]:
        """The files of each expert, by their path inside its folder."""
        prefix = self.address.prefix
        inside = {
            path[len(prefix) :]: file
            for path, file in self.files.files.items()
            if path.startswith(prefix)
        }
        if prefix and not inside and not may_be_empty:
            raise ExpertError(
                f"{self.address.repo} has no folder {self.address.folder!r} at {self.commit}.",
                "give the folder that holds the experts' folders",
            )
        if MANIFEST in inside:
            raise ExpertError(
                f"{self} is one expert, not a library.", "give the folder above its folder"
            )
        grouped: dict[str, dict[str, HubFile]] = {}
        for path, file in inside.items():
            name, slash, rest = path.partition("/")
            if slash:
                grouped.setdefault(name, {})[rest] = file
        return {name: files for name, files in grouped.items() if _is_expert(name, files)}

    def _gather(self, name: str, place: Path, put: Callable[[Path, Path], None]) -> Path:
        """All of an expert's files in `place/name`, after a look at what lies beside them."""
        listed = self._experts[name]
        for file in sorted(listed):
            if may_hold_pickle(file):
                raise ExpertError(
                    f"Expert {name!r} in {self}: {file} may hold a pickle.",
                    "nothing is ever unpickled: ask its owner to remove it",
                )
        target = self._fetch(name, place, (MANIFEST,), put)
        with self._named(place):
            info, manifest = read_manifest(target)
            check_listing(target, info, manifest["files"])
        recorded = sorted(manifest["files"])
        for file in sorted(listed):
            ours = file == ADAPTER_CONFIG or file.endswith(".safetensors")
            if ours and file not in recorded:
                raise ExpertError(
                    f"Expert {name!r} in {self}: {file} is not recorded in {MANIFEST}.",
                    "ask its owner to remove it",
                )
        for file in recorded:
            if file not in listed:
                raise ExpertError(
                    f"Expert {name!r} in {self}: {file} is missing.",
                    "ask its owner to push it again",
                )
        card = (CARD,) if CARD in listed else ()
        return self._fetch(name, place, (*recorded, *card), put)

    def _fetch(
        self, name: str, place: Path, files: Sequence[str], put: Callable[[Path, Path], None]
    ) -> Path:
        target = place / name
        target.mkdir(exist_ok=True)
        found = self.files.download([self._path(name, file) for file in files])
        for file in files:
            put(found[self._path(name, file)].resolve(), target / file)
        return target

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder to read an expert in: the cache holds links, which a reader refuses."""
        with tempfile.TemporaryDirectory(prefix="pemt-") as folder, self._named(Path(folder)):
            yield Path(folder)

    @contextmanager
    def _named(self, place: Path) -> Iterator[None]:
        """Errors name the library, not the folder that its files were read in."""
        try:
            yield
        except ExpertError as error:
            raise ExpertError(error.what.replace(str(place), str(self)), error.fix) from error


def pull(
    address: str,
    into: ExpertLibrary | str | Path,
    *,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
) -> tuple[str, list[ExpertInfo]]:
    """Copy experts from the Hub into a local library; see `ExpertLibrary.add_from`.

    Returns:
        The address with its commit, and the experts' infos.

    Raises:
        ConfigError: no Hub address, or nothing to copy.
        UnknownNameError: no expert of one of the names.
        ExpertError: one cannot be had, is altered, or its name is taken; then none is added.
    """
    library = into if isinstance(into, ExpertLibrary) else ExpertLibrary(into)
    library.require_writable()
    source = HubLibrary(address, endpoint=endpoint, cache_dir=cache_dir, token=token)
    return str(source), library.add_from(source, names, overwrite=overwrite)


def _is_expert(name: str, files: dict[str, HubFile]) -> bool:
    try:
        check_name(name)
    except ConfigError:
        return False
    return MANIFEST in files


def _link(source: Path, target: Path) -> None:
    """A second name for a file that is only read; a copy where the disk is another."""
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
