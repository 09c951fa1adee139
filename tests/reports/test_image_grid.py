"""A labelled grid of images."""

import numpy as np
import pytest
from PIL import Image

from clipfh.reports.image_grid import image_grid_figure


def test_every_image_is_in_its_place(tmp_path):
    reds = np.zeros((2, 8, 8, 3), np.uint8)
    reds[..., 0] = 255
    blues = np.zeros((3, 8, 8, 3), np.uint8)
    blues[..., 2] = 255
    path = tmp_path / "grid.png"
    image_grid_figure(path, [("red $x_1$", reds), ("blue \U0001f600", blues)], title="two rows", columns=("a", "b"))
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 50) & (pixels[..., 2] < 50)
    blue = (pixels[..., 2] > 200) & (pixels[..., 0] < 50) & (pixels[..., 1] < 50)
    assert 1.4 < blue.sum() / red.sum() < 1.6  # three images and two
    assert red.nonzero()[0].max() < blue.nonzero()[0].min()  # rows from top to bottom


def test_a_grid_needs_images(tmp_path):
    for rows in ([], [("empty", np.zeros((0, 8, 8, 3), np.uint8))]):
        with pytest.raises(ValueError, match="needs rows"):
            image_grid_figure(tmp_path / "grid.png", rows, title="none")
    assert not list(tmp_path.iterdir())
