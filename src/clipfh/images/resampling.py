"""Bicubic reduction of RGB photos, as Pillow's and faster than it where only part of the result is wanted.

Shapes: H and W of the result in pixels, M lines.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def resize_fixed_point(photo: Image.Image, scale: tuple[float, float]) -> np.ndarray:
    """Reduce an RGB photo by `scale` (x, y) with weights of 16 bits, now and then a level off: (H, W, 3) uint8."""
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]  # channels last in memory: torch's fast kernel
    # the new size is the floor of size / scale: a little more, lest it become a pixel less
    factors = [(1 + 1e-9) / scale[1], (1 + 1e-9) / scale[0]]
    resized = F.interpolate(pixels, scale_factor=factors, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def resample_crop(
    photo: Image.Image, scale: tuple[float, float], corner: tuple[int, int], frame: tuple[int, int]
) -> np.ndarray:
    """Reduce an RGB photo by `scale` (x, y), but only W x H pixels, `frame`, from `corner` on: (H, W, 3) uint8.

    Pillow's bicubic resampling, rows and then columns, as two products with banded matrices. Pillow rounds in between
    and this does not, which is why the result is at most one grey level off: rounding moves an intermediate value by
    at most half a level, and a column's weights add up to less than 1.5 in absolute value.
    """
    (left, top), (width, height), (W, H) = corner, photo.size, frame
    columns = bicubic_weights(width, scale[0], left, left + W)
    rows = bicubic_weights(height, scale[1], top, top + H)
    x, y, right, bottom = columns[0][0], rows[0][0], columns[-1][1], rows[-1][1]
    crop = photo.crop((x, y, right, bottom))
    plane = torch.empty(bottom - y, right - x)  # (H, W) of one channel
    narrow = torch.empty(W, 3, bottom - y)
    for channel, levels in enumerate(crop.split()):
        plane.numpy()[...] = levels
        _resample(plane, columns, x, narrow[:, channel])
    reduced = torch.empty(H, 3 * W)
    _resample(narrow.clamp_(0, 255).view(-1, bottom - y), rows, y, reduced)
    return reduced.add_(0.5).clamp_(0, 255).byte().view(H, W, 3).numpy()


def _resample(
    lines: torch.Tensor, blocks: list[tuple[int, int, torch.Tensor]], origin: int, resampled: torch.Tensor
) -> None:
    """Resample lines (M, W), which begin at pixel `origin`, into the columns of `resampled` (S, M)."""
    start = 0
    for first, last, weights in blocks:
        stop = start + len(weights)
        torch.mm(weights, lines[:, first - origin : last - origin].t(), out=resampled[start:stop])
        start = stop


@lru_cache(maxsize=256)  # photos of a dataset have few sizes
def bicubic_weights(num_pixels: int, scale: float, start: int, stop: int) -> list[tuple[int, int, torch.Tensor]]:
    """The weights that reduce a line of `num_pixels` by `scale` (1 or more), for the new pixels `start` to `stop`.

    Returns:
        For every 16 of them (small blocks are small products, and mostly inside the band): the first and last + 1 of
        the pixels they depend on, and their weights (16, last - first). The kernel is Pillow's, with a = -0.5.
    """
    blocks = []
    for block in range(start, stop, 16):
        centers = (np.arange(block, min(block + 16, stop))[:, None] + 0.5) * scale
        first = np.maximum((centers - 2 * scale + 0.5).astype(int), 0)
        last = np.minimum((centers + 2 * scale + 0.5).astype(int), num_pixels)
        pixels = np.arange(first[0, 0], last[-1, 0])
        x = np.abs(pixels + 0.5 - centers) / scale
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
        weights *= (pixels >= first) & (pixels < last) & (x < 2)
        weights /= weights.sum(1, keepdims=True)
        blocks.append((int(first[0, 0]), int(last[-1, 0]), torch.from_numpy(weights.astype(np.float32))))
    return blocks
