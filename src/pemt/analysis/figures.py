"""Plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pemt.analysis.gates import layer_names

if TYPE_CHECKING:
    from torch import Tensor

    from pemt.model import AdaptedModel


def gate_heat_map(
    gates: Tensor, model: AdaptedModel, experts: list[str], path: Path, *, title: str = "Mean gates"
) -> Path:
    """Layers x experts as a heat map (PNG).

    Args:
        gates: `[layers, K]`.
        model: whose layers they are.
        experts: K names.
        path: of the file.
        title: above the plot.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    layers = layer_names(model)
    size = (2.5 + 0.8 * len(experts), 1.6 + 0.32 * len(layers))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    image = axes.imshow(gates.numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(experts)), experts, rotation=35, ha="right")
    axes.set_yticks(range(len(layers)), layers)
    if len(experts) * len(layers) <= 200:
        for row, values in enumerate(gates.tolist()):
            for column, value in enumerate(values):
                colour = "black" if value > 0.6 else "white"
                axes.text(
                    column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8
                )
    axes.set_title(title)
    figure.colorbar(image, label="gate weight")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
