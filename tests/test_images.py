import io
import json
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from clipfh.clip_model import open_clip
from clipfh.errors import InputError
from clipfh.images import Pixels, decode, drop_unreadable, load_pixels, normalise, to_float

SIZES = [(40, 90), (90, 40), (37, 53), (53, 37), (33, 32), (32, 32), (64, 64), (5, 9), (1, 1), (300, 31)]  # w, h


def photo(width, height, mode="RGB", seed=0):
    generator = np.random.default_rng(seed)
    smooth = Image.fromarray(generator.integers(0, 256, (4, 4, 4), dtype=np.uint8), "RGBA")
    return smooth.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def reference(path, image_size, resize_mode="shortest"):
    transform = open_clip.image_transform(
        image_size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=resize_mode, interpolation="bicubic"
    )
    with Image.open(path) as image, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency")  # open_clip lets Pillow say this
        return transform(image).permute(1, 2, 0).mul(255).round().numpy()


def largest_difference(path, image_size, resize_mode="shortest"):
    ours = decode(path, image_size, resize_mode)
    assert ours.shape == (image_size, image_size, 3) and ours.dtype == np.uint8
    return np.abs(ours.astype(int) - reference(path, image_size, resize_mode)).max()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_pixels_are_those_of_open_clip(tmp_path, size, resize_mode):
    path = tmp_path / "photo.png"
    photo(*size).save(path)
    for image_size in (32, 33):
        assert largest_difference(path, image_size, resize_mode) <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_pixels_of_other_modes_are_those_of_open_clip(tmp_path, mode):
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    image = photo(57, 43, "L" if mode == "I;16" else mode)
    image.convert(mode).save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    assert largest_difference(path, 32) <= 1
    assert largest_difference(path, 32, "squash") <= 1


@pytest.fixture
def image_dir(tmp_path):
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    for number in range(4):
        photo(40 + number, 50, seed=number).save(folder / "a" / f"{number}.png")
    return folder


IMAGES = [f"a/{number}.png" for number in range(4)]


def check(pixels, image_dir, images=IMAGES, image_size=16):
    assert pixels.images == tuple(images)
    assert pixels.array.shape == (len(images), image_size, image_size, 3)
    for array, image in zip(pixels.array, images, strict=True):
        assert np.array_equal(array, decode(image_dir / image, image_size))


def files_of(cache_dir):
    return {path.name: path.stat().st_mtime_ns for path in cache_dir.iterdir()}


def test_cache_is_reused(image_dir, tmp_path):
    cache = tmp_path / "cache"
    check(load_pixels(image_dir, IMAGES, 16, cache), image_dir)
    before = files_of(cache)
    assert sorted(before) == ["pixels_16px_shortest.json", "pixels_16px_shortest.npy"]
    pixels = load_pixels(image_dir, IMAGES, 16, cache)
    check(pixels, image_dir)
    assert isinstance(pixels.array, np.memmap) and not pixels.array.flags.writeable
    assert files_of(cache) == before
    load_pixels(image_dir, IMAGES, 16, cache, resize_mode="squash")
    load_pixels(image_dir, IMAGES, 8, cache)
    after = files_of(cache)
    assert len(after) == 6 and before.items() <= after.items()  # another geometry has a cache of its own


def test_changed_source_is_decoded_again(image_dir, tmp_path):
    load_pixels(image_dir, IMAGES, 16, tmp_path / "cache")
    photo(60, 44, seed=9).save(image_dir / IMAGES[2])
    check(load_pixels(image_dir, IMAGES, 16, tmp_path / "cache"), image_dir)
    check(load_pixels(image_dir, IMAGES[1:], 16, tmp_path / "cache"), image_dir, IMAGES[1:])
    check(load_pixels(image_dir, IMAGES[::-1], 16, tmp_path / "cache"), image_dir, IMAGES[::-1])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", truncate),
        (".npy", flip_a_byte),
        (".npy", lambda path: path.write_bytes(b"")),
        (".npy", lambda path: path.unlink()),
        (".npy", lambda path: np.save(path, np.zeros((4, 8, 8, 3), np.uint8))),
        (".json", lambda path: path.write_text("{")),
        (".json", lambda path: path.write_text("[]")),
        (".json", lambda path: path.write_bytes(b"\xff\xfe")),
        (".json", lambda path: path.write_text(path.read_text().replace('"unreadable": []', '"unreadable": [1]'))),
        (".json", lambda path: path.unlink()),
    ],
)
def test_damaged_cache_is_made_again(image_dir, tmp_path, suffix, damage):
    cache = tmp_path / "cache"
    load_pixels(image_dir, IMAGES, 16, cache)
    path = cache / f"pixels_16px_shortest{suffix}"
    damage(path)
    broken = path.read_bytes() if path.exists() else None
    check(load_pixels(image_dir, IMAGES, 16, cache), image_dir)
    assert path.read_bytes() != broken
    check(load_pixels(image_dir, IMAGES, 16, cache), image_dir)


def png_with_a_broken_chunk():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(buffer, "PNG")
    content = buffer.getvalue()
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    return content[:second] + b"\0\0\0\0" + content[second + 4 :]  # Pillow raises SyntaxError


def test_unreadable_and_missing_images_are_listed(image_dir, tmp_path):
    (image_dir / "text.jpg").write_text("no image")
    (image_dir / "empty.jpg").write_bytes(b"")
    (image_dir / "cut.png").write_bytes((image_dir / IMAGES[0]).read_bytes()[:-60])
    (image_dir / "chunk.png").write_bytes(png_with_a_broken_chunk())
    (image_dir / "folder.png").mkdir()
    broken = ["text.jpg", "missing.jpg", "empty.jpg", "cut.png", "chunk.png", "folder.png"]
    images = [broken[0], IMAGES[0], *broken[1:4], IMAGES[1], *broken[4:]]
    for _ in range(2):  # decoded, then from the cache
        pixels = load_pixels(image_dir, images, 16, tmp_path / "cache")
        check(pixels, image_dir, IMAGES[:2])
        assert [image for image, _ in pixels.unreadable] == broken
        reasons = dict(pixels.unreadable)
        assert reasons["missing.jpg"] == "file not found" and "SyntaxError" in reasons["chunk.png"]
        assert all(str(tmp_path) not in reason for reason in reasons.values())
    photo(20, 20).save(image_dir / "missing.jpg")  # one that turns up is seen
    assert "missing.jpg" in load_pixels(image_dir, images, 16, tmp_path / "cache").images


def test_no_image_is_readable(image_dir, tmp_path):
    for _ in range(2):
        pixels = load_pixels(image_dir, ["x.jpg", "y.jpg"], 16, tmp_path / "cache")
        assert pixels.array.shape == (0, 16, 16, 3) and len(pixels.unreadable) == 2


def test_missing_image_folder_and_cache_that_cannot_be_written(image_dir, tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist; give it with --image_dir"):
        load_pixels(tmp_path / "nowhere", IMAGES, 16, tmp_path / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        load_pixels(image_dir, IMAGES, 16, tmp_path / "file")


def build_repeatedly(image_dir, images, cache):
    for _ in range(5):
        check(load_pixels(image_dir, images, 16, cache), image_dir, images)
        (cache / "pixels_16px_shortest.json").unlink(missing_ok=True)


def test_threads_that_build_at_once_each_get_their_own_images(image_dir, tmp_path):
    failures = []

    def run(images):
        try:
            build_repeatedly(image_dir, images, tmp_path / "cache")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(images,)) for images in (IMAGES, IMAGES[::-1], IMAGES[:2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    check(load_pixels(image_dir, IMAGES, 16, tmp_path / "cache"), image_dir)
    assert len(os.listdir(tmp_path / "cache")) == 2  # no temporary file is left


def test_processes_that_build_at_once_end_with_a_valid_cache(image_dir, tmp_path):
    cache = tmp_path / "cache"
    build = (
        "import sys; from pathlib import Path; from clipfh.images import load_pixels\n"
        "for _ in range(20):\n"
        "    pixels = load_pixels(Path(sys.argv[1]), sys.argv[3:], 16, Path(sys.argv[2]))\n"
        "    assert pixels.images == tuple(sys.argv[3:]) and pixels.array.shape == (4, 16, 16, 3)\n"
        "    Path(sys.argv[2], 'pixels_16px_shortest.json').unlink(missing_ok=True)\n"
    )
    command = [sys.executable, "-c", build, str(image_dir), str(cache), *IMAGES]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    check(load_pixels(image_dir, IMAGES, 16, cache), image_dir)
    assert len(os.listdir(cache)) == 2


TABLE = pd.DataFrame({"image": ["a", 'b, "quoted".jpg', "c"], "item_id": ["1", "2", "3"]})
PARTLY = Pixels(np.zeros((2, 4, 4, 3), np.uint8), ("a", "c"), (('b, "quoted".jpg', 'OSError: a "reason",\nmore'),))


def test_unreadable_images_stop_a_run_unless_skipped(tmp_path, capsys):
    listing = tmp_path / "run" / "unreadable_images.csv"
    with pytest.raises(InputError, match=r"1 of 3 images cannot be read(?s:.)*quoted(?s:.)*--skip_unreadable"):
        drop_unreadable(TABLE, PARTLY, listing, skip_unreadable=False)
    assert pd.read_csv(listing).to_numpy().tolist() == [list(PARTLY.unreadable[0])]
    listing.unlink()
    kept = drop_unreadable(TABLE, PARTLY, listing, skip_unreadable=True)
    assert kept["image"].tolist() == ["a", "c"] and kept.index.tolist() == [0, 1]
    assert pd.read_csv(listing).to_numpy().tolist() == [list(PARTLY.unreadable[0])]
    assert "left out 1 unreadable images of 3" in capsys.readouterr().out


def test_nothing_is_listed_when_all_is_readable(tmp_path):
    pixels = Pixels(np.zeros((3, 4, 4, 3), np.uint8), tuple(TABLE["image"]), ())
    assert drop_unreadable(TABLE, pixels, tmp_path / "list.csv", skip_unreadable=False) is TABLE
    assert not (tmp_path / "list.csv").exists()


def test_skipping_every_image_is_an_error(tmp_path):
    pixels = Pixels(np.zeros((0, 4, 4, 3), np.uint8), (), tuple((image, "gone") for image in TABLE["image"]))
    with pytest.raises(InputError, match="none of the 3 images can be read"):
        drop_unreadable(TABLE, pixels, tmp_path / "list.csv", skip_unreadable=True)


def test_to_float_and_normalise():
    pixels = np.zeros((2, 3, 3, 3), np.uint8)
    pixels[0, 1, 2] = (255, 51, 0)
    images = to_float(pixels, "cpu")
    assert images.shape == (2, 3, 3, 3) and images.dtype == torch.float32
    assert images[0, :, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert images.is_contiguous(memory_format=torch.channels_last)
    normal = normalise(images, (0.5, 0.2, 0.1), (0.5, 0.1, 0.2))
    assert normal[0, :, 1, 2].tolist() == pytest.approx([1.0, 0.0, -0.5])
    assert pixels.max() == 255 and images.max() == 1.0  # neither is changed in place


def test_sidecar_is_plain_json(image_dir, tmp_path):
    load_pixels(image_dir, IMAGES, 16, tmp_path)
    assert json.loads((tmp_path / "pixels_16px_shortest.json").read_text()).keys() == {"digest", "crc32", "unreadable"}
