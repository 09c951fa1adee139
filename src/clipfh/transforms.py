"""Files to pixels, and pixels to a model's input.

The geometry is that of open_clip's evaluation transform: shorter side to S by bicubic resampling, centre crop S x S
(or squashed to S x S for models trained that way). Shapes: B batch, S image size in pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

TRANSFORM_VERSION = 3  # part of the cache's key: raise it whenever `decode` changes a pixel

# How much larger than the target a JPEG decoded at 1/2, 1/4 or 1/8 must still be. Mean grey levels off the exact path,
# measured on photographs: 2.5 times larger, 0.3 to 0.9; 1.6 times, 0.4 to 0.8, but up to 1.3 where the detail is fine.
# Fine detail takes many bytes, so the smaller margin is for files below `SMOOTH_BYTES_PER_PIXEL`, and for 1/2 alone.
DRAFT_MARGIN, SMOOTH_DRAFT_MARGIN = 2.5, 1.6
SMOOTH_BYTES_PER_PIXEL = 0.25


def decode(path: Path, image_size: int, resize_mode: str = "shortest", *, fast_decode: bool = False) -> np.ndarray:
    """Decode one photo: (S, S, 3) uint8 RGB.

    Exact: at most one grey level off open_clip's transform anywhere, and equal to it except for greyscale and RGB
    photos in portrait format, of which only the crop is resampled.

    Args:
        path: the photo.
        image_size: S.
        resize_mode: "shortest" (and crop) or "squash".
        fast_decode: let the JPEG decoder leave out detail that the reduction to S removes anyway, and reduce in
            fixed-point arithmetic of 16 bits: less than one grey level off the exact pixels on average.

    Raises:
        FileNotFoundError: the file is missing.
        Exception: it is not an image or a damaged one; Pillow's decoders raise OSError, SyntaxError and more.
    """
    with Image.open(path) as photo:
        width, height = photo.size
        factor = _draft(photo, path.stat().st_size, image_size) if fast_decode else 1
        photo.load()
    photo.info.pop("transparency", None)  # is dropped by the conversion to RGB anyway, but not without a warning
    if factor == 1:
        width, height = photo.size  # of some formats known only now
    # the longer side is cut down to an integer and the crop's corner rounded as torchvision does: the very same pixels
    new_width, new_height = image_size, image_size
    if resize_mode != "squash" and width <= height:
        new_height = int(image_size * height / width)
    elif resize_mode != "squash":
        new_width = int(image_size * width / height)
    left, top = round((new_width - image_size) / 2), round((new_height - image_size) / 2)
    right, bottom = left + image_size, top + image_size

    # a draft's own size is rounded up: the geometry is that of width / factor x height / factor, fractions included
    extent = (width / factor, height / factor)
    if fast_decode and photo.mode == "RGB" and new_width < width and new_height < height:
        resized = _resize_fixed_point(photo, extent, (new_width, new_height))
        return np.ascontiguousarray(resized[top:bottom, left:right])
    if factor > 1 or _crop_can_be_resized_alone(photo, image_size):
        x, y = extent[0] / new_width, extent[1] / new_height
        box = (left * x, top * y, min(right * x, extent[0]), min(bottom * y, extent[1]))
        photo = photo.resize((image_size, image_size), Image.Resampling.BICUBIC, box)
    else:
        if (new_width, new_height) != (width, height):
            photo = photo.resize((new_width, new_height), Image.Resampling.BICUBIC)
        photo = photo.crop((left, top, right, bottom))
    return np.asarray(photo.convert("RGB"))  # last, as open_clip does: transparent and palette images differ otherwise


def _draft(photo: Image.Image, num_bytes: int, image_size: int) -> int:
    """Have a JPEG decoded at 1/8, 1/4 or 1/2 if enough is left for `image_size`; by which factor it will be smaller."""
    width, height = photo.size
    smooth = num_bytes < SMOOTH_BYTES_PER_PIXEL * width * height
    for factor in (8, 4, 2):
        margin = SMOOTH_DRAFT_MARGIN if smooth and factor == 2 else DRAFT_MARGIN
        if min(width, height) >= factor * margin * image_size:
            drafted = photo.draft(None, (width // factor, height // factor))
            return 1 if drafted is None else round(width / drafted[1][2])  # None: not a JPEG
    return 1


def _crop_can_be_resized_alone(photo: Image.Image, image_size: int) -> bool:
    """Whether resampling only the crop's rows gives the pixels of the whole photo's, to one grey level.

    Pillow resamples rows, rounds, then columns. Rows run over the full width of a portrait photo and so come out the
    same; only the columns' weights differ, in their seventh digit, for Pillow takes the box in float32. A landscape's
    crop changes the rows, and what rounds differently there can add up to two levels. Pillow 13 begins with the columns
    where the height shrinks by more than twice what the width does; then, too, the whole photo is resized.
    """
    width, height = photo.size
    rows_first = height - image_size <= 2 * (width - image_size)
    return photo.mode in ("RGB", "L") and image_size < width <= height and rows_first


def _resize_fixed_point(photo: Image.Image, extent: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """`extent` pixels (width, height) of an RGB photo, from its upper left, to (height, width, 3) uint8 of `size`."""
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]  # channels last in memory: torch's fast kernel
    # the output's size is the floor of input * scale: a little more, lest it become size - 1
    scales = [new / old * (1 + 1e-9) for new, old in zip(size[::-1], extent[::-1], strict=True)]
    resized = F.interpolate(
        pixels, scale_factor=scales, mode="bicubic", antialias=True, align_corners=False, recompute_scale_factor=False
    )
    return resized[0].permute(1, 2, 0).numpy()


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


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Subtract the channel means and divide by the deviations: (B, 3, S, S) to the same, in the same layout."""
    shape = (1, 3, 1, 1)
    mean_ = torch.tensor(mean, device=images.device, dtype=images.dtype).view(shape)
    std_ = torch.tensor(std, device=images.device, dtype=images.dtype).view(shape)
    return (images - mean_).div_(std_)


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    """`pixels` as a tensor, copied only where torch could not share the memory: of a read-only map."""
    return torch.from_numpy(pixels if pixels.flags.writeable else np.array(pixels))


def _empty(pixels: np.ndarray) -> torch.Tensor:
    """Room for `pixels` in float32. NumPy asks the system for huge pages, which makes a fresh batch 5 times cheaper."""
    return torch.from_numpy(np.empty(pixels.shape, dtype=np.float32))
