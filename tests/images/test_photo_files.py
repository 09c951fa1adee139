"""Every file below a folder is a photo or has a reason; nothing hangs, nothing is opened."""

import os
import socket

import pytest
from PIL import Image

from clipfh.core.errors import InputError
from clipfh.images.photo_files import (
    HIDDEN,
    account,
    compare_with_list,
    find_photos,
    name_problem,
    photo_suffixes,
    require_photos,
)
from clipfh.images.pixels import load_pixels
from clipfh.images.transforms import decode
from clipfh.reports.figures import read_photo


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_suffixes_are_those_of_photos_that_pillow_opens(tmp_path):
    for suffix, kind in ((".jfif", "JPEG"), (".TIF", "TIFF"), (".gif", "GIF"), (".bmp", "BMP"), (".webp", "WEBP")):
        Image.new("RGB", (4, 4), "red").save(tmp_path / f"a{suffix}", format=kind)
        assert suffix.lower() in photo_suffixes()
        assert decode(tmp_path / f"a{suffix}", 4).shape == (4, 4, 3)
    assert {".jpg", ".jpeg", ".png", ".tiff", ".ppm", ".mpo"} <= photo_suffixes()
    assert not {".pdf", ".mpeg", ".h5", ".eps", ".heic"} & photo_suffixes()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.JpG", None),
        ("a.b.png", None),
        ("a.heic", "cannot be opened here (.heic): convert them to JPEG"),
        ("a.CR2", "cannot be opened here (.cr2): convert them to JPEG"),
        ("a.txt", "not a photo (.txt)"),
        ("a", "not a photo (no suffix)"),
        ("a.0017", "not a photo (other suffix)"),
        ("a.jpg~", "not a photo (other suffix)"),
        (".a.jpg", HIDDEN),
        ("Thumbs.db", HIDDEN),
    ],
)
def test_names(name, problem):
    assert name_problem(name) == problem


def test_pipes_links_and_empty_files_are_counted_and_never_opened(tmp_path):
    make(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket.jpg" if os.path.isdir("/proc/self/fd") else str(tmp_path / "s.jpg"))
        os.close(here)
    (tmp_path / "device.jpg").symlink_to("/dev/null")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    (tmp_path / "good.jpg").symlink_to("a.jpg")
    (tmp_path / "empty.jpg").touch()
    photos, left_out = find_photos(tmp_path)
    assert photos == ["a.jpg", "good.jpg"]
    reasons = dict(left_out)
    assert reasons.pop("pipe.jpg") == reasons.pop("device.jpg") == "not a regular file"
    assert reasons.pop("broken.jpg") == reasons.pop("itself.jpg") == "broken link"
    assert reasons.pop("empty.jpg") == "empty file"
    assert list(reasons.values()) == ["not a regular file"]  # the socket


def test_whatever_decodes_refuses_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="not a regular file"):
        decode(tmp_path / "pipe.jpg", 8)
    with pytest.raises(InputError, match=r"pipe\.jpg: not a regular file"):
        read_photo(tmp_path / "pipe.jpg", 1)
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "empty.jpg").touch()
    names = ["pipe.jpg", "broken.jpg", "empty.jpg", "gone.jpg"]
    pixels = load_pixels(tmp_path, names, 8, tmp_path / "cache")
    reasons = ["not a regular file", "broken link", "empty file", "file not found"]
    assert pixels.unreadable == tuple(zip(names, reasons, strict=True))


def test_loops_and_second_ways_end(tmp_path):
    make(tmp_path, "z/deep/a.jpg", "y/b.jpg")
    (tmp_path / "z" / "up").symlink_to(tmp_path)
    (tmp_path / "a").symlink_to(tmp_path / "z")  # sorts first, yet the photo keeps the name of its own folder
    for level in range(30):  # 2 ** 30 ways to the last of them
        for side in "lr":
            (tmp_path / "w" / str(level)).mkdir(parents=True, exist_ok=True)
            (tmp_path / "w" / str(level) / side).symlink_to(tmp_path / "w" / str(level + 1))
    photos, left_out = find_photos(tmp_path)
    assert photos == ["y/b.jpg", "z/deep/a.jpg"]
    assert ("a", "a link to a folder that is looked into already") in left_out
    assert ("z/up", "a link to a folder that is looked into already") in left_out


def test_linked_folders_are_looked_into(tmp_path):
    make(tmp_path, "elsewhere/a.jpg", "root/b.jpg")
    (tmp_path / "root" / "mug").symlink_to(tmp_path / "elsewhere")
    assert find_photos(tmp_path / "root") == (["b.jpg", "mug/a.jpg"], [])


def test_only_the_given_folders(tmp_path):
    make(tmp_path, "a.jpg", "one/b.jpg", "one/deep/c.jpg", "two/d.jpg")
    assert find_photos(tmp_path, ("one",))[0] == ["one/b.jpg", "one/deep/c.jpg"]
    assert find_photos(tmp_path, ("", "two"))[0] == ["a.jpg", "two/d.jpg"]
    assert find_photos(tmp_path, ("",))[0] == ["a.jpg"]
    assert find_photos(tmp_path, ("three",)) == ([], [])


def test_a_list_and_the_files_are_compared_whatever_the_suffixes(tmp_path):
    make(tmp_path, "a.jpg", "b.dat", "c.JPG", "d.heic", "e.txt", "f.jpg")
    left_out, missing = compare_with_list(
        tmp_path, ["./a.jpg", "b.dat", "c.jpg", "gone.jpg"], "the list", reasons={"f.jpg": "junk"}
    )
    assert left_out == [
        ("c.JPG", "not in the list"),
        ("d.heic", "cannot be opened here (.heic): convert them to JPEG"),
        ("e.txt", "not a photo (.txt)"),
        ("f.jpg", "junk"),
    ]
    assert missing == [("c.jpg", "file not found"), ("gone.jpg", "file not found")]


def test_the_account_adds_up_and_prints_no_control_characters(tmp_path):
    left_out = [("a.txt", "not a photo (.txt)"), ("b.txt", "not a photo (.txt)"), ("x\x1b[2J.md", "not a photo (.md)")]
    assert account(1000, left_out).split("\n") == [
        "found 1,003 files: 1,000 used, 3 left out",
        "left out: 2 (not a photo (.txt)), the first: a.txt",
        "left out: 1 (not a photo (.md)), the first: x\\x1b[2J.md",
    ]
    assert account(2, []) == "found 2 files: 2 used"
    with pytest.raises(InputError, match=r"no photo that can be used \(2 not a photo \(\.txt\), 1 not a photo"):
        require_photos(tmp_path, [], left_out)


def test_names_that_are_not_utf8_are_left_out_printably(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert find_photos(tmp_path) == (
        [],
        [("caf\\udce9.txt", "control characters in its name, or a name that is not UTF-8: rename them")],
    )
