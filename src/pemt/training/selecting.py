"""Choosing method, learning rate and steps by cross-validation over the labelled rows alone.

For people who have k labels and no others to select on. Every candidate trains on all folds but one
and is judged on that one, at every evaluation of its run; the best mean decides. What is adapted in
the end trains on all rows, for the share of the run that was best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pemt.bases import Base
from pemt.errors import ConfigError, DataError
from pemt.experts import Expert
from pemt.guide.probes import folds_of
from pemt.methods import Setting, method_named
from pemt.model import PemtConfig
from pemt.tasks import Example, Task
from pemt.training.evaluating import evaluate
from pemt.training.fitting import fit, steps_of
from pemt.training.settings import TrainSettings
from pemt.writing import without_nan


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One candidate at its best moment.

    Attributes:
        method: a name of pemt.methods.METHODS.
        learning_rate: None where nothing trains by gradient.
        share: of the run's steps, above 0, at most 1.
        score: main metric on held-out rows, mean over the folds.
        error: its standard error over the folds; nan with one fold.
        loss: mean held-out loss; nan where the task has none.
        folds: that the mean is over.
    """

    method: str
    learning_rate: float | None
    share: float
    score: float
    error: float
    loss: float
    folds: int

    @property
    def key(self) -> tuple[float, float]:
        """Better is larger: the score, then the lower loss."""
        return self.score, 0.0 if np.isnan(self.loss) else -self.loss


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What cross-validation says.

    Attributes:
        choices: one of each candidate, best first.
        metric: that decided.
    """

    choices: tuple[Choice, ...]
    metric: str

    @property
    def best(self) -> Choice:
        """The one to adapt with."""
        return self.choices[0]

    def verdict(self) -> str:
        """One sentence with the uncertainty."""
        best = self.best
        said = (
            f"Chosen by cross-validation: {method_named(best.method).title}"
            + ("" if best.learning_rate is None else f" at {best.learning_rate:g}")
            + f", {self.metric} {best.score:.3f} ± {best.error:.3f} over {best.folds} folds"
        )
        if len(self.choices) == 1:
            return said + "."
        second = self.choices[1]
        near = "within" if best.score - second.score <= best.error else "beyond"
        rate = "" if second.learning_rate is None else f" at {second.learning_rate:g}"
        title = method_named(second.method).title
        return f"{said}; next {title}{rate} {second.score:.3f}, {near} one standard error."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what is not a number is None."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


def settings_for(choice: Choice, rows: int, settings: TrainSettings) -> TrainSettings:
    """The settings that train on all rows for the chosen share of the run."""
    steps = max(1, round(choice.share * steps_of(rows, settings)))
    return settings.changed(learning_rate=choice.learning_rate, max_steps=steps)


def cross_validate(
    base: Base, task: Task, experts: Sequence[Expert], rows: Sequence[Example],
    methods: Sequence[str], config: PemtConfig, settings: TrainSettings, *,
    learning_rates: Sequence[float] | None = None, folds: int = 4, repeats: int = 1,
    progress: bool = True,
) -> Selection:  # fmt: skip
    """Judge every method at every learning rate; the base is given back as it was.

    Args:
        base: with nothing attached.
        task: of the rows.
        experts: for the methods that take them.
        rows: labelled; nothing else is looked at.
        methods: names; one that is not defined here is an error.
        config: PEMT's options.
        settings: of each run.
        learning_rates: tried with each method that trains; by default its own.
        folds: at least 2, at most as many as the rarest label has rows.
        repeats: of the whole division into folds, at least 1.
        progress: show a progress bar.

    Raises:
        ConfigError: no methods, one that is not defined here, or too few folds or repeats.
        DataError: too few rows to divide.
    """
    if folds < 2 or repeats < 1:
        raise ConfigError(f"{folds} folds, {repeats} repeats", "give at least 2 folds and 1 repeat")
    if not methods:
        raise ConfigError("No methods to choose from", "name at least one, such as guided")
    family = base.backbone.family
    for name in methods:
        reason = method_named(name).refusal(family, task.kind)
        if reason is not None:
            raise ConfigError(reason, "leave it out of the methods to choose from")
    if task.kind == "classification":
        counts = {word: sum(e.label == i for e in rows) for i, word in enumerate(task.labels)}
        single = [word for word, count in counts.items() if count == 1]
        if single and len(rows) > 1:  # a lone row has its own refusal below
            raise DataError(
                f"One row of the label {single[0]!r} to cross-validate on",
                "give two rows of each label, or one method and validation='shots'",
            )
    divided = folds_of(task, rows, count=folds, repeats=repeats)
    jobs: list[tuple[str, float | None]] = []
    for name in methods:
        own: Sequence[float | None] = [None]
        if method_named(name).trains:
            default = settings.learning_rate or method_named(name).learning_rates[family]
            own = learning_rates or [default]
        jobs += [(name, rate) for rate in own]
    judged: dict[tuple[str, float | None], list[list[dict[str, float]]]] = {j: [] for j in jobs}
    shared: list[dict[str, Any]] = [{} for _ in divided]  # evidence of a fold serves all its runs
    for i, (name, rate) in _bar([(i, j) for i in range(len(divided)) for j in jobs], progress):
        inside, outside = ([rows[n] for n in part] for part in divided[i])
        judged[name, rate].append(
            _judge(base, task, experts, inside, outside, name, config,
                   settings.changed(learning_rate=rate), shared[i])
        )  # fmt: skip
    metric = task.metrics[0]
    choices = [_choice(*job, judged[job], metric) for job in jobs]
    choices.sort(key=lambda c: c.key, reverse=True)
    return Selection(choices=tuple(choices), metric=metric)


def _judge(
    base: Base, task: Task, experts: Sequence[Expert], inside: Sequence[Example],
    outside: Sequence[Example], name: str, config: PemtConfig, settings: TrainSettings,
    shared: dict[str, Any],
) -> list[dict[str, float]]:  # fmt: skip
    """Held-out metrics at each evaluation of one run."""
    method = method_named(name)
    setting = Setting(
        base=base, task=task, experts=experts if method.transfers else [], train=inside,
        validation=[], config=config, init_seed=settings.init_seed,
        max_source_length=settings.max_source_length, shared=shared,
    )  # fmt: skip
    model = method.build(setting)
    with model.attaching():
        if method.trains:
            quiet = settings.changed(checkpoints=False, report_to="none")
            history = fit(
                model, task, base.tokenizer, inside, outside, quiet, progress=False
            ).history
        else:
            history = [evaluate(model, task, base.tokenizer, outside, settings)[0]]
    model.detach()
    return history


def _choice(
    name: str, rate: float | None, histories: list[list[dict[str, float]]], metric: str
) -> Choice:
    """The evaluation with the best mean over the folds."""
    count = min(len(h) for h in histories)
    found = []
    for i in range(count):
        scores = np.array([h[i][metric] for h in histories])
        losses = np.array([h[i].get("loss", float("nan")) for h in histories])
        error = scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
        found.append(
            Choice(
                method=name, learning_rate=rate, share=(i + 1) / count, score=float(scores.mean()),
                error=float(error), loss=float(losses.mean()), folds=len(scores),
            )
        )  # fmt: skip
    return max(found, key=lambda c: c.key)


def _bar(items: Any, show: bool) -> Any:
    if not show:
        return items
    from rich.progress import track

    return track(items, description="cross-validating", transient=True)
