import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from places import SHARED

from clipfh.images.transforms import decode, large_photos_allowed, to_float, to_input
from clipfh.models.clip import open_clip

SIZES = [(40, 90), (90, 40), (37, 53), (53, 37), (33, 32), (32, 32), (64, 64), (5, 9), (1, 1), (300, 31)]  # w, h
GROCERY = SHARED / "data" / "grocery"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def photo(width, height, mode="RGB", seed=0):
    generator = np.random.default_rng(seed)
    smooth = Image.fromarray(generator.integers(0, 256, (4, 4, 4), dtype=np.uint8), "RGBA")
    return smooth.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def textured_photo(width, height, seed=0):
    """Smooth shapes with texture and mild noise."""
    noise = np.random.default_rng(seed).normal(0, 2, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    texture = 12 * np.sin(x / 7) * np.cos(y / 11)
    pixels = np.asarray(photo(width, height, seed=seed)) + texture[..., None] + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def reference(path, image_size, resize_mode="shortest"):
    transform = open_clip.image_transform(
        image_size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=resize_mode, interpolation="bicubic"
    )
    with Image.open(path) as image, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency")  # open_clip lets Pillow say this
        return transform(image).permute(1, 2, 0).mul(255).round().numpy()


def difference(path, image_size, resize_mode="shortest", **decoding):
    """Grey levels between ours and open_clip's: (S, S, 3)."""
    ours = decode(path, image_size, resize_mode, **decoding)
    assert ours.shape == (image_size, image_size, 3) and ours.dtype == np.uint8 and ours.flags.c_contiguous
    return np.abs(ours.astype(int) - reference(path, image_size, resize_mode))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_pixels_are_those_of_open_clip(tmp_path, size, resize_mode):
    path = tmp_path / "photo.png"
    photo(*size).save(path)
    for image_size in (32, 33):
        assert difference(path, image_size, resize_mode).max() <= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("photos")


@settings(deadline=None, max_examples=150)
@given(
    width=st.integers(1, 260),
    height=st.integers(1, 260),
    image_size=st.integers(1, 64),
    resize_mode=st.sampled_from(["shortest", "squash"]),
    mode=st.sampled_from(["RGB", "RGB", "L", "P"]),
    levels=st.sampled_from([2, 3, 256]),
    cell=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 1000),
)
def test_no_pixel_is_more_than_one_level_off(folder, width, height, image_size, resize_mode, mode, levels, cell, seed):
    """Of noise and checks in black and white: there it shows what is rounded and cut off between the two passes."""
    generator = np.random.default_rng(seed)
    channels = 3 if mode == "RGB" else 1
    coarse = generator.integers(0, levels, (-(-height // cell), -(-width // cell), channels)) * (255 // (levels - 1))
    pixels = coarse.repeat(cell, 0).repeat(cell, 1)[:height, :width].astype(np.uint8)
    path = folder / "photo.png"
    image = Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)
    (image.convert("P") if mode == "P" else image).save(path)
    largest = difference(path, image_size, resize_mode).max()
    assert largest <= 1
    if mode != "RGB":
        assert largest == 0


@pytest.mark.parametrize("size", [(150, 220), (220, 150), (180, 180), (120, 500)])
def test_pixels_of_larger_photos_are_those_of_open_clip(tmp_path, size):
    textured_photo(*size).save(tmp_path / "photo.jpg", quality=90)
    for image_size in (32, 100):
        for resize_mode in ("shortest", "squash"):
            assert difference(tmp_path / "photo.jpg", image_size, resize_mode).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(57, 43), (43, 57), (20, 24), (240, 300)])
def test_pixels_of_other_modes_are_those_of_open_clip(tmp_path, mode, size):
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    photo(*size).convert(mode).save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    assert difference(path, 32).max() <= 1
    assert difference(path, 32, "squash").max() <= 1
    fast = difference(path, 32, fast_decode=True)
    assert fast.mean() < 1 and (path.suffix == ".jpg" or fast.max() <= 1)


SHOWN = {  # a file's mode to the opaque picture of 8 bits that it shows
    "RGBA": lambda image: Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"),
    "LA": lambda image: SHOWN["RGBA"](image.convert("LA").convert("RGBA")),
    "P": lambda image: SHOWN["RGBA"](image.convert("P").convert("RGBA")),
    "I;16": lambda image: image.convert("L"),
    "F": lambda image: image.convert("L"),
}


def save_as(path, image, mode):
    if mode == "I;16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    elif mode == "F":
        Image.fromarray((np.asarray(image.convert("L")) / np.float32(255)).astype(np.float32)).save(path)
    else:
        image.convert(mode).save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode


@pytest.mark.parametrize("mode", SHOWN)
@pytest.mark.parametrize("size", [(57, 43), (32, 32), (33, 33), (20, 24), (240, 300)])
def test_transparent_becomes_white_and_16_bits_become_8(tmp_path, mode, size):
    picture = photo(*size, "RGBA")
    path = tmp_path / f"photo.{'tif' if mode == 'F' else 'png'}"
    save_as(path, picture, mode)
    SHOWN[mode](picture).save(tmp_path / "shown.png")
    for resize_mode in ("shortest", "squash"):
        expected = reference(tmp_path / "shown.png", 32, resize_mode)
        for fast in (False, True):
            assert np.abs(decode(path, 32, resize_mode, fast_decode=fast) - expected).max() <= 1


@pytest.mark.parametrize("size", [32, 33, 100])
def test_the_hidden_colour_of_a_cut_out_does_not_show(tmp_path, size):
    pixels = np.zeros((size, size, 4), np.uint8)  # transparent black
    pixels[size // 4 : -size // 4, size // 4 : -size // 4] = (200, 30, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    decoded = decode(tmp_path / "a.png", 32)
    assert decoded[0, 0].tolist() == [255] * 3 and decoded[16, 16].tolist() == [200, 30, 30]


@pytest.mark.parametrize("values", [[[0, 70_000]], [[-1, 5]]])
def test_grey_levels_of_unknown_range_are_refused(tmp_path, values):
    Image.fromarray(np.array(values, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"grey levels of -?\d.* save it with 8 bits"):
        decode(tmp_path / "a.tif", 32)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(90, 61), (61, 90), (700, 500)])
def test_photos_are_turned_as_their_exif_orientation_says(tmp_path, orientation, size):
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"}
    turns |= {7: "TRANSVERSE", 8: "ROTATE_90"}
    image, exif = textured_photo(*size), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "phone.png", exif=exif)
    image.save(tmp_path / "phone.jpg", exif=exif, quality=95)
    upright = image.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else image
    upright.save(tmp_path / "upright.png")
    for resize_mode in ("shortest", "squash"):
        expected = reference(tmp_path / "upright.png", 32, resize_mode)
        assert np.abs(decode(tmp_path / "phone.png", 32, resize_mode) - expected).max() <= 1
        exact = decode(tmp_path / "phone.jpg", 32, resize_mode).astype(float)
        assert np.abs(exact - expected).mean() < 3  # what JPEG loses
        assert np.abs(decode(tmp_path / "phone.jpg", 32, resize_mode, fast_decode=True) - exact).mean() < 1


def test_large_photos_are_refused_by_the_limit_that_is_given(tmp_path):
    Image.new("L", (2000, 1000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"2 megapixels, more than 1; --max_megapixels"):
        decode(tmp_path / "a.png", 32, max_megapixels=1)
    assert decode(tmp_path / "a.png", 32, max_megapixels=2).shape == (32, 32, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(ValueError, match=r"bomb.* --max_megapixels"):
            decode(tmp_path / "a.png", 32)
        with large_photos_allowed():
            assert decode(tmp_path / "a.png", 32).shape == (32, 32, 3)
        assert Image.MAX_IMAGE_PIXELS == 1000


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").mkdir()
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(ValueError, match="not a regular file"):
            decode(tmp_path / name, 32)


@pytest.mark.parametrize("size", [(750, 1101), (751, 1103), (1101, 750), (641, 641), (1407, 1205), (3203, 2009)])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_drafts_keep_the_geometry_of_the_original(tmp_path, size, resize_mode, mode):
    """A slope shows a shift or a scale that follows a draft's own size, which is rounded up, as a bias."""
    width, height = size
    slope = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))[..., None].repeat(3, 2)
    path = tmp_path / "slope.jpg"
    Image.fromarray(slope.round().astype(np.uint8)).convert(mode).save(path, quality=98, subsampling=0)
    for image_size in (64, 96):
        ours = decode(path, image_size, resize_mode, fast_decode=True).astype(float)
        signed = ours - reference(path, image_size, resize_mode)
        assert np.abs(signed).mean() < 0.5
        corners = [signed[y, x].mean() for y in (slice(0, 8), slice(-8, None)) for x in (slice(0, 8), slice(-8, None))]
        assert np.abs(corners).max() < 0.35


@pytest.mark.parametrize(("image_size", "drafted"), [(64, True), (224, True), (236, False), (300, False)])
def test_fast_decoding_of_a_photo(tmp_path, image_size, drafted):
    path = tmp_path / "photo.jpg"
    textured_photo(750, 1101).save(path, quality=85)
    exact, fast = decode(path, image_size), decode(path, image_size, fast_decode=True)
    off = difference(path, image_size, fast_decode=True)
    assert off.mean() < 1 and drafted != np.array_equal(exact, fast)


def test_fast_decoding_of_grocery_photos():
    photos = sorted(GROCERY.glob("*/*/**/*.jpg"))[::40]
    if not photos:
        pytest.skip(f"no grocery photos in {GROCERY}")
    for image_size in (16, 24, 32, 40, 48, 64, 96):
        off = [difference(path, image_size, fast_decode=True).mean() for path in photos]
        assert np.mean(off) < 1


def test_a_cut_jpeg_is_an_error_also_when_drafted(tmp_path):
    path = tmp_path / "photo.jpg"
    textured_photo(400, 400).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    for fast_decode in (False, True):
        with pytest.raises(OSError, match="truncated"):
            decode(path, 32, fast_decode=fast_decode)


def test_to_float():
    pixels = np.zeros((2, 3, 3, 3), np.uint8)
    pixels[0, 1, 2] = (255, 51, 0)
    images = to_float(pixels, "cpu")
    assert images.shape == (2, 3, 3, 3) and images.dtype == torch.float32
    assert images[0, :, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert pixels.max() == 255  # is not changed in place


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (5, 7, 7, 3), (2, 1, 1, 3), (0, 4, 4, 3)])
def test_to_input_is_exact_and_in_channels_last(device, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = to_input(pixels, MEAN, STD, device)
    assert images.shape == (shape[0], 3, *shape[1:3]) and images.dtype == torch.float32
    assert images.device.type == device and images.permute(0, 2, 3, 1).is_contiguous()
    expected = (pixels.astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(images.cpu().permute(0, 2, 3, 1).numpy(), expected, rtol=0, atol=1e-6)


def test_to_input_of_every_level_and_of_a_read_only_map(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    np.save(tmp_path / "levels.npy", levels)
    mapped = np.load(tmp_path / "levels.npy", mmap_mode="r")
    expected = (levels.astype(np.float64) / 255 - MEAN) / STD
    for pixels in (levels, mapped, mapped[::-1], mapped[np.array([0, 0])]):
        images = to_input(pixels, MEAN, STD, "cpu").permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(images, expected.repeat(len(pixels), 0), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(to_float(pixels, "cpu").permute(0, 2, 3, 1)[0], levels[0] / np.float32(255))
    crops = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 3), dtype=np.uint8)[:, 1:7, 2:]
    torch.testing.assert_close(to_input(crops, MEAN, STD, "cpu"), to_input(crops.copy(), MEAN, STD, "cpu"))
    images.fill(0)  # is the caller's own
    assert np.array_equal(np.load(tmp_path / "levels.npy"), levels)


@pytest.mark.parametrize("size", [(64, 128), (128, 64), (90, 90), (700, 200)])
@pytest.mark.parametrize("frame", [(64, 32), (32, 64), (48, 48)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_resize_modes_in_any_frame(tmp_path, size, frame, suffix):
    path, (height, width) = tmp_path / f"a.{suffix}", frame
    textured_photo(*size).save(path, quality=95)
    with Image.open(path) as image:
        photo = image.convert("RGB")
    for fast in (False, True):
        squashed = decode(path, frame, "squash", fast_decode=fast)
        assert squashed.shape == (height, width, 3)
        exact = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(squashed - exact).mean() < 1

        scale = min(width / size[0], height / size[1])
        inner = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        padded = decode(path, frame, "pad", fast_decode=fast)
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        whole = np.asarray(photo.resize(inner, Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(padded[top : top + inner[1], left : left + inner[0]] - whole).mean() < 1
        outside = np.ones(frame, bool)
        outside[top : top + inner[1], left : left + inner[0]] = False
        assert padded.shape == (height, width, 3) and (padded[outside] == 255).all()

        scale = max(width / size[0], height / size[1])
        outer = (max(width, int(size[0] * scale + 1e-9)), max(height, int(size[1] * scale + 1e-9)))
        left, top = round((outer[0] - width) / 2), round((outer[1] - height) / 2)
        filled = photo.resize(outer, Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
        shortest = decode(path, frame, "shortest", fast_decode=fast)
        assert shortest.shape == (height, width, 3) and np.abs(shortest - np.asarray(filled).astype(int)).mean() < 1
