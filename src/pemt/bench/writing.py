"""Tables as Markdown and LaTeX, and the file they go to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pemt.bench.table import Entry, Table

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def markdown(tables: Sequence[Table], header: Sequence[str] = ()) -> str:
    """Tables with their titles and notes.

    Args:
        tables: in their order.
        header: sentences before the first.
    """
    parts = [*(f"**{_plain(line)}**" for line in header)]
    for table in tables:
        widths = [
            max(3, len(_plain(head)), *(len(_marked(row[i])) for row in table.rows))
            for i, head in enumerate(table.columns)
        ]
        left = [i < table.words for i in range(len(widths))]

        def line(texts: Sequence[str], widths: list[int] = widths, left: list[bool] = left) -> str:
            padded = (
                t.ljust(w) if le else t.rjust(w)
                for t, w, le in zip(texts, widths, left, strict=True)
            )
            return f"| {' | '.join(padded)} |"

        rule = ["-" * w if le else "-" * (w - 1) + ":" for w, le in zip(widths, left, strict=True)]
        parts += [
            f"### {_plain(table.title)}",
            "\n".join(
                [line([*map(_plain, table.columns)]), line(rule)]
                + [line([_marked(e) for e in row]) for row in table.rows]
            ),
            *(f"[{i}] {_plain(note)}" for i, note in enumerate(table.notes, 1)),
            *map(_plain, table.remarks),
        ]
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Table], header: Sequence[str] = ()) -> str:
    r"""Floats for a paper: needs \usepackage{booktabs}; names are escaped, the best is bold.

    Args:
        tables: in their order.
        header: sentences, as comments before the first.
    """
    parts = ["% needs \\usepackage{booktabs}", *(f"% {' '.join(line.split())}" for line in header)]
    for table in tables:
        columns = "l" * table.words + "r" * (len(table.columns) - table.words)
        below = [f"$^{{{i}}}$ {escaped(note)}" for i, note in enumerate(table.notes, 1)]
        below += [escaped(remark) for remark in table.remarks]
        parts += [
            r"\begin{table}[t]", r"\centering", rf"\caption{{{escaped(table.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
            " & ".join(map(escaped, table.columns)) + r" \\", r"\midrule",
            *(" & ".join(map(_tex, row)) + r" \\" for row in table.rows),
            r"\bottomrule", r"\end{tabular}",
            *(rf"\par\smallskip{{\footnotesize {text}}}" for text in below), r"\end{table}", "",
        ]  # fmt: skip
    return "\n".join(parts)


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is, a minus as a minus."""
    text = "".join(_TEX.get(letter, letter) for letter in text)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)


def _plain(text: str) -> str:
    """Text that Markdown neither takes for a column nor for a mark."""
    return text.replace("\\", "\\\\").replace("|", r"\|").replace("*", r"\*")


def _marked(entry: Entry) -> str:
    text = _plain(entry.text)
    text = f"**{text}**" if entry.best else text
    return text if entry.note is None else f"{text} [{entry.note}]"


def _tex(entry: Entry) -> str:
    text = escaped(entry.text)
    text = rf"\textbf{{{text}}}" if entry.best else text
    return text if entry.note is None else f"{text}$^{{{entry.note}}}$"
