"""SPoT (Vu et al. 2022, arXiv 2110.07904): prompt tuning that starts from a source prompt.

With one source prompt in the library that is the paper's generic SPoT. With several, the start is
the source whose task is most like the target (the paper's section 3, "best of top-k", k = 1):

1. A prompt is tuned on the target's training rows for `SHORT_STEPS` steps; the paper takes an early
   checkpoint of a long run as the task's embedding. Like the source prompts it starts from tokens
   of the vocabulary, the very same where all sources record one seed and one length.
2. The similarity of two tasks is the cosine of their prompts' mean rows (the paper's "cosine
   similarity of average tokens"); the source of the highest becomes the start. The short run's
   prompt and head are thrown away.

`setting.notes` names the chosen source and every similarity. No validation or test row is read.

Letters: P prompt length, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pemt.experts import Expert
from pemt.methods.method import METHODS, Setting
from pemt.methods.prompt_tuning import PromptTuningModel
from pemt.methods.source_prompts import source_prompts
from pemt.model import vocabulary_prompt
from pemt.training.fitting import fit
from pemt.training.settings import TrainSettings

SHORT_STEPS, BATCH = 50, 16


def similarity(one: Tensor, other: Tensor) -> float:
    """Cosine of the mean rows of two prompts, `[P, D]` and `[Q, D]`."""
    return float(F.cosine_similarity(one.float().mean(0), other.float().mean(0), dim=0))


def common_start(setting: Setting, sources: Sequence[Expert]) -> tuple[int, int]:
    """(rows, seed) of the tokens that the source prompts started from, where they agree on them."""
    starts = {
        (len(e.prompt), dict(e.info.settings.get("train", {})).get("init_seed")) for e in sources
    }
    rows, seed = next(iter(starts))
    if len(starts) == 1 and isinstance(seed, int):
        return rows, seed
    return min(length for length, _ in starts), setting.init_seed


def task_prompt(setting: Setting, sources: Sequence[Expert]) -> Tensor:
    """The target's own prompt after a short tuning, `[P, D]`; the base is clean afterwards."""
    base = setting.base
    rows, seed = common_start(setting, sources)
    start = vocabulary_prompt(base.model, rows, seed=seed)
    model = PromptTuningModel(base, setting.task, start, seed=setting.init_seed)
    rates = METHODS["prompt-tuning"].learning_rates
    settings = TrainSettings(
        max_steps=SHORT_STEPS, batch_size=BATCH, learning_rate=rates[base.backbone.family],
        max_source_length=setting.max_source_length, max_target_length=64,
        init_seed=setting.init_seed, report_to="none",
    )  # fmt: skip
    with model.attaching():
        fit(model, setting.task, base.tokenizer, setting.train, [], settings, progress=False)
    tuned = model.prompt().detach().cpu()
    model.detach()
    return tuned


def build(setting: Setting) -> PromptTuningModel:
    """Prompt tuning from the most similar source prompt."""
    sources = source_prompts(setting)
    chosen = sources[0]
    if len(sources) > 1:
        target = task_prompt(setting, sources)
        likeness = {e.name: similarity(target, e.prompt) for e in sources}
        chosen = max(sources, key=lambda e: likeness[e.name])
        setting.notes.update(similarities=likeness, short_steps=SHORT_STEPS)
    setting.notes.update(source=chosen.name)
    return PromptTuningModel(
        setting.base, setting.task, chosen.prompt, sources=[chosen], seed=setting.init_seed
    )
