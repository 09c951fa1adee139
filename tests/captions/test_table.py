"""The table of captioned images: numbering, splits, its form on disk."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipfh.captions.table import (
    CaptionDataset,
    CaptionedImage,
    assign_splits,
    captions_digest,
    index_captions,
    read_caption_dataset,
    write_caption_dataset,
)
from clipfh.core.errors import InputError


def images(count: int, split: str = "") -> list[CaptionedImage]:
    return [CaptionedImage(f"{split or 'free'}/{number}.jpg", (f"caption {number}",), split) for number in range(count)]


def counts(chosen: list[CaptionedImage]) -> dict[str, int]:
    return {split: sum(image.split == split for image in chosen) for split in ("train", "val", "test")}


def test_equal_captions_of_different_images_share_a_number():
    index = index_captions([CaptionedImage("a", ("x", "y")), CaptionedImage("b", ("y", "z", "w"))])
    assert index.texts == ["x", "y", "z", "w"]
    assert [numbers.tolist() for numbers in index.of_image] == [[0, 1], [1, 2, 3]]
    assert index.padded().tolist() == [[0, 1, -1], [1, 2, 3]]


def test_splits_are_drawn_where_the_raw_data_name_none():
    chosen = assign_splits(images(50), {"train": 30, "val": 5, "test": 10}, seed=1)
    assert counts(chosen) == {"train": 30, "val": 5, "test": 10}
    assert len({image.image for image in chosen}) == 45
    assert chosen == assign_splits(images(50)[::-1], {"train": 30, "val": 5, "test": 10}, seed=1)
    assert chosen != assign_splits(images(50), {"train": 30, "val": 5, "test": 10}, seed=2)


def test_a_tenth_each_is_held_out_by_default():
    assert counts(assign_splits(images(40), {}, seed=0)) == {"train": 32, "val": 4, "test": 4}


def test_named_splits_stay_what_they_are_and_val_is_never_taken_from_test():
    raw = images(20, "train") + images(12, "test")
    chosen = assign_splits(raw, {"train": 8, "val": 4, "test": 6}, seed=0)
    assert counts(chosen) == {"train": 8, "val": 4, "test": 6}
    assert all(image.image.startswith("test/") == (image.split == "test") for image in chosen)


def test_fewer_images_than_asked_for_are_taken_and_said(capsys):
    chosen = assign_splits(images(10, "train") + images(3, "test"), {"train": 100, "val": 2, "test": 50}, seed=0)
    assert counts(chosen) == {"train": 8, "val": 2, "test": 3}
    said = capsys.readouterr().out
    assert "test has 3 images, not the 50 asked for" in said and "train has 8 images, not the 100" in said


def test_the_digest_of_the_splits_sees_an_image_that_changes_sides():
    images = tuple(CaptionedImage(f"{n}.jpg", ("x",), split) for n, split in enumerate(("train", "val", "test")))
    digest = captions_digest(CaptionDataset("d", Path(), images))
    assert captions_digest(CaptionDataset("d", Path(), images[::-1])) == digest
    moved = (replace(images[0], split="test"), *images[1:])
    assert captions_digest(CaptionDataset("d", Path(), moved)) != digest


def test_a_split_without_images_is_refused():
    with pytest.raises(InputError, match="no image is left for train"):
        assign_splits(images(3), {"test": 2, "val": 1}, seed=0)


def test_what_is_written_is_read_back(tmp_path):
    several = (CaptionedImage("é/1.jpg", ("one", "two"), "train", "cat"), CaptionedImage("2.jpg", ("three",), "test"))
    write_caption_dataset(tmp_path, CaptionDataset("pets", tmp_path / "photos", several), {"seed": 0})
    data = read_caption_dataset(tmp_path, "prepare")
    assert (data.name, data.image_dir, data.images) == ("pets", tmp_path / "photos", several)
    assert [image.image for image in data.rows("test")] == ["2.jpg"]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('{"a.jpg": {"captions": [], "split": "train"}}', "a.jpg"),
        ('{"a.jpg": {"captions": ["x"], "split": "training"}}', "'training'"),
        ('{"a.jpg": ["x"]}', "a.jpg"),
        ('{"a.jpg": ', "line 1"),
    ],
)
def test_a_broken_table_is_refused_with_the_command_that_makes_it(tmp_path, table, says):
    write_caption_dataset(tmp_path, CaptionDataset("d", tmp_path, tuple(images(1, "train"))), {})
    (tmp_path / "captions.json").write_text(table)
    with pytest.raises(InputError, match=says):
        read_caption_dataset(tmp_path, "prepare it")


def test_prepared_identities_are_not_captions(tmp_path):
    (tmp_path / "dataset.json").write_text('{"name": "inshop", "image_dir": "x"}')
    with pytest.raises(InputError, match=r"no prepared captions\. Make them with: prepare it"):
        read_caption_dataset(tmp_path, "prepare it")


def test_padded_keeps_the_type_that_indexes():
    assert index_captions(images(3)).padded().dtype == np.int64


def test_the_usual_counts_shrink_where_there_are_fewer_images(capsys):
    images = [CaptionedImage(f"{number}.jpg", ("a",)) for number in range(1000)]
    usual = {"train": None, "val": 1000, "test": 1000}
    chosen = Counter(image.split for image in assign_splits(images, usual, 0, usual=usual))
    assert chosen == {"train": 750, "val": 125, "test": 125}
    assert "note: val takes 125 of 1,000 images, not 1,000" in capsys.readouterr().out
    asked = {**usual, "val": 100}
    assert Counter(i.split for i in assign_splits(images, asked, 0, usual={"test": 1000}))["val"] == 100
    with pytest.raises(InputError, match="no image is left for"):  # asked for, and not there
        assign_splits(images, usual, 0)
    whole = [CaptionedImage(f"{number}.jpg", ("a",)) for number in range(8091)]  # Flickr8k
    assert Counter(i.split for i in assign_splits(whole, usual, 0, usual=usual))["test"] == 1000
