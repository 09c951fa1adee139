"""Differentiable augmentation for the discriminator of a GAN. B: batch, C: channels, S: image size in pixels.

Real and generated images pass through the same random changes before the discriminator sees them, and the generator
gets its gradient through them: a discriminator of few images cannot learn them by heart, and the generator does not
learn the changes. Source: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training".
"""

import torch
import torch.nn.functional as F

POLICIES = ("color", "translation", "cutout")


def parse_policy(policy: str) -> tuple[str, ...]:
    """`"color,translation"` to its names; an empty text is none.

    Raises:
        ValueError: an unknown name.
    """
    names = tuple(name.strip() for name in policy.split(",") if name.strip())
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        raise ValueError(f"unknown augmentation {unknown[0]!r}; valid: {', '.join(POLICIES)}")
    return names


def diff_augment(images: torch.Tensor, policy: tuple[str, ...]) -> torch.Tensor:
    """A random change of each image, drawn on the CPU from torch's global generator: (B, C, S, S) to the same.

    Args:
        images: values in -1..1.
        policy: any of `POLICIES`, applied in their order. color: brightness by up to 0.5, contrast by up to a half,
            of colour images also saturation; translation: by up to an eighth of S, the edge goes on; cutout: a square
            of half of S is blanked.
    """
    if "color" in policy:
        images = _change_color(images)
    if "translation" in policy:
        images = _translate(images)
    if "cutout" in policy:
        images = _cut_out(images)
    return images


def _draw(images: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return torch.empty(len(images), 1, 1, 1).uniform_(low, high).to(images.device)


def _change_color(images: torch.Tensor) -> torch.Tensor:
    images = images + _draw(images, -0.5, 0.5)
    if images.shape[1] > 1:
        grey = images.mean(dim=1, keepdim=True)
        images = (images - grey) * _draw(images, 0.0, 2.0) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * _draw(images, 0.5, 1.5) + mean


def _translate(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by whole pixels; its edge goes on where nothing comes in: no frame to be learned."""
    B, _, height, width = images.shape
    reach_y, reach_x = height // 8, width // 8
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y), mode="replicate")
    top = torch.randint(0, 2 * reach_y + 1, (B,)).tolist()
    left = torch.randint(0, 2 * reach_x + 1, (B,)).tolist()
    moved = [image[:, y : y + height, x : x + width] for image, y, x in zip(padded, top, left, strict=True)]
    return torch.stack(moved)


def _cut_out(images: torch.Tensor) -> torch.Tensor:
    """A square of half the side, anywhere, set to the middle of the range."""
    B, _, height, width = images.shape
    y, x = torch.randint(0, height + 1, (B, 1)), torch.randint(0, width + 1, (B, 1))
    inside_y = (torch.arange(height) - y).abs() < height // 4  # (B, S)
    inside_x = (torch.arange(width) - x).abs() < width // 4
    mask = inside_y[:, None, :, None] & inside_x[:, None, None, :]  # (B, 1, S, S)
    return images.masked_fill(mask.to(images.device), 0.0)
