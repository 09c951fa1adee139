import pytest
import torch

from clipfh.images.resampling import bicubic_weights


@pytest.mark.parametrize(("num_pixels", "scale"), [(100, 1.0), (100, 1.01), (101, 2.0), (1101, 3.36), (90, 30.0)])
def test_weights_leave_room_for_what_pillow_rounds(num_pixels, scale):
    """Half a grey level times their absolute sum, and the error of float32, must stay below one grey level."""
    new = int(num_pixels / scale)
    blocks = bicubic_weights(num_pixels, scale, 0, new)
    assert sum(len(weights) for *_, weights in blocks) == new
    for first, last, weights in blocks:
        assert 0 <= first < last <= num_pixels and weights.shape[1] == last - first
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
        assert weights.abs().sum(1).max() < 1.5
