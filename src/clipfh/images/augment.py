"""Random views of a batch of images, computed on the batch's own device.

One grid sample does crop, aspect, rotation and flip at once; one product with a 3 x 3 matrix for each image does
brightness, contrast, saturation and the normalisation. Shapes: B batch, S image size in pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Augmentation:
    """How far a random view may go; all zero (and `min_area` 1) is the identity.

    Attributes:
        min_area: smallest share of the image's area that a crop is drawn to keep, 0..1.
        aspect: log of the largest change of the crop's aspect ratio. A crop that becomes longer than the image is cut
            there, and keeps less than was drawn.
        rotation: largest rotation, degrees.
        flip: probability of a horizontal flip; 0 where left and right tell identities apart (hands).
        color: largest relative change of brightness, contrast and saturation. Keep it small: colour identifies items.
        erase: probability that a random rectangle is blanked (Zhong et al. 2020).
    """

    min_area: float = 0.4
    aspect: float = 0.25
    rotation: float = 15.0
    flip: float = 0.5
    color: float = 0.2
    erase: float = 0.0


Draw = Callable[[float, float], torch.Tensor]  # (low, high) to (B,) uniform numbers on the CPU, of each image


def view_generator(*place: int) -> torch.Generator:
    """A generator for the views of one place in a run, such as (seed, epoch, batch).

    Views that depend on their place alone are the same in a run that was stopped and continued, and whichever thread
    makes them.
    """
    # Its length too, as a seed sequence takes (1, 2) and (1, 2, 0) for the same. Behind the seed was a process's number
    # once; it stays 0, so that runs from before are repeated and continued with the same views.
    first, *others = place
    (seed,) = np.random.SeedSequence((len(place) + 1, first, 0, *others)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed))


def augment(
    images: torch.Tensor,
    settings: Augmentation,
    generator: torch.Generator | None = None,
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    size: tuple[int, int] | None = None,
    part_of: tuple[int, slice] | None = None,
) -> torch.Tensor:
    """A random view of each image: (B, 3, S, S) in 0..1 to the same, normalised; it may leave 0..1 slightly.

    Args:
        images: float32, on any device.
        settings: how far a view may go.
        generator: on the CPU; by default torch's global one, which a run seeds and its checkpoint saves.
        mean, std: of the normalisation that follows; by default there is none.
        size: height and width of the views; None: the images'.
        part_of: how many images the batch has that these are of, and which of its rows they are: their views are those
            of the whole batch, whatever its parts. None: they are all.

    Returns:
        (B, 3, S, S) float32, or of `size`; channels last in memory, as convolutions want it.
    """
    device = images.device
    count, rows = part_of or (len(images), slice(None))

    def draw(low: float, high: float) -> torch.Tensor:
        # on the CPU: the same seed gives the same views on every device
        return torch.empty(count).uniform_(low, high, generator=generator)[rows]

    theta = _draw_geometry(settings, draw, images.shape[2] / images.shape[3]).to(device)
    factors = _draw_color(settings.color, draw).to(device)
    mean_, std_ = (torch.tensor(values, device=device).view(3, 1) for values in (mean, std))
    views = _change_color(_sample(images, theta, size or tuple(images.shape[2:])), factors, mean_, std_)
    if settings.erase:
        mask = _draw_erasure(views.shape[2:], settings.erase, draw)
        fill = torch.rand(count, 3, 1, 1, generator=generator)[rows]  # a colour each
        views = torch.where(mask.to(device), (fill.to(device) - mean_[..., None]) / std_[..., None], views)
    return views.contiguous(memory_format=torch.channels_last)


def _draw_geometry(settings: Augmentation, draw: Draw, aspect: float) -> torch.Tensor:
    """(B, 2, 3): from a place in the view to that in the image, both in -1..1; `aspect` is H / W."""
    side = draw(settings.min_area, 1.0).sqrt()  # side of the crop, relative to the image
    stretch = torch.exp(draw(-settings.aspect, settings.aspect) / 2)
    width, height = (side * stretch).clamp(max=1.0), (side / stretch).clamp(max=1.0)
    shift_x = draw(-1, 1) * (1 - width)  # the crop stays inside the image
    shift_y = draw(-1, 1) * (1 - height)
    angle = draw(-settings.rotation, settings.rotation) * math.pi / 180
    mirror = torch.where(draw(0, 1) < settings.flip, -1.0, 1.0)
    rows = (
        torch.stack([width * mirror * angle.cos(), -height * aspect * angle.sin(), shift_x], dim=1),
        torch.stack([width / aspect * mirror * angle.sin(), height * angle.cos(), shift_y], dim=1),
    )
    return torch.stack(rows, dim=1)


def _sample(images: torch.Tensor, theta: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`F.affine_grid` and a bilinear `F.grid_sample` with reflected borders, in a third of the time."""
    x, y = (
        (torch.arange(side, device=images.device) * 2 + 1) / side - 1  # centres of the pixels
        for side in (size[1], size[0])
    )
    along_x = x[:, None] * theta[:, None, :, 0]  # (B, S, 2)
    along_y = y[:, None] * theta[:, None, :, 1] + theta[:, None, :, 2]
    grid = along_y[:, :, None] + along_x[:, None]  # (B, S, S, 2), x before y
    # reflected here, in one pass, as no place is further than 3 from the centre; the border itself is the sampler's
    grid = torch.sub(grid.clamp(-1, 1).mul_(2), grid)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _draw_color(strength: float, draw: Draw) -> torch.Tensor:
    """(B, 3): factors of brightness, contrast and saturation."""
    return torch.stack([draw(1 - strength, 1 + strength) for _ in range(3)], dim=1)


def _change_color(views: torch.Tensor, factors: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast and saturation of RGB in that order, then the normalisation, as one affine map of colours.

    With factors b, c, s, an image's mean m and a pixel's grey value g:  b c (s x + (1 - s) g) + b (1 - c) m
    """
    brightness, contrast, saturation = factors.T.reshape(3, -1, 1, 1)  # each (B, 1, 1)
    identity = torch.eye(3, device=views.device)
    matrix = brightness * contrast * (saturation * identity + (1 - saturation) / 3)  # (B, 3, 3)
    offset = brightness * (1 - contrast) * views.mean(dim=(1, 2, 3)).view(-1, 1, 1)  # (B, 1, 1)
    return torch.baddbmm((offset - mean) / std, matrix / std, views.flatten(2)).view_as(views)


def _draw_erasure(size: tuple[int, int], probability: float, draw: Draw) -> torch.Tensor:
    """A rectangle of 2% to 20% of each image's area, (B, 1, H, W) bool."""
    area, stretch = draw(0.02, 0.2), torch.exp(draw(-0.8, 0.8) / 2)
    H, W = size
    half_width, half_height = area.sqrt() * stretch * W / 2, area.sqrt() / stretch * H / 2
    x, y = draw(0, W), draw(0, H)
    inside_x = (torch.arange(W)[None] - x[:, None]).abs() < half_width[:, None]  # (B, W)
    inside_y = (torch.arange(H)[None] - y[:, None]).abs() < half_height[:, None]  # (B, H)
    chosen = draw(0, 1) < probability
    return (inside_y[:, :, None] & inside_x[:, None, :] & chosen[:, None, None])[:, None]
