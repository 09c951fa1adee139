"""A photo that somebody brings along: checked before it is decoded, since it may be anything."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipfh.core.errors import InputError, shortened
from clipfh.images.photo_files import PHOTO_FORMATS, photo_suffixes
from clipfh.images.transforms import ImageSize, decode, regular_file_size, upright_and_opaque

SHOWN_PX = 320  # longer side of what a page shows


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The formats that are looked for: Pillow also opens documents, and would start Ghostscript to show one."""
    photo_suffixes()  # makes Pillow load its plugins
    return tuple(sorted(PHOTO_FORMATS & Image.OPEN.keys()))


def read_query_photo(path: Path, image_size: ImageSize, resize_mode: str, max_megapixels: float) -> np.ndarray:
    """Decode a photo as the gallery's photos were: (S, S, 3) uint8 RGB, or (H, W, 3).

    Raises:
        InputError: it is no photo, damaged, or larger than `max_megapixels`; the message is for who brought it.
    """
    try:
        regular_file_size(path)
        with Image.open(path, formats=_formats()) as photo:
            megapixels = photo.width * photo.height / 1e6
    except Image.DecompressionBombError:
        megapixels = float("inf")
    except Exception as error:  # what is no photo makes a decoder raise anything
        raise InputError(_unreadable(error, path)) from error
    if megapixels > max_megapixels:
        raise InputError(f"This photo has more than {max_megapixels:.0f} megapixels. Make it smaller, and try again.")
    try:
        return decode(path, image_size, resize_mode, max_megapixels=max_megapixels)
    except Exception as error:  # likewise
        raise InputError(_unreadable(error, path)) from error


def _unreadable(error: Exception, path: Path) -> str:
    reason = "it is none that is known here"
    if not isinstance(error, Image.UnidentifiedImageError):
        reason = shortened(str(error).replace(str(path), path.name)).rstrip(".")  # before a long path is cut
    return f"This file cannot be read as a photo ({reason}). Take a JPEG, PNG or WebP file."


def small_copy(path: Path) -> Image.Image:
    """A photo of the gallery as a page shows it: upright, on white, at most `SHOWN_PX` wide and high."""
    with Image.open(path, formats=_formats()) as photo:
        photo.draft("RGB", (2 * SHOWN_PX, 2 * SHOWN_PX))  # of a large JPEG, no more than that is decoded
        photo.load()
    photo = upright_and_opaque(photo).convert("RGB")
    photo.thumbnail((SHOWN_PX, SHOWN_PX))
    return photo


@lru_cache(maxsize=1)
def placeholder() -> Image.Image:
    """A plain tile in place of a photo that is not there, `SHOWN_PX` wide and high."""
    tile = Image.new("RGB", (SHOWN_PX, SHOWN_PX), "#e8eaed")
    middle, font = SHOWN_PX // 2, ImageFont.load_default(size=SHOWN_PX // 12)
    ImageDraw.Draw(tile).text((middle, middle), "photo not there", fill="#5f6368", font=font, anchor="mm")
    return tile
