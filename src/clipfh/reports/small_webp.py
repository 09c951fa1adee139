"""Pictures that are committed, and so have to be small."""

import io
from collections.abc import Iterable

from PIL import Image, ImageOps


def small_webp(image: Image.Image, sizes: Iterable[tuple[int, int]], most_bytes: int) -> bytes | None:
    """A picture as WebP of at most `most_bytes`; None where no size allows that.

    Args:
        image: the picture, which is never enlarged.
        sizes: widths in pixels with qualities 0 to 100, of which the first that is small enough is taken.
        most_bytes: of the file.
    """
    image = image.convert("RGB")
    for width, quality in sizes:
        encoded = io.BytesIO()
        small = image
        if width < image.width:
            small = ImageOps.contain(image, (width, 4 * width), Image.Resampling.LANCZOS)
        small.save(encoded, "WEBP", quality=quality, method=6)
        if encoded.tell() <= most_bytes:
            return encoded.getvalue()
    return None
