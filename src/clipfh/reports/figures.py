"""Figures made of photographs: ranked results and contact sheets. Curves and comparisons are in `charts`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from clipfh.core.errors import InputError
from clipfh.images.transforms import large_photos_allowed, regular_file_size, upright_and_opaque
from clipfh.reports.charts import stage_comparison_figure, training_curves_figure
from clipfh.reports.drawing import (
    DPI,
    FONT,
    GREEN,
    GREY,
    INK,
    RED,
    new_figure,
    save_figure,
    shortened,
    text_width,
    wrapped,
)

__all__ = [
    "RankedImage",
    "RankedQuery",
    "ranked_results_figure",
    "stage_comparison_figure",
    "training_curves_figure",
]

# All lengths are inches; at 10 inches and 150 dpi, text of 8 points stays readable at the width of a README.
_WIDTH, _MARGIN, _GAP, _QUERY_GAP = 10.0, 0.12, 0.09, 0.24
_CAPTION = 0.36  # two lines below a photograph
_PROMPT_WIDTH = 2.2
_POINTS, _LINE = 8.0, 0.15  # of captions
_PROMPT_PADDING = 0.09


@dataclass(frozen=True)
class RankedImage:
    """One gallery image of a ranking: path below the image root, item, cosine similarity, whether it matches."""

    image: str
    item_id: str
    similarity: float
    is_match: bool


@dataclass(frozen=True)
class RankedQuery:
    """One query with its gallery images, most similar first. Give either `image` or `prompt`.

    Attributes:
        item_id: of the query.
        gallery: the ranking, or its beginning.
        image: path below the image root, for image-to-image retrieval.
        prompt: the text, for text-to-image retrieval.
        average_precision: shown where given, a fraction 0..1.
        first_match_rank: 1-based rank of the first match in the whole ranking, shown where given.
    """

    item_id: str
    gallery: Sequence[RankedImage]
    image: str | None = None
    prompt: str | None = None
    average_precision: float | None = None
    first_match_rank: int | None = None


def ranked_results_figure(
    path: Path, image_dir: Path, rows: Sequence[RankedQuery], *, title: str, top: int = 8, kind: str = "item"
) -> None:
    """Draw one row a query: the query at the left, then its `top` gallery images, matches and others told apart.

    A match has a solid green frame and a check mark, another item a dashed red frame and a cross.

    Args:
        path: the picture to write, `.png`, `.jpg`, `.svg` or `.pdf`.
        image_dir: the image root.
        rows: the queries, from top to bottom.
        title: above the figure.
        top: gallery images a row.
        kind: what a match shares with its query, for the legend: "same item", "other item".

    Raises:
        InputError: an image is missing or unreadable (it is named), or `path` cannot be written.
        ValueError: no rows, `top` under 1, or a row with both or neither of image and prompt.
    """
    if not rows or top < 1 or any((row.image is None) == (row.prompt is None) for row in rows):
        raise ValueError("ranked results need rows, top >= 1, and either an image or a prompt in each row")
    query_share = _PROMPT_WIDTH if any(row.prompt is not None for row in rows) else 1.0
    free = _WIDTH - 2 * _MARGIN - _QUERY_GAP - (top - 1) * _GAP
    cell = free / (top + query_share)
    query_width = cell * query_share
    names = [row.image for row in rows if row.image] + [hit.image for row in rows for hit in row.gallery[:top]]
    photos = {name: read_photo(Path(image_dir) / name, cell * 1.5) for name in dict.fromkeys(names)}
    height = cell / _common_aspect(photos.values())
    pitch = height + _CAPTION + _GAP
    axes = _blank_axes(head := 0.72, len(rows) * pitch + head)
    _draw_head(axes, title, top, cell, query_width, kind)
    for index, row in enumerate(rows):
        y = head + index * pitch
        _draw_query(axes, row, photos, _MARGIN, y, query_width, height)
        for rank, hit in enumerate(row.gallery[:top]):
            x = _MARGIN + query_width + _QUERY_GAP + rank * (cell + _GAP)
            draw_photo(axes, photos[hit.image], x, y, cell, height)
            draw_verdict(axes, hit.is_match, x, y, cell, height)
            item = shortened(hit.item_id, cell, _POINTS)
            write_lines(axes, x, y + height, [item, f"{hit.similarity:.3f}"])
    save_figure(axes.figure, path)


def _draw_head(axes: Axes, title: str, top: int, cell: float, query_width: float, kind: str) -> None:
    write_lines(axes, _MARGIN, 0.055, wrapped(title, _WIDTH - 2.8, 13, 1), size=12, weight="bold")
    x = _WIDTH - _MARGIN
    for is_match, label in ((False, f"other {kind}"), (True, f"same {kind}")):  # from the right edge
        x -= text_width(label, _POINTS)
        write_lines(axes, x, 0.11, [label])
        x -= 0.23
        draw_verdict(axes, is_match, x, 0.125, 0, 0, frame=False)
        x -= 0.2
    write_lines(axes, _MARGIN, 0.45, ["query"], color=GREY)
    for rank in range(1, top + 1):
        x = _MARGIN + query_width + _QUERY_GAP + (rank - 1) * (cell + _GAP)
        write_lines(axes, x, 0.45, ["rank 1" if rank == 1 else str(rank)], color=GREY)


def _draw_query(
    axes: Axes, row: RankedQuery, photos: dict[str, np.ndarray], x: float, y: float, width: float, height: float
) -> None:
    if row.image is not None:
        draw_photo(axes, photos[row.image], x, y, width, height)
    else:
        max_lines = max(1, int((height - _PROMPT_PADDING) / _LINE))
        prompt = wrapped(row.prompt, width - 2 * _PROMPT_PADDING, _POINTS, max_lines)
        write_lines(axes, x + _PROMPT_PADDING, y, prompt)
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=INK, linewidth=1.4))
    item = shortened(row.item_id, width + _GAP, _POINTS, "bold")
    write_lines(axes, x, y + height, [item], weight="bold")
    facts = [] if row.average_precision is None else [f"AP {row.average_precision:.2f}"]
    if row.first_match_rank is not None:
        facts.append(f"hit at {row.first_match_rank}")
    write_lines(axes, x, y + height + _LINE, [shortened(" · ".join(facts), width + _QUERY_GAP - 0.04, 7.5)], size=7.5)


def draw_verdict(
    axes: Axes, is_match: bool, x: float, y: float, width: float, height: float, frame: bool = True
) -> None:
    """A frame, and a badge with a check or a cross in its upper left corner."""
    color = GREEN if is_match else RED
    if frame:  # white below the dashes, so that they stay dashes on a busy photograph
        for edge, style in (("white", "-"), (color, "-" if is_match else (0, (3, 1.4)))):
            patch = Rectangle((x, y), width, height, fill=False, edgecolor=edge, linewidth=2.2, linestyle=style)
            axes.add_patch(patch)
    side = 0.17
    axes.add_patch(Rectangle((x, y), side, side, facecolor=color, edgecolor="none"))
    strokes = [((0.25, 0.52), (0.43, 0.7), (0.77, 0.3))] if is_match else [((0.28, 0.28), (0.72, 0.72))]
    if not is_match:
        strokes.append(((0.28, 0.72), (0.72, 0.28)))
    for points in strokes:
        xs, ys = zip(*points, strict=True)
        axes.plot([x + side * v for v in xs], [y + side * v for v in ys], color="white", linewidth=1.5)


def _blank_axes(head: float, height: float) -> Axes:
    """Axes over a whole figure, in inches from its upper left corner."""
    axes = new_figure(_WIDTH, height).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _WIDTH), ylim=(height, 0), autoscale_on=False)
    axes.axis("off")
    return axes


def read_photo(path: Path, size_inches: float) -> np.ndarray:
    """The photograph, upright, in RGB, no larger than it is shown: uint8 (height, width, 3)."""
    try:
        regular_file_size(path)
        with large_photos_allowed(), Image.open(path) as image:  # it was decoded before
            image.load()
            photo = upright_and_opaque(image).convert("RGB")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Give the image root that the metadata was made for.") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the image {path}: {error}") from error
    photo.thumbnail((round(size_inches * DPI),) * 2, Image.Resampling.LANCZOS)
    return np.asarray(photo)


def _common_aspect(photos: Collection[np.ndarray]) -> float:
    """Width / height of the cells: the photographs' median, within what leaves a readable grid."""
    aspects = [photo.shape[1] / photo.shape[0] for photo in photos] or [1.0]
    return float(np.clip(np.median(aspects), 0.6, 1.6))


def draw_photo(axes: Axes, photo: np.ndarray, x: float, y: float, width: float, height: float) -> None:
    """Centre the whole photograph in its cell, never cropped or stretched."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor="#f1f3f5", edgecolor="none", zorder=-1))
    scale = min(width / photo.shape[1], height / photo.shape[0])
    shown_width, shown_height = photo.shape[1] * scale, photo.shape[0] * scale
    left, top = x + (width - shown_width) / 2, y + (height - shown_height) / 2
    axes.imshow(
        photo, extent=(left, left + shown_width, top + shown_height, top), aspect="auto", interpolation="lanczos"
    )


def write_lines(
    axes: Axes, x: float, y: float, lines: Sequence[str], *, size: float = _POINTS, color: str = INK, **style: object
) -> None:
    """Left-aligned `printable` lines below y, one by one: lines of one text would not share baselines across cells."""
    for index, line in enumerate(lines):
        # `$` and `_` of ids are no mathematics
        baseline = y + 0.035 + size / 72 + index * _LINE
        axes.text(x, baseline, line, fontsize=size, color=color, va="baseline", family=FONT, parse_math=False, **style)
