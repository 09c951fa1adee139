"""The train photos: their features; batches of views are tested with the stages that make them."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipfh.images.augment import Augmentation
from clipfh.images.pixels import Pixels
from clipfh.models.clip import LoadedClip
from clipfh.training import data
from clipfh.training.data import TrainPhotos


class Corners(nn.Module):
    """Gives the top left pixel of each image, and notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: set[bool] = set()

    def encode_image(self, images: torch.Tensor, normalize: bool) -> torch.Tensor:
        assert normalize
        self.modes.add(self.training)
        return F.normalize(images[:, :, 0, 0], dim=1)


@pytest.mark.parametrize("at_once", [1024, 3])
def test_features_are_those_of_the_whole_photos_in_the_order_of_the_table(monkeypatch, at_once):
    monkeypatch.setattr(data, "PHOTOS_AT_ONCE", at_once)
    array = np.random.default_rng(0).integers(1, 256, (9, 4, 4, 3), dtype=np.uint8)
    images = tuple(f"{number}.jpg" for number in range(9))
    chosen = [7, 2, 5, 8, 0, 1, 6]  # the others are of val
    table = pd.DataFrame({"image": [images[row] for row in chosen], "item_id": list("abababa")})
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    model = Corners()
    clip = LoadedClip("corners", "", model, None, 4, "squash", mean, std, False)
    photos = TrainPhotos(table, Pixels(array, images, ()), Augmentation(), clip, torch.device("cpu"), 8)
    features = photos.features(clip)
    corners = (array[chosen, 0, 0] / 255 - np.array(mean)) / np.array(std)
    expected = corners / np.linalg.norm(corners, axis=1, keepdims=True)
    torch.testing.assert_close(features, torch.from_numpy(expected).float())
    assert features.dtype == torch.float32 and not features.requires_grad and not features.is_inference()
    assert model.modes == {False} and model.training  # measured in evaluation mode, and then as it was
