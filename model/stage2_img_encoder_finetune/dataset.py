"""The train photos of stage 2 as batches, and its prompts as classes.

Shapes: B batch, b rows of it of this process, D embedding, S image size, C train identities.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from clipfh.core.processes import own_rows
from clipfh.images.augment import view_generator
from clipfh.models.clip import LoadedClip, encode_texts
from clipfh.training.data import TrainPhotos


class Batch(NamedTuple):
    """What one step needs."""

    indices: list[int]  # B, of the photos
    images: torch.Tensor  # (b, 3, S, S)
    labels: torch.Tensor  # (B,) in 0..C-1


def make_batches(photos: TrainPhotos, sampler: Iterable[list[int]], *place: int) -> Iterator[Batch]:
    """The batches of an epoch; `place` = (seed, epoch) decides which views they hold."""
    for number, indices in enumerate(sampler):
        labels = torch.from_numpy(photos.labels[indices]).to(photos.device)
        images = photos.views(indices, view_generator(*place, number), own_rows(len(indices)))
        yield Batch(indices, images, labels)


def class_text_features(
    clip: LoadedClip, prompts_of_class: list[list[str]], device: torch.device, *, are_read: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the frozen text encoder makes of the prompts of C identities; each distinct prompt is encoded once.

    Args:
        are_read: whether a term reads the features; where none does, no prompt is encoded: they are (C, D) zeros, and
            each identity is its own.

    Returns:
        (C, D) the mean direction of each identity's prompts, unit length, and (C,) the first identity that has the same
        prompts.
    """
    if not are_read:
        count, width = len(prompts_of_class), encode_texts(clip, prompts_of_class[0][:1], device).shape[1]
        return torch.zeros(count, width), torch.arange(count)
    prompts = list(dict.fromkeys(prompt for several in prompts_of_class for prompt in several))
    row = {prompt: number for number, prompt in enumerate(prompts)}
    encoded = encode_texts(clip, prompts, device)
    means = torch.stack([encoded[[row[prompt] for prompt in several]].mean(dim=0) for several in prompts_of_class])
    first: dict[tuple[str, ...], int] = {}
    same = [first.setdefault(tuple(several), label) for label, several in enumerate(prompts_of_class)]
    return F.normalize(means, dim=1), torch.tensor(same)
