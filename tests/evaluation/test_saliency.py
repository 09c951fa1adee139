from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from clipfh.evaluation import saliency
from clipfh.evaluation.saliency import occlusion_drop, salient_pairs

CPU = torch.device("cpu")
CLIP = SimpleNamespace(mean=(0.5, 0.5, 0.5))


@pytest.fixture
def brightness_of_halves(monkeypatch):
    """An encoder of two values, how far the upper and the lower half of a photo are from grey."""

    def extract(_clip, pixels, _device, quiet):
        halves = np.abs(pixels.astype(float) - 128).reshape(len(pixels), 2, -1).mean(axis=2)
        return F.normalize(torch.from_numpy(halves).float() + 1e-6, dim=1)

    monkeypatch.setattr(saliency, "extract_features", extract)
    return extract


def test_the_part_that_makes_a_photo_similar_is_found(brightness_of_halves):
    photo = np.full((28, 28, 3), 128, dtype=np.uint8)
    photo[0:4, 8:12] = 255  # what it shares with the other: something in the upper half
    photo[20:24, 0:4] = 200  # and what it does not
    drop = occlusion_drop(CLIP, photo, torch.tensor([1.0, 0.0]), CPU)
    assert drop.shape == (7, 7) and np.unravel_index(drop.argmax(), drop.shape) == (0, 2) and drop[0, 2] > 0.5
    assert drop[5, 0] < 0 and np.count_nonzero(np.abs(drop) > 1e-6) == 2


def test_a_size_that_squares_do_not_divide_is_covered_wholly(brightness_of_halves):
    photo = np.zeros((30, 16, 3), dtype=np.uint8)
    assert (occlusion_drop(CLIP, photo, torch.tensor([1.0, 0.0]), CPU)[:3] > 0).all()


def test_pairs_go_from_the_best_query_to_the_worst(brightness_of_halves):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 14, 3), dtype=np.uint8)
    images = [f"{number}.jpg" for number in range(10)]
    features = brightness_of_halves(CLIP, pixels, CPU, quiet=True)
    rows = [(f"{q}.jpg", rank, f"{5 + q}.jpg", rank == q + 1) for q in range(4) for rank in range(1, 6)]
    rows += [("4.jpg", 1, "5.jpg", False)]  # no match among its first photos
    rankings = pd.DataFrame(rows, columns=["query", "rank", "image", "is_match"])
    official = SimpleNamespace(average_precision=np.array([0.2, 0.9, 0.5, 0.4, 0.1]))
    pairs = salient_pairs(CLIP, pixels, features, images, images[:5], official, rankings, CPU)
    assert [(pair.query, pair.match, pair.rank) for pair in pairs] == [(1, 6, 2), (3, 8, 4), (0, 5, 1)]
    assert pairs[0].similarity == pytest.approx(float(features[1] @ features[6]))
    no_match = rankings.assign(is_match=False)
    assert salient_pairs(CLIP, pixels, features, images, images[:5], official, no_match, CPU) == []
