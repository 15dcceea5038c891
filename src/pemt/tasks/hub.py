"""Rows of a data set repository on the Hugging Face Hub, or of a local folder laid out like one.

datasets runs no loading scripts. Where a repository holds one, the Hub's own conversion of it is
read: the branch ``refs/convert/parquet``, with a folder ``<config>/<split>/`` for each part. Files
of that branch are named one by one, because the library's guess merges splits whose names share a
word (validation_matched, validation_mismatched).
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pemt.errors import DataError, PemtError
from pemt.tasks.files import Row
from pemt.tasks.hub_errors import CONVERTED, choose, explained, no_network, title
from pemt.tasks.sources import HubRows

_BATCH = 1000
_CACHED = "comes from datasets' own cache"
_LOCAL = ("/", "./", "../", "~")


@dataclass(frozen=True)
class HubRead:
    """What was read.

    Attributes:
        rows: our split name -> rows, numbered from 1 in the repository's order.
        revision: the commit read; None for a local folder, and where datasets' own cache served
            a copy it does not state the commit of.
        notes: what a record of the run should say about how the rows were had.
    """

    rows: dict[str, list[Row]]
    revision: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """A repository at one commit."""

    path: str
    name: str | None
    revision: str | None
    files: dict[str, list[str]] | None
    """The converted branch: their split -> its files; None where datasets finds them itself."""


def read_hub(
    hub: HubRows,
    splits: Sequence[str],
    *,
    limit: Mapping[str, int] | None = None,
    streaming: bool = False,
) -> HubRead:
    """The rows of some splits.

    Args:
        hub: repository, configuration, revision and split names. A ``path`` that begins with
            "/", "./", "../" or "~" is a local folder (with the revision refs/convert/parquet,
            one laid out like that branch).
        splits: our split names.
        limit: our split name -> the most rows kept of it: those with the smallest sha256 of their
            content, so the choice is the same on every machine. They keep the source's order.
        streaming: read without writing the whole set to datasets' cache.

    Raises:
        DataError: no network, no access, no such repository, configuration, revision or split, a
            split the Hub converted in part, or files that do not read.
    """
    notes: list[str] = []
    local = hub.path.startswith(_LOCAL)
    place = _local(hub) if local else _remote(hub, notes)
    rows: dict[str, list[Row]] = {}
    revision = place.revision
    for split in splits:
        theirs = hub.splits.get(split, split)
        try:
            table = _load(place, theirs, streaming)
            if not local:
                revision = _commit(table, place, hub, notes)
            most = (limit or {}).get(split)
            numbered = _kept(enumerate(_rows(table), start=1), hub.keep)
            rows[split] = list(numbered) if most is None else _smallest(numbered, most)
        except PemtError:
            raise
        except Exception as error:
            # Below are three libraries and the network, each with its own family of errors.
            raise explained(error, hub, theirs) from error
        if not rows[split]:
            only = f" with {dict(hub.keep)}" if hub.keep else ""
            raise DataError(
                f"The split {theirs!r} of {title(hub)} has no rows{only}",
                "name another under rows.hub.splits" + (", or check rows.hub.keep" * bool(only)),
            )
    return HubRead(rows, revision, tuple(notes))


def _local(hub: HubRows) -> _Place:
    folder = Path(hub.path).expanduser()
    if not folder.is_dir():
        raise DataError(f"The folder {folder} does not exist", "check rows.hub.path")
    files = [str(PurePosixPath(p.relative_to(folder))) for p in sorted(folder.rglob("*.parquet"))]
    if hub.revision != CONVERTED:
        return _Place(str(folder), hub.name, None, None)
    config, parts = _converted_parts(files, hub)
    return _Place(str(folder), config, None, parts)


def _remote(hub: HubRows, notes: list[str]) -> _Place:
    """Fix the commit, and find out whether the repository's own files can be read."""
    if Path(hub.path).is_dir():
        # datasets would read the folder and not the Hub.
        raise DataError(
            f"{hub.path} is a repository on the Hub, and also a folder in {Path.cwd()}",
            f"write ./{hub.path} to read the folder, or run in another one to read the Hub",
        )
    try:
        commit, files = _listing(hub.path, hub.revision)
        script = f"{hub.path.rpartition('/')[2]}.py" in files
        if hub.revision != CONVERTED and script:
            commit, files = _conversion(hub.path)
            notes.append(
                f"{hub.path} holds a loading script, which is not run: rows are those of the "
                f"Hub's conversion, {CONVERTED} at {commit}"
            )
        elif hub.revision != CONVERTED:
            return _Place(hub.path, hub.name, commit, None)
    except PemtError:
        raise
    except Exception as error:
        if no_network(error):
            return _unreachable(hub, error, notes)
        raise explained(error, hub, None) from error
    config, parts = _converted_parts(files, hub)
    return _Place(hub.path, config, commit, parts)


def _unreachable(hub: HubRows, error: BaseException, notes: list[str]) -> _Place:
    """Leave it to datasets, which may hold a copy of an earlier run."""
    # Of the converted branch copies are kept by commit and file names, and neither is known now.
    if hub.revision == CONVERTED or not _copied(hub.path):
        raise explained(error, hub, None) from error
    notes.append(f"the Hub did not answer: {hub.path} {_CACHED}")
    return _Place(hub.path, hub.name, hub.revision, None)


def _copied(path: str) -> bool:
    """Whether datasets' cache has a folder of a repository; asking it takes 25 s of retries."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, _, name = path.rpartition("/")
    folder = f"{owner}___{camelcase_to_snakecase(name)}" if owner else camelcase_to_snakecase(name)
    return (Path(datasets.config.HF_DATASETS_CACHE).expanduser() / folder).is_dir()


def _listing(path: str, revision: str | None) -> tuple[str | None, list[str]]:
    """Commit and file names of a data set repository."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(path, revision=revision, timeout=30)
    return info.sha, [entry.rfilename for entry in info.siblings or []]


def _conversion(path: str) -> tuple[str | None, list[str]]:
    """`_listing` of the converted branch of a repository that holds a script."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return _listing(path, CONVERTED)
    except RevisionNotFoundError as error:
        raise DataError(
            f"{path} holds a loading script, which is not run, and the Hub has no conversion of it",
            "name a repository of Parquet, CSV or JSON files, or give files of your own "
            "(rows.files)",
        ) from error


def _converted_parts(files: Sequence[str], hub: HubRows) -> tuple[str, dict[str, list[str]]]:
    """(configuration, their split -> files) of files laid out ``<config>/<split>/0000.parquet``."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(files):
        parts = PurePosixPath(name).parts
        if len(parts) == 3 and name.endswith(".parquet"):
            found.setdefault(parts[0], {}).setdefault(parts[1], []).append(name)
    if not found:
        raise DataError(
            f"There is no Parquet conversion of {hub.path}",
            "name a repository of Parquet, CSV or JSON files, or give files of your own "
            "(rows.files)",
        )
    config = hub.name
    if config is None:
        config = "default" if "default" in found else next(iter(found))
        if len(found) > 1 and config != "default":
            raise choose("configuration", None, found, hub)
    if config not in found:
        raise choose("configuration", config, found, hub)
    return config, found[config]


def _load(place: _Place, split: str, streaming: bool) -> Any:
    import datasets

    if place.files is None:
        return datasets.load_dataset(
            place.path, place.name, split=split, revision=place.revision, streaming=streaming
        )
    files: list[str] = []
    for part in split.split("+"):
        if part not in place.files and f"partial-{part}" in place.files:
            raise DataError(
                f"The Hub converted only the first part of the split {part!r} of {place.path}",
                f"name it 'partial-{part}' under rows.hub.splits if the part is what you want",
            )
        if part not in place.files:
            raise ValueError(f"Unknown split {part!r}. Should be one of {sorted(place.files)}.")
        files += place.files[part]
    return datasets.load_dataset(
        place.path,
        data_files={"rows": files},
        split="rows",
        revision=place.revision,
        streaming=streaming,
    )


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    """Rows of a data set, a batch at a time: indexing it by row reads every column anew."""
    for batch in table.iter(batch_size=_BATCH):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _kept(rows: Iterator[Row], keep: Mapping[str, str]) -> Iterator[Row]:
    """The rows that hold the values asked for."""
    return (
        row for row in rows if all(str(row[1].get(name)) == value for name, value in keep.items())
    )


def _smallest(rows: Iterator[Row], most: int) -> list[Row]:
    """The ``most`` rows with the smallest sha256 of their content, in the order they came."""
    if most < 1:
        raise DataError(f"A limit of {most} rows", "give at least 1")
    kept: list[tuple[int, int, Row]] = []  # the heap's first is the one that goes next
    for row in rows:
        content = json.dumps(row[1], sort_keys=True, default=str)
        key = -int.from_bytes(hashlib.sha256(content.encode()).digest(), "big")
        entry = (key, -row[0], row)
        if len(kept) < most:
            heapq.heappush(kept, entry)
        elif entry[:2] > kept[0][:2]:
            heapq.heapreplace(kept, entry)
    return sorted((row for *_, row in kept), key=lambda row: row[0])


def _commit(table: Any, place: _Place, hub: HubRows, notes: Sequence[str]) -> str | None:
    """The commit the rows are of; checked where datasets served a copy without the Hub."""
    if not any(_CACHED in note for note in notes):
        return place.revision
    sources = " ".join(getattr(table.info, "download_checksums", None) or {})
    commits = set(re.findall(r"@([0-9a-f]{40})/", sources))
    commit = commits.pop() if len(commits) == 1 else None
    asked = hub.revision
    if asked is not None and asked != commit:
        raise DataError(
            f"The Hub did not answer, and the copy of {hub.path} in datasets' cache is of "
            f"commit {commit or 'unknown'}, not of {asked}",
            "check the connection (`pemt doctor`)",
        )
    return commit
