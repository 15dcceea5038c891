"""The same grid on Ray: same numbers, and a killed worker costs its cell alone."""

from __future__ import annotations

import builtins

import pytest

from pemt.bench.grid import Grid
from pemt.bench.running import GridRun
from pemt.errors import ConfigError
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
