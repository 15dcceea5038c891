"""What a grid file may say, and what is said about a mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pemt.bench.grid import Grid, GridMethod, GridTask
from pemt.errors import ConfigError, PemtError
from pemt.methods import METHODS
from pemt.model.config import PemtConfig
from pemt.training.settings import LARGEST_SEED

FIRST = "base: minilm\nlibraries: {experts: lib}\n"


def read(folder: Path, text: str) -> Grid:
    path = folder / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return Grid.from_file(path)


def test_every_key(tmp_path):
    grid = read(
        tmp_path,
        """
base: minilm
precision: float32
libraries: {experts: lib, prompts: hf://user/repo}
experts: [mnli, sst2]
tasks:
  - cb: {validation: full, test_rows: 20, settings: {epochs: 40}}
  - mrpc: {score: balanced_accuracy}
  - paws-named
methods:
  pemt:
  lora: {learning_rates: [1e-3, 2.0e-3], settings: {batch_size: 4}}
shots: [4, null]
data_seeds: 3
learning_rates: 5e-4
settings: {epochs: 8, dropout: null, patience: 3}
pemt: {tau: 2, gate: task, target_adapter: lora, top_k: 4}
test_rows: 100
data_dir: ~/mirror
output: runs/x
""",
    )
    cb, mrpc, paws = grid.tasks
    assert (cb.validation, cb.test_rows, cb.settings) == ("full", 20, {"epochs": 40})
    assert (cb.score, mrpc.score) == ("accuracy", "balanced_accuracy")
    assert paws.task.name == "paws-named"
    pemt, lora = grid.methods
    assert grid.rates_of(pemt, "encoder-only") == (5e-4,)
    assert grid.rates_of(lora, "encoder-only") == (1e-3, 2e-3)
    assert grid.shots == [4, None]
    assert grid.data_seeds == [0, 1, 2]
    assert grid.pemt == PemtConfig(tau=2, gate="task", target_adapter="lora", top_k=4)
    assert grid.data_dir == Path.home() / "mirror"
    settings = grid.settings_of(cb, lora, data_seed=2)
    assert (settings.epochs, settings.batch_size, settings.patience) == (40, 4, 3)
    assert (settings.init_seed, settings.order_seed) == (2, 2)
    assert settings.learning_rate is None
    assert str(Path.home()) not in str(grid.to_dict())
    assert grid.experts_of("prompts") == ["mnli", "sst2"]
    assert grid.experts_of("shared-prompts") is None


def test_the_methods_own_rate_unless_one_is_given(tmp_path):
    grid = read(tmp_path, FIRST + "tasks: [cb]\nmethods: [lora]")
    own = METHODS["lora"].learning_rates
    assert grid.rates_of(grid.methods[0], "decoder-only") == (own["decoder-only"],)


def test_whole_comparisons_come_first():
    grid = Grid(base="b", tasks=["cb", "rte"], methods=["lora"], shots=[4, 8], data_seeds=[5, 7])
    assert [(s, t.task.name, k) for s, t, k in grid.points()] == [
        (5, "cb", 4), (5, "cb", 8), (5, "rte", 4), (5, "rte", 8),
        (7, "cb", 4), (7, "cb", 8), (7, "rte", 4), (7, "rte", 8),
    ]  # fmt: skip


BAD = {
    "no yaml": ("base: [minilm\ntasks: x: y\n", ["grid.yaml:2", "no YAML"]),
    "a list": ("- base\n", ["grid.yaml:1", "a grid is a mapping"]),
    "empty": ("", ["grid.yaml:1", "no base"]),
    "key twice": ("base: a\nbase: b\n", ["grid.yaml:2", "'base'", "twice"]),
    "unknown key": ("base: a\ntasks: [cb]\nmethod: [lora]\n",
                    ["grid.yaml:3", "'method'", "Did you mean: methods?"]),
    "no tasks": ("base: a\nmethods: [lora]\n", ["no tasks"]),
    "unknown task": (FIRST + "methods: [lora]\ntasks:\n  - cb\n  - rtee\n",
                     ["grid.yaml:6", "'rtee'", "Did you mean: rte?"]),
    "unknown variant": (FIRST + "methods: [lora]\ntasks: [paws-nam]\n", ["grid.yaml:4", "'nam'"]),
    "no such task file": (FIRST + "methods: [lora]\ntasks: [no.yaml]\n",
                          ["grid.yaml:4", "no.yaml", "cannot be read"]),
    "unknown method": (FIRST + "tasks: [cb]\nmethods:\n- pemt\n- lroa: {}\n",
                       ["grid.yaml:6", "'lroa'", "Did you mean: lora?"]),
    "method of a wrong shape": (FIRST + "tasks: [cb]\nmethods: [3]\n", ["grid.yaml:4", "names"]),
    "unknown metric": (FIRST + "methods: [lora]\ntasks:\n- mrpc: {score: acuracy}\n",
                       ["grid.yaml:5", "'acuracy'", "Did you mean: accuracy?"]),
    "unknown option": (FIRST + "methods: [lora]\ntasks:\n- cb: {valid: full}\n",
                       ["grid.yaml:5", "'valid'", "Did you mean: validation?"]),
    "bad validation": (FIRST + "methods: [lora]\ntasks:\n- cb: {validation: most}\n",
                       ["grid.yaml:5", "'most'", "shots, full"]),
    "unknown setting": (FIRST + "tasks: [cb]\nmethods: [lora]\nsettings:\n  epoch: 3\n",
                        ["grid.yaml:6", "'epoch'", "Did you mean: epochs?"]),
    "setting of a wrong type": (FIRST + "tasks: [cb]\nmethods: [lora]\nsettings: {epochs: many}\n",
                                ["grid.yaml:5", "settings.epochs is 'many'", "a number"]),
    "true is no number": (FIRST + "tasks: [cb]\nmethods: [lora]\nsettings: {epochs: true}\n",
                          ["grid.yaml:5", "epochs is True", "a number"]),
    "setting out of range": (FIRST + "tasks: [cb]\nmethods: [lora]\nsettings: {batch_size: 0}\n",
                             ["grid.yaml:5", "batch_size=0"]),
    "a learning rate in the settings": (
        FIRST + "tasks: [cb]\nmethods: [lora]\nsettings: {learning_rate: 1e-3}\n",
        ["grid.yaml:5", "settings.learning_rate", "learning_rates: [...]"]),
    "a seed in the settings": (
        FIRST + "tasks: [cb]\nmethods:\n- lora: {settings: {init_seed: 3}}\n",
        ["grid.yaml:5", "settings.init_seed", "data seed"]),
    "unknown pemt key": (FIRST + "tasks: [cb]\nmethods: [lora]\npemt: {taus: 1}\n",
                         ["grid.yaml:5", "'taus'", "Did you mean: tau?"]),
    "pemt out of range": (FIRST + "tasks: [cb]\nmethods: [lora]\npemt: {tau: 0}\n",
                          ["grid.yaml:5", "tau=0"]),
    "no library": ("base: a\ntasks: [cb]\nmethods: [pemt]\n",
                   ["grid.yaml", "'pemt'", "libraries: {experts: FOLDER}"]),
    "unknown library": ("base: a\ntasks: [cb]\nmethods: [lora]\nlibraries:\n  expert: x\n",
                        ["grid.yaml:5", "'expert'", "Did you mean: experts?"]),
    "shots below one": (FIRST + "tasks: [cb]\nmethods: [lora]\nshots: [0]\n", ["shots=0"]),
    "shots no number": (FIRST + "tasks: [cb]\nmethods: [lora]\nshots: [full]\n",
                        ["grid.yaml:5", "'full'", "a whole number or null"]),
    "no seeds": (FIRST + "tasks: [cb]\nmethods: [lora]\ndata_seeds: 0\n",
                 ["grid.yaml:5", "data_seeds=0"]),
    "a seed twice": (FIRST + "tasks: [cb]\nmethods: [lora]\ndata_seeds: [1, 1]\n",
                     ["data_seeds: [1, 1]", "each once"]),
    "a task twice": (FIRST + "tasks: [cb, cb]\nmethods: [lora]\n", ["['cb', 'cb']", "each once"]),
    "a rate of zero": (FIRST + "tasks: [cb]\nmethods: [lora]\nlearning_rates: [0]\n",
                       ["grid.yaml:5", "above 0"]),
    "a rate that is no number": (FIRST + "tasks: [cb]\nmethods: [lora]\nlearning_rates: [.nan]\n",
                                 ["grid.yaml:5", "learning_rates=[nan]", "finite numbers"]),
    "a rate without end": (
        FIRST + "tasks: [cb]\nmethods:\n- lora: {learning_rates: [1e-3, .inf]}\n",
        ["grid.yaml:5", "learning_rates=[0.001, inf]", "finite numbers"]),
    "epochs that are no number": (
        FIRST + "tasks: [cb]\nmethods: [lora]\nsettings: {epochs: .nan}\n",
        ["grid.yaml:5", "epochs=nan"]),
    "a day that no month has": (FIRST + "tasks: [cb]\nmethods: [lora]\noutput: 2024-02-30\n",
                                ["grid.yaml:5", "'2024-02-30'", "timestamp", "quotes"]),
    "no whole number": (FIRST + "tasks: [cb]\nmethods: [lora]\ndata_seeds: !!int abc\n",
                        ["grid.yaml:5", "'abc'", "int"]),
    "neither true nor false": (
        FIRST + "tasks: [cb]\nmethods: [lora]\nsettings:\n  checkpoints: !!bool abc\n",
        ["grid.yaml:6", "'abc'", "bool"]),
    "no day": (FIRST + "tasks: [cb]\nmethods: [lora]\noutput: !!timestamp abc\n",
               ["grid.yaml:5", "'abc'", "timestamp"]),
    "a list within itself": (FIRST + "tasks: &a [*a]\nmethods: [lora]\n",
                             ["grid.yaml:3", "contains itself", "alias"]),
    "a mapping within itself": (FIRST + "tasks: [cb]\nmethods: [lora]\npemt: &a {tau: [*a]}\n",
                                ["grid.yaml:5", "contains itself"]),
    "brackets without end": ("base: " + 2000 * "[", ["grid.yaml:1", "too deep"]),
    "bad precision": ("precision: int8\n" + FIRST + "tasks: [cb]\nmethods: [lora]\n",
                      ["grid.yaml:1", "'int8'", "bfloat16"]),
    "test rows below one": (FIRST + "tasks: [cb]\nmethods: [lora]\ntest_rows: 0\n",
                            ["test_rows=0"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_pointed_at(case, tmp_path):
    text, told = BAD[case]
    with pytest.raises(PemtError) as caught:
        read(tmp_path, text)
    for part in told:
        assert part in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(PemtError, match=r"no\.yaml cannot be read: No such file"):
        Grid.from_file(tmp_path / "no.yaml")


def test_a_name_that_is_no_folder(tmp_path):
    from dataclasses import replace

    from pemt.tasks import Task

    with pytest.raises(PemtError, match="cannot be a part of a folder's name"):
        GridTask(task=replace(Task.named("cb"), name="a/b"))
    with pytest.raises(PemtError, match=r"learning_rates=\[-1\]"):
        GridMethod(name="lora", learning_rates=(-1,))


def test_an_alias_may_stand_twice_side_by_side(tmp_path):
    text = "tasks:\n- cb: &a {settings: {epochs: 3}}\n- rte: *a\nmethods: [lora]\n"
    assert [t.settings for t in read(tmp_path, FIRST + text).targets] == [{"epochs": 3}] * 2


def test_a_seed_that_no_run_takes_is_refused_before_anything_is_read():
    """A cell's initialisation and order have the data seed too."""
    grid = {"base": "minilm", "tasks": ["rte"], "methods": ["lora"]}
    Grid(**grid, data_seeds=[LARGEST_SEED])
    with pytest.raises(ConfigError, match=rf"data_seeds=\[0, {LARGEST_SEED + 1}\]") as error:
        Grid(**grid, data_seeds=[0, LARGEST_SEED + 1])
    assert str(LARGEST_SEED) in error.value.fix
