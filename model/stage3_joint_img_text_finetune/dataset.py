"""The train photos and prompts of stage 3, as batches.

Shapes: B photos, T prompts of a batch, U distinct ones of them, S image size, L context length, C train identities.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from clipfh.augment import view_generator
from clipfh.clip_model import LoadedClip
from clipfh.training_data import TrainPhotos


class Batch(NamedTuple):
    """What one step needs."""

    indices: list[int]  # B, of the photos
    place: tuple[int, ...]  # of the batch in the run, which decides what is drawn for it
    images: torch.Tensor | None  # (B, 3, S, S); None where they come by the chunk
    tokens: torch.Tensor  # (U, L)
    token_row: torch.Tensor  # (T,) the row of `tokens` of each prompt: two identities may have the same one
    image_labels: torch.Tensor  # (B,)
    text_labels: torch.Tensor  # (T,)
    prompt_of_image: torch.Tensor  # (B,) one of the T prompts, of the same identity


class TrainPairs:
    """Train photos, and the tokenised prompts of their identities.

    A prompt is in a batch once, however many of its photos are; an identity with several prompts contributes up to as
    many different ones as it has photos there.

    Args:
        photos: of C identities.
        prompts: {item_id: one or more prompts}.
        clip: whose tokenizer reads them.
    """

    def __init__(self, photos: TrainPhotos, prompts: dict[str, list[str]], clip: LoadedClip) -> None:
        self.photos = photos
        distinct = list(dict.fromkeys(prompt for item_id in photos.item_ids for prompt in prompts[item_id]))
        row = {prompt: number for number, prompt in enumerate(distinct)}
        self._tokens = clip.tokenizer(distinct)  # (distinct prompts, L)
        self._rows = [[row[prompt] for prompt in prompts[item_id]] for item_id in photos.item_ids]  # of each identity

    def batches(self, sampler: Iterable[list[int]], *place: int, with_images: bool = True) -> Iterator[Batch]:
        """The batches of an epoch; `place` = (seed, rank, epoch) decides what is drawn for them."""
        for number, indices in enumerate(sampler):
            yield self.batch(indices, *place, number, with_images=with_images)

    def batch(self, indices: list[int], *place: int, with_images: bool = True) -> Batch:
        """The photos `indices`, with prompts of their identities; `place` decides which views and prompts."""
        generator, device = view_generator(*place), self.photos.device
        images = self.photos.views(indices, generator) if with_images else None
        labels = self.photos.labels[indices]
        rows, text_labels, prompt_of_image = [], [], np.empty(len(labels), dtype=np.int64)
        for label in dict.fromkeys(labels.tolist()):  # in order of appearance
            places = np.flatnonzero(labels == label)
            available = self._rows[label]
            if len(available) > 1:
                order = torch.randperm(len(available), generator=generator)[: len(places)].tolist()
                available = [available[number] for number in order]
            prompt_of_image[places] = len(rows) + np.arange(len(places)) % len(available)
            rows += available
            text_labels += [label] * len(available)
        distinct, token_row = np.unique(rows, return_inverse=True)
        return Batch(
            indices,
            place,
            images,
            self._tokens[torch.from_numpy(distinct)].to(device),
            torch.from_numpy(token_row).to(device),
            torch.from_numpy(labels).to(device),
            torch.tensor(text_labels, device=device),
            torch.from_numpy(prompt_of_image).to(device),
        )

    def image_chunks(self, batch: Batch, size: int) -> Iterator[torch.Tensor]:
        """Views of the photos of `batch`, `size` at a time, (size, 3, S, S): the same ones whenever they are made."""
        for start in range(0, len(batch.indices), size):
            generator = view_generator(*batch.place, start)
            yield self.photos.views(batch.indices[start : start + size], generator)
