"""From raw captions to the prepared table: what is cleaned, left out, counted, and made again."""

import csv
import json
import os

import pytest
from PIL import Image

from clipfh.captions import preparation as caption_preparation
from clipfh.captions.preparation import check_images, clean_captions, prepare_captions
from clipfh.captions.table import CaptionDataset, CaptionedImage
from clipfh.core.errors import InputError


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Ten photos with captions, and a metadata folder of its own."""
    monkeypatch.setattr(caption_preparation, "metadata_dir", lambda name: tmp_path / "metadata" / name)
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (20, 30), (20 * number, 0, 0)).save(folder / f"{number}.jpg")
    write_captions(folder, {f"{number}.jpg": [f"shade {number}", "a red card"] for number in range(10)})
    return folder


def write_captions(folder, captions):
    lines = [json.dumps({"image": image, "captions": texts}) for image, texts in captions.items()]
    (folder / "captions.jsonl").write_text("\n".join(lines))


def test_captions_are_cleaned_and_what_goes_is_named():
    given = [
        CaptionedImage("a", (" A  dog\nruns &amp; jumps ", "a dog", "a dog", " . ")),
        CaptionedImage("b", ("", "\t")),
        CaptionedImage("c", ("cafÃ©",)),
    ]
    kept, left_out = clean_captions(given)
    assert [(image.image, image.captions) for image in kept] == [
        ("a", ("A dog runs & jumps", "a dog")),
        ("c", ("café",)),
    ]
    reasons = [(what, reason.split(" ")[0]) for what, reason in left_out]
    assert reasons == [("a", "caption"), ("a", "empty"), ("b", "empty"), ("b", "empty"), ("b", "image")]


def test_no_caption_at_all_is_refused():
    with pytest.raises(InputError, match="none of the 1 images has a caption"):
        clean_captions([CaptionedImage("a", ("",))])


def test_missing_and_unreadable_images_are_listed(raw, tmp_path, capsys):
    (raw / "3.jpg").unlink()
    (raw / "4.jpg").write_bytes((raw / "5.jpg").read_bytes()[:-200])
    data = prepare_captions("jsonl", raw, name="cards", sizes={"train": 8, "val": 1, "test": 1})
    assert len(data.images) == 8
    with (tmp_path / "metadata/cards/left_out.csv").open(newline="") as file:
        listed = {row["what"]: row["reason"] for row in csv.DictReader(file)}
    assert listed["3.jpg"] == "file not found" and "OSError" in listed["4.jpg"]
    said = capsys.readouterr().out
    assert "left out: 2 images or captions" in said and "left_out.csv" in said


def test_photos_without_captions_and_images_that_are_no_files_are_counted(raw, tmp_path, capsys):
    captions = {f"{number}.jpg": [f"shade {number}"] for number in range(9)}
    write_captions(raw, {**captions, "pipe.jpg": ["a pipe"], "link.jpg": ["a link"], "deep/a.png": ["a card"]})
    os.mkfifo(raw / "pipe.jpg")
    (raw / "link.jpg").symlink_to("nowhere")
    for folder in ("deep/er", "elsewhere"):  # what is elsewhere may be another dataset
        (raw / folder).mkdir(parents=True)
        Image.new("RGB", (20, 30)).save(raw / folder / "b.PNG")
    Image.new("RGB", (20, 30)).save(raw / "deep" / "a.png")
    (raw / "phone.heic").write_bytes(b"x")
    data = prepare_captions("jsonl", raw, name="cards")
    assert dict(data.left_out) == {
        "9.jpg": "not in the captions",
        "deep/er/b.PNG": "not in the captions",
        "phone.heic": "cannot be opened here (.heic): convert them to JPEG",
        "pipe.jpg": "not a regular file",
        "link.jpg": "broken link",
    }
    assert len(data.images) + len(data.left_out) == 15  # every file but the list, and what is elsewhere
    assert "    2 not in the captions\n" in capsys.readouterr().out
    fewer = prepare_captions("jsonl", raw, name="fewer", sizes={"train": 5})
    assert len(fewer.images) + len(fewer.left_out) == 15
    assert "not drawn: more than were asked for" in dict(fewer.left_out).values()


def test_most_images_missing_is_a_wrong_folder(raw):
    several = tuple(CaptionedImage(f"nowhere/{n}.jpg", ("x",), "train") for n in range(3))
    with pytest.raises(InputError, match=r"3 of 3 images .* nowhere/0.jpg \(file not found\). Is --data_root right"):
        check_images(CaptionDataset("d", raw, several))


def test_the_same_captions_are_prepared_once_and_changed_ones_again(raw, tmp_path, capsys):
    first = prepare_captions("jsonl", raw, name="cards")
    table = tmp_path / "metadata/cards/captions.json"
    before = table.stat().st_mtime_ns
    again = prepare_captions("jsonl", raw, name="cards")
    assert again.images == first.images and table.stat().st_mtime_ns == before
    assert prepare_captions("jsonl", None, name="cards").images == first.images  # the raw data are not needed any more
    with pytest.raises(InputError, match=r"prepared with other flags \(seed 0\).*--data_root"):
        prepare_captions("jsonl", None, name="cards", seed=1)
    with pytest.raises(InputError, match=r"prepared with other flags \(dataset jsonl"):
        prepare_captions("coco", None, name="cards")
    write_captions(raw, {f"{number}.jpg": [f"other {number}"] for number in range(10)})
    changed = prepare_captions("jsonl", raw, name="cards")
    assert {text for image in changed.images for text in image.captions} == {f"other {n}" for n in range(10)}
    assert prepare_captions("jsonl", raw, name="cards", seed=1).images != changed.images


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", "/absolute"])
def test_a_name_is_no_path(raw, name):
    with pytest.raises(InputError, match=r"--name .* cannot name a folder"):
        prepare_captions("jsonl", raw, name=name)


def test_without_raw_data_and_preparation_the_command_is_named(raw):
    with pytest.raises(InputError, match=r"prepare_captions\.py --dataset coco --data_root DIR"):
        prepare_captions("coco", None)
