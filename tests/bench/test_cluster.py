"""The same grid on Ray: same numbers, and a killed worker costs its cell alone."""

from __future__ import annotations

import builtins
from types import SimpleNamespace

import pytest

from pemt.bench import cluster
from pemt.bench.grid import Grid
from pemt.bench.output import OutputFolder
from pemt.bench.running import GridRun
from pemt.bench.workplace import Workplace
from pemt.errors import ConfigError, PemtError
from tests.bench import places
from tests.bench.test_workers import check_deaths


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PEMT_TEST_FOLDER", str(tmp_path))
    return places.furnish(tmp_path)


def test_a_killed_worker_costs_its_cell_alone(folder):
    """Experts travel with the cells, and results come back: the workers know no folder of ours."""
    pytest.importorskip("ray")
    grid = Grid.from_file(places.grid(folder))
    run = GridRun(grid, cluster="local", workers=2, cell_cpus=1, work=places.die, retries=1)
    assert len(run.go()) == 3
    check_deaths(folder, run)
    (message,) = run.tally.failed.values()
    assert message.startswith("The worker died: ")


def test_without_ray_it_says_what_to_install(folder, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    run = GridRun(Grid.from_file(places.grid(folder)), cluster="local")
    with pytest.raises(ConfigError, match=r"pip install 'pemt\[cluster\]'"):
        run.go()


def test_no_cluster_at_an_address(folder):
    pytest.importorskip("ray")
    run = GridRun(Grid.from_file(places.grid(folder)), cluster="127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"No Ray cluster answers at '127\.0\.0\.1:1'"):
        run.go()


def test_a_worker_that_is_kept_takes_the_experts_of_the_next_run(monkeypatch):
    """Ray keeps worker processes as long as the program that called it."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "_here", {})
    monkeypatch.setattr(ray, "get", lambda given: given)
    taken = []

    def work(place, job, rows):
        taken.append([e.info.content_hash for e in place.experts_for(job)])
        raise PemtError("enough")

    for hashes in ({"a": "1"}, {"a": "2"}, {"a": "2", "b": "3"}):
        sent = {n: SimpleNamespace(info=SimpleNamespace(content_hash=h)) for n, h in hashes.items()}
        job = SimpleNamespace(library="experts", experts=hashes)
        answer = cluster._make(Workplace(identity="i"), [sent], work, job, None)
        assert b"enough" in answer
    assert taken == [["1"], ["2"], ["2", "3"]]


@pytest.mark.parametrize(
    ("asked", "told"),
    [({"cpus": 4}, "4 cores"), ({"gpus": 1.0}, "1 of a GPU"), ({"gpus": 0.5}, "0.5 of a GPU")],
)
def test_a_cell_that_the_cluster_has_no_room_for_is_told(asked, told, tmp_path, monkeypatch):
    stopped = []
    ray = SimpleNamespace(
        is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 2.0},
        put=lambda given: given, shutdown=lambda: stopped.append(True),
        remote=lambda make: SimpleNamespace(options=lambda **_: make),
    )  # fmt: skip
    monkeypatch.setattr(cluster, "_ray", lambda: ray)
    given = (None, Workplace(identity="i"), OutputFolder(tmp_path))
    with pytest.raises(ConfigError, match=f"no room for a cell of .*{told}"):
        cluster.Cluster("local", *given, experts={}, **asked)
    assert stopped
    with pytest.warns(UserWarning, match=f"no room for a cell of .*{told}.*until machines join"):
        assert cluster.Cluster("auto", *given, experts={}, **asked).size == 1
    assert cluster.Cluster("auto", *given, experts={}, cpus=2).size == 1
