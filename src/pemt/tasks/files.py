"""Rows from CSV, TSV and JSONL files, plain or gzipped, with the line each one began on."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pemt.errors import DataError

Row = tuple[int, dict[str, Any]]
"""A row with the number of its (first) line, counted from 1."""

SUFFIXES = (".csv", ".tsv", ".jsonl")


def read_file(path: Path) -> list[Row]:
    """Every row of a file.

    Args:
        path: ``.csv``, ``.tsv`` (both with a header) or ``.jsonl``; ``.gz`` may follow. UTF-8.

    Raises:
        DataError: missing, empty, truncated, not UTF-8, a broken line; file and line are named.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} is none of the file types read here",
            f"allowed: {', '.join(SUFFIXES)}, each also with .gz",
        )
    text = decode(_bytes(path), str(path))
    if suffix == ".jsonl":
        rows = list(parse_jsonl(text, str(path)))
    else:
        rows = list(_parse_csv(text, str(path), "," if suffix == ".csv" else "\t"))
    if not rows:
        raise DataError(f"{path} has no rows", "it must hold at least one labelled row")
    return rows


def decode(content: bytes, where: str) -> str:
    """UTF-8 text, a byte order mark removed.

    Raises:
        DataError: not UTF-8, with the line of the first bad byte.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{where}:{line}: byte 0x{content[error.start]:02x} is not UTF-8",
            "save the file as UTF-8",
        ) from None


def parse_jsonl(text: str, where: str) -> Iterator[Row]:
    """One JSON object a line; empty lines are skipped.

    Raises:
        DataError: a line that is not JSON, or not an object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}:{number}: not JSON: {error.msg} at column {error.colno}",
                "write one JSON object a line",
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{where}:{number}: a {type(row).__name__}, not an object",
                'write one object a line: {"text": "...", "label": ...}',
            )
        yield number, row


def _parse_csv(text: str, where: str, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if header is None:
                header = [name.strip() for name in cells]
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    raise DataError(f"{where}:1: the column {twice[0]!r} is there twice")
            elif cells:
                if len(cells) != len(header):
                    raise DataError(
                        f"{where}:{line}: {len(cells)} cells, and the header has {len(header)} "
                        f"({', '.join(header)})",
                        "quote cells that hold the delimiter, and double the quotes inside them",
                    )
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{where}:{line}: {error}", "close every quote that opens") from None


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is truncated or not gzip: {error}", "copy or download it again"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
