"""How similar matches and non-matches are, as a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipfh.reports.drawing import BLUE, FONT, GREY, INK, RED, new_figure, printable, save_figure


def similarity_figure(path: Path, histogram: Mapping[str, Any], *, title: str = "") -> None:
    """Draw both histograms, each as shares of its own pairs: there are many times more non-matches.

    Args:
        path: the picture to write.
        histogram: `edges`, `matches`, `others` and `auc`, as `SimilarityHistogram.as_dict` gives them.
        title: above the figure.

    Raises:
        InputError: `path` cannot be written.
    """
    figure = new_figure(7.2, 3.0)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    axes = figure.subplots()
    edges = np.asarray(histogram["edges"])
    for name, label, color, style in (("others", "non-matches", RED, "--"), ("matches", "matches", BLUE, "-")):
        counts = np.asarray(histogram[name], dtype=float)
        density = counts / counts.sum() / np.diff(edges)  # the last bin may be narrower
        label = f"{label} ({int(counts.sum()):,} pairs)"
        axes.stairs(density, edges, color=color, linestyle=style, linewidth=1.6, fill=False, label=label)
        axes.stairs(density, edges, color=color, alpha=0.15, fill=True)
    axes.set_yticks([])
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.set_ylabel("share of pairs", fontsize=9, color=GREY, family=FONT)
    axes.set_xlabel("cosine similarity of query and gallery photo", fontsize=9, color=GREY, family=FONT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=8.5, color=GREY, labelcolor=INK, labelfontfamily=FONT)
    axes.legend(fontsize=8.5, frameon=False, loc="upper left")
    if title:
        figure.suptitle(printable(title), fontsize=11, fontweight="bold", x=0.01, ha="left", color=INK, family=FONT)
    save_figure(figure, path)
