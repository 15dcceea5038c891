"""Which test rows of a target a source trained on, and what scores are without them.

    python benchmarks/overlap.py sst2 rotten_tomatoes --data-dir MIRROR --grid runs/minilm/grid

Texts are compared without the template's first word, case and punctuation. "whole": the test text
is a training text; "phrase": some training text of five words or more lies inside it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from pemt.tasks import Example, Task, load_splits

WORDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--grid", type=Path, help="also split the scores of its 16-shot cells")
    given = parser.parse_args()
    source = load_splits(Task.named(given.source), data_dir=given.data_dir).train
    target = load_splits(Task.named(given.target), data_dir=given.data_dir).test
    texts = {plain(e) for e in source}
    phrases = {t for t in texts if len(t.split()) >= WORDS}
    whole = {e.id for e in target if plain(e) in texts}
    shared = whole | {e.id for e in target if holds(plain(e), phrases)}
    print(f"{given.target}: {len(target)} test rows, {len(whole)} whole among the training rows of "
          f"{given.source}, {len(shared)} with a phrase of theirs")  # fmt: skip
    if given.grid is not None:
        print(table(given.grid, given.target, whole, shared))


def plain(example: Example) -> str:
    text = re.sub(r"^[a-z ]+: ", "", example.text).lower()
    return re.sub(r"[^a-z0-9]+", " ", text).strip()


def holds(text: str, phrases: set[str]) -> bool:
    words = text.split()
    return any(
        " ".join(words[i:j]) in phrases
        for i in range(len(words))
        for j in range(i + WORDS, len(words) + 1)
    )


def table(grid: Path, target: str, whole: set[str], shared: set[str]) -> str:
    """Accuracy in points, mean and deviation over seeds, of all rows and of those left."""
    scores: dict[str, list[list[float]]] = defaultdict(list)
    sizes = (0, 0, 0)
    for folder in sorted(grid.glob(f"cells/{target}-16-*")):
        if not (folder / "predictions.json").is_file():
            continue
        matched = re.fullmatch(rf"{target}-16-\d+-(.+)-[0-9a-f]+", folder.name)
        assert matched is not None
        rows = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
        parts = [
            [r["answer"] == r["target"] for r in rows if r["id"] not in out]
            for out in (set(), whole, shared)
        ]
        sizes = (len(parts[0]), len(parts[1]), len(parts[2]))
        scores[matched[1]].append([100 * float(np.mean(part)) for part in parts])
    head = f"all {sizes[0]} | {sizes[1]} not whole | {sizes[2]} without a phrase"
    lines = [f"| method | {head} | n |", "| --- | --- | --- | --- | --- |"]
    for method, values in scores.items():
        mean, deviation = np.mean(values, 0), np.std(values, 0, ddof=1)
        shown = " | ".join(f"{m:.1f} ± {d:.1f}" for m, d in zip(mean, deviation, strict=True))
        lines.append(f"| {method} | {shown} | {len(values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
