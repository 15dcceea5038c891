"""Signs that a run failed, each with its numbers and one thing to try.

METHOD.md names three for PEMT: gates near uniform, a target adapter that does the mixture's work,
PEMT behind the best single expert. More come from docs/log.md. Every threshold is argued for in
docs/concepts/diagnosis.md. A finding is about this run on these rows; none of them is a proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pemt.analysis.findings import Diagnosis, Facts, Finding

UNMOVED_GATES = 0.05
"""Mean share of a gate's weight that training moved; below, the mixture chose nothing."""
ONE_EXPERT = 0.9
ADAPTER_SHARE = 0.5
UNMOVED_PROMPT = 0.01
"""Of the prompt's own length; a bfloat16 base rounds a change of 0.4 % away."""
ALIKE, SAME = 0.5, 0.9
"""Mean |cos| of all pairs, and of one pair."""
FELL = 0.95
INVALID = 0.1
RECALL, CHANCE = 0.25, 0.05
"""A label with a recall of a quarter would be answered at least once with 95 %."""


def diagnose(facts: Facts) -> Diagnosis:
    """Make every check that applies."""
    checks: list[Callable[[Facts], Finding | None]] = [
        _training_loss, _beyond_constant, _labels_predicted, _invalid, _gates, _one_expert,
        _adapter_share, _single_expert, _prompt, _alike, _own_source,
    ]  # fmt: skip
    return Diagnosis(findings=tuple(f for check in checks if (f := check(facts)) is not None))


def _training_loss(facts: Facts) -> Finding | None:
    name, title = "training-loss", "the training loss fell"
    if not facts.trains:
        return None
    values = [(entry["step"], entry["loss"]) for entry in facts.losses]
    rate = facts.learning_rate or 0.0
    wrong = [step for step, loss in values if not math.isfinite(loss)]
    if wrong:
        return Finding(
            name=name, title="the training loss is not finite", severity="warning",
            evidence=f"It is no number at step {wrong[0]:.0f}.", numbers={"step": wrong[0]},
            advice=f"a lower learning rate: --learning_rates '[{rate / 5:.2g}]'.",
        )  # fmt: skip
    if len(values) < 2:
        return Finding(
            name=name, title="did the training loss fall?", severity="not checked",
            evidence=f"The run logged {len(values)} losses; two are needed.",
        )  # fmt: skip
    first, later = values[0][1], [loss for _, loss in values[1:]]
    numbers = {"first": first, "lowest": min(later), "last": later[-1]}
    told = f"From {first:.3f} to {min(later):.3f} at its lowest, {later[-1]:.3f} at the end"
    if min(later) > FELL * first:
        higher = later[-1] <= 1.05 * first
        other = rate * 5 if higher else rate / 5
        return Finding(
            name=name, title="the training loss never fell", severity="warning", numbers=numbers,
            evidence=f"{told}: less than {100 - 100 * FELL:.0f} % below the start.",
            advice=f"a {'higher' if higher else 'lower'} learning rate: "
            f"--learning_rates '[{other:.2g}]'.",
        )  # fmt: skip
    return Finding(name=name, title=title, severity="fine", evidence=f"{told}.", numbers=numbers)


def _beyond_constant(facts: Facts) -> Finding | None:
    if facts.constant is None:
        return None
    name, report = "beyond-constant", facts.report
    least = facts.constant.metrics[report.metric]
    numbers = {"value": report.value, "constant": least}
    told = (
        f"{report.metric} {report.value:.3f}; answering {facts.constant.label!r} to every test row "
        f"scores {least:.3f}"
    )
    advice = (
        "a linear probe on the same labels (--method probe): if it is no better, this base does "
        "not show the labels."
        if facts.method != "probe"
        else "another base (--base), because this one does not show the labels."
    )
    # balanced accuracy and the like may reach it by rounding alone
    if not report.value > least + 1e-9:
        if facts.gated and facts.sparsity > 0:
            advice = (
                "gates that start where the labels point, and no Task Sparsity Loss: "
                f"--method guided-no-tsl. Or {advice}"
            )
        return Finding(
            name=name, title="no better than one answer to everything", severity="warning",
            evidence=f"{told}.", numbers=numbers, advice=advice,
        )  # fmt: skip
    interval = report.interval
    if interval is not None and interval.low <= least:
        return Finding(
            name=name, title="not surely better than one answer to everything", severity="note",
            evidence=f"{told}, inside the 95 % interval {interval.low:.3f} to {interval.high:.3f}.",
            numbers={**numbers, "low": interval.low, "high": interval.high}, advice=advice,
        )  # fmt: skip
    title = "better than one answer to everything"
    return Finding(name=name, title=title, severity="fine", evidence=f"{told}.", numbers=numbers)


def _labels_predicted(facts: Facts) -> Finding | None:
    confusion, classes = facts.report.confusion, facts.report.per_class
    if confusion is None or classes is None:
        return None
    name, words = "labels-predicted", list(classes)
    there = [sum(row) for row in confusion]
    answered = [sum(row[i] for row in confusion) for i in range(len(words))]
    unsaid = [i for i in range(len(words)) if there[i] and not answered[i]]
    title = "every label is answered"
    if not unsaid:
        return Finding(
            name=name, title=title, severity="fine",
            evidence=f"All {sum(n > 0 for n in there)} labels of the test rows are answered.",
        )  # fmt: skip
    unsaid.sort(key=lambda i: -there[i])
    shown = ", ".join(f"{words[i]!r} ({there[i]} test rows)" for i in unsaid[:5])
    more = f" and {len(unsaid) - 5} more" if len(unsaid) > 5 else ""
    surprising = (1 - RECALL) ** there[unsaid[0]] < CHANCE
    advice = (
        f"more labels (--shots {2 * facts.shots}), and look at the rows of {words[unsaid[0]]!r}."
        if facts.shots is not None
        else f"look at the rows of {words[unsaid[0]]!r}: `pemt tasks check TASK` counts them."
    )
    return Finding(
        name=name, title="labels that are never answered",
        severity="warning" if surprising else "note",
        evidence=f"No test row was answered with {shown}{more}.",
        numbers={"labels": float(len(unsaid)), "rows": float(sum(there[i] for i in unsaid))},
        advice=advice,
    )  # fmt: skip


def _invalid(facts: Facts) -> Finding | None:
    if not facts.report.invalid:
        return None
    share = facts.report.invalid / max(1, facts.report.n)
    told = f"{facts.report.invalid} of {facts.report.n} answers are none of the task's."
    ranks = facts.kind == "classification"
    return Finding(
        name="invalid-answers", title="invalid answers", evidence=told, numbers={"share": share},
        severity="warning" if share > INVALID else "note",
        advice="ranking the label words instead of generating: --answers rank." if ranks
        else "longer answers, in case they are cut: --settings.max_target_length 32.",
    )  # fmt: skip


def _gates(facts: Facts) -> Finding | None:
    m = facts.measures
    if m is None or not facts.gated or len(m.experts) < 2:
        return None
    moved = float(m.moved.mean())
    told = (
        f"On {m.rows} rows {100 * moved:.1f} % of a gate's weight is elsewhere than in uniform "
        f"gates, mean over {len(m.moved)} layers (least {100 * float(m.moved.min()):.1f} %)."
    )
    numbers = {"moved": moved, "least": float(m.moved.min()), "most": float(m.moved.max())}
    if moved >= UNMOVED_GATES:
        return Finding(
            name="gates-uniform", title="gates differ from uniform", severity="fine",
            evidence=told, numbers=numbers,
        )  # fmt: skip
    return Finding(
        name="gates-uniform", title="gates near uniform", severity="warning", evidence=told,
        numbers=numbers,
        advice="gates that start where the labels point: --method guided."
        if not facts.guided
        else "`pemt experts rank`, and leave out what does not help with --experts.",
    )  # fmt: skip


def _one_expert(facts: Facts) -> Finding | None:
    m = facts.measures
    if m is None or not facts.gated or len(m.experts) < 2:
        return None
    mean = m.gates.mean(0)
    top = int(mean.argmax())
    who, share = m.experts[top], float(mean[top])
    told = f"{who!r} has {share:.2f} of the weight, mean over {len(m.gates)} layers."
    if share <= ONE_EXPERT:
        return Finding(
            name="gates-on-one", title="gates use several experts", severity="fine", evidence=told,
            numbers={"share": share},
        )  # fmt: skip
    if who == "none":
        return Finding(
            name="gates-on-one", title="the gates leave the experts out", severity="note",
            evidence=told, numbers={"share": share},
            advice="the adapter alone, which is cheaper, on the same labels: --method adapter.",
        )  # fmt: skip
    others = [name for name in m.experts if name not in (who, "none")]
    listed = ",".join(others) if len(others) <= 12 else f"(all but {who})"
    loss = (
        " The Task Sparsity Loss favours the largest expert, sound or not: "
        "--pemt.sparsity_weight 0 leaves it out."
        if facts.sparsity > 0
        else ""
    )
    return Finding(
        name="gates-on-one", title="one expert has nearly all of the gates", severity="note",
        evidence=told, numbers={"share": share},
        advice=f"a run without it (--experts {listed}): if that is better, {who!r} is broken."
        + loss,
    )  # fmt: skip


def _adapter_share(facts: Facts) -> Finding | None:
    m = facts.measures
    if m is None or not len(m.adapter) or len(m.adapter) != len(m.mixture):
        return None
    shares = m.adapter / (m.adapter + m.mixture).clamp_min(1e-12)
    share, above = float(shares.mean()), int((shares > ADAPTER_SHARE).sum())
    told = (
        f"The target adapter makes {100 * share:.0f} % of what is added to the down projections, "
        f"the mixture {100 - 100 * share:.0f} % (lengths, mean over {len(shares)} layers; above "
        f"half in {above})."
    )
    found = share > ADAPTER_SHARE
    return Finding(
        name="adapter-dominates",
        title="the target adapter outweighs the mixture" if found
        else "the mixture outweighs the target adapter",
        severity="warning" if found else "fine", evidence=told,
        numbers={"share": share, "layers": float(above)},
        advice="the adapter alone on the same labels (--method adapter): if it scores the same, "
        "the experts add nothing." if found else "",
    )  # fmt: skip


def _single_expert(facts: Facts) -> Finding | None:
    if not facts.pemt or facts.method == "single":
        return None
    name, title = "behind-single-expert", "not behind the best single expert"
    mine, rival = facts.mine, facts.rival
    if mine is None or rival is None:
        return Finding(
            name=name, title="behind the best single expert?", severity="not checked",
            evidence="No single expert was judged on these labels." if rival is None
            else "This run has no held-out score of its own.",
            advice="--method guided judges each; --validation cv --method pemt,single compares.",
        )  # fmt: skip
    behind = rival.value - mine.value
    error = math.hypot(mine.error, rival.error)
    told = (
        f"{mine.metric} {mine.value:.3f} ({mine.how}) against {rival.value:.3f} for "
        f"{rival.name!r} ({rival.how}); standard error of the difference {error:.3f}."
    )
    numbers = {"value": mine.value, "single": rival.value, "error": error}
    if behind <= error:
        return Finding(name=name, title=title, severity="fine", evidence=told, numbers=numbers)
    return Finding(
        name=name, title="behind the best single expert", evidence=told, numbers=numbers,
        severity="warning" if behind > 2 * error else "note",
        advice="that expert with a target adapter, on the same labels: --method single.",
    )  # fmt: skip


def _prompt(facts: Facts) -> Finding | None:
    moved = facts.prompt_moved
    if moved is None or not facts.trains:
        return None
    told = f"The target prompt moved by {100 * moved:.2f} % of its length."
    found = not moved >= UNMOVED_PROMPT
    rate = 10 * (facts.learning_rate or 1e-3)
    return Finding(
        name="prompt-unmoved", numbers={"moved": moved}, evidence=told,
        title="the target prompt never moved" if found else "the target prompt moved",
        severity="warning" if found else "fine",
        advice=f"a higher learning rate: --learning_rates '[{rate:.2g}]'." if found else "",
    )  # fmt: skip


def _alike(facts: Facts) -> Finding | None:
    m = facts.measures
    if m is None:
        return None
    above = torch.ones_like(m.cosines).triu(1).bool() & ~m.cosines.isnan()
    if not above.any():
        return None
    mean = float(m.cosines[above].mean())
    highest = float(m.cosines[above].max())
    i, j = (int(v) for v in ((m.cosines == highest) & above).nonzero()[0])
    a, b = m.experts[i], m.experts[j]
    told = (
        f"|cos| of two experts' outputs is {mean:.2f} on the mean, {highest:.2f} for {a!r} and "
        f"{b!r}."
    )
    found = mean > ALIKE or highest > SAME
    rest = [name for name in m.experts if name not in (b, "none")]
    listed = ",".join(rest) if len(rest) <= 12 else f"(all but {b})"
    return Finding(
        name="experts-collinear",
        title="experts that do the same" if found else "experts differ",
        severity="warning" if mean > ALIKE else "note" if found else "fine", evidence=told,
        numbers={"mean": mean, "highest": highest},
        advice=f"a run without one of the two: --experts {listed}." if found else "",
    )  # fmt: skip


def _own_source(facts: Facts) -> Finding | None:
    if facts.own_sources is None:
        return None
    name, own = "own-source", facts.own_sources
    if not own:
        return Finding(
            name=name, title="no expert was trained on this task", severity="fine",
            evidence="No expert names this task as its source.",
        )  # fmt: skip
    listed = ", ".join(map(repr, own))
    return Finding(
        name=name, title="an expert was trained on this task itself",
        severity="note" if facts.shots is None else "warning",
        evidence=f"By its record {listed} learnt from rows of this task, whose labels therefore "
        "count too: this is no measure of what few labels do.",
        numbers={"experts": float(len(own))},
        advice="a run without it: name the other experts with --experts.",
    )  # fmt: skip
