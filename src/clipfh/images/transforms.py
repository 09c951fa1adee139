"""Files to pixels, and pixels to a model's input.

The geometry is that of open_clip's evaluation transform: shorter side to S by bicubic resampling, centre crop S x S
(or squashed to S x S, or padded: the whole photo on white). Unlike there, a photo is turned as its EXIF orientation
says, 16 bits become 8 by their value and not by clipping, and what is transparent becomes white, at any size.
Shapes: B batch, S image size in pixels; where it is not square, H and W.
"""

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from clipfh.images.resampling import resample_crop, resize_fixed_point

TRANSFORM_VERSION = 4  # part of the cache's key: raise it whenever `decode` changes a pixel

ImageSize = int | tuple[int, int]  # S, or (H, W)
RESIZE_MODES = ("shortest", "squash", "pad")
MAX_MEGAPIXELS = 178  # where Pillow refuses a photo as a decompression bomb
RAISE_LIMIT = "--max_megapixels of the script that prepares the data raises the limit"
ORIENTATION = ExifTags.Base.Orientation

# How much larger than the target a JPEG decoded at 1/2, 1/4 or 1/8 must still be. Mean grey levels off the exact path,
# measured on photographs: 2.5 times larger, 0.3 to 0.9; 1.6 times, 0.4 to 0.8, but up to 1.3 where the detail is fine.
# Fine detail takes many bytes, so the smaller margin is for files below `SMOOTH_BYTES_PER_PIXEL`, and for 1/2 alone.
DRAFT_MARGIN, SMOOTH_DRAFT_MARGIN = 2.5, 1.6
SMOOTH_BYTES_PER_PIXEL = 0.25


def decode(
    path: Path,
    image_size: ImageSize,
    resize_mode: str = "shortest",
    *,
    fast_decode: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> np.ndarray:
    """Decode one photo: (S, S, 3) uint8 RGB, or (H, W, 3).

    Exact: of the upright, opaque photo, at most one grey level off open_clip's transform anywhere, and equal to it
    except for RGB photos larger than S, which `resample_crop` reduces.

    Args:
        path: the photo.
        image_size: S, or (H, W).
        resize_mode: one of `RESIZE_MODES`: "shortest" fills the frame and cuts off what is left over, "squash" changes
            the aspect, "pad" keeps all of the photo and puts white beside it.
        fast_decode: let the JPEG decoder leave out detail that the reduction to S removes anyway: less than one grey
            level off the exact pixels on average. Other formats, and photos not much larger than S, stay exact.
        max_megapixels: larger photos are refused: a small file can hold pixels that fill any memory. Beyond
            `MAX_MEGAPIXELS` only inside `large_photos_allowed`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is a pipe, a folder or a device; it is too large; its grey levels have no known range.
        Exception: it is not an image or a damaged one; Pillow's decoders raise OSError, SyntaxError and more.
    """
    num_bytes = regular_file_size(path)
    try:
        photo = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} {RAISE_LIMIT}") from None
    with photo:
        width, height = photo.size
        if width * height > max_megapixels * 1e6:
            raise ValueError(f"{width * height / 1e6:.0f} megapixels, more than {max_megapixels:.0f}; {RAISE_LIMIT}")
        size = _turned(photo)
        frame, new_size = _geometry(size, image_size, resize_mode)
        ratio = min(size[0] / new_size[0], size[1] / new_size[1])
        factor = _draft(photo, num_bytes, ratio) if fast_decode else 1
        photo.load()
    if factor == 1:  # of some formats size and orientation are known only now
        size = _turned(photo)
        frame, new_size = _geometry(size, image_size, resize_mode)
    photo = upright_and_opaque(photo)
    pixels = _resized(photo, size, new_size, frame, factor)
    return pixels if resize_mode != "pad" else _on_white(pixels, *height_and_width(image_size))


def height_and_width(image_size: ImageSize) -> tuple[int, int]:
    """(H, W) of S or (H, W)."""
    return (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])


def _turned(photo: Image.Image) -> tuple[int, int]:
    """Width and height as its EXIF orientation shows it."""
    width, height = photo.size
    return (height, width) if photo.getexif().get(ORIENTATION, 1) in range(5, 9) else (width, height)


def _geometry(
    size: tuple[int, int], image_size: ImageSize, resize_mode: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What a photo of `size` is resized to, and the frame that is cut out of its middle: both (width, height)."""
    (width, height), (H, W) = size, height_and_width(image_size)
    # the longer side is cut down to an integer and the crop's corner rounded as torchvision does: the very same pixels
    if resize_mode == "pad":
        scale = min(W / width, H / height)
        fitting = (max(1, min(W, round(width * scale))), max(1, min(H, round(height * scale))))
        return fitting, fitting
    if resize_mode == "squash":
        return (W, H), (W, H)
    if W * height >= H * width:
        return (W, H), (W, int(W * height / width))
    return (W, H), (int(H * width / height), H)


def _on_white(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """`pixels` in the middle of a white frame."""
    framed = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
    framed[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return framed


def _resized(
    photo: Image.Image, size: tuple[int, int], new_size: tuple[int, int], frame: tuple[int, int], factor: int
) -> np.ndarray:
    """The middle `frame` of a photo of `size`, decoded at 1 / `factor`, resized to `new_size`; all (width, height)."""
    (width, height), (new_width, new_height) = size, new_size
    left, top = round((new_width - frame[0]) / 2), round((new_height - frame[1]) / 2)
    right, bottom = left + frame[0], top + frame[1]

    # a draft's own size is rounded up: the geometry is that of width / factor x height / factor, fractions included
    scale = (width / factor / new_width, height / factor / new_height)
    smaller = new_width < width and new_height < height
    # Pillow 13 resamples columns first where the height shrinks by more than twice what the width does
    rows_first = height - new_height <= 2 * (width - new_width)
    if photo.mode == "RGB" and factor > 1:
        resized = resize_fixed_point(photo, scale)[top:bottom, left:right]
        return np.ascontiguousarray(resized)
    if photo.mode == "RGB" and smaller and rows_first:
        return resample_crop(photo, scale, (left, top), frame)
    if factor > 1:
        edges = (left * scale[0], top * scale[1], right * scale[0], bottom * scale[1])
        box = tuple(min(edge, limit) for edge, limit in zip(edges, photo.size * 2, strict=True))
        photo = photo.resize(frame, Image.Resampling.BICUBIC, box)
    else:
        if (new_width, new_height) != (width, height):
            photo = photo.resize((new_width, new_height), Image.Resampling.BICUBIC)
        photo = photo.crop((left, top, right, bottom))
    return np.asarray(photo.convert("RGB"))  # last, as open_clip does: transparent and palette images differ otherwise


def regular_file_size(path: Path) -> int:
    """Bytes of a file that can be read to its end.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is a pipe, which would be waited for without end, a device or a folder.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    return status.st_size


def upright_and_opaque(photo: Image.Image) -> Image.Image:
    """A loaded photo turned as its EXIF orientation says, on white where it is transparent, with 8 bits a channel.

    Raises:
        ValueError: grey levels of 32 bits or of floating point numbers whose range cannot be known.
    """
    if photo.getexif().get(ORIENTATION, 1) != 1:
        photo = ImageOps.exif_transpose(photo)
    if photo.mode in ("I", "F") or photo.mode.startswith("I;16"):
        return _eight_bits(photo)
    if photo.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in photo.info:
        photo = photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return photo


def _eight_bits(photo: Image.Image) -> Image.Image:
    """Grey levels of 16 bits, or floating point numbers in 0..1, as 8 bits; Pillow's own conversion clips at 255."""
    levels = np.asarray(photo).astype(np.float32)
    top = 1.0 if photo.mode == "F" else 65535.0
    if not (levels.min() >= 0 and levels.max() <= top):
        raise ValueError(
            f"grey levels of {levels.min():g} to {levels.max():g}, not of 0 to {top:g}: save it with 8 bits"
        )
    return Image.fromarray((levels * (255 / top) + 0.5).astype(np.uint8))


@contextmanager
def large_photos_allowed() -> Iterator[None]:
    """Inside, Pillow opens photos of any size: `decode` has a limit of its own."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _draft(photo: Image.Image, num_bytes: int, ratio: float) -> int:
    """Have a JPEG that is to be reduced by `ratio` decoded at 1/8, 1/4 or 1/2 if enough is left; by which factor."""
    width, height = photo.size
    smooth = num_bytes < SMOOTH_BYTES_PER_PIXEL * width * height
    for factor in (8, 4, 2):
        margin = SMOOTH_DRAFT_MARGIN if smooth and factor == 2 else DRAFT_MARGIN
        if ratio >= factor * margin:
            drafted = photo.draft(None, (width // factor, height // factor))
            return 1 if drafted is None else round(width / drafted[1][2])  # None: not a JPEG
    return 1


def to_input(
    pixels: np.ndarray, mean: Sequence[float], std: Sequence[float], device: str | torch.device
) -> torch.Tensor:
    """(B, S, S, 3) uint8 to (x / 255 - mean) / std: (B, 3, S, S) float32, channels last in memory, on `device`."""
    scale = torch.tensor([1 / (255 * s) for s in std])
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
    if torch.device(device).type != "cpu":  # a quarter of the bytes to copy, and the arithmetic is free there
        images = _tensor(pixels).to(device, non_blocking=True).float()
        return images.mul_(scale.to(device)).add_(offset.to(device)).permute(0, 3, 1, 2)
    images, size = _empty(pixels), pixels.shape[2]
    scale, offset = scale.repeat(size), offset.repeat(size)  # (3 S,): a whole row at once keeps the vector units busy
    for source, image in zip(_tensor(pixels), images, strict=True):  # one image stays in the processor's cache
        rows = image.view(-1, 3 * size).copy_(source.reshape(-1, 3 * size))
        torch.addcmul(offset, rows, scale, out=rows)
    return images.permute(0, 3, 1, 2)


def to_float(pixels: np.ndarray, device: str | torch.device) -> torch.Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float32 in 0..1, channels last in memory, on `device`."""
    if torch.device(device).type != "cpu":
        return _tensor(pixels).to(device, non_blocking=True).float().div_(255.0).permute(0, 3, 1, 2)
    images = _empty(pixels)
    for source, image in zip(_tensor(pixels), images, strict=True):
        image.copy_(source).div_(255.0)
    return images.permute(0, 3, 1, 2)


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    """`pixels` as a tensor, copied only where torch could not share the memory: of a read-only map."""
    return torch.from_numpy(pixels if pixels.flags.writeable else np.array(pixels))


def _empty(pixels: np.ndarray) -> torch.Tensor:
    """Room for `pixels` in float32. NumPy asks the system for huge pages, which makes a fresh batch 5 times cheaper."""
    return torch.from_numpy(np.empty(pixels.shape, dtype=np.float32))
