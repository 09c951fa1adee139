import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import clipfh.images.pixels
from clipfh.core.errors import InputError
from clipfh.images.pixels import Pixels, drop_unreadable, load_pixels
from clipfh.images.transforms import decode


def photo(width, height, mode="RGB", seed=0):
    generator = np.random.default_rng(seed)
    smooth = Image.fromarray(generator.integers(0, 256, (4, 4, 4), dtype=np.uint8), "RGBA")
    return smooth.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def image_dir(tmp_path):
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    for number in range(4):
        photo(40 + number, 50, seed=number).save(folder / "a" / f"{number}.png")
    return folder


IMAGES = [f"a/{number}.png" for number in range(4)]
LOST = json.dumps([[IMAGES[0], "a reason"]])


def check(pixels, image_dir, images=IMAGES, image_size=16, **decoding):
    assert pixels.images == tuple(images)
    assert pixels.array.shape == (len(images), image_size, image_size, 3)
    for array, image in zip(pixels.array, images, strict=True):
        assert np.array_equal(array, decode(image_dir / image, image_size, **decoding))


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


def test_fast_decode_has_a_cache_of_its_own(tmp_path):
    folder, cache = tmp_path / "images", tmp_path / "cache"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (200, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.jpg")
    for _ in range(2):  # decoded, then from the cache
        check(load_pixels(folder, ["a.jpg"], 16, cache, fast_decode=True), folder, ["a.jpg"], fast_decode=True)
        check(load_pixels(folder, ["a.jpg"], 16, cache), folder, ["a.jpg"])
        assert {"pixels_16px_shortest.npy", "pixels_16px_shortest_fast.npy"} <= files_of(cache).keys()
    exact, fast = (decode(folder / "a.jpg", 16, fast_decode=fast) for fast in (False, True))
    assert not np.array_equal(exact, fast)  # or the files could be exchanged without notice
    for suffix in ("npy", "json"):
        (cache / f"pixels_16px_shortest.{suffix}").replace(cache / f"pixels_16px_shortest_fast.{suffix}")
    check(load_pixels(folder, ["a.jpg"], 16, cache, fast_decode=True), folder, ["a.jpg"], fast_decode=True)


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


def flip_the_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def reorder_in_header(path):
    content = path.read_bytes()
    assert b"'fortran_order': False" in content
    path.write_bytes(content.replace(b"'fortran_order': False", b"'fortran_order': True "))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", truncate),
        (".npy", flip_a_byte),
        (".npy", flip_the_last_byte),
        (".npy", reorder_in_header),
        (".npy", lambda path: path.write_bytes(path.read_bytes().replace(b"(4, 16, 16, 3)", b"(4, 8, 32, 3) "))),
        (".npy", lambda path: path.write_bytes(b"")),
        (".npy", lambda path: path.unlink()),
        (".npy", lambda path: np.save(path, np.zeros((4, 8, 8, 3), np.uint8))),
        (".json", lambda path: path.write_text("{")),
        (".json", lambda path: path.write_text("[]")),
        (".json", lambda path: path.write_bytes(b"\xff\xfe")),
        (".json", lambda path: path.write_text(path.read_text().replace('"unreadable": []', '"unreadable": [1]'))),
        (".json", lambda path: path.write_text(path.read_text().replace('"unreadable": []', f'"unreadable": {LOST}'))),
        (".json", lambda path: path.write_text(path.read_text().replace('"crc32"', '"sum"'))),
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


def test_damage_in_any_block_is_seen(image_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(clipfh.images.pixels, "BLOCK", 3)  # blocks of 3 images and of 1
    load_pixels(image_dir, IMAGES, 16, tmp_path / "cache")
    cache = tmp_path / "cache" / "pixels_16px_shortest.npy"
    whole = cache.read_bytes()
    for image in range(4):
        content = bytearray(whole)
        content[-1 - image * 16 * 16 * 3] ^= 128
        cache.write_bytes(content)
        check(load_pixels(image_dir, IMAGES, 16, tmp_path / "cache"), image_dir)
        assert cache.read_bytes() == whole


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
        assert reasons["text.jpg"] == "no image that can be read"
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


def test_processes_that_build_at_once_end_with_a_valid_cache(server, image_dir, tmp_path):
    cache = tmp_path / "cache"
    build = (
        "from pathlib import Path; from clipfh.images.pixels import load_pixels\n"
        f"images, cache = {list(IMAGES)!r}, Path({str(cache)!r})\n"
        "for _ in range(20):\n"
        f"    pixels = load_pixels(Path({str(image_dir)!r}), images, 16, cache)\n"
        "    assert pixels.images == tuple(images) and pixels.array.shape == (4, 16, 16, 3)\n"
        "    (cache / 'pixels_16px_shortest.json').unlink(missing_ok=True)\n"
    )
    processes = server.run_code(build, {}, {})
    assert [process.returncode for process in processes] == [0, 0], processes
    check(load_pixels(image_dir, IMAGES, 16, cache), image_dir)
    assert len(os.listdir(cache)) == 2


def test_torch_has_its_threads_back_after_decoding(image_dir, tmp_path):
    script = (
        "import sys, threading, torch; from pathlib import Path; from clipfh.images.pixels import load_pixels\n"
        "load_pixels(Path(sys.argv[1]), sys.argv[3:], 16, Path(sys.argv[2]))\n"
        "print(torch.get_num_threads())\n"
        "later = threading.Thread(target=lambda: print(torch.get_num_threads())); later.start(); later.join()\n"
    )
    command = [sys.executable, "-c", script, str(image_dir), str(tmp_path / "cache"), *IMAGES]
    environ = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "2"]


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


def test_sidecar_is_plain_json(image_dir, tmp_path):
    load_pixels(image_dir, IMAGES, 16, tmp_path)
    assert json.loads((tmp_path / "pixels_16px_shortest.json").read_text()).keys() == {
        "digest",
        "readable",
        "unreadable",
        "crc32",
        "file",
    }


def test_a_cache_that_nobody_has_touched_is_compared_in_part_and_with_verify_as_a_whole(
    image_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(clipfh.images.pixels, "BLOCK", 1)
    monkeypatch.setattr(clipfh.images.pixels, "SAMPLED", 2)
    compared, checksums = [], clipfh.images.pixels._checksums

    def counted(array, starts, workers):
        compared.append(list(starts))
        return checksums(array, starts, workers)

    load_pixels(image_dir, IMAGES, 16, tmp_path)
    monkeypatch.setattr(clipfh.images.pixels, "_checksums", counted)
    load_pixels(image_dir, IMAGES, 16, tmp_path)
    load_pixels(image_dir, IMAGES, 16, tmp_path, verify=True)
    assert compared == [[0, 2], [0, 1, 2, 3]]

    file = tmp_path / "pixels_16px_shortest.npy"
    before = file.stat()
    flip_the_last_byte(file)  # of the last photo, which is not among the sampled ones
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as of a disk that forgets
    check(load_pixels(image_dir, IMAGES, 16, tmp_path, verify=True), image_dir)
