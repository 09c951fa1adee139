"""Random views of a batch of images, computed on the batch's own device.

One grid sample does crop, aspect, rotation and flip at once. Shapes: B batch, S image size in pixels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Augmentation:
    """How far a random view may go; all zero (and `min_area` 1) is the identity.

    Attributes:
        min_area: smallest share of the image's area that a crop keeps, 0..1.
        aspect: log of the largest change of aspect ratio.
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


def augment(images: torch.Tensor, settings: Augmentation) -> torch.Tensor:
    """A random view of each image: (B, 3, S, S) in 0..1 to the same; may leave 0..1 slightly.

    Draws from torch's global generator, which a run seeds and its checkpoint saves.
    """
    views = _random_geometry(images, settings)
    if settings.color:
        views = _random_color(views, settings.color)
    if settings.erase:
        views = _random_erase(views, settings.erase)
    return views


def _uniform(batch: int, low: float, high: float, like: torch.Tensor) -> torch.Tensor:
    # drawn on the CPU: the same seed gives the same views on every device
    return torch.empty(batch).uniform_(low, high).to(like.device)


def _random_geometry(images: torch.Tensor, settings: Augmentation) -> torch.Tensor:
    B = len(images)
    side = _uniform(B, settings.min_area, 1.0, images).sqrt()  # side of the crop, relative to the image
    stretch = torch.exp(_uniform(B, -settings.aspect, settings.aspect, images) / 2)
    width, height = (side * stretch).clamp(max=1.0), (side / stretch).clamp(max=1.0)
    shift_x = _uniform(B, -1, 1, images) * (1 - width)  # the crop stays inside the image
    shift_y = _uniform(B, -1, 1, images) * (1 - height)
    angle = _uniform(B, -settings.rotation, settings.rotation, images) * math.pi / 180
    mirror = torch.where(_uniform(B, 0, 1, images) < settings.flip, -1.0, 1.0)
    rows = (
        torch.stack([width * mirror * angle.cos(), -height * angle.sin(), shift_x], dim=1),
        torch.stack([width * mirror * angle.sin(), height * angle.cos(), shift_y], dim=1),
    )
    theta = torch.stack(rows, dim=1)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _random_color(images: torch.Tensor, strength: float) -> torch.Tensor:
    def factor() -> torch.Tensor:
        return _uniform(len(images), 1 - strength, 1 + strength, images).view(-1, 1, 1, 1)

    images = images * factor()  # brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * factor()  # contrast
    grey = images.mean(dim=1, keepdim=True)
    return grey + (images - grey) * factor()  # saturation


def _random_erase(images: torch.Tensor, probability: float) -> torch.Tensor:
    B, _, S, _ = images.shape
    # a rectangle of 2% to 20% of the area, filled with one random colour
    area, stretch = _uniform(B, 0.02, 0.2, images), torch.exp(_uniform(B, -0.8, 0.8, images) / 2)
    half_width, half_height = area.sqrt() * stretch * S / 2, area.sqrt() / stretch * S / 2
    x, y = _uniform(B, 0, S, images), _uniform(B, 0, S, images)
    axis = torch.arange(S, device=images.device)
    inside_x = (axis[None] - x[:, None]).abs() < half_width[:, None]  # (B, S)
    inside_y = (axis[None] - y[:, None]).abs() < half_height[:, None]
    chosen = _uniform(B, 0, 1, images) < probability
    mask = (inside_y[:, :, None] & inside_x[:, None, :] & chosen[:, None, None])[:, None]  # (B, 1, S, S)
    fill = torch.rand(B, 3, 1, 1).to(images.device)
    return torch.where(mask, fill, images)
