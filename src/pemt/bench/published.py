"""Numbers of the literature to stand beside ours: T5-base, full training data, not run here.

As METHOD.md gives them: reprinted by ULPT from DePT, MPT and ATTEMPT, with the split rule that our
tasks follow. They are single scores in points, of another base than most of our runs and with
thousands of labels: a yardstick, never a comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

MARK = "published, T5-base, full data, not run here"

SUITES: dict[str, tuple[str, ...]] = {
    "GLUE": ("mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "cola"),
    "SuperGLUE": ("multirc", "boolq", "wic", "wsc", "cb"),
    "MRQA": ("nq", "hotpotqa", "searchqa", "newsqa"),
    "Others": ("winogrande", "yelp_polarity", "scitail", "paws"),
}
"""Columns of the published tables, by our names of the tasks."""

METRIC = {
    **dict.fromkeys((t for tasks in SUITES.values() for t in tasks), "accuracy"),
    "stsb": "pearson", "cola": "matthews", "multirc": "question_f1",
    **dict.fromkeys(SUITES["MRQA"], "token_f1"),
}  # fmt: skip
"""What each number is; beside another metric of ours it is not shown."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a published table.

    Attributes:
        title: of the method.
        method: its name here; None where this package has no such method.
        suite: whose columns the scores follow.
        scores: in points.
        mean: as printed, in points.
        source: where it was read.
    """

    title: str
    method: str | None
    suite: str
    scores: tuple[float, ...]
    mean: float
    source: str = "ULPT's reprint of DePT, MPT and ATTEMPT (METHOD.md)"

    @property
    def by_task(self) -> dict[str, float]:
        """Task -> score in points."""
        return dict(zip(SUITES[self.suite], self.scores, strict=True))


# The printed means are not always the rounded means of the printed scores: LoRA's on GLUE is 85.21
# (printed 85.3), full fine-tuning's 84.95 (84.9). Both are within a tenth, as rounding of the
# scores themselves allows.
_GLUE: list[tuple[str, str | None, tuple[float, ...], float]] = [
    ("full fine-tuning", "full", (86.8, 91.6, 93.0, 94.6, 89.7, 90.2, 71.9, 61.8), 84.9),
    ("adapter", "adapter", (86.5, 90.2, 93.2, 93.8, 90.7, 85.3, 71.9, 64.0), 84.5),
    ("BitFit", "bitfit", (85.3, 90.1, 93.0, 94.2, 90.9, 86.8, 67.6, 58.2), 83.3),
    ("LoRA", "lora", (86.3, 89.0, 93.2, 94.3, 90.0, 90.1, 75.5, 63.3), 85.3),
    ("SPoT", "spot", (85.4, 90.1, 93.0, 93.4, 90.0, 79.7, 69.8, 57.1), 82.3),
    ("ATTEMPT", "attempt", (84.3, 90.3, 93.0, 93.0, 89.7, 85.7, 74.3, 57.4), 83.4),
    ("MPT", "mpt", (85.9, 90.3, 93.1, 93.8, 90.4, 89.1, 79.4, 62.4), 85.6),
    ("DePT", None, (85.0, 90.4, 93.2, 94.2, 90.8, 90.7, 79.1, 63.8), 85.9),
]
_SUPERGLUE: list[tuple[str, str | None, tuple[float, ...], float]] = [
    ("full fine-tuning", "full", (72.8, 81.1, 70.2, 59.6, 85.7), 73.9),
    ("adapter", "adapter", (75.9, 82.5, 67.1, 67.3, 85.7), 75.7),
    ("BitFit", "bitfit", (74.5, 79.6, 70.0, 59.6, 78.6), 72.5),
    ("LoRA", "lora", (72.6, 81.3, 68.3, 67.3, 92.9), 76.5),
    ("SPoT", "spot", (74.0, 77.2, 67.0, 50.0, 46.4), 62.9),
    ("ATTEMPT", "attempt", (74.4, 78.8, 66.8, 53.8, 78.6), 70.5),
    ("MPT", "mpt", (74.8, 79.6, 69.0, 67.3, 79.8), 74.1),
    ("DePT", None, (74.3, 79.3, 68.7, 67.3, 92.9), 76.5),
]
_MRQA: list[tuple[str, str | None, tuple[float, ...], float]] = [
    ("full fine-tuning", "full", (75.1, 77.5, 81.1, 65.2), 74.7),
    ("adapter", "adapter", (74.2, 77.6, 81.4, 65.6), 74.7),
    ("MPT", "mpt", (72.0, 75.8, 77.2, 63.7), 72.2),
]
_OTHERS: list[tuple[str, str | None, tuple[float, ...], float]] = [
    ("full fine-tuning", "full", (61.9, 96.7, 95.8, 94.1), 87.1),
    ("adapter", "adapter", (59.2, 96.9, 94.5, 94.3), 86.2),
    ("MPT", "mpt", (56.5, 96.4, 95.5, 93.5), 85.5),
]

PUBLISHED: tuple[Published, ...] = tuple(
    Published(title=title, method=method, suite=suite, scores=scores, mean=mean)
    for suite, rows in (
        ("GLUE", _GLUE), ("SuperGLUE", _SUPERGLUE), ("MRQA", _MRQA), ("Others", _OTHERS),
    )
    for title, method, scores, mean in rows
)  # fmt: skip


def published_scores() -> dict[tuple[str, str | None], dict[str, float]]:
    """(title, method) -> task -> score in points, over all suites."""
    found: dict[tuple[str, str | None], dict[str, float]] = {}
    for row in PUBLISHED:
        found.setdefault((row.title, row.method), {}).update(row.by_task)
    return found
