"""Encoded rows kept on disk, so that the next run on the same rows need not tokenise again.

Layout: ``$PEMT_CACHE/encoded/<key>.arrow``, one memory-mapped Arrow file a set of rows. The key is
the sha256 of everything the token ids depend on, so an entry is never out of date: another text,
template, tokenizer, library version or length is another file. The files hold the users' texts as
token ids and are readable by their owner alone.

``PEMT_ENCODED_CACHE_GB`` bounds the folder (default 5; the entries unused for longest go first);
0 switches it off.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import operator
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from pemt import assets
from pemt.errors import ConfigError, PemtWarning
from pemt.tasks.encoding import (
    BATCH,
    CUE,
    Encoded,
    Family,
    check_fits,
    encode,
    encode_prompts_only,
)
from pemt.tasks.rows import Example
from pemt.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
"""Raised when `encode` gives other ids for the same input, or the file's layout changes."""

THRESHOLD = 2000
"""Fewer rows are encoded anew. Identifying the tokenizer and reading the file takes what encoding
some 500 rows does (benchmarks/encoding.py); from here on the cache saves a tenth of a second or
more, and few-shot runs never touch the disk."""

LIMIT_GB = 5.0
LIMIT_VARIABLE = "PEMT_ENCODED_CACHE_GB"
_STALE_S = 86_400
_COLUMNS = ("input_ids", "labels")

_warned: set[str] = set()


class EncodedRows(Sequence[Encoded]):
    """Rows as `encode` gives them, read from an Arrow record batch one at a time. Read-only.

    Args:
        batch: ``input_ids`` (large_list of int32) and, unless only prompts are kept, ``labels``
            (large_list of int32, int64 or float64).
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._columns = {
            name: _arrays(batch.column(name)) for name in _COLUMNS if name in batch.schema.names
        }

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every row's ``input_ids``, `[N]`, without reading a row."""
        offsets, _ = self._columns["input_ids"]
        assert offsets is not None
        return np.diff(offsets)

    def __len__(self) -> int:
        offsets, _ = self._columns["input_ids"]
        assert offsets is not None
        return len(offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self._row(i) for i in range(*index.indices(len(self)))]
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        return self._row(number % len(self))

    def _row(self, i: int) -> Encoded:
        return {
            name: (values[i] if offsets is None else values[offsets[i] : offsets[i + 1]]).tolist()
            for name, (offsets, values) in self._columns.items()
        }

    def digest(self) -> str:
        """sha256 of every number kept."""
        found = hashlib.sha256()
        for name, arrays in self._columns.items():
            for array in arrays:
                if array is not None:
                    found.update(f"{name} {array.dtype} {len(array)};".encode())
                    found.update(array.data)
        return found.hexdigest()


def encode_cached(
    examples: Sequence[Example],
    task: Task,
    tokenizer: Any,
    family: Family,
    *,
    max_source_length: int = 256,
    max_target_length: int = 16,
    max_positions: int | None = None,
    prompt_length: int = 0,
    prompts_only: bool = False,
    folder: Path | None = None,
) -> Sequence[Encoded]:
    """The rows of `encode` (or `encode_prompts_only`), from the cache where it has them.

    Sets below `THRESHOLD` rows, tokenizers that cannot state all their rules (those not of the
    ``tokenizers`` library) and a cache that is switched off are encoded in memory. A cache file
    that is truncated or altered is replaced, and a folder that cannot be written is said once.

    Args:
        examples: what to encode.
        task: its kind decides the labels.
        tokenizer: a transformers tokenizer.
        family: of the base model.
        max_source_length: limit of the text's tokens.
        max_target_length: limit of the answer's tokens.
        max_positions: how many positions the base has; None where it has no limit.
        prompt_length: positions the soft prompt takes.
        prompts_only: leave out the answers, as `encode_prompts_only` does.
        folder: of the cache; default ``encoded`` below `pemt.assets.cache_dir`.

    Returns:
        A read-only sequence of rows, equal to what the uncached function gives.

    Raises:
        ConfigError: as `encode`; a ``PEMT_ENCODED_CACHE_GB`` that is no size.
    """
    check_fits(task, family, max_source_length, max_target_length, max_positions, prompt_length)
    lengths = {"max_source_length": max_source_length, "max_target_length": max_target_length}
    uncached = encode_prompts_only if prompts_only else encode
    limit = _limit()
    if len(examples) < THRESHOLD or limit == 0:
        return uncached(examples, task, tokenizer, family, **lengths)
    key = key_of(examples, task, tokenizer, family, prompts_only=prompts_only, **lengths)
    if key is None:
        return uncached(examples, task, tokenizer, family, **lengths)
    folder = assets.cache_dir() / "encoded" if folder is None else folder
    path = folder / f"{key}.arrow"
    found = _read(path, len(examples))
    if found is not None:
        return found
    # A batch at a time: as Python numbers the ids take nine times the memory.
    batch = _batch(
        uncached(examples[start : start + BATCH], task, tokenizer, family, **lengths)
        for start in range(0, len(examples), BATCH)
    )
    if batch.nbytes <= limit:
        _write(batch, path, limit)
    return EncodedRows(batch)


def lengths_of(rows: Sequence[Encoded]) -> npt.NDArray[np.int64]:
    """Tokens of every row's ``input_ids``, `[N]`."""
    if isinstance(rows, EncodedRows):
        return rows.lengths
    return np.array([len(row["input_ids"]) for row in rows], dtype=np.int64)  # type: ignore[arg-type]


def key_of(
    examples: Sequence[Example],
    task: Task,
    tokenizer: Any,
    family: Family,
    *,
    max_source_length: int,
    max_target_length: int,
    prompts_only: bool = False,
) -> str | None:
    """The sha256 of all that decides the encoded rows; None where the tokenizer cannot state it."""
    rules = _tokenizer_rules(tokenizer)
    if rules is None:
        return None
    parts = {
        "format": FORMAT,
        "libraries": {name: metadata.version(name) for name in ("transformers", "tokenizers")},
        "task": [task.name, task.version, task.kind, task.template, task.labels],
        "rows": _rows_digest(examples),
        "tokenizer": rules,
        "family": family,
        "cue": CUE,
        "lengths": [max_source_length, max_target_length],
        "prompts_only": prompts_only,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tokenizer_rules(tokenizer: Any) -> str | None:
    """Digest of vocabulary, merges, normaliser, splitting and special tokens."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    own = [type(tokenizer).__module__, type(tokenizer).__qualname__, tokenizer.truncation_side]
    own += [str(getattr(tokenizer, "split_special_tokens", None))]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    special.pop("pad_token", None)
    stated = json.dumps([own, special], sort_keys=True)
    rules = _without_state(tokenizer.backend_tokenizer.to_str())
    return hashlib.sha256(f"{stated}\n{rules}".encode()).hexdigest()


def _without_state(rules: str) -> str:
    """A tokenizer's JSON without the truncation and padding that its last call left there."""
    head = rules.find('"added_tokens"')
    try:
        # Only the head is parsed: the vocabulary behind it takes a second.
        kept = json.loads(rules[:head].rstrip().rstrip(",") + "}")
        rest = rules[head:]
    except json.JSONDecodeError:
        kept, rest = json.loads(rules), ""
    kept.pop("truncation", None)
    kept.pop("padding", None)
    return json.dumps(kept, sort_keys=True) + rest


def _rows_digest(examples: Sequence[Example]) -> str:
    found = hashlib.sha256()
    for e in examples:
        # With lengths, so that no two lists of rows read alike; labels, because heads read them.
        found.update(f"{len(e.text)}:{len(e.target)}:{e.label!r}:{e.text}{e.target}".encode())
        found.update(repr(e.options).encode())
    return found.hexdigest()


def _batch(parts: Iterator[Sequence[Encoded]]) -> pa.RecordBatch:
    """One record batch of many lists of rows."""
    import pyarrow as pa

    batches: list[pa.RecordBatch] = []
    lists = pa.large_list(pa.int32())
    for rows in parts:
        columns = {name: [row[name] for row in rows] for name in _COLUMNS if name in rows[0]}
        kinds = {list: lists, int: pa.int64(), float: pa.float64()}
        types = {name: kinds[type(column[0])] for name, column in columns.items()}
        schema = pa.schema(list(types.items()))
        batches.append(pa.RecordBatch.from_pydict(columns, schema=schema))
    (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return batch


def _arrays(
    column: pa.Array,
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[Any]]:
    """(offsets, values) of a column of lists, (None, values) of a column of numbers; no copy."""
    import pyarrow as pa

    if isinstance(column, pa.LargeListArray):
        return column.offsets.to_numpy(), column.values.to_numpy()
    return None, column.to_numpy()


def _read(path: Path, count: int) -> EncodedRows | None:
    """The rows of a cache file; None where it is not there, or not what was written."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
        rows = EncodedRows(batch)
        kept: Mapping[bytes, bytes] = batch.schema.metadata or {}
        sealed = kept.get(b"key") == path.stem.encode()
        if not sealed or len(rows) != count or kept.get(b"digest") != rows.digest().encode():
            return None
    except (OSError, pa.ArrowException, KeyError, TypeError, AttributeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # what was used last is pruned last
    return rows


def _write(batch: pa.RecordBatch, path: Path, limit: float) -> None:
    """Write the file whole or not at all, then prune the folder."""
    import pyarrow as pa

    seal = {"key": path.stem, "digest": EncodedRows(batch).digest()}
    stated = batch.replace_schema_metadata(seal)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, stated.schema) as writer:
            writer.write_batch(stated)
        Path(temporary).replace(path)
        temporary = None
        prune(path.parent, limit, keep=path)
    except OSError as error:
        if str(path.parent) not in _warned:
            _warned.add(str(path.parent))
            warnings.warn(
                f"Encoded rows are not kept: {path.parent} cannot be written ({error}). "
                f"Set PEMT_CACHE to a folder that can, or {LIMIT_VARIABLE}=0 to go without",
                PemtWarning,
                stacklevel=3,
            )
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def prune(folder: Path, limit: float, *, keep: Path | None = None) -> None:
    """Remove the files unused for longest until the folder holds at most ``limit`` bytes.

    Args:
        folder: of the cache.
        limit: in bytes.
        keep: a file that stays.
    """
    entries = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process prunes at the same time
            stat = path.stat()
            if path.suffix == ".part" and time.time() - stat.st_mtime > _STALE_S:
                path.unlink()  # left by a run that was killed
            elif path.suffix == ".arrow":
                entries.append((stat.st_mtime, path.name, stat.st_size))
    total = sum(size for *_, size in entries)
    for _, name, size in sorted(entries):
        if total <= limit:
            return
        if keep is None or name != keep.name:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
            total -= size


def _limit() -> float:
    """The folder's bound in bytes."""
    raw = os.environ.get(LIMIT_VARIABLE, "").strip()
    try:
        size = float(raw) if raw else LIMIT_GB
    except ValueError:
        size = math.nan
    if not size >= 0:
        raise ConfigError(
            f"{LIMIT_VARIABLE} is {raw!r}", "give a size in GB, such as 5, or 0 to switch it off"
        )
    return size * 1e9
