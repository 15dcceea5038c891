"""The page about one's own task: its rows, its YAML and its check are what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pemt.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "own-task.md"


@pytest.mark.offline_assets
def test_the_page_checks_as_printed(tmp_path, monkeypatch, capsys, offline_assets):
    page = PAGE.read_text(encoding="utf-8")
    block = {k: re.search(rf"```{k}\n(.*?)```", page, re.S).group(1) for k in ("python", "yaml")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEMT_DATA_DIR", raising=False)
    exec(compile(block["python"], "own-task.md", "exec"), {})
    Path("messages.yaml").write_text(block["yaml"], encoding="utf-8")
    with Path("flawed.csv").open("w", encoding="utf-8") as file:
        file.write(Path("messages.csv").read_text(encoding="utf-8"))
        file.write('call me,Ham\nfree prize,junk\nfree ringtone,junk\n"  ",ham\n')
    flawed = block["yaml"].replace("messages.csv", "flawed.csv")
    Path("flawed.yaml").write_text(flawed, encoding="utf-8")
    for name, code in (("messages", 0), ("flawed", 1)):
        assert main(["tasks", "check", f"{name}.yaml"]) == code
        said = capsys.readouterr().out.splitlines()
        printed = page.partition(f"$ pemt tasks check {name}.yaml\n")[2].partition("```")[0]
        lines = [line for line in printed.splitlines() if line != "..."]
        assert len(lines) >= 9
        assert [line for line in lines if line not in said] == []
