"""Choosing method, learning rate and steps by cross-validation over the labelled rows alone.

For people who have k labels and no others to select on. Every candidate trains on all folds but one
and answers that one, at every evaluation of its run. The answers of all folds are scored together,
once, because most metrics say nothing of one or two rows (the correlation of two scores is 1 or
-1); the best score decides. What is adapted in the end trains on all rows, for the share of the run
that was best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from pemt.bases import Base
from pemt.errors import ConfigError, DataError, DivergedError
from pemt.experts import Expert, ExpertLibrary
from pemt.guide.probes import Fold, folds_of
from pemt.methods import Setting, method_named
from pemt.model import PemtConfig
from pemt.tasks import Example, Task
from pemt.tasks.cache import encode_cached
from pemt.tasks.encoding import Collator
from pemt.tasks.metrics import Statistic
from pemt.training import processes
from pemt.training.choosing import best_experts, picked
from pemt.training.evaluating import Predictions, evaluate, lengths, side_of, statistic_of
from pemt.training.fitting import run, steps_of
from pemt.training.settings import TrainSettings
from pemt.writing import without_nan

RESAMPLES = 1000
"""Of the rows, for a standard error: 1,000 fix it to about two per cent."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One candidate at its best moment.

    Attributes:
        method: a name of pemt.methods.METHODS.
        learning_rate: None where nothing trains by gradient.
        share: of the run's steps, above 0, at most 1.
        score: main metric of the held-out answers of all folds together, mean over the repeats.
        error: its standard error, by a bootstrap over the rows (whole questions, where the metrics
            take them so) with a fixed seed; repeats hold the same rows, so they are resampled
            together and do not lower it. nan with one row.
        loss: held-out loss, mean over the rows; nan where the task has none.
        folds: that were trained and held out, in all repeats.
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

    @property
    def title(self) -> str:
        """The method and its learning rate, for people."""
        return _title(self.method, self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What cross-validation says.

    Attributes:
        choices: one of each candidate, best first.
        metric: that decided.
        diverged: the candidates that dropped out because their loss was not finite in a fold, such
            as "LoRA at 10".
    """

    choices: tuple[Choice, ...]
    metric: str
    diverged: tuple[str, ...] = ()

    @property
    def best(self) -> Choice:
        """The one to adapt with."""
        return self.choices[0]

    def verdict(self) -> str:
        """One sentence with the uncertainty."""
        best, known = self.best, not np.isnan(self.best.error)
        said = f"Chosen by cross-validation: {best.title}, {self.metric} {best.score:.3f}"
        said += (f" ± {best.error:.3f}" if known else "") + f" over {best.folds} folds"
        if len(self.choices) > 1:
            second = self.choices[1]
            said += f"; next {second.title} {second.score:.3f}"
            if known:
                near = "within" if best.score - second.score <= best.error else "beyond"
                said += f", {near} one standard error"
        if self.diverged:
            said += f"; diverged and left out: {', '.join(self.diverged)}"
        return said + "."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what is not a number is None."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


def settings_for(choice: Choice, rows: int, settings: TrainSettings) -> TrainSettings:
    """The settings that train on all rows for the chosen share of the run."""
    steps = max(1, round(choice.share * steps_of(rows, settings)))
    return settings.changed(learning_rate=choice.learning_rate, max_steps=steps)


def cross_validate(
    base: Base, task: Task, experts: ExpertLibrary | Sequence[Expert], rows: Sequence[Example],
    methods: Sequence[str], config: PemtConfig, settings: TrainSettings, *,
    learning_rates: Sequence[float] | None = None, folds: int = 4, repeats: int = 1,
    auto: str | None = None, progress: bool = True,
) -> Selection:  # fmt: skip
    """Judge every method at every learning rate; the base is given back as it was.

    Args:
        base: with nothing attached.
        task: of the rows.
        experts: for the methods that take them; a library with `auto` alone.
        rows: labelled; nothing else is looked at.
        methods: names; one that is not defined here is an error.
        config: PEMT's options.
        settings: of each run; its patience is not used, as no fold may stop before the others.
        learning_rates: tried with each method that trains; by default its own.
        folds: at least 2, at most as many as the rarest label has rows; rows of one group or text
            are one (pemt.guide.probes.folds_of).
        repeats: of the whole division into folds, at least 1.
        auto: "auto:4" ranks the experts anew in every fold, on its training rows: whoever is held
            out must not have chosen them.
        progress: show a progress bar.

    Raises:
        ConfigError: no methods, one that is not defined here, or too few folds or repeats.
        DataError: too few rows to divide.
        DivergedError: the loss of every candidate was not finite in some fold.
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
    divided = _divided(task, rows, folds, repeats)
    jobs: list[tuple[str, float | None]] = []
    for name in methods:
        own: Sequence[float | None] = [None]
        if method_named(name).trains:
            default = settings.learning_rate or method_named(name).learning_rates[family]
            own = learning_rates or [default]
        jobs += [(name, rate) for rate in own]
    judged: dict[tuple[str, float | None], list[list[_Answers]]] = {j: [] for j in jobs}
    diverged: dict[tuple[str, float | None], str] = {}
    given = [] if isinstance(experts, ExpertLibrary) else experts
    picks: dict[int, Sequence[Expert]] = {}
    shared: list[dict[str, Any]] = [{} for _ in divided]  # evidence of a fold serves all its runs
    for i, job in _bar([(i, j) for i in range(len(divided)) for j in jobs], progress):
        if job in diverged:
            continue
        inside, outside = ([rows[n] for n in part] for part in divided[i])
        if auto is not None and i not in picks:
            names, ranking = best_experts(
                base, task, experts, auto, inside, max_source_length=settings.max_source_length
            )
            shared[i]["evidence"] = ranking.evidence
            picks[i] = picked(base, experts, names)
        try:
            judged[job].append(
                _judge(base, task, picks.get(i, given), inside, outside, job[0], config,
                       settings.changed(learning_rate=job[1]), shared[i])
            )  # fmt: skip
        except DivergedError as error:
            if processes.world() > 1:  # the others wait for this process's gradients
                raise
            diverged[job] = error.what
    if len(diverged) == len(jobs):
        raise DivergedError(
            "Every candidate diverged in cross-validation: "
            + "; ".join(f"{_title(*job)}: {what}" for job, what in diverged.items()),
            "give lower learning rates, look at the rows for empty labels, or train in float32",
        )
    choices = [
        _choice(task, rows, divided, *job, judged[job]) for job in jobs if job not in diverged
    ]
    choices.sort(key=lambda c: c.key, reverse=True)
    return Selection(
        choices=tuple(choices), metric=task.metrics[0],
        diverged=tuple(_title(*job) for job in diverged),
    )  # fmt: skip


def _title(method: str, rate: float | None) -> str:
    return method_named(method).title + ("" if rate is None else f" at {rate:g}")


def _divided(task: Task, rows: Sequence[Example], folds: int, repeats: int) -> list[Fold]:
    """Folds of which every one leaves enough to train on.

    Raises:
        DataError: there are none.
    """
    otherwise = "or one method and validation='shots'"
    least = 4 if folds == 2 else 3
    if task.kind == "regression" and len(rows) < least:
        raise DataError(
            f"{len(rows)} scored rows to cross-validate on in {folds} folds",
            f"give at least {least}, so that every fold trains on two, {otherwise}",
        )
    if task.kind == "classification":
        counts = {word: sum(e.label == i for e in rows) for i, word in enumerate(task.labels)}
        single = [word for word, count in counts.items() if count == 1]
        if single and len(rows) > 1:  # a lone row has its own refusal below
            raise DataError(
                f"One row of the label {single[0]!r} to cross-validate on",
                f"give two rows of each label, {otherwise}",
            )
    divided = folds_of(task, rows, count=folds, repeats=repeats)
    for inside, _ in divided:
        if task.kind == "regression" and len(inside) < 2:
            raise DataError(
                f"A fold of the {len(rows)} scored rows trains on {len(inside)}: rows of one group "
                "or text are held out together",
                f"give rows of more groups or other texts, {otherwise}",
            )
        lost = {e.label for e in rows} - {rows[n].label for n in inside}
        if task.kind == "classification" and lost:
            word = task.answer(min(label for label in lost if label is not None))
            raise DataError(
                f"A fold of the {len(rows)} rows trains on none of the label {word!r}: rows of one "
                "group or text are held out together",
                f"give its rows in more groups or with other texts, take fewer folds, {otherwise}",
            )
    return divided


class _Answers(NamedTuple):
    """What one run answered to its held-out rows at one evaluation."""

    share: float
    """Of the run's steps."""
    values: list[Any]
    loss: float
    """Mean over the rows; nan where the task has none."""


def _judge(
    base: Base, task: Task, experts: Sequence[Expert], inside: Sequence[Example],
    outside: Sequence[Example], name: str, config: PemtConfig, settings: TrainSettings,
    shared: dict[str, Any],
) -> list[_Answers]:  # fmt: skip
    """The held-out answers at each evaluation of one run; an error gives the base back too.

    Raises:
        DivergedError: the loss, or the held-out loss, is not a finite number.
    """
    method, tokenizer = method_named(name), base.tokenizer
    setting = Setting(
        base=base, task=task, experts=experts if method.transfers else [], train=inside,
        validation=[], config=config, init_seed=settings.init_seed,
        max_source_length=settings.max_source_length, shared=shared,
    )  # fmt: skip
    model = method.build(setting)
    found: list[tuple[list[Any], float]] = []

    def score(together: bool = True) -> dict[str, float]:
        metrics, made = evaluate(model, task, tokenizer, outside, settings, shared=together)
        loss = metrics.get("loss", float("nan"))
        if "loss" in metrics and not np.isfinite(loss):
            raise DivergedError(f"The held-out loss became {loss}", "lower the learning rate")
        found.append((made.values, loss))
        return metrics

    with model.attaching():
        if method.trains:
            # one that stops early would be judged at other moments than the other folds
            quiet = settings.changed(checkpoints=False, report_to="none", patience=None)
            with processes.main_first():
                encoded = encode_cached(
                    inside, task, tokenizer, model.family, **lengths(model, quiet)
                )
            total = steps_of(len(inside), quiet)
            history = run(
                model, encoded, Collator(tokenizer, model.family, side=side_of(model.family)),
                quiet, total=total, metric=task.metrics[0], score=score, identity=dict,
                progress=False,
            ).history  # fmt: skip
            shares = [entry["step"] / total for entry in history]
        else:
            score(together=False)
            shares = [1.0]
    model.detach()
    return [_Answers(share, *own) for share, own in zip(shares, found, strict=True)]


def _choice(
    task: Task, rows: Sequence[Example], divided: Sequence[Fold], name: str, rate: float | None,
    runs: Sequence[Sequence[_Answers]],
) -> Choice:  # fmt: skip
    """The evaluation with the best score, the answers of a repeat's folds taken together.

    Folds of unequal sizes may be evaluated at other moments: of each run the one nearest to the
    moment counts.
    """
    held = [outside for _, outside in divided]
    found = []
    for share in [one.share for one in min(runs, key=len)]:
        near = [min(own, key=lambda one: abs(one.share - share)) for own in runs]
        units, statistic = _pooled(task, rows, held, [one.values for one in near])
        made = Choice(
            method=name, learning_rate=rate, share=share, score=statistic(np.arange(units)),
            error=float("nan"), folds=len(held),
            loss=float(np.average([one.loss for one in near], weights=[len(h) for h in held])),
        )  # fmt: skip
        found.append((made, units, statistic))
    best, units, statistic = max(found, key=lambda one: one[0].key)
    return replace(best, error=_error(units, statistic))


def _pooled(
    task: Task, rows: Sequence[Example], held: Sequence[Any], values: Sequence[list[Any]]
) -> tuple[int, Statistic]:
    """The main metric of all held-out answers, mean over the repeats, as a function of the rows.

    Args:
        task: its first metric is the main one.
        rows: all, labelled.
        held: row numbers of each fold; those of a repeat follow one another and hold every row.
        values: the answers to them.
    """
    repeats: list[list[Any]] = []
    left = 0
    for numbers, said in zip(held, values, strict=True):
        if not left:
            repeats.append([None] * len(rows))
            left = len(rows)
        for n, value in zip(numbers, said, strict=True):
            repeats[-1][n] = value
        left -= len(numbers)
    scored = [statistic_of(task, rows, Predictions(own, [], None)) for own in repeats]

    def mean(drawn: Any) -> float:
        return float(np.mean([statistic(drawn) for _, statistic in scored]))

    return scored[0][0], mean


def _error(units: int, statistic: Statistic) -> float:
    """Standard error of a statistic of so many units, by a bootstrap."""
    if units < 2:
        return float("nan")
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, units, size=(RESAMPLES, units))
    return float(np.std([statistic(own) for own in drawn], ddof=1))


def _bar(items: Any, show: bool) -> Any:
    if not show:
        return items
    from rich.progress import track

    return track(items, description="cross-validating", transient=True)
