"""SetFit: it starts as the base, answers as its library does, and leaves nothing behind."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from pemt.bases import Base
from pemt.errors import ConfigError, DataError
from pemt.methods import METHODS, Setting
from pemt.methods import setfit as module
from pemt.methods.setfit import sentence_encoder
from pemt.model import PemtConfig
from pemt.training import adapt, evaluate
from tests import tiny

pytest.importorskip("setfit")
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
METHOD = METHODS["setfit"]


def setting(folder, name="bert", *, rows=8, **changes):
    task = changes.pop("task", None) or tiny.task(folder)
    drawn = tiny.splits(task)
    return Setting(
        **{
            "base": tiny.loaded(name), "task": task, "experts": [], "train": drawn.train[:rows],
            "validation": drawn.validation, "config": PemtConfig(), "max_source_length": 24,
            **changes,
        }
    )  # fmt: skip


def modules_json(folder, *kinds):
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "",
         "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(("Transformer", *kinds))
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(listed))


@pytest.mark.parametrize("name", tiny.ENCODER_ONLY)
def test_the_encoder_starts_as_the_bases_mean(tmp_path, name):
    given = setting(tmp_path, name)
    base, notes = given.base, {}
    encoder = sentence_encoder(base, 24, tmp_path / "copy", notes)
    texts = [e.text for e in given.train]
    made = encoder.encode(texts)
    for text, row in zip(texts, made, strict=True):
        ids = torch.tensor([base.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = base.model(input_ids=ids).last_hidden_state.mean(1)[0]
        np.testing.assert_allclose(row, mean.numpy(), atol=1e-5)
    assert notes["embedding"] == {"pooling": "mean", "normalised": False, "modules_json": False}


def test_a_bases_own_modules_say_how_it_pools(tmp_path):
    given = setting(tmp_path)
    folder = tmp_path / "published"
    (folder / "1_Pooling").mkdir(parents=True)
    modules_json(folder, "Pooling", "Normalize")
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True,
                    "pooling_mode_mean_tokens": False})
    )  # fmt: skip
    base = replace(given.base, name=str(folder))
    notes = {}
    encoder = sentence_encoder(base, 24, tmp_path / "copy", notes)
    assert notes["embedding"] == {"pooling": "cls", "normalised": True, "modules_json": True}
    ids = torch.tensor([base.tokenizer(given.train[0].text)["input_ids"]])
    with torch.no_grad():
        first = base.model(input_ids=ids).last_hidden_state[0, 0]
    made = encoder.encode([given.train[0].text])[0]
    np.testing.assert_allclose(made, (first / first.norm()).numpy(), atol=1e-5)


def test_a_module_nobody_knows_is_refused_and_the_base_is_clean(tmp_path):
    given = setting(tmp_path)
    modules_json(tmp_path, "Pooling", "Dense")
    given = replace(given, base=replace(given.base, name=str(tmp_path)))
    before = tiny.snapshot(given.base.model)
    with pytest.raises(ConfigError, match="with a Dense module"):
        METHOD.build(given)
    assert tiny.snapshot(given.base.model) == before


def test_minilm_is_normalised_as_published(offline_assets):
    base = Base(None, None, None, "minilm")
    listed = json.loads(module._published(base, "modules.json"))
    assert [entry["type"].rpartition(".")[2] for entry in listed][-1] == "Normalize"
    assert module._published(base, "no_such.json") is None


@pytest.mark.parametrize("classes", [2, 3])
def test_it_answers_as_the_library_does(tmp_path, monkeypatch, classes):
    """Against setfit's own `predict_proba`, from texts, over every class."""
    kept = {}
    real = module._fit

    def fit(library, given, body, steps, folder):
        head = real(library, given, body, steps, folder)
        kept["model"] = library.SetFitModel(model_body=body, model_head=head)
        return head

    monkeypatch.setattr(module, "_fit", fit)
    given = setting(tmp_path, rows=12)
    if classes == 3:
        task = replace(given.task, labels=("bad", "good", "fine"))
        train = [replace(e, label=i % 3) for i, e in enumerate(given.train)]
        given = replace(given, task=task, train=train)
    model = METHOD.build(given)
    _, made = evaluate(
        model, given.task, given.base.tokenizer, given.validation, tiny.settings()
    )  # fmt: skip
    wanted = kept["model"].predict_proba([e.text for e in given.validation])
    assert made.log_probabilities.shape == (len(given.validation), classes)
    np.testing.assert_allclose(made.log_probabilities.exp(), wanted, atol=1e-5)


@pytest.mark.parametrize("name", tiny.ENCODER_ONLY)
def test_padding_on_either_side_gives_the_same_answers(tmp_path, name):
    model = METHOD.build(setting(tmp_path, name))
    ids, mask = tiny.batch()
    with torch.no_grad():
        right, left = model(ids, mask), model(*tiny.move_padding(ids, mask))
    torch.testing.assert_close(left.logits, right.logits, atol=1e-5, rtol=1e-4)


def test_a_class_without_rows_is_never_answered(tmp_path):
    given = setting(tmp_path, rows=12)
    given = replace(given, task=replace(given.task, labels=("none", "bad", "good")))
    given = replace(given, train=[replace(e, label=e.label + 1) for e in given.train])
    model = METHOD.build(given)
    _, made = evaluate(
        model, given.task, given.base.tokenizer, given.validation, tiny.settings()
    )  # fmt: skip
    assert 0 not in made.values
    assert made.log_probabilities[:, 0].max() < -20


def test_the_seed_decides_and_the_copy_alone_moves(tmp_path):
    def tuned(seed):
        given = setting(tmp_path, init_seed=seed)
        model = METHOD.build(given)
        return given.base.model, model.trained_state()

    base, one = tuned(0)
    again, other = tuned(0)[1], tuned(1)[1]
    assert all(torch.equal(v, again[k]) for k, v in one.items())
    assert any(not torch.equal(v, other[k]) for k, v in one.items())
    before = dict(base.named_parameters())
    moved = {k for k in one if not k.startswith("head.")}
    for name in moved:
        own = name.removeprefix("body.0.model.")
        assert not torch.equal(one[name], before[own]), name
    assert not any("pooler" in name for name in moved)


def test_trained_counts_what_was_tuned(tmp_path):
    given = setting(tmp_path)
    base = given.base.model
    size = sum(p.numel() for p in base.parameters())
    pooler = sum(p.numel() for p in base.pooler.parameters())
    trained, total = METHOD.build(given).parameter_counts()
    head = 32 * 2 + 2
    assert trained == size - pooler + head
    assert total == 2 * size + head


def test_saved_state_gives_the_same_answers(tmp_path):
    given = setting(tmp_path)
    model = METHOD.build(given)
    ids, mask = tiny.batch()
    wanted = model(ids, mask).logits
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.detach()
    other = METHOD.build(replace(given, init_seed=1))
    assert not torch.equal(other(ids, mask).logits, wanted)
    other.load_state_dict(state)
    assert torch.equal(other(ids, mask).logits, wanted)


def test_long_texts_are_cut_where_asked(tmp_path):
    given = setting(tmp_path, max_source_length=6)
    model = METHOD.build(given)
    assert model.body.get_max_seq_length() == 6
    long = [" ".join(["text:", *["w1"] * 3, word, *["w2"] * 20]) for word in ("nice", "awful")]
    assert np.array_equal(*(model.body.encode([text]) for text in long))


def test_nothing_is_left_behind_and_no_network_is_asked(tmp_path, monkeypatch, capfd):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def no_network(*args, **_):
        raise AssertionError(f"asked the network: {args}")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    METHOD.build(setting(tmp_path))
    assert list(work.iterdir()) == []
    assert list(scratch.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_the_steps_are_an_epoch_or_the_limit_and_noted(tmp_path, monkeypatch):
    given = setting(tmp_path, rows=8)
    METHOD.build(given)
    # 8 rows of 2 classes: 20 pairs of one class, 16 of two; 20 of each in batches of 16
    assert (given.notes["steps"], given.notes["steps_of_an_epoch"]) == (3, 3)
    assert given.notes["validation"] == "not used"
    monkeypatch.setattr(module, "TOKENS", 1)
    given = setting(tmp_path, rows=32)
    METHOD.build(given)
    assert given.notes["steps"] == given.notes["step_limit"] == 20  # 20 epochs of 32 texts
    assert given.notes["steps_of_an_epoch"] == 34


def test_many_rows_are_paired_in_part_and_fitted_in_full(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAIRED", 8)
    fitted = {}
    from sklearn.linear_model import LogisticRegression

    real = LogisticRegression.fit

    def fit(self, x, y):
        fitted["rows"] = len(x)
        return real(self, x, y)

    monkeypatch.setattr(LogisticRegression, "fit", fit)
    given = setting(tmp_path, rows=32)
    METHOD.build(given)
    assert given.notes["paired_rows"] == 8
    assert fitted["rows"] == 32


def test_a_bf16_base_is_tuned_in_float32(tmp_path):
    given = setting(tmp_path)
    given.base.model.to(torch.bfloat16)
    model = METHOD.build(given)
    assert {v.dtype for v in model.trained_state().values()} == {torch.float32}
    assert given.base.model.dtype == torch.bfloat16
    assert model(*tiny.batch()).logits.dtype == torch.float32


def test_rows_of_one_class_are_refused_and_the_base_is_clean(tmp_path):
    given = setting(tmp_path)
    given = replace(given, train=[e for e in given.train if e.label == 1])
    before = tiny.snapshot(given.base.model)
    with pytest.raises(DataError, match="all answered 'good'"):
        METHOD.build(given)
    assert tiny.snapshot(given.base.model) == before


def test_without_the_library_the_command_is_given(tmp_path, monkeypatch):
    given = setting(tmp_path)
    before = tiny.snapshot(given.base.model)
    monkeypatch.setitem(sys.modules, "setfit", None)
    with pytest.raises(ConfigError, match=r"pip install 'pemt\[setfit\]'"):
        METHOD.build(given)
    assert tiny.snapshot(given.base.model) == before


@pytest.mark.parametrize(("name", "kind"), [("llama", "classification"), ("bert", "regression")])
def test_it_is_for_classification_on_encoders(tmp_path, name, kind):
    with pytest.raises(ConfigError, match="SetFit"):
        METHOD.build(setting(tmp_path, name, task=tiny.task(tmp_path, kind=kind)))


def test_adapt_runs_it(tmp_path):
    base = tiny.loaded("bert")
    before = tiny.snapshot(base.model)
    result = adapt(
        base, tiny.task(tmp_path), [], method="setfit", shots=4, settings=tiny.settings(),
        folder=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert result.fit is None
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["notes"]["steps"] == result.notes["steps"]
    result.model.detach()
    assert tiny.snapshot(base.model) == before
