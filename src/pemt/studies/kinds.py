"""The table of studies."""

from __future__ import annotations

from pemt.studies import ablation, prompt, sources, sparsity
from pemt.studies.study import Kind

KINDS: dict[str, Kind] = {
    "sources": sources.KIND,
    "sparsity": sparsity.KIND,
    "prompt": prompt.KIND,
    "ablation": ablation.KIND,
}
