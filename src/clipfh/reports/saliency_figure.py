"""What of a query photo its similarity to a match hangs on, as a figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipfh.reports.drawing import FONT, GREY, INK, new_figure, printable, save_figure, shortened

_PHOTO, _GAP, _HEAD, _LINE = 2.2, 0.2, 0.55, 0.42  # inches


def saliency_figure(
    path: Path, rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], *, title: str, note: str
) -> None:
    """Draw one row a pair: the query, the query with the squares that matter in colour, and its match.

    The colour's scale is of each row's own: the largest fall is written above it.

    Args:
        path: the picture to write.
        rows: (label, query, match, drop): photos (S, S, 3) uint8 as the model sees them, and how much each square of
            the query counts, any grid.
        title, note: above the figure.

    Raises:
        InputError: `path` cannot be written.
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a figure of saliency needs pairs")
    aspect = rows[0][1].shape[0] / rows[0][1].shape[1]
    height = _PHOTO * aspect
    width = 3 * _PHOTO + 4 * _GAP
    total = _HEAD + len(rows) * (height + _LINE)
    axes = new_figure(width, total).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(total, 0), autoscale_on=False)
    axes.axis("off")
    style = {"family": FONT, "parse_math": False}
    axes.text(_GAP, 0.22, printable(title), fontsize=11, weight="bold", color=INK, **style)
    axes.text(_GAP, 0.42, shortened(note, width - 2 * _GAP, 8), fontsize=8, color=GREY, **style)
    for index, (label, query, match, drop) in enumerate(rows):
        top = _HEAD + index * (height + _LINE) + 0.26
        lines = (label, f"largest fall {drop.max():.3f}", "match")
        photos = (query, np.round(query.mean(axis=2)).astype(np.uint8), match)
        for column, (line, photo) in enumerate(zip(lines, photos, strict=True)):
            x = _GAP + column * (_PHOTO + _GAP)
            extent = (x, x + _PHOTO, top + height, top)
            axes.text(x, top - 0.07, shortened(line, _PHOTO, 8), fontsize=8, color=INK, **style)
            axes.imshow(photo, extent=extent, aspect="auto", cmap="gray", vmin=0, vmax=255)
            if column == 1:
                share = np.clip(drop, 0, None) / max(float(drop.max()), 1e-9)
                axes.imshow(
                    share, extent=extent, aspect="auto", cmap="inferno", vmin=0, vmax=1, alpha=0.25 + 0.5 * share
                )
    save_figure(axes.figure, path)
