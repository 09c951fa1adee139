"""The train photos and prompts of stage 3, as batches.

Shapes: B photos, T prompts of a batch, S image size, L context length, C train identities.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from clipfh.augment import Augmentation, augment
from clipfh.clip_model import LoadedClip
from clipfh.images import Pixels, normalise, to_float


class Batch(NamedTuple):
    """What one step needs."""

    images: torch.Tensor  # (B, 3, S, S)
    image_labels: torch.Tensor  # (B,)
    tokens: torch.Tensor  # (T, L)
    text_labels: torch.Tensor  # (T,)
    prompt_of_image: torch.Tensor  # (B,) a row of `tokens` of the same identity


class TrainPairs:
    """Decoded train photos, their labels 0..C-1, and the tokenised prompts of the identities.

    An identity's prompt is encoded once a batch, however many of its photos are in it; an identity with several prompts
    contributes up to as many different ones as it has photos there.

    Attributes:
        item_ids: the C identities, sorted; a label is a place in this list.
        labels: (N,) int64, of every photo.
        images: the N paths, to name a photo in a message.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        pixels: Pixels,
        prompts: dict[str, list[str]],
        clip: LoadedClip,
        augmentation: Augmentation,
    ) -> None:
        self.item_ids: list[str] = sorted(set(table["item_id"]))
        index = {item_id: label for label, item_id in enumerate(self.item_ids)}
        self.labels = np.array([index[item_id] for item_id in table["item_id"]])
        self.images: list[str] = table["image"].tolist()
        place = {image: row for row, image in enumerate(pixels.images)}
        self._rows = np.array([place[image] for image in self.images])
        self._pixels = pixels.array
        self._tokens = [clip.tokenizer(prompts[item_id]) for item_id in self.item_ids]  # C of (prompts, L)
        self._augmentation = augmentation

    def batch(self, indices: list[int], clip: LoadedClip, device: torch.device) -> Batch:
        """The photos `indices`, augmented and normalised, with prompts of their identities drawn at random."""
        images = augment(to_float(self._pixels[self._rows[indices]], device), self._augmentation)
        images = normalise(images, clip.mean, clip.std).contiguous(memory_format=torch.channels_last)
        labels = self.labels[indices]
        tokens, text_labels, prompt_of_image = [], [], np.empty(len(labels), dtype=np.int64)
        for label in dict.fromkeys(labels.tolist()):  # in order of appearance
            places = np.flatnonzero(labels == label)
            available = self._tokens[label]
            drawn = torch.randperm(len(available))[: len(places)]
            prompt_of_image[places] = len(text_labels) + np.arange(len(places)) % len(drawn)
            tokens.append(available[drawn])
            text_labels += [label] * len(drawn)
        return Batch(
            images,
            torch.from_numpy(labels).to(device),
            torch.cat(tokens).to(device),
            torch.tensor(text_labels, device=device),
            torch.from_numpy(prompt_of_image).to(device),
        )
