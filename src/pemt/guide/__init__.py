"""What the few labels themselves say about the experts, before anything is trained.

views -> what the frozen base with one expert makes of the rows; probes -> small regressions on
that; evidence -> how well each foretells rows it has not seen; guide -> the weights that follow.
"""

from pemt.guide.evidence import Candidate, Evidence, gather
from pemt.guide.guide import Guide, guide_from, guide_of, helpful
from pemt.model.pemt import NONE

__all__ = [
    "NONE", "Candidate", "Evidence", "Guide", "gather", "guide_from", "guide_of", "helpful",
]  # fmt: skip
