"""Laws of a grid that runs in this process."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pemt.bases import load_base
from pemt.bench import plan
from pemt.bench.cell import read_cells
from pemt.bench.comparison import compared
from pemt.bench.grid import Grid
from pemt.bench.output import OutputFolder
from pemt.bench.progress import Progress
from pemt.bench.results import read_results
from pemt.bench.running import GridRun
from pemt.errors import ConfigError, PemtError
from pemt.experts import ExpertLibrary
from pemt.methods import METHODS
from pemt.training import adapt, fitting, record
from tests import tiny
from tests.bench import places


@pytest.fixture
def folder(tmp_path):
    return places.furnish(tmp_path)


def go(path: Path, *, work=None, **changes):
    """Run a grid file; the run and the cells that were really made."""
    ran = []

    def counted(place, job, rows):
        ran.append(job.point)
        return (work or places.run_cell)(place, job, rows)

    run = GridRun(Grid.from_file(path), work=counted, **changes)
    try:
        run.cells = run.go()
    finally:
        run.ran = ran
    return run


def test_finished_cells_are_not_run_again(folder):
    path = places.grid(folder)
    base = tiny.loaded("bert")
    before = tiny.snapshot(base.model)
    first = go(path, base=base)
    assert first.ran == ["one-4-0-probe", "one-4-0-adapter", "one-4-1-probe", "one-4-1-adapter"]
    assert [(c.method, c.data_seed) for c in first.cells] == [
        ("probe", 0), ("adapter", 0), ("probe", 1), ("adapter", 1),
    ]  # fmt: skip
    assert tiny.snapshot(base.model) == before
    again = go(path)
    assert again.ran == []
    assert again.cells == first.cells
    assert sorted(c.name for c in read_cells(folder / "out")) == sorted(c.name for c in first.cells)
    more = go(places.grid(folder, data_seeds=3, methods=["probe"]))
    assert more.ran == ["one-4-2-probe"]
    assert places.leftovers(folder / "out") == []


def test_a_cell_in_this_process_gets_the_cores_it_was_promised(folder):
    before, seen = torch.get_num_threads(), []

    def work(place, job, rows):
        seen.append(torch.get_num_threads())
        return places.run_cell(place, job, rows)

    path = places.grid(folder, methods=["probe"], data_seeds=1)
    try:
        torch.set_num_threads(2)
        go(path, work=work, base=tiny.loaded("bert"), cell_cpus=1)
        assert seen == [1]
        assert torch.get_num_threads() == 2  # this process has its own back
        go(places.grid(folder, methods=["probe"], data_seeds=[7]), work=work)
        assert seen == [1, 2]
    finally:
        torch.set_num_threads(before)


def test_what_a_cell_holds_is_what_adapt_gives(folder):
    path = places.grid(
        folder, methods=[{"pemt": {"learning_rates": [0.001, 0.01]}}], data_seeds=[3], test_rows=9
    )
    (cell,) = go(path).cells
    base = load_base(folder / "bert", precision="float32")
    grid = Grid.from_file(path)
    settings = grid.settings.changed(init_seed=3, order_seed=3, checkpoints=False, report_to="none")
    result = adapt(
        base, grid.tasks[0].task, ExpertLibrary(folder / "experts"), shots=4, data_seed=3,
        method="pemt", settings=settings, learning_rates=[0.001, 0.01], test_rows=9,
        progress=False,
    )  # fmt: skip
    assert cell.metrics == result.metrics
    assert cell.metrics["n"] == 9
    assert cell.validation == result.validation
    assert cell.tried == result.tried
    assert cell.tried.keys() == {"0.001", "0.01"}
    assert cell.learning_rate == result.settings.learning_rate
    assert (cell.trained, cell.total) == result.parameters
    means = result.gates.mean(0).tolist()
    assert cell.gates == dict(zip(["a", "b"], means, strict=True))
    assert 0 < cell.train_seconds < cell.seconds
    assert cell.peak_memory is None or cell.peak_memory > 50e6
    digest = cell.config["rows"].pop("digest")
    assert len(digest) == 64
    assert cell.config["rows"] == result.manifest
    hashes = {n: ExpertLibrary(folder / "experts").info(n).content_hash for n in "ab"}
    assert cell.config["experts"] == hashes
    answers = json.loads((folder / "out" / "cells" / cell.name / "predictions.json").read_text())
    assert [a["answer"] for a in answers] == result.predictions.texts
    assert all(set(a) == {"id", "target", "answer"} for a in answers)
    result.model.detach()


CHANGES = {
    "shots": {"shots": [2]}, "test rows": {"test_rows": 5},
    "settings": {"settings": {**places.SETTINGS, "max_steps": 3}},
    "rates": {"learning_rates": [0.004]}, "pemt": {"pemt": {"reduction": 4}},
    "precision": {"precision": "bfloat16"},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_another_setting_is_another_cell(change, folder):
    given = {"methods": ["adapter"], "data_seeds": 1}
    go(places.grid(folder, **given))
    assert len(go(places.grid(folder, **given, **CHANGES[change])).ran) == 1
    assert go(places.grid(folder, **given)).ran == []
    assert len(list(read_cells(folder / "out"))) == 2


def test_what_a_method_does_not_read_is_no_other_cell(folder):
    given = {"methods": ["adapter", "pemt", "prompt-tuning"], "data_seeds": 1}
    assert len(go(places.grid(folder, **given)).ran) == 3
    assert go(places.grid(folder, **given, pemt={"tau": 2.0})).ran == ["one-4-0-pemt"]
    assert go(places.grid(folder, **given, pemt={"prompt_tokens": 2})).ran == [
        "one-4-0-prompt-tuning"
    ]


def test_other_rows_an_other_description_or_expert_are_another_cell(folder):
    path = places.grid(folder, methods=["adapter", "pemt"], data_seeds=1)
    go(path)
    task = folder / "one.yaml"
    described = yaml.safe_load(task.read_text())
    task.write_text(yaml.safe_dump({**described, "notes": "nothing changed"}))
    assert go(path).ran == []
    task.write_text(yaml.safe_dump({**described, "description": "Given a text judge"}))
    assert len(go(path).ran) == 2
    tests = folder / "one-test.jsonl"
    tests.write_text("\n".join(tests.read_text().splitlines()[:-1]))
    assert len(go(path).ran) == 2
    library = ExpertLibrary(folder / "experts")
    other = replace(tiny.expert(tiny.base("bert"), "a", seed=9), info=library.info("a"))
    library.add(other, overwrite=True)
    assert go(path).ran == ["one-4-0-pemt"]  # an adapter takes nothing from the library


def test_the_digest_of_rows_is_one_for_all_methods_and_another_for_other_rows(folder):
    path = places.grid(folder, shots=[4, None], data_seeds=2)

    def digests(run):
        found = {}
        for c in run.cells:
            found.setdefault((c.shots, c.data_seed), set()).add(c.config["rows"]["digest"])
        assert all(len(same) == 1 for same in found.values())
        return {point: same.pop() for point, same in found.items()}

    before = digests(go(path))
    assert before[None, 0] == before[None, 1], "the full split is the same for all seeds"
    assert len(set(before.values())) == 3
    fewer = digests(go(places.grid(folder, shots=[4, None], data_seeds=2, test_rows=5)))
    assert not set(fewer.values()) & set(before.values())


def weights(folder):
    """One weight that the fingerprint does not look at."""
    path = folder / "bert" / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer.1.attention.self.query.weight"][0, 0] += 1e-3
    save_file(tensors, path, {"format": "pt"})


def configuration(folder):
    path = folder / "bert" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu"}))


def tokenizer(folder):
    path = folder / "bert" / "tokenizer.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "normalizer": {"type": "Lowercase"}})
    )


def chat_template(folder):
    (folder / "bert" / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize(
    ("change", "told"),
    [(weights, "weights"), (configuration, "configuration"), (tokenizer, "tokenizer"),
     (chat_template, "tokenizer")],
)  # fmt: skip
def test_cells_of_another_base_with_the_same_fingerprints_are_refused(change, told, folder):
    path = places.grid(folder)
    first = go(path)
    before = {p: p.read_bytes() for p in (folder / "out").rglob("*.json")}
    change(folder)
    again = places.grid(folder, data_seeds=3)
    with pytest.raises(ConfigError, match=f"made on a base with another {told} than") as error:
        go(again)
    assert first.cells[0].name in error.value.what
    assert "(and 3 more such cells)" in error.value.what
    assert "another output folder" in error.value.fix
    assert {p: p.read_bytes() for p in (folder / "out").rglob("*.json")} == before
    fresh = go(again, output=folder / "fresh")
    assert {c.key for c in first.cells} < {c.key for c in fresh.cells}, "keys are as they were"


def test_cells_of_earlier_releases_are_accepted(folder):
    path = places.grid(folder, methods=["probe"])
    go(path)
    for file in (folder / "out").glob("cells/*/cell.json"):
        cell = json.loads(file.read_text())
        assert cell["config"]["base"].pop("exact").keys() == {
            "weights",
            "configuration",
            "tokenizer",
        }
        file.write_text(json.dumps(cell))
    weights(folder)
    assert go(path).ran == []


def test_another_run_on_another_base_is_noticed(folder):
    """Both begin with an empty folder; the one that finds the other's cell stops."""
    path = places.grid(folder, methods=["probe"])

    def overtaken(place, job, rows):
        weights(folder)
        GridRun(replace(Grid.from_file(path), data_seeds=[1])).go()
        return places.run_cell(place, job, rows)

    with pytest.raises(ConfigError, match=r"one-4-1-probe.* with another weights"):
        go(path, work=overtaken)


def test_where_the_data_is_decides_nothing_and_is_not_written(folder, monkeypatch):
    """The same rows from a mirror in another place are the same cells."""
    described = yaml.safe_load((folder / "one.yaml").read_text())
    described["rows"] = {"mirror": ["one"]}
    (folder / "one.yaml").write_text(yaml.safe_dump(described))
    for mirror in ("here", "there"):
        (folder / mirror / "one").mkdir(parents=True)
        for split in ("train", "validation", "test"):
            text = (folder / f"one-{split}.jsonl").read_text()
            (folder / mirror / "one" / f"{split}.jsonl").write_text(text)
    path = places.grid(folder, methods=["probe"], data_seeds=1)
    assert len(go(path, data_dir=folder / "here").ran) == 1
    assert go(path, data_dir=folder / "there").ran == []
    path = places.grid(folder, methods=["probe"], data_seeds=1, data_dir=str(folder / "there"))
    assert go(path).ran == []
    monkeypatch.setenv("PEMT_DATA_DIR", str(folder / "there"))
    assert go(places.grid(folder, methods=["probe"], data_seeds=1)).ran == []
    written = list((folder / "out").rglob("*.json"))
    assert len(written) == 3
    for file in written:
        assert str(folder / "here") not in file.read_text()
        assert str(folder / "there") not in file.read_text()


def test_the_learning_rate_is_chosen_without_the_test_rows(folder):
    """Test rows with the labels exchanged change the score, and not what was chosen."""
    given = {"methods": ["adapter"], "data_seeds": 1, "learning_rates": [1e-4, 1e-2, 5e-2],
             "settings": {**places.SETTINGS, "max_steps": 6}}  # fmt: skip
    (honest,) = go(places.grid(folder, **given)).cells
    tests = folder / "one-test.jsonl"
    rows = [json.loads(line) for line in tests.read_text().splitlines()]
    tests.write_text("\n".join(json.dumps({**r, "label": 1 - r["label"]}) for r in rows))
    (planted,) = go(places.grid(folder, **given)).cells
    assert planted.key != honest.key
    assert planted.metrics["accuracy"] == pytest.approx(1 - honest.metrics["accuracy"])
    for name in ("learning_rate", "tried", "validation"):
        assert getattr(planted, name) == getattr(honest, name)
    best = max(honest.tried.values())
    assert honest.validation == best
    assert honest.tried[f"{honest.learning_rate:g}"] == best


def test_train_seconds_hold_no_validation(folder, monkeypatch):
    real = fitting.evaluate

    def slowly(*args, **kwargs):
        time.sleep(0.5)
        return real(*args, **kwargs)

    monkeypatch.setattr(fitting, "evaluate", slowly)
    given = {"methods": ["adapter"], "data_seeds": 1, "learning_rates": [1e-3, 1e-2]}
    (cell,) = go(places.grid(folder, **given)).cells
    assert 0 < cell.train_seconds < cell.seconds - 2 * 0.5
    (probe,) = go(places.grid(folder, methods=["probe"], data_seeds=1)).cells
    assert 0 < probe.train_seconds < probe.seconds, "a probe is fitted while it is built"
    assert (probe.tried, probe.learning_rate, probe.validation) == ({}, None, None)


def test_an_interrupted_run_leaves_whole_cells_and_goes_on(folder):
    path = places.grid(folder)
    made = []

    def stop(place, job, rows):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(job.point)
        return places.run_cell(place, job, rows)

    with pytest.raises(KeyboardInterrupt):
        go(path, work=stop)
    assert sorted(places.cells(folder / "out")) == sorted(made)
    assert made == ["one-4-0-probe", "one-4-0-adapter", "one-4-1-probe"]
    assert places.leftovers(folder / "out") == []
    assert go(path).ran == ["one-4-1-adapter"]
    go(path, output=str(folder / "straight"))
    assert places.results(folder / "out") == places.results(folder / "straight")


def test_what_a_killed_writer_left_is_cleared_up(folder):
    path = places.grid(folder, methods=["probe"], data_seeds=1)
    (cell,) = go(path).cells
    finished = folder / "out" / "cells" / cell.name
    half = finished.with_name(f".{cell.name}.tmp")
    finished.rename(half)
    (half / "cell.json").unlink()
    assert go(path).cells[0].metrics == cell.metrics
    assert places.leftovers(folder / "out") == []
    assert [c.name for c in read_cells(folder / "out")] == [cell.name]


def test_too_few_rows_fail_alone(folder):
    path = places.grid(folder, shots=[4, 30], data_seeds=1)
    run = go(path)
    assert run.ran == ["one-4-0-probe", "one-4-0-adapter"]
    assert sorted(run.tally.failed) == sorted(
        j.name for j in run.plan.jobs if j.shots == 30
    )  # fmt: skip
    error = json.loads(
        next((folder / "out" / "cells").glob("one-30-0-probe-*/error.json")).read_text()
    )
    assert "want 30" in error["message"]
    assert (error["task"], error["method"], error["shots"]) == ("one", "probe", 30)
    summary = "\n".join(run.tally.lines())
    assert "2 of 4 cells are finished (2 made by this run), 2 failed, 0 remain." in summary
    assert "one-30-0-probe" in summary


def test_full_data_and_validation_options(folder):
    path = places.grid(
        folder, shots=[None, 4], methods=["probe"], data_seeds=1,
        tasks=[{str(folder / "one.yaml"): {"validation": "full", "score": "balanced_accuracy"}}],
    )  # fmt: skip
    full, few = go(path).cells
    assert full.name.startswith("one-full-0-probe-")
    assert full.config["rows"]["train"] == 64
    assert len(few.config["rows"]["validation_ids"]) == 32
    assert full.value == full.metrics["balanced_accuracy"]
    assert "accuracy" in full.metrics


def test_cross_validation_uses_no_other_labels(folder):
    path = places.grid(
        folder, shots=[4], methods=["adapter"], data_seeds=1, learning_rates=[1e-3, 1e-2],
        tasks=[{str(folder / "one.yaml"): {"validation": "cv"}}],
    )  # fmt: skip
    (cell,) = go(path).cells
    assert cell.config["rows"]["validation_ids"] == []
    judged = cell.notes["selection"]["choices"]
    assert {c["learning_rate"] for c in judged} == {1e-3, 1e-2}
    assert cell.learning_rate == judged[0]["learning_rate"]
    assert cell.validation == pytest.approx(judged[0]["score"])


def test_another_score_of_the_same_run_trains_nothing(folder):
    described = yaml.safe_load((folder / "one.yaml").read_text())
    described["metrics"] = ["accuracy", "macro_f1"]
    (folder / "one.yaml").write_text(yaml.safe_dump(described))
    given = {"methods": ["probe"], "data_seeds": 1}
    (cell,) = go(places.grid(folder, **given)).cells
    assert cell.score == "accuracy"
    tasks = [{str(folder / "one.yaml"): {"score": "macro_f1"}}]
    again = go(places.grid(folder, **given, tasks=tasks))
    assert again.ran == []
    assert [c.score for c in read_cells(folder / "out")] == ["macro_f1"]


def test_an_unexpected_error_is_tried_again_and_ours_is_not(folder, monkeypatch):
    monkeypatch.setenv("PEMT_TEST_FOLDER", str(folder))
    path = places.grid(folder)
    run = go(path, work=places.break_once)
    assert run.ran == [
        "one-4-0-probe", "one-4-0-adapter", "one-4-0-adapter", "one-4-1-probe", "one-4-1-adapter",
    ]  # fmt: skip
    assert run.tally.failed == {}
    assert not list((folder / "out" / "cells").glob("*/error.json"))

    def refuse(place, job, rows):
        raise PemtError("never", "give up")

    failing = places.grid(folder, output=str(folder / "other"), data_seeds=1)
    run = go(failing, work=refuse, retries=3)
    assert run.ran == ["one-4-0-probe", "one-4-0-adapter"]
    errors = [json.loads(p.read_text()) for p in (folder / "other").glob("cells/*/error.json")]
    assert {e["message"] for e in errors} == {"never\n  -> give up"}
    assert {e["attempt"] for e in errors} == {1}
    assert all("refuse" in e["traceback"] for e in errors)
    # a new run tries failed cells again
    assert go(failing).ran == run.ran
    assert not list((folder / "other").glob("cells/*/error.json"))


def test_methods_that_are_not_defined_are_no_failures(folder):
    path = places.grid(folder, methods=["probe", "zero-shot"], data_seeds=1)
    run = go(path)
    assert run.ran == ["one-4-0-probe"]
    assert run.tally.failed == {}
    assert list(run.tally.refused) == [
        METHODS["zero-shot"].refusal("encoder-only", "classification")
    ]
    tiny.task(folder, "words", kind="generation")
    tasks = [str(folder / "words.yaml"), str(folder / "one.yaml")]
    run = go(places.grid(folder, methods=["adapter", "bitfit"], data_seeds=1, tasks=tasks),
             only_methods=["adapter"])  # fmt: skip
    assert run.ran == ["one-4-0-adapter"]
    (reason,) = run.tally.refused
    assert "asks for free text" in reason


def test_only_some_of_the_grid(folder):
    tasks = [str(folder / "one.yaml"), str(folder / "two.yaml")]
    path = places.grid(folder, tasks=tasks, data_seeds=1)
    assert go(path, only_tasks=["two"], only_methods=["probe"]).ran == ["two-4-0-probe"]
    described = OutputFolder(folder / "out").description()
    assert list(described["cells"]) == ["two-4-0-probe"]
    assert go(path, only_tasks=["one"]).ran == ["one-4-0-probe", "one-4-0-adapter"]
    described = OutputFolder(folder / "out").description()
    assert sorted(described["cells"]) == ["one-4-0-adapter", "one-4-0-probe", "two-4-0-probe"]
    with pytest.raises(PemtError, match=r"'tow'\. Did you mean: two\?"):
        go(path, only_tasks=["tow"])
    with pytest.raises(PemtError, match="'lora'"):
        go(path, only_methods=["lora"])


def test_experts_by_name_and_by_rank(folder):
    given = {"methods": ["pemt"], "data_seeds": 1}
    (one,) = go(places.grid(folder, **given, experts=["b"])).cells
    assert list(one.gates) == ["b"]
    (two,) = go(places.grid(folder, **given, experts=["b", "a"])).cells
    assert list(two.gates) == ["b", "a"]
    (best,) = go(places.grid(folder, **given, experts="auto:1")).cells
    assert len(best.gates) == 1
    assert best.notes["ranking"]
    with pytest.raises(PemtError, match="'c'"):
        go(places.grid(folder, **given, experts=["c"]))
    with pytest.raises(PemtError, match="No experts in"):
        go(places.grid(folder, **given, libraries={"experts": str(folder / "none")}))


def test_an_expert_of_the_target_task_itself_is_told(folder, capsys):
    library = ExpertLibrary(folder / "experts")
    made = library.load("a")
    library.add(replace(made, name="own", info=replace(made.info, name="own", task="one")))
    tasks = [str(folder / "one.yaml"), str(folder / "two.yaml")]
    given = {"methods": ["pemt", "adapter"], "data_seeds": 1, "tasks": tasks}
    run = go(places.grid(folder, **given), progress=Progress(plain=True))
    told = capsys.readouterr().err
    assert "Trained on one itself: own." in told
    assert "Trained on two" not in told
    assert {(c.task, c.method): c.own_sources for c in run.cells} == {
        ("one", "pemt"): ["own"], ("one", "adapter"): [], ("two", "pemt"): [],
        ("two", "adapter"): [],
    }  # fmt: skip
    one, two, mean = compared(read_results(folder / "out"), 4)
    assert one.notes == {"pemt": "PEMT on one, 4 shots: own was trained on this task itself."}
    assert two.notes == {}
    assert mean.notes == one.notes
    left_out = go(places.grid(folder, **given, experts=["a", "b"]), progress=Progress(plain=True))
    assert "Trained on" not in capsys.readouterr().err
    assert not any(c.own_sources for c in left_out.cells)


def test_a_grid_over_another_grids_output_keeps_its_cells(folder):
    go(places.grid(folder, methods=["probe"]))
    go(places.grid(folder, methods=["probe"], test_rows=3))
    described = OutputFolder(folder / "out").description()
    assert described["grid"]["test_rows"] == 3
    assert len(described["cells"]) == 2
    assert described["versions"]["torch"]
    assert len(list(read_cells(folder / "out"))) == 4
    (folder / "out" / "grid.json").write_text("[]")
    with pytest.raises(PemtError, match="describes no grid"):
        go(places.grid(folder, methods=["probe"]))


def test_bad_options(folder):
    path = places.grid(folder)
    grid = Grid.from_file(path)
    for options, told in (
        ({"workers": 0}, "workers=0"), ({"retries": -1}, "retries=-1"),
        ({"cell_cpus": 0}, "cell_cpus=0"), ({"cell_gpus": -0.5}, "cell_gpus=-0.5"),
        ({"workers": 2, "on_result": print}, "workers=1"),
        ({"output": path}, "is a file"),
    ):  # fmt: skip
        with pytest.raises(PemtError, match=told):
            GridRun(grid, **options)
    with pytest.raises(PemtError, match="no output folder"):
        GridRun(replace(grid, output=None))


def test_a_method_that_has_become_defined_is_refused_no_more(folder, monkeypatch):
    """The grid is the same and the package is not."""
    path = places.grid(folder, methods=["probe", "adapter"], data_seeds=1)
    with monkeypatch.context() as earlier:
        earlier.setattr(plan, "_refusal", lambda *_: "not defined yet")
        assert go(path).ran == []
    assert go(path, only_methods=["probe"]).ran == ["one-4-0-probe"]
    described = OutputFolder(folder / "out").description()
    assert [r["method"] for r in described["refused"]] == ["adapter"], "not looked at again"
    go(path)
    assert OutputFolder(folder / "out").description()["refused"] == []
    assert read_results(folder / "out").header == ()


def test_a_folder_that_cannot_be_made(folder):
    (folder / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"taken/out cannot be written \(Not a directory\)"):
        go(places.grid(folder, output=str(folder / "taken" / "out")))


def test_a_full_disk_costs_the_cells_it_has_no_room_for(folder, monkeypatch):
    path = places.grid(folder)
    real, full = record.write_whole, []

    def write_whole(path, content):
        if "one-4-0-adapter" in path.parent.name and path.name != "predictions.json":
            full.append(path.name)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(record, "write_whole", write_whole)
    run = go(path)
    assert full == ["cell.json", "error.json"] * 2, "one retry"
    assert len(run.cells) == 3
    (message,) = run.tally.failed.values()
    assert message == "OSError: [Errno 28] No space left on device"
    assert places.leftovers(folder / "out") == []
    monkeypatch.undo()
    assert go(path).ran == ["one-4-0-adapter"]
