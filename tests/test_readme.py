"""The README's Python example runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.offline_assets
def test_python_example(tmp_path, monkeypatch, capsys, offline_assets):
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S).group(1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    result = names["result"]
    assert set(result.experts) == {"none", "film_reviews", "question_types"}
    assert result.metrics["n"] == 100
    assert result.gates.sum(-1).allclose(result.gates.new_ones(len(result.gates)))
    assert capsys.readouterr().out.splitlines()[-1] in ("['negative']", "['positive']")

    from pemt import PemtModel

    again = PemtModel.from_pretrained(tmp_path / "adapted", base=names["base"])
    assert again.gate_names == result.experts
    again.detach()
