"""Rows from CSV, TSV, JSONL and Parquet files, with the line (Parquet: the row) each came from.

Files are read as streams: memory holds the rows and one line, never a second copy of the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pemt.errors import DataError

Row = tuple[int, dict[str, Any]]
"""A row with the number of its (first) line, or of the row itself in Parquet, counted from 1."""

Refuse = Callable[[str, DataError], None]
"""Told where the rows are ("file:line", or the file) and why they cannot be used."""

SUFFIXES = (".csv", ".tsv", ".jsonl")
PARQUET = ".parquet"
CELL_LIMIT = 2**24
"""The longest CSV or TSV cell, in characters; Python's own limit of 131,072 cuts off whole books,
and some limit is what finds a quote that is never closed."""

_PARQUET_BATCH = 1000


def raise_first(where: str, error: DataError) -> None:  # noqa: ARG001 - the error names the place
    """The ``Refuse`` of whoever wants no row where one is unusable."""
    raise error from None


def read_file(path: Path, refuse: Refuse = raise_first) -> list[Row]:
    """Every row of a file; arguments and errors are those of ``stream_file``."""
    return list(stream_file(path, refuse))


def stream_file(path: Path, refuse: Refuse = raise_first) -> Iterator[Row]:
    """The rows of a file, one after another.

    Args:
        path: ``.csv``, ``.tsv`` (both with a header) or ``.jsonl``, UTF-8, ``.gz`` may follow; or
            ``.parquet``, whose nested columns stay dicts and lists and whose bytes are UTF-8 text.
            Suffixes are read in any case.
        refuse: is told of each broken line, so that all can be listed; such lines are left out,
            but for bytes that are not UTF-8, which become U+FFFD.

    Raises:
        DataError: missing, empty, truncated, not UTF-8, a broken line; file and line are named.
    """
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    parquet = name.endswith(PARQUET)
    if not parquet and suffix not in SUFFIXES:
        raise DataError(
            f"{path} is none of the file types read here",
            f"allowed: {', '.join(SUFFIXES)}, each also with .gz, and {PARQUET}",
        )
    some = False
    for row in _parquet(path) if parquet else _text_rows(path, suffix, refuse):
        some = True
        yield row
    if not some:
        raise DataError(f"{path} has no rows", "it must hold at least one labelled row")


def _text_rows(path: Path, suffix: str, refuse: Refuse) -> Iterator[Row]:
    with _stream(path) as stream:
        lines = _lines(stream, path, refuse)
        if suffix == ".jsonl":
            yield from _jsonl(lines, str(path), refuse)
            return
        with _long_cells():
            yield from _csv(lines, str(path), "," if suffix == ".csv" else "\t", refuse)


def at(source: str, number: int) -> str:
    """Where a row is, for messages: "file:line", and "file, row 3" where there are no lines."""
    parquet = source.lower().endswith(PARQUET)
    return f"{source}, row {number}" if parquet else f"{source}:{number}"


def decode(content: bytes, where: str) -> str:
    """UTF-8 text, a byte order mark removed.

    Raises:
        DataError: not UTF-8, with the line of the first bad byte.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _not_utf8(f"{where}:{line}", content[error.start]) from None


def parse_jsonl(text: str, where: str) -> Iterator[Row]:
    """One JSON object a line; empty lines are skipped.

    Raises:
        DataError: a line that is not JSON, not an object, or with half a character.
    """
    return _jsonl(text.split("\n"), where, raise_first)


def _jsonl(lines: Iterable[str], where: str, refuse: Refuse) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            what = f"{where}:{number}: not JSON: {error.msg} at column {error.colno}"
            refuse(f"{where}:{number}", DataError(what, "write one JSON object a line"))
            continue
        if not isinstance(row, dict):
            what = f"{where}:{number}: a {type(row).__name__}, not an object"
            fix = 'write one object a line: {"text": "...", "label": ...}'
            refuse(f"{where}:{number}", DataError(what, fix))
            continue
        half = _half_character(line, row)
        if half:
            what = f"{where}:{number}: {half} is half a character (a lone surrogate)"
            fix = "write the whole character, or take it out"
            refuse(f"{where}:{number}", DataError(what, fix))
            continue
        # The parser makes new strings for the same few names in every line.
        yield number, {sys.intern(key): value for key, value in row.items()}


def _half_character(line: str, row: dict[str, Any]) -> str:
    """The first escape in a row that leaves a surrogate without its pair; "" where none does."""
    if "\\ud" not in line and "\\uD" not in line:
        return ""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(error.object[error.start]):04x}"
    return ""


def _csv(lines: Iterable[str], where: str, delimiter: str, refuse: Refuse) -> Iterator[Row]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if cells and not header:
                header = _header(cells, f"{where}:{line}", delimiter)
            elif cells:
                if len(cells) == len(header):
                    yield line, dict(zip(header, cells, strict=True))
                else:
                    what = (
                        f"{where}:{line}: {len(cells)} cells, and the header has {len(header)} "
                        f"({', '.join(header)})"
                    )
                    fix = "quote cells that hold the delimiter, and double the quotes inside them"
                    refuse(f"{where}:{line}", DataError(what, fix))
            line = reader.line_num + 1
    except csv.Error as error:
        what = str(error)
        if "field limit" in what:
            what = f"a cell of more than {CELL_LIMIT:,} characters"
        raise DataError(f"{where}:{line}: {what}", "close every quote that opens") from None


def _header(cells: list[str], where: str, delimiter: str) -> list[str]:
    header = [sys.intern(name.strip()) for name in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{where}: the column {twice[0]!r} is there twice", "rename one or take it out"
        )
    others = {",": "commas", ";": "semicolons", "\t": "tabs"}
    if len(header) == 1:
        for other in others.keys() - {delimiter}:
            if other in header[0]:
                own = others[delimiter]
                fix = {",": "name it .csv", "\t": "name it .tsv"}.get(other, f"save it with {own}")
                raise DataError(
                    f"{where}: one column, {header[0]!r}: the file is separated by "
                    f"{others[other]}, not by {own}",
                    fix,
                )
    return header


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet

    number = 0
    try:
        with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise DataError(
                    f"{path}: the column {twice[0]!r} is there twice", "rename one or take it out"
                )
            # strings without the annotation that calls them text, perhaps inside a nested column
            binary = [f.name for f in file.schema_arrow if "binary" in str(f.type)]
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    for name in binary:
                        row[name] = _decoded(row[name])
                    yield number, row
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "check the path") from None
    except (OSError, pa.ArrowException) as error:
        where = f"{path} (after row {number})" if number else str(path)
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{where} is truncated or not Parquet: {reason}", "copy or download it again"
        ) from error


def _decoded(value: Any) -> Any:
    """A value with its bytes, however deep, as text; those that are no UTF-8 stay, as of images."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_decoded(item) for item in value)
    return value


@contextmanager
def _stream(path: Path) -> Iterator[IO[bytes]]:
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", "check its permissions") from error
    with stream:
        if path.suffix.lower() != ".gz":
            yield stream
            return
        with gzip.GzipFile(fileobj=stream) as unpacked:
            yield unpacked  # type: ignore[misc]


def _lines(stream: IO[bytes], path: Path, refuse: Refuse) -> Iterator[str]:
    """Decoded lines with their ends; a line ends at a newline or (old files) a carriage return."""
    number = 0
    try:
        for number, raw in enumerate(stream, start=1):
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            try:
                line = raw.decode(encoding)
            except UnicodeDecodeError as error:
                where = f"{path}:{number}"
                refuse(where, _not_utf8(where, error.object[error.start]))
                line = raw.decode(encoding, errors="replace")
            if "\0" in line:
                raise DataError(
                    f"{path}:{number}: a NUL byte: this is not a text file, or it is UTF-16",
                    "save the file as UTF-8 text",
                )
            if "\r" in line[:-2]:
                yield from io.StringIO(line, newline="")
            else:
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}:{number + 1}: the file is truncated or not gzip: {error}",
            "copy or download it again",
        ) from None
    except OSError as error:
        raise DataError(f"{path}:{number + 1}: cannot be read: {error}") from error


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(CELL_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _not_utf8(where: str, byte: int) -> DataError:
    return DataError(f"{where}: byte 0x{byte:02x} is not UTF-8", "save the file as UTF-8")
