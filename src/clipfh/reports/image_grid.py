"""A labelled grid of small images: what a generator makes, row by row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipfh.reports.drawing import FONT, GREY, INK, new_figure, printable, save_figure, shortened

_LABEL, _CELL, _HEAD, _MARGIN = 2.4, 0.8, 0.42, 0.1  # inches


def image_grid_figure(
    path: Path, rows: Sequence[tuple[str, np.ndarray]], *, title: str, columns: Sequence[str] = ()
) -> None:
    """Draw one row of images for each label.

    Args:
        path: the picture to write.
        rows: (label, images): (N, S, S, 3) uint8; N may differ from row to row.
        title: above the grid.
        columns: a heading for each column, or none.

    Raises:
        InputError: `path` cannot be written.
        ValueError: no rows, or a row without images.
    """
    if not rows or any(len(images) == 0 for _, images in rows):
        raise ValueError("a grid needs rows, and images in each of them")
    widest = max(len(images) for _, images in rows)
    head = _HEAD + (0.2 if columns else 0)
    width, height = _LABEL + widest * _CELL + 2 * _MARGIN, head + len(rows) * _CELL + _MARGIN
    axes = new_figure(width, height).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.axis("off")
    style = {"family": FONT, "parse_math": False, "va": "center"}
    axes.text(
        _MARGIN, 0.2, shortened(title, width - 2 * _MARGIN, 11, "bold"), fontsize=11, weight="bold", color=INK, **style
    )
    for number, name in enumerate(columns):
        x = _MARGIN + _LABEL + number * _CELL
        axes.text(x, head - 0.12, shortened(name, _CELL, 7.5), fontsize=7.5, color=GREY, **style)
    for row, (label, images) in enumerate(rows):
        top = head + row * _CELL
        text = shortened(printable(label), _LABEL - 0.1, 8.5)
        axes.text(_MARGIN, top + _CELL / 2, text, fontsize=8.5, color=INK, **style)
        for column, image in enumerate(images):
            left = _MARGIN + _LABEL + column * _CELL
            extent = (left, left + _CELL - 0.04, top + _CELL - 0.04, top)
            axes.imshow(image, extent=extent, aspect="auto", interpolation="nearest")
    save_figure(axes.figure, path)
