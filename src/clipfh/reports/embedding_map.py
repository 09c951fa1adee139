"""A map of photographs at the places that a projection gave them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.patches import Rectangle

from clipfh.reports.drawing import FONT, GREY, INK, RED, new_figure, save_figure, wrapped
from clipfh.reports.figures import read_photo

_SIDE, _HEAD, _MARGIN = 10.0, 0.6, 0.15  # inches


def embedding_map_figure(
    path: Path, image_dir: Path, images: Sequence[str], places: np.ndarray, framed: np.ndarray, *, title: str
) -> None:
    """Draw each photograph as a thumbnail at its place, those of `framed` in a red frame.

    Args:
        path: the picture to write.
        image_dir: the image root.
        images: (M,) paths below it.
        places: (M, 2), of any range; both axes are scaled alike.
        framed: (M,) booleans: the most similar photo of the map is of another item.
        title: above the map.

    Raises:
        InputError: an image is missing or unreadable, or `path` cannot be written.
    """
    thumbnail = float(np.clip(0.55 * _SIDE / len(images) ** 0.5, 0.25, 0.8))
    figure = new_figure(_SIDE, _SIDE + _HEAD)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _SIDE), ylim=(_SIDE + _HEAD, 0), autoscale_on=False)
    axes.axis("off")
    line = wrapped(title, _SIDE - 2 * _MARGIN, 13, 1)[0]
    axes.text(_MARGIN, 0.27, line, fontsize=12, weight="bold", color=INK, family=FONT, parse_math=False)
    count = f"{framed.sum()} of {len(images)}"
    note = f"t-SNE of the features; red frame: the most similar photo here is of another item ({count})"
    axes.text(_MARGIN, 0.5, note, fontsize=8, color=GREY, family=FONT)
    low, span = places.min(axis=0), max(float(np.ptp(places, axis=0).max()), 1e-9)
    middle = (1 - np.ptp(places, axis=0) / span) / 2
    free = _SIDE - 2 * _MARGIN - thumbnail
    for image, place, frame in zip(images, (places - low) / span + middle, framed, strict=True):
        photo = read_photo(Path(image_dir) / image, thumbnail)
        height, width = (side * thumbnail / max(photo.shape[:2]) for side in photo.shape[:2])
        x = _MARGIN + free * place[0] + (thumbnail - width) / 2
        y = _HEAD + _MARGIN + free * place[1] + (thumbnail - height) / 2
        axes.imshow(photo, extent=(x, x + width, y + height, y), aspect="auto", zorder=2)
        if frame:
            axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=RED, linewidth=1.5, zorder=2))
    save_figure(figure, path)
