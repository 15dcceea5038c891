"""``pemt doctor`` and ``pemt tasks``: what they print, and that they download nothing."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from pemt import assets
from pemt.cli import doctor as doctor_file
from pemt.cli.doctor import doctor
from pemt.cli.tasks import list_tasks, show
from pemt.errors import UnknownNameError
from pemt.tasks.task import task_names
from tests.tasks.builders import make_task, mirror


@pytest.fixture(autouse=True)
def nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PEMT_DATA_DIR", raising=False)
    monkeypatch.setattr(assets, "_pip_download", lambda *a: pytest.fail("downloads"))


def test_doctor_json(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_DATA_DIR", str(tmp_path / "nowhere"))
    assert doctor(json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert {a["status"] for a in report["assets"].values()} == {"missing"}
    assert report["versions"]["torch"]
    assert report["devices"][0] == "cpu"
    assert report["cores"] >= 1
    assert report["free_disk_gb"] > 0
    assert report["hub"] == "not asked: HF_HUB_OFFLINE is set"
    assert report["mirror"] == {"path": str(tmp_path / "nowhere"), "found": False}
    assert report["cache"] == str(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_doctor_sees_an_altered_asset(capsys):
    path = assets.wheel_path("evals")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a wheel")
    assert doctor() == 1
    assert "altered" in capsys.readouterr().out
    assert path.exists(), "doctor only looks"


def test_doctor_names_a_missing_package(capsys, monkeypatch):
    monkeypatch.setattr(doctor_file, "PACKAGES", ("torch", "no-such-package"))
    assert doctor() == 1
    assert "pip install no-such-package" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (urllib.error.URLError("no route"), "does not answer: no route"),
        (TimeoutError("timed out"), "does not answer: timed out"),
        (urllib.error.HTTPError("u", 403, "no", {}, None), "answers"),
        (urllib.error.HTTPError("u", 503, "no", {}, None), "does not answer: HTTP 503"),
    ],
)
def test_doctor_asks_the_hub_briefly(monkeypatch, error, said):
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def urlopen(request, timeout):
        assert timeout <= 3
        assert request.get_method() == "HEAD"
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert doctor_file.examine()["hub"] == said


def test_list(capsys):
    assert list_tasks(json=True) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == list(task_names())
    list_tasks()
    assert "product_reviews" in capsys.readouterr().out


def test_show_without_rows_downloads_nothing(capsys):
    for name in ("rte", "tweets"):
        assert show(name, json=True) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["at_hand"] is False
        assert report["task"]["name"] == name
        show(name)
        assert "not at hand" in capsys.readouterr().out


def test_show_a_file_of_one_s_own(capsys, tmp_path):
    rows = "".join(f"sample [{i}],{i % 2}\n" for i in range(20))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    make_task(tmp_path, "mine", rows={"files": {"train": "rows.csv"}})
    path = str(tmp_path / "mine.yaml")
    show(path, json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["splits"] == {"train": 14, "validation": 2, "test": 4}
    assert len(report["examples"]) == 3
    totals = [sum(counts.values()) for counts in report["label_counts"].values()]
    assert totals == [14, 2, 4]
    show(path)
    assert report["examples"][0]["text"] in capsys.readouterr().out


def test_show_counts_options_by_label(capsys, tmp_path):
    rows = [
        {"text": f"the _ is {i}", "first": f"cup {i}", "second": f"jar {i}", "label": 1 + i % 2}
        for i in range(20)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    make_task(
        tmp_path,
        labels=["1", "2"],
        label_values={"1": 0, "2": 1},
        option_columns=["first", "second"],
        rows={"files": {"train": "rows.jsonl"}},
    )
    assert show(str(tmp_path / "tiny.yaml"), json=True) == 0
    counts = json.loads(capsys.readouterr().out)["label_counts"].values()
    assert sum(count["1"] for count in counts) == sum(count["2"] for count in counts) == 10


def test_show_prints_brackets_as_they_are(capsys, tmp_path):
    labels = ["[/a]", "[red]"]
    rows = "".join(f"sample {i},{labels[i % 2]}\n" for i in range(20))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    make_task(tmp_path, "my [blue]", labels=labels, rows={"files": {"train": "rows.csv"}})
    assert show(str(tmp_path / "my [blue].yaml")) == 0
    shown = capsys.readouterr().out
    for text in ("my [blue] version", "[/a], [red]", "-> [/a]"):
        assert text in shown
    (header,) = (line for line in shown.splitlines() if "split" in line and "rows" in line
                 and "rule" not in line)  # fmt: skip
    assert "[/a]" in header
    assert "[red]" in header


def test_show_an_unknown_task():
    with pytest.raises(UnknownNameError, match="Did you mean: tweets"):
        show("twets")


@pytest.mark.mirror
def test_show_from_the_mirror(capsys):
    show("cb", data_dir=mirror(), json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["splits"] == {"train": 250, "validation": 28, "test": 28}
