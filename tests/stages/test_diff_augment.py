"""Augmentation of images on their way into a discriminator."""

import pytest
import torch
from places import stage_module

module = stage_module("stage5_text_image_gan", "diff_augment")
POLICIES, diff_augment, parse_policy = module.POLICIES, module.diff_augment, module.parse_policy


def test_policies_are_parsed():
    assert parse_policy("color, translation") == ("color", "translation")
    assert parse_policy("") == ()
    with pytest.raises(ValueError, match=r"'colour'.*color, translation, cutout"):
        parse_policy("colour")


def test_no_policy_is_the_identity():
    images = torch.randn(2, 1, 8, 8)
    assert diff_augment(images, ()) is images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_changes_images_each_differently_and_passes_gradients(name, channels):
    torch.manual_seed(0)
    images = torch.randn(1, channels, 16, 16).expand(6, -1, -1, -1).clone().requires_grad_(True)
    changed = diff_augment(images, (name,))
    assert changed.shape == images.shape
    assert not torch.equal(changed[0], changed[1])
    changed.square().sum().backward()
    assert images.grad.abs().sum() > 0
    torch.manual_seed(0)
    torch.randn(1, channels, 16, 16)
    assert torch.equal(diff_augment(images, (name,)), changed)


def test_translation_moves_by_at_most_an_eighth():
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, 0], images[:, :, 15] = -1, -2
    images[:, :, 8, 8] = 1
    moved = diff_augment(images, ("translation",))
    places = (moved == 1).nonzero()[:, 2:]
    assert len(places) == 200 and set(places.flatten().tolist()) == {6, 7, 8, 9, 10}
    down, up = places[:, 0].argmax(), places[:, 0].argmin()
    assert (moved[down, 0, :3] == -1).all() and (moved[up, 0, -3:] == -2).all()  # the edges go on


def test_cutout_blanks_a_part():
    torch.manual_seed(0)
    blanked = (diff_augment(torch.ones(50, 1, 16, 16), ("cutout",)) == 0).sum(dim=(1, 2, 3))
    assert blanked.max() <= 64 and blanked.min() > 0


def test_color_keeps_the_picture():
    """Brightness and contrast are affine: the normalised picture stays."""
    torch.manual_seed(0)
    images = torch.randn(4, 1, 8, 8)
    changed = diff_augment(images, ("color",))
    flat, other = images.flatten(1), changed.flatten(1)
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(flat, other, strict=True)])
    assert torch.allclose(correlation, torch.ones(4), atol=1e-5)
