"""What a diagnosis rests on, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pemt.analysis.heldout import HeldOut
    from pemt.analysis.mixture import MixtureMeasures
    from pemt.tasks.reporting import ConstantAnswer, Report

Severity = Literal["fine", "note", "warning", "not checked"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check.

    Attributes:
        name: of the check, such as "gates-uniform".
        title: what it is about, for people.
        severity: "fine" where nothing was found.
        evidence: what was measured, a sentence; why it was not checked.
        numbers: the same, for machines.
        advice: one thing to try; empty where there is nothing to mend.
    """

    name: str
    title: str
    severity: Severity
    evidence: str
    numbers: dict[str, float] = field(default_factory=dict)
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a diagnosis rests on.

    Attributes:
        method: its name.
        kind: of the task.
        shots: labels per class; None for the full split.
        learning_rate: of the run; None where nothing trains by gradient.
        report: on the test rows.
        constant: the best that one answer to every row would score; None where there is none.
        losses: logged training losses by step, each a mean since the one before.
        trains: whether anything is trained by gradient.
        gated: whether the method has gates that learn.
        pemt: whether the model is a mixture with a target prompt of its own.
        measures: of the mixture; None without one.
        prompt_moved: |P - P_0| / |P_0| of the target prompt; None without one.
        mine: this method's held-out score, to set beside the rival's; None without one.
        rival: the best single expert's; None where nobody measured it.
        guided: whether the gates started from evidence.
        sparsity: weight of the Task Sparsity Loss in training; 0 without it.
        own_sources: of the experts, those whose source task is the target task itself; None where
            no expert was at hand.
    """

    method: str
    kind: str
    shots: int | None
    learning_rate: float | None
    report: Report
    constant: ConstantAnswer | None = None
    losses: Sequence[dict[str, float]] = ()
    trains: bool = True
    gated: bool = False
    pemt: bool = False
    measures: MixtureMeasures | None = None
    prompt_moved: float | None = None
    mine: HeldOut | None = None
    rival: HeldOut | None = None
    guided: bool = False
    sparsity: float = 0.0
    own_sources: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Every check that applies to a method, those that found nothing too."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What was found, warnings first."""
        found = [f for f in self.findings if f.severity in ("warning", "note")]
        return tuple(sorted(found, key=lambda f: f.severity != "warning"))

    def lines(self) -> list[str]:
        """For the end of a run's summary: a line per problem, one for what is fine, one for the
        checks that could not be made.
        """
        said = [
            f"Diagnosis, {f.severity}: {f.title}. {f.evidence} Try: {f.advice}"
            for f in self.problems
        ]
        fine = [f.title for f in self.findings if f.severity == "fine"]
        if fine:
            said.append(f"Diagnosis: nothing found in {len(fine)} checks ({'; '.join(fine)}).")
        said += [
            f"Diagnosis, not checked: {f.title} {f.evidence} {f.advice}".rstrip()
            for f in self.findings
            if f.severity == "not checked"
        ]
        return said

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values, for JSON."""
        return [asdict(f) for f in self.findings]
