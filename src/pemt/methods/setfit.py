"""SetFit (Tunstall et al. 2022, arXiv 2209.11055), by its own library.

Pairs of training texts tune a sentence encoder: `(cos(f(a), f(b)) - [same label])^2`. Then a
logistic regression is fitted on the embeddings of the training texts:

text -> copy of the base -> pooling `[B, D]` -> (normalised, where the base is so) -> head `[B, C]`

The library's defaults are kept: one epoch over the pairs (up to a limit), batches of 16, learning
rate 2e-5. The validation rows are not used: nothing is chosen.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pemt.bases import Base
from pemt.errors import AssetError, ConfigError, DataError
from pemt.methods.method import Setting
from pemt.model import AdaptedModel, AdaptedOutput
from pemt.nn import ForwardContext, TaskHead
from pemt.tasks import Example
from pemt.tasks.encoding import encode_prompts_only
from pemt.training import processes
from pemt.training.evaluating import lengths
from pemt.training.settings import TrainSettings
from pemt.training.sourcing import some

BATCH, RATE = 16, 2e-5
TOKENS = 35_000
"""Tokens of text that tune the encoder, where an epoch over the pairs takes more: about a minute on
one core with MiniLM. Long texts get more, see `_steps`."""
PAIRED = 1000
"""Rows that pairs are drawn from at most: the library lists all pairs before it draws."""


class SetFitModel(AdaptedModel):
    """A tuned copy of the base and a fitted head; the base itself is as it was."""

    body: Any
    """The sentence encoder: tokens -> `["sentence_embedding"]`, `[B, D]`, float32."""

    @classmethod
    def build(cls, setting: Setting) -> SetFitModel:
        """Tune on pairs of the training rows, then fit the head on all of them.

        Raises:
            ConfigError: the library is not installed, or the base's modules are not known here.
            DataError: training rows of one class.
        """
        if processes.launched() > 1:
            raise ConfigError(
                f"SetFit in {processes.launched()} processes",
                "its library has a trainer of its own: start it without a launcher",
            )
        library = _library()
        base = setting.base
        _require_two_classes(setting)
        model = setting.bare(cls)
        with model.attaching(), tempfile.TemporaryDirectory() as folder:
            wanted = TrainSettings(max_source_length=setting.max_source_length)
            limits = lengths(model, wanted)
            body = sentence_encoder(base, limits["max_source_length"], Path(folder), setting.notes)
            steps = _steps(setting, limits)
            fitted = _fit(library, setting, body, steps, folder)
            model.body = body.to(model.device).eval()
            _freeze_unused(body, base)
            model._fill_head(fitted, setting.task.num_labels)
        return model

    def _fill_head(self, fitted: Any, classes: int) -> None:
        """scikit-learn's `[1 or C', D]` as a linear map to all C classes; unseen ones get -30."""
        self.head = TaskHead(fitted.coef_.shape[1], classes).to(self.device)
        weight, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
        if len(weight) == 1:  # of two classes the first has logit 0
            weight, bias = (torch.cat([torch.zeros_like(t), t]) for t in (weight, bias))
        seen = torch.from_numpy(fitted.classes_)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.fill_(-30.0)
            self.head.weight[seen] = weight.to(self.head.weight)
            self.head.bias[seen] = bias.to(self.head.bias)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The embedding of each text, `[B, D]`, float32."""
        # the library pads on the right, and a body counts positions from there
        order = torch.argsort(attention_mask.long(), dim=1, descending=True, stable=True)
        given = {
            "input_ids": input_ids.gather(1, order),
            "attention_mask": attention_mask.gather(1, order),
        }
        embedded: Tensor = self.body(given)["sentence_embedding"]
        return embedded.float()

    def _run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        decoder_input_ids: Tensor | None,
        context: ForwardContext,
    ) -> AdaptedOutput:
        del labels, decoder_input_ids, context
        assert self.head is not None
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return AdaptedOutput(logits=self.head(self.features(input_ids, mask)))


def _library() -> Any:
    try:
        with warnings.catch_warnings():  # importing it changes what warnings are shown
            import setfit
    except ImportError as error:
        raise ConfigError(
            f"SetFit needs the library setfit, which cannot be imported: {error}",
            "pip install 'pemt[setfit]' (or: pip install setfit)",
        ) from error
    setfit.logging.set_verbosity_error()
    return setfit


def _require_two_classes(setting: Setting) -> None:
    labels = {int(e.label) for e in setting.train if e.label is not None}
    if len(labels) < 2:
        said = " and ".join(repr(setting.task.answer(label)) for label in labels) or "nothing"
        raise DataError(
            f"The {len(setting.train)} training rows of task {setting.task.name!r} are all "
            f"answered {said}",
            "SetFit tells answers apart: give rows of at least two",
        )


def sentence_encoder(base: Base, limit: int, folder: Path, notes: dict[str, Any]) -> Any:
    """A sentence-transformers model that starts as the base, in float32.

    Args:
        base: its weights and tokenizer are copied.
        limit: tokens of a text, special tokens included.
        folder: to write the copy into on the way.
        notes: "pooling" says how embeddings are made.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Normalize,
        Pooling,
        Transformer,
    )

    copied = copy.deepcopy(base.model).float()  # saving writes into a model's configuration
    copied.save_pretrained(folder / "base")
    base.tokenizer.save_pretrained(folder / "base")
    encoder = Transformer(
        str(folder / "base"), model_kwargs={"dtype": torch.float32}, max_seq_length=limit
    )
    pooling = Pooling(encoder.get_embedding_dimension())
    modules: list[nn.Module] = [encoder, pooling]
    listed = _published(base, "modules.json")
    for entry in json.loads(listed) if listed else []:
        kind = entry["type"].rpartition(".")[2]
        if kind == "Pooling" and (given := _published(base, f"{entry['path']}/config.json")):
            (folder / "pooling").mkdir()
            (folder / "pooling" / "config.json").write_bytes(given)
            pooling = modules[1] = Pooling.load(str(folder / "pooling"))
        elif kind == "Normalize":
            modules.append(Normalize())
        elif kind not in ("Transformer", "Pooling"):
            raise ConfigError(
                f"The base {base.name!r} is a sentence encoder with a {kind} module",
                "SetFit here knows Transformer, Pooling and Normalize: take another base",
            )
    notes["embedding"] = {
        "pooling": pooling.pooling_mode, "normalised": len(modules) > 2,
        "modules_json": listed is not None,
    }  # fmt: skip
    return SentenceTransformer(modules=modules, device=str(base.model.device))


def _published(base: Base, path: str) -> bytes | None:
    """A file that sentence-transformers wrote beside the base's weights, if this machine has it."""
    from huggingface_hub import try_to_load_from_cache

    from pemt import assets

    if base.name in assets.OFFLINE_BASES:
        offline = assets.OFFLINE_BASES[base.name]
        try:
            return assets.read_member(offline.asset, f"{offline.prefix}/{path}")
        except AssetError:
            return None
    found: Any = Path(base.name) / path
    if not Path(base.name).is_dir() and base.name.count("/") == 1:
        found = try_to_load_from_cache(base.name, path)
        found = Path(found) if isinstance(found, str) else None
    return found.read_bytes() if found is not None and found.is_file() else None


def _steps(setting: Setting, limits: dict[str, Any]) -> int:
    """Optimiser steps: one epoch over the library's pairs, or as many as `TOKENS` allow.

    Pairs grow with the square of the rows, so an epoch can take very long. The limit never leaves
    fewer passes of a text than the default epochs that other methods train for.
    """
    rows = _paired(setting)
    counts = list(Counter(e.label for e in rows).values())
    same = sum(n * (n + 1) // 2 for n in counts)
    different = (len(rows) ** 2 - sum(n * n for n in counts)) // 2
    epoch = math.ceil(2 * max(same, different) / BATCH)
    encoded = encode_prompts_only(
        rows, setting.task, setting.base.tokenizer, "encoder-only", **limits
    )
    tokens = statistics.fmean(len(cast("list[int]", e["input_ids"])) for e in encoded)
    as_others = math.ceil(TrainSettings().epochs * len(rows) / (2 * BATCH))
    limit = max(int(TOKENS / (2 * BATCH * tokens)), as_others)
    steps = min(epoch, limit)
    setting.notes.update(
        steps=steps, steps_of_an_epoch=epoch, step_limit=limit, paired_rows=len(rows),
        validation="not used",
    )  # fmt: skip
    return steps


def _paired(setting: Setting) -> list[Example]:
    return some(setting.train, PAIRED, setting.init_seed)


def _fit(library: Any, setting: Setting, body: Any, steps: int, folder: str) -> Any:
    """Both phases of the library's trainer: `body` is tuned in place, the head is returned."""
    from sklearn.linear_model import LogisticRegression
    from transformers import PrinterCallback, ProgressCallback

    args = library.TrainingArguments(
        output_dir=folder, batch_size=BATCH, num_epochs=1, body_learning_rate=RATE,
        max_steps=steps, seed=setting.init_seed, report_to="none", logging_strategy="no",
        save_strategy="no", show_progress_bar=False,
    )  # fmt: skip
    model = library.SetFitModel(model_body=body, model_head=LogisticRegression())
    trainer = library.Trainer(model=model, args=args)
    for talking in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(talking)
    rows = _paired(setting)
    trainer.train_embeddings([e.text for e in rows], [e.label for e in rows], args=args)
    trainer.train_classifier(
        [e.text for e in setting.train], [e.label for e in setting.train], args=args
    )
    return model.model_head


def _freeze_unused(body: Any, base: Base) -> None:
    """What no embedding depends on (BERT's pooler) was not tuned, so it does not count."""
    ids = torch.tensor([base.tokenizer("a")["input_ids"]], device=body.device)
    with torch.enable_grad():
        made = body({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        weights = list(body.parameters())
        reached = torch.autograd.grad(made["sentence_embedding"].sum(), weights, allow_unused=True)
    for weight, gradient in zip(weights, reached, strict=True):
        weight.requires_grad_(gradient is not None)
