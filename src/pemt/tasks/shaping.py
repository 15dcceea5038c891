"""What happens to a row's columns before the template reads them: cleaning, marking, joining."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pemt.errors import DataError, UnknownNameError


def _html(text: str) -> str:
    """Tags become spaces, and runs of spaces one (MultiRC's paragraphs, METHOD.md)."""
    return " ".join(re.sub(r"</?[A-Za-z][^<>]*>", " ", text).split())


def _highlights(text: str) -> str:
    """ReCoRD's bullet points become sentences: `@highlight` is a marker, not a word of the text."""
    ended = re.sub(r"([.?!\"'])\s*@highlight\s*", r"\1 ", text)
    return re.sub(r"\s*@highlight\s*", ". ", ended)


def _spaces(text: str) -> str:
    """Runs of spaces and line breaks become one space (options that were written one a line)."""
    return " ".join(text.split())


CLEANERS: dict[str, Callable[[str], str]] = {
    "html": _html,
    "highlights": _highlights,
    "spaces": _spaces,
}
"""What a task's ``clean`` may name, by name."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A span of words that is wrapped in a sign, as WSC's noun and pronoun are.

    Args:
        column: the text, whose words are what spaces separate.
        index: the column with the number of the span's first word, from 0.
        span: the column with the span's text.
        sign: what stands before and after it.
    """

    column: str
    index: str
    span: str
    sign: str


def check_cleaners(clean: Mapping[str, str]) -> None:
    """Refuse an unknown cleaner.

    Raises:
        UnknownNameError: with a suggestion.
    """
    for name in clean.values():
        if name not in CLEANERS:
            raise UnknownNameError("cleaner", name, CLEANERS)


def shape(
    row: Mapping[str, Any],
    clean: Mapping[str, str],
    marks: Sequence[Mark],
    where: str = "",
) -> dict[str, Any]:
    """A row as the template reads it: cleaned, marked, lists joined by ", ".

    Args:
        row: as read from its source.
        clean: column -> cleaner.
        marks: spans to wrap.
        where: file and line, for messages.

    Raises:
        DataError: a mark's columns are missing, or it starts at no word of its text.
    """
    shaped = dict(row)
    for column, name in clean.items():
        if isinstance(shaped.get(column), str):
            shaped[column] = CLEANERS[name](shaped[column])
    for column in {mark.column for mark in marks}:
        spans = [mark for mark in marks if mark.column == column]
        shaped[column] = _marked(row, column, spans, f"{where}: " if where else "")
    for column, value in shaped.items():
        if isinstance(value, (list, tuple)):
            shaped[column] = ", ".join(map(str, value))
    return shaped


def _marked(row: Mapping[str, Any], column: str, marks: Sequence[Mark], at: str) -> str:
    for mark in marks:
        for name in (mark.column, mark.index, mark.span):
            if name not in row:
                raise DataError(f"{at}no column {name!r}", f"the columns are: {', '.join(row)}")
    words = str(row[column]).split()
    spans = []
    for mark in marks:
        given, size = str(row[mark.index]).strip(), len(str(row[mark.span]).split())
        start = int(given) if given.isdecimal() else -1
        if not 0 <= start <= len(words) - size:
            raise DataError(
                f"{at}{mark.index} is {given!r}, and {column!r} has {len(words)} words",
                "give the number of the span's first word, from 0",
            )
        spans.append((start, size, mark.sign))
    # the last span first: the signs that are put in then move no span that is still to come
    for start, size, sign in sorted(spans, reverse=True):
        words[start : start + size] = [sign, *words[start : start + size], sign]
    return " ".join(words)
