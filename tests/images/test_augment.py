from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clipfh.images.augment import Augmentation, _draw_geometry, augment, view_generator

NOTHING = Augmentation(min_area=1.0, aspect=0.0, rotation=0.0, flip=0.0, color=0.0, erase=0.0)
EVERYTHING = Augmentation(min_area=0.4, aspect=0.3, rotation=20.0, flip=0.5, color=0.2, erase=0.5)


def images(batch=4, size=12):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_identity_settings_give_the_images_back():
    torch.testing.assert_close(augment(images(), NOTHING), images(), atol=1e-5, rtol=0)


def test_a_certain_flip_mirrors():
    mirrored = augment(images(), replace(NOTHING, flip=1.0))
    torch.testing.assert_close(mirrored, images().flip(3), atol=1e-5, rtol=0)


def test_flips_happen_as_often_as_asked():
    torch.manual_seed(0)
    batch = images(1).repeat(600, 1, 1, 1)
    views = augment(batch, replace(NOTHING, flip=0.25))
    mirrored = (views - batch.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-4
    kept = (views - batch).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (mirrored ^ kept).all() and 0.18 < mirrored.float().mean() < 0.32


@pytest.mark.parametrize("settings", [EVERYTHING, Augmentation(), NOTHING, replace(EVERYTHING, min_area=0.01)])
@pytest.mark.parametrize("batch", [1, 5])
def test_shape_type_and_repeatable_by_seed(settings, batch):
    given = images(batch)
    torch.manual_seed(3)
    first = augment(given, settings)
    torch.manual_seed(3)
    again = augment(given, settings)
    assert first.shape == given.shape and first.dtype == torch.float32 and torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert torch.equal(given, images(batch))  # not in place
    if settings is not NOTHING:
        assert not torch.equal(first, augment(given, settings))


def test_images_of_a_batch_get_different_views():
    torch.manual_seed(0)
    views = augment(images(1).repeat(2, 1, 1, 1), EVERYTHING)
    assert not torch.allclose(views[0], views[1])


def test_geometry_leaves_a_plain_image_plain():
    torch.manual_seed(0)
    plain = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).repeat(8, 1, 12, 12)
    torch.testing.assert_close(augment(plain, replace(EVERYTHING, color=0.0, erase=0.0)), plain)


def test_color_stays_within_its_strength():
    torch.manual_seed(0)
    grey = torch.full((200, 3, 4, 4), 0.5)
    factors = augment(grey, replace(NOTHING, color=0.2))[:, 0, 0, 0] / 0.5  # contrast and saturation leave grey alone
    assert 0.8 <= factors.min() < 0.83 and 1.17 < factors.max() <= 1.2 + 1e-6
    colored = augment(images(), replace(NOTHING, color=0.2))
    assert not torch.allclose(colored, images(), atol=0.01)


def test_crops_keep_their_share_of_the_area():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).repeat(100, 3, 64, 1)
    views = augment(ramp, replace(NOTHING, min_area=0.25))
    width = views[:, 0, 0].amax(dim=1) - views[:, 0, 0].amin(dim=1)
    assert 0.48 < width.min() < 0.6 and width.max() > 0.9 and views.min() >= 0 and views.max() <= 1


def test_a_certain_erasure_blanks_a_rectangle_with_one_colour():
    torch.manual_seed(0)
    given = torch.zeros(64, 3, 32, 32)
    views = augment(given, replace(NOTHING, erase=1.0))
    share = (views[:, 0] != 0).float().mean(dim=(1, 2))
    assert (share > 0).float().mean() > 0.9 and share.max() < 0.3
    for view in views:
        assert len(view.flatten(1).unique(dim=1).T) <= 2
    assert torch.equal(augment(given, NOTHING), given)


@pytest.mark.parametrize("settings", [EVERYTHING, NOTHING])
def test_normalisation_is_the_last_step(settings):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    plain = augment(images(), settings, view_generator(3))
    expected = (plain - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    found = augment(images(), settings, view_generator(3), mean=mean, std=std)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_generator_of_its_own_leaves_the_global_one_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = augment(images(), EVERYTHING, view_generator(1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(augment(images(), EVERYTHING, view_generator(1, 2)), first)
    for other in ((2, 1), (1, 3), (1, 2, 0)):
        assert not torch.equal(augment(images(), EVERYTHING, view_generator(*other)), first)


def test_geometry_is_grid_sample_with_reflected_borders():
    settings = Augmentation(min_area=0.5, aspect=0.3, rotation=90.0, flip=0.5, color=0.0)
    found = augment(images(), settings, view_generator(0))
    generator = view_generator(0)

    def draw(low, high):
        return torch.empty(4).uniform_(low, high, generator=generator)

    theta = _draw_geometry(settings, draw, 1.0)
    grid = F.affine_grid(theta, [4, 3, 12, 12], align_corners=False)
    assert grid.abs().max() > 1  # some of it is outside
    expected = F.grid_sample(images(), grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_color_is_brightness_then_contrast_then_saturation():
    settings = replace(NOTHING, color=0.3)
    generator = view_generator(0)
    for _ in range(6):
        torch.empty(4).uniform_(generator=generator)  # what the geometry draws before
    factors = [torch.empty(4).uniform_(0.7, 1.3, generator=generator).view(-1, 1, 1, 1) for _ in range(3)]
    expected = images() * factors[0]
    mean = expected.mean(dim=(1, 2, 3), keepdim=True)
    expected = mean + (expected - mean) * factors[1]
    grey = expected.mean(dim=1, keepdim=True)
    expected = grey + (expected - grey) * factors[2]
    torch.testing.assert_close(augment(images(), settings, view_generator(0)), expected, atol=1e-5, rtol=0)


def test_a_turn_in_a_rectangle_keeps_right_angles():
    H, W = 64, 32
    image = torch.zeros(1, 3, H, W)
    image[:, :, 28:36, 12:20] = 1.0  # a square in the middle, which no reflected border reaches
    settings = Augmentation(min_area=1.0, aspect=0.0, rotation=20.0, flip=0.0, color=0.0, erase=0.0)
    for seed in range(5):
        view = augment(image, settings, view_generator(seed))
        assert view.shape == image.shape
        assert view.sum().item() == pytest.approx(image.sum().item(), rel=0.03)  # a shear or a squash changes its area
        y, x = (view[0, 0] > 0.5).nonzero().float().T
        assert y.std().item() == pytest.approx(x.std().item(), rel=0.06)


def test_erasing_a_rectangle():
    settings = Augmentation(min_area=1.0, aspect=0.0, rotation=0.0, flip=0.0, color=0.0, erase=1.0)
    view = augment(torch.full((64, 3, 40, 20), 2.0), settings, view_generator(0))
    erased = (view != 2.0).all(dim=1).float().mean(dim=(1, 2))
    assert view.shape == (64, 3, 40, 20) and 0.02 < erased.mean() < 0.15


def test_views_may_have_another_size_than_the_photos():
    ramp = torch.linspace(0, 1, 40).expand(2, 3, 20, 40)  # from left to right
    views = augment(ramp, NOTHING, size=(10, 20))
    assert views.shape == (2, 3, 10, 20)
    torch.testing.assert_close(views, (ramp[..., ::2, ::2] + ramp[..., ::2, 1::2]) / 2)
    seeded = [augment(ramp, EVERYTHING, torch.Generator().manual_seed(0), size=size) for size in (None, (20, 40))]
    assert torch.equal(*seeded)
    assert augment(ramp, EVERYTHING, size=(8, 8)).shape == (2, 3, 8, 8)
