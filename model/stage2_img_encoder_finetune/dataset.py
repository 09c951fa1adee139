"""The train photos of stage 2, as batches of pixels with the index of their identity.

Shapes: B batch, S image size, C train identities.
"""

import numpy as np
import pandas as pd
import torch

from clipfh.augment import Augmentation, augment
from clipfh.clip_model import LoadedClip
from clipfh.images import Pixels, normalise, to_float


class TrainImages:
    """Decoded train photos with their labels 0..C-1.

    Attributes:
        item_ids: the C identities, sorted; a label is a place in this list.
        labels: (N,) int64, of every photo.
        images: the N paths, to name a photo in a message.
    """

    def __init__(self, table: pd.DataFrame, pixels: Pixels, augmentation: Augmentation) -> None:
        self.item_ids: list[str] = sorted(set(table["item_id"]))
        index = {item_id: label for label, item_id in enumerate(self.item_ids)}
        self.labels = np.array([index[item_id] for item_id in table["item_id"]])
        self.images: list[str] = table["image"].tolist()
        self._rows = _places(pixels, self.images)
        self._pixels = pixels.array
        self._augmentation = augmentation

    def batch(self, indices: list[int], clip: LoadedClip, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented, normalised images (B, 3, S, S) and labels (B,) of the photos `indices`."""
        images = augment(to_float(self._pixels[self._rows[indices]], device), self._augmentation)
        labels = torch.from_numpy(self.labels[indices]).to(device)
        return normalise(images, clip.mean, clip.std).contiguous(memory_format=torch.channels_last), labels


def _places(pixels: Pixels, images: list[str]) -> np.ndarray:
    place = {image: row for row, image in enumerate(pixels.images)}
    return np.array([place[image] for image in images])
