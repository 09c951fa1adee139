"""What retrieval finds: the captions that come first for images, drawn beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.patches import Rectangle

from clipfh.reports.drawing import (
    GREEN,
    GREY,
    INK,
    RED,
    new_figure,
    printable,
    save_figure,
    shortened,
    text_width,
    wrapped,
)
from clipfh.reports.figures import draw_photo, draw_verdict, read_photo, write_lines

_WIDTH, _MARGIN, _PHOTO, _GAP = 10.0, 0.15, 1.25, 0.2  # inches
_POINTS, _LINE = 8.5, 0.185
_HEAD = 0.5


@dataclass(frozen=True)
class RetrievedCaptions:
    """One image as a query.

    Attributes:
        image: path below the image root.
        first_match_rank: of its first true caption, from 1.
        captions: (text, similarity, whether it is true), most similar first.
    """

    image: str
    first_match_rank: int
    captions: Sequence[tuple[str, float, bool]]


def retrieved_captions_figure(path: Path, image_dir: Path, rows: Sequence[RetrievedCaptions], *, title: str) -> None:
    """Draw one row an image: the image at the left, the captions that come first for it at its right.

    True captions have a green badge with a check mark, others a red one with a cross.

    Args:
        path: the picture to write, `.png`, `.jpg`, `.svg` or `.pdf`.
        image_dir: the image root.
        rows: the images, from top to bottom, each with the same number of captions or fewer.
        title: above the figure.

    Raises:
        InputError: an image is missing or unreadable, or `path` cannot be written.
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a figure of retrieved captions needs rows")
    most = max(len(row.captions) for row in rows)
    height = max(_PHOTO, (most + 1) * _LINE + 0.05) + _GAP
    figure = new_figure(_WIDTH, _HEAD + len(rows) * height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _WIDTH), ylim=(_HEAD + len(rows) * height, 0), autoscale_on=False)
    axes.axis("off")
    write_lines(axes, _MARGIN, 0.1, wrapped(title, _WIDTH - 2 * _MARGIN, 12, 1), size=12, weight="bold")
    x = 2 * _MARGIN + _PHOTO
    for index, row in enumerate(rows):
        y = _HEAD + index * height
        draw_photo(axes, read_photo(Path(image_dir) / row.image, _PHOTO * 1.5), _MARGIN, y, _PHOTO, _PHOTO)
        axes.add_patch(Rectangle((_MARGIN, y), _PHOTO, _PHOTO, fill=False, edgecolor=INK, linewidth=1))
        name = shortened(row.image, _WIDTH - x - 3, _POINTS)
        write_lines(axes, x, y, [f"{name}   first true caption at rank {row.first_match_rank}"], color=GREY)
        for place, (text, similarity, is_match) in enumerate(row.captions, start=1):
            top = y + place * _LINE + 0.03
            draw_verdict(axes, is_match, x, top, 0, 0, frame=False)
            lead = f"{similarity:.3f}  "
            start = x + 0.24
            write_lines(axes, start, top, [lead], color=GREEN if is_match else RED)
            start += text_width(lead, _POINTS)
            line = wrapped(printable(text), _WIDTH - start - _MARGIN, _POINTS, 1)
            write_lines(axes, start, top, line, size=8.0)
    save_figure(figure, path)
