"""Put the measured studies into docs/studies/, from the folders that `pemt study` wrote.

    python docs/make_studies.py runs/studies

Of each study that is there: the reading and the tables of its study.md go between the page's
markers, the picture to docs/figures/, the numbers (study.csv) to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from pemt.writing import write_whole

STUDIES = ("sources", "sparsity", "prompt", "ablation")
DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"


def main() -> None:
    """Fill the pages whose studies are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="the folder that holds a folder per study")
    given = parser.parse_args()
    for name in STUDIES:
        folder = given.runs / name
        if not (folder / "study.md").is_file():
            print(f"{name}: no study in {folder}, the page stays as it is")
            continue
        shutil.copyfile(folder / "study.png", DOCS / "figures" / f"study-{name}.png")
        shutil.copyfile(folder / "study.csv", RESULTS / f"study-{name}.csv")
        page = DOCS / "studies" / f"{name}.md"
        write_whole(page, filled(page.read_text(encoding="utf-8"), name, shown(folder)))
        print(f"{name}: {page}")


def shown(folder: Path) -> str:
    """Picture, reading and tables of a study; without the question, which the page asks itself."""
    name = folder.name
    lines = (folder / "study.md").read_text(encoding="utf-8").splitlines()
    body = "\n".join(lines[1:]).strip()
    links = f"![{name}](../figures/study-{name}.png)"
    numbers = f"[All numbers](../../benchmarks/results/study-{name}.csv)."
    return f"{links}\n\n{body}\n\n{numbers}"


def filled(page: str, name: str, content: str) -> str:
    """The page with `content` between its markers."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if not 0 <= page.find(begin) < page.find(end):
        raise SystemExit(f"docs/studies/{name}.md has no {begin} before {end}: write both lines")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


if __name__ == "__main__":
    main()
