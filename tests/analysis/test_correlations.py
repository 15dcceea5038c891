"""Sources beside targets: measures against loops, ranks by hand, what a grid tells."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pemt.analysis.correlations import Correlations, Target, correlate
from pemt.analysis.masks import MaskReport, MaskScore
from pemt.analysis.measuring import measure_gates
from pemt.analysis.tables import correlation_table_of, rank_table_of, write_correlations
from pemt.analysis.transfer import grid_targets, prompt_measures, target_of, with_gains
from pemt.errors import DataError
from tests import tiny
from tests.bench import cells
from tests.guide.test_guided import guided


def target(name="t", **values):
    return Target(name=name, task=name, values={k: dict(v) for k, v in values.items()})


def found(correlations, first, second):
    return next(r for r in correlations.rho if (r.first, r.second) == (first, second))


# -- rank correlations -----------------------------------------------------------------------------


def test_spearman_by_hand():
    """1 - 6 sum d^2 / (n (n^2 - 1)): ranks 1 2 3 4 and 1 3 2 4 differ by 0 1 1 0."""
    made = correlate(
        [target(gate=zip("abcd", [0.1, 0.2, 0.3, 0.4], strict=True),
                gain=zip("abcd", [-1.0, 0.5, 0.2, 3.0], strict=True))]
    )  # fmt: skip
    rank = found(made, "gate", "gain")
    assert (rank.n, rank.targets) == (4, 1)
    assert rank.rho == rank.within == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_within_targets_is_the_mean_of_each_targets_own():
    """Levels that differ between targets make a pooled correlation; within, there is none."""
    one = target(
        "one", gate=zip("abc", [1, 2, 3], strict=True), gain=zip("abc", [1, 3, 2], strict=True)
    )
    two = target(
        "two",
        gate=zip("abc", [11, 12, 13], strict=True),
        gain=zip("abc", [13, 11, 12], strict=True),
    )
    rank = found(correlate([one, two]), "gate", "gain")
    assert rank.rho > 0.7
    assert (rank.targets, rank.n) == (2, 6)
    assert rank.within == pytest.approx((0.5 - 0.5) / 2)


def test_what_cannot_be_ranked_is_said():
    few = correlate([target(gate={"a": 0.5, "b": 0.5}, gain={"a": 0.1, "b": 0.2})])
    rank = found(few, "gate", "gain")
    assert (rank.rho, rank.p, rank.within, rank.n) == (None, None, None, 2)
    assert "at least three" in rank.note
    still = correlate([target(gate=dict.fromkeys("abc", 1 / 3), gain={"a": 1, "b": 2, "c": 3})])
    assert found(still, "gate", "gain").note == "gate weight never differs"
    missing = Target(name="t", task="t", values={"gate": {"a": 1.0}}, missing={"gain": "why"})
    assert correlate([missing]).notes == ("t: No transfer gain: why",)


def test_bad_values_are_refused():
    with pytest.raises(DataError, match=r"gate weight of 'a' on t is nan"):
        correlate([target(gate={"a": math.nan})])
    for nothing in ([], [target(gate={})]):
        with pytest.raises(DataError, match="No measures"):
            correlate(nothing)
    with pytest.raises(DataError, match="No correlations"):
        Correlations.from_dict({})


def test_tables_and_json(tmp_path):
    made = correlate(
        [target("one", gate={"[red]a": 0.25, "b,c": 0.75}, gain={"b,c": 0.1}),
         target("two", gate={"[red]a": 0.5})]
    )  # fmt: skip
    assert Correlations.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    write_correlations(made, tmp_path)
    lines = (tmp_path / "correlations.csv").read_text().splitlines()
    assert lines[0] == "source,target,gate,gain"
    assert lines[1:] == ["[red]a,one,0.25,", '"b,c",one,0.75,0.1', "[red]a,two,0.5,", '"b,c",two,,']
    assert (tmp_path / "spearman.csv").read_text().splitlines()[1].startswith("gate,gain,1,,,0,,")
    assert correlation_table_of(made).row_count == 3
    assert rank_table_of(made).row_count == 1


# -- of a model ------------------------------------------------------------------------------------


def looped(model):
    """Attention and added lengths, row by row and source by source."""
    fused = model.correlation_prompt
    rows, sources = fused.target.embedding.detach(), [e.prompt for e in model.experts]
    weights = [1.0] * len(sources) if fused.weights is None else fused.weights.tolist()
    attention, added = [0.0] * len(sources), [0.0] * len(sources)
    for row in rows:
        powers = [
            [math.exp(float(fused.scale * (row * e).sum())) for e in source] for source in sources
        ]
        whole = sum(map(sum, powers))
        lengths = []
        for k, source in enumerate(sources):
            attention[k] += sum(powers[k]) / whole / len(rows)
            mixed = sum(p / sum(powers[k]) * e for p, e in zip(powers[k], source, strict=True))
            lengths.append(weights[k] * float(mixed.norm()))
        for k in range(len(sources)):
            added[k] += lengths[k] / sum(lengths) / len(rows)
    return attention, added


@pytest.mark.parametrize("weighed", [False, True])
def test_prompt_measures_equal_loops(weighed):
    base = tiny.base("bert")
    if weighed:
        model = tiny.stir(guided(base, {"a": 0.6, "b": 0.1, "none": 0.3}))
    else:
        model = tiny.stir(tiny.pemt(base))
    made = prompt_measures(model)
    attention, added = looped(model)
    assert list(made["attention"].values()) == pytest.approx(attention, abs=1e-5)
    assert list(made["added"].values()) == pytest.approx(added, abs=1e-5)
    assert sum(made["attention"].values()) == pytest.approx(1, abs=1e-5)
    for expert in model.experts:
        one = model.correlation_prompt.target.embedding.detach().mean(0)
        cosine = torch.cosine_similarity(one, expert.prompt.mean(0), dim=0)
        assert made["prompt"][expert.name] == pytest.approx(float(cosine), abs=1e-6)


def described(base, names="abc"):
    """Experts with descriptions; the first has the target's."""
    from dataclasses import replace

    words = ["Given a text judge it", "good nice w1 w2", "bad"]
    made = [tiny.expert(base.model, n, seed=i) for i, n in enumerate(names, 1)]
    return [
        replace(e, info=replace(e.info, description=text))
        for e, text in zip(made, words, strict=False)
    ]


@pytest.mark.parametrize("name", tiny.ONE_OF_EACH_FAMILY)
def test_a_models_measures(tmp_path, name):
    task = tiny.task(tmp_path)
    base = tiny.loaded(name)
    model = tiny.stir(tiny.pemt(base.model, described(base)))
    rows = tiny.splits(task).test
    gates = measure_gates(model, task, base.tokenizer, rows, tiny.settings())
    made = target_of(model, task, base.tokenizer, gates, name="x")
    assert made.values["description"]["a"] == pytest.approx(1, abs=1e-5)  # its own sentence
    assert made.values["description"]["b"] < 1 - 1e-4
    assert made.values["gate"] == pytest.approx(dict(zip("abc", gates.overall, strict=True)))
    assert made.missing == {"gain": "it was not measured"}
    score = MaskScore(
        kind="only", expert="b", value=0.5, loss=None, difference=0.0, interval=None, gain=0.25,
        gain_interval=None, changed=0,
    )  # fmt: skip
    masks = MaskReport(task="tiny", metric="accuracy", rows=16, scores=(score,))
    gained = target_of(model, task, base.tokenizer, gates, name="x", masks=masks)
    assert gained.values["gain"] == {"b": 0.25}
    assert "16 test rows" in gained.gain_from


@pytest.mark.parametrize(("fusion", "why"), [("none", "no source prompts"), ("init", "once")])
def test_measures_that_a_model_does_not_have_are_named(tmp_path, fusion, why):
    task, base = tiny.task(tmp_path), tiny.loaded("bert")
    model = tiny.pemt(base.model, prompt_fusion=fusion)
    gates = measure_gates(model, task, base.tokenizer, tiny.splits(task).test[:2])
    made = target_of(model, task, base.tokenizer, gates, name="x")
    assert why in made.missing["attention"] == made.missing["added"]
    assert "description" in made.missing  # tiny experts have none
    assert made.values["prompt"]


# -- of a grid -------------------------------------------------------------------------------------


def test_a_grids_gains_are_of_the_experts_that_were_chosen(tmp_path):
    made = [
        *cells.row("pemt", [0.7, 0.8], gates={"a": 0.2, "b": 0.5, "none": 0.3}),
        cells.cell("single", 0, 0.60, notes={"expert": "a"}),
        cells.cell("single", 1, 0.70, notes={"expert": "a"}),
        cells.cell("single", 2, 0.90, notes={"expert": "b"}),
        *cells.row("adapter", [0.5, 0.5, 0.5]),
    ]
    one = grid_targets(cells.write(tmp_path, made))[0]
    assert one.values["gain"] == pytest.approx({"a": 0.15, "b": 0.4})
    assert one.values["gate"] == {"a": 0.2, "b": 0.5}
    assert "adapter" in one.gain_from
    assert "a 2, b 1" in one.gain_from
    assert "16 shots" in one.gain_from  # those of a run that takes the gains may be others
    assert "attention" in one.missing
    own = target("rte", gate={"a": 0.4, "b": 0.6}, gain={"a": 1.0})
    both = with_gains(own, one)
    assert both.values["gain"] == one.values["gain"]
    assert both.values["gate"] == {"a": 0.4, "b": 0.6}


def test_a_grid_whose_experts_were_picked_anew_for_each_draw(tmp_path):
    made = [
        cells.cell("pemt", 0, 0.7, gates={"a": 0.4, "b": 0.6}),
        cells.cell("pemt", 1, 0.7, gates={"c": 0.1, "a": 0.9}),
    ]
    (one,) = grid_targets(cells.write(tmp_path, made))
    assert one.values["gate"] == pytest.approx({"a": 0.65, "b": 0.6, "c": 0.1})


def test_a_grid_without_what_is_needed(tmp_path):
    one, two = (tmp_path / n for n in "ab")
    assert grid_targets(cells.write(one, cells.row("lora", [0.5]))) == []
    alone = grid_targets(cells.write(two, cells.row("single", [0.5], notes={"expert": "a"})))
    assert alone == []
    with pytest.raises(DataError, match="no cells"):
        grid_targets(tmp_path / "nowhere")
