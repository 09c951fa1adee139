"""Raw layouts of captions, each written small, and broken in the ways that files are."""

import json
from pathlib import Path

import pytest
from places import SHARED

from clipfh.captions.readers import read_captions
from clipfh.core.errors import InputError

GROCERY = SHARED / "data" / "grocery"


def coco(folder: Path, **changes: object) -> Path:
    (folder / "annotations").mkdir()
    for split, first in (("train2014", 9), ("val2014", 42)):
        name = f"COCO_{split}_{first:012d}.jpg"
        content = {
            "images": [{"id": first, "file_name": name}, {"id": first + 1, "file_name": "without.jpg"}],
            "annotations": [{"image_id": first, "id": n, "caption": f"caption {n}"} for n in range(5)],
        }
        content.update(changes if split == "val2014" else {})
        (folder / f"annotations/captions_{split}.json").write_text(json.dumps(content))
    return folder


def test_coco(tmp_path):
    raw = read_captions("coco", coco(tmp_path))
    assert raw.image_dir == tmp_path and raw.left_out == []
    first, empty, third, _ = raw.images
    assert (first.image, first.split) == ("train2014/COCO_train2014_000000000009.jpg", "train")
    assert first.captions == tuple(f"caption {n}" for n in range(5))
    assert empty.captions == ()
    assert (third.image, third.split) == ("val2014/COCO_val2014_000000000042.jpg", "test")


def test_coco_captions_of_unknown_images_are_left_out_and_named(tmp_path):
    raw = read_captions("coco", coco(tmp_path, annotations=[{"image_id": 7, "caption": "x"}]))
    assert raw.left_out == [("captions_val2014.json, annotation 0", "no image 7")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": None}, "captions_val2014.json is not COCO captions"),
        ({"annotations": [{"image_id": 42}]}, "'caption'"),
        ({"annotations": [{"image_id": 42, "caption": 5}]}, "annotation 0 has the caption 5"),
        ({"annotations": "x"}, "not COCO captions"),
    ],
)
def test_coco_of_another_shape_is_refused(tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        read_captions("coco", coco(tmp_path, **changes))


def test_coco_malformed_json_names_line_and_column(tmp_path):
    path = coco(tmp_path) / "annotations/captions_train2014.json"
    path.write_text('{"images": [],\n "annotations": [}')
    with pytest.raises(InputError, match=r"captions_train2014.json, line 2, column \d+"):
        read_captions("coco", tmp_path)


def test_a_missing_folder_or_file_shows_the_layout(tmp_path):
    with pytest.raises(InputError, match=r"(?s)does not exist.*annotations/captions_train2014"):
        read_captions("coco", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"(?s)captions_train2014.json does not exist.*DATA_ROOT/train2014"):
        read_captions("coco", tmp_path)
    with pytest.raises(InputError, match=r"(?s)none of captions.txt.*results.csv.*flickr30k_images"):
        read_captions("flickr30k", tmp_path)


def test_flickr8k_as_a_table_with_commas_in_captions(tmp_path):
    (tmp_path / "Images").mkdir()
    lines = ["image,caption", "1.jpg,A dog runs .", '1.jpg,"A dog, wet, runs ."', "2.jpg,Two men , sitting ."]
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    raw = read_captions("flickr8k", tmp_path)
    assert raw.image_dir == tmp_path / "Images"
    assert [(image.image, image.captions) for image in raw.images] == [
        ("1.jpg", ("A dog runs .", "A dog, wet, runs .")),
        ("2.jpg", ("Two men , sitting .",)),
    ]


@pytest.mark.parametrize("line", ['2.jpg,"A dog that never ends .', "2.jpg," + "x" * 200_000, "2.jpg"])
def test_a_broken_line_of_a_table_is_named(tmp_path, line):
    (tmp_path / "Images").mkdir()
    (tmp_path / "captions.txt").write_text("\n".join(["image,caption", "1.jpg,A dog .", line, "3.jpg,A cat ."]))
    with pytest.raises(InputError, match=r"captions.txt, line 3: "):
        read_captions("flickr8k", tmp_path)


def test_flickr8k_in_its_original_form(tmp_path):
    (tmp_path / "Flickr8k.token.txt").write_text("1.jpg#0\tA dog .\n1.jpg#1\tA wet dog .\n")
    assert read_captions("flickr8k", tmp_path).images[0].captions == ("A dog .", "A wet dog .")
    (tmp_path / "Flickr8k.token.txt").write_text("1.jpg#0\tA dog .\n1.jpg A wet dog .\n")
    with pytest.raises(InputError, match=r"Flickr8k\.token\.txt, line 2"):
        read_captions("flickr8k", tmp_path)


def test_flickr30k_with_the_line_that_lacks_a_bar(tmp_path):
    (tmp_path / "flickr30k_images").mkdir()
    lines = ["image_name| comment_number| comment", "1.jpg| 0| Two | men .", "1.jpg| 4   A dog runs ."]
    (tmp_path / "results.csv").write_text("\n".join(lines))
    raw = read_captions("flickr30k", tmp_path)
    assert raw.image_dir == tmp_path / "flickr30k_images"
    assert [text.strip() for text in raw.images[0].captions] == ["Two | men .", "A dog runs ."]
    (tmp_path / "results.csv").write_text("\n".join([*lines, "2.jpg a caption"]))
    with pytest.raises(InputError, match=r"results\.csv, line 4"):
        read_captions("flickr30k", tmp_path)


def write_lines(folder: Path, *entries: object) -> Path:
    text = "\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    (folder / "captions.jsonl").write_text(text)
    return folder


def test_jsonl_adds_up_the_lines_of_an_image(tmp_path):
    one, two = {"image": "a.jpg", "caption": "x"}, {"image": "a.jpg", "captions": ["y", "z"]}
    three = {"image": "b/c.jpg", "captions": ["w"], "split": "test", "label": "cat"}
    raw = read_captions("jsonl", write_lines(tmp_path, one, "", three, two))
    assert [(i.image, i.captions, i.split, i.label) for i in raw.images] == [
        ("a.jpg", ("x", "y", "z"), "", ""),
        ("b/c.jpg", ("w",), "test", "cat"),
    ]
    assert read_captions("jsonl", tmp_path / "captions.jsonl") == raw
    write_lines(tmp_path, '{"image": "a.jpg", "captions": null, "caption": "x"}')
    assert read_captions("jsonl", tmp_path).images[0].captions == ("x",)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"image": "a.jpg", "captions": ["x"]', "line 2, column"),
        ('["a.jpg", "x"]', "line 2: expected"),
        ('{"image": 5, "caption": "x"}', "line 2: expected"),
        ('{"image": "a.jpg", "captions": [5]}', "line 2: captions must be texts"),
        ('{"image": "a.jpg", "captions": {"0": "x"}}', "line 2: captions must be texts"),
        ('{"image": "a.jpg", "captions": {"0": "x"}, "caption": "y"}', "line 2: captions must be texts"),
        ('{"image": "a.jpg", "captions": 7, "caption": "y"}', "line 2: captions must be texts"),
        ('{"image": "../a.jpg", "caption": "x"}', "line 2: .* leaves the data root"),
        ('{"image": "a.jpg", "caption": "x", "split": "dev"}', "line 2: unknown split 'dev'"),
        ('{"image": "ok.jpg", "caption": "x", "split": "test"}', "line 2: ok.jpg has another split"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, says):
    with pytest.raises(InputError, match=says):
        read_captions("jsonl", write_lines(tmp_path, {"image": "ok.jpg", "caption": "x"}, line))


def test_unknown_layouts_are_refused():
    with pytest.raises(InputError, match="unknown caption dataset 'imagenet'"):
        read_captions("imagenet", Path("."))


@pytest.mark.skipif(not GROCERY.is_dir(), reason="needs ../shared/data/grocery")
def test_grocery_photos_have_the_sentences_of_their_product():
    raw = read_captions("grocery", GROCERY)
    assert len(raw.images) == 5421 and len({image.label for image in raw.images}) == 81
    sizes = {split: sum(image.split == split for image in raw.images) for split in ("train", "val", "test")}
    assert sizes == {"train": 2640, "val": 296, "test": 2485}
    assert all(image.image.split("/")[0] == image.split for image in raw.images)
    lime = next(image for image in raw.images if image.label == "Lime")
    assert lime.captions[1] == "It is mainly the juice you use but also the shell can be used."


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\x1c"])
def test_a_caption_may_hold_what_other_programs_take_for_a_line_break(tmp_path, mark):
    layouts = {
        "captions.txt": f"image,caption\na.jpg,one{mark}two\r\n",
        "results.csv": f"image_name| comment_number| comment\na.jpg| 0| one{mark}two\n",
        "Flickr8k.token.txt": f"a.jpg#0\tone{mark}two\n",
    }
    for name, content in layouts.items():
        (tmp_path / name[0]).mkdir()
        (tmp_path / name[0] / name).write_text(content, encoding="utf-8", newline="")
        (image,) = read_captions("flickr8k", tmp_path / name[0]).images
        assert image.image == "a.jpg" and [text.strip() for text in image.captions] == [f"one{mark}two"]


def test_one_image_under_two_spellings_of_its_path(tmp_path):
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,one\n./a.jpg,two\n")
    (image,) = read_captions("flickr8k", tmp_path).images
    assert image.captions == ("one", "two")
    write_lines(tmp_path, '{"image": "./b/a.jpg", "caption": "one"}', '{"image": "b//a.jpg", "caption": "two"}')
    (image,) = read_captions("jsonl", tmp_path).images
    assert (image.image, image.captions) == ("b/a.jpg", ("one", "two"))


def test_a_label_of_zero_is_one(tmp_path):
    write_lines(tmp_path, '{"image": "a.jpg", "caption": "x", "label": 0}', '{"image": "b.jpg", "caption": "x"}')
    assert [image.label for image in read_captions("jsonl", tmp_path).images] == ["0", ""]


@pytest.mark.parametrize("image", ["../a.jpg", "/etc/a.jpg", "b/../../a.jpg", "a\x1b[2J.jpg"])
def test_no_reader_leaves_the_data_root(tmp_path, image):
    (tmp_path / "captions.txt").write_text(f"image,caption\n{image},one\n")
    write_lines(tmp_path, {"image": image, "caption": "x"})
    (tmp_path / "annotations").mkdir()
    content = {
        "images": [{"id": 1, "file_name": f"../{image}"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "x"}],
    }
    for folder in ("train2014", "val2014"):
        (tmp_path / "annotations" / f"captions_{folder}.json").write_text(json.dumps(content))
    for dataset in ("flickr8k", "jsonl", "coco"):
        with pytest.raises(InputError, match="leaves the data root, or holds control characters"):
            read_captions(dataset, tmp_path)


def test_prepared_identities_keep_their_splits(tmp_path):
    splits = {"a": "train", "b": "val", "c": "query"}
    rows = {f"{item}/{n}.jpg": {"item_id": item, "split": split} for item, split in splits.items() for n in range(2)}
    rows["c/1.jpg"]["split"] = "gallery"
    files = {
        "dataset.json": {"name": "mine", "image_dir": str(tmp_path)},
        "image_paths.json": rows,
        "image_prompts_cleaned_for_v4.json": {"a": "a red thing", "b": ["a blue thing", "blue"], "c": "c"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    raw = read_captions("identities", tmp_path)
    found = {image.image: (image.split, image.captions) for image in raw.images}
    assert found["a/0.jpg"] == ("train", ("a red thing",))
    assert found["b/1.jpg"] == ("val", ("a blue thing", "blue"))
    assert found["c/0.jpg"] == found["c/1.jpg"] == ("test", ("c",))
    assert list(raw.seen_identities.values()) == [["a", "b"]]
    (tmp_path / "image_prompts_cleaned_for_v4.json").write_text(json.dumps({"a": "a red thing", "b": "b"}))
    with pytest.raises(InputError, match="1 of 3 identities without prompt: c"):
        read_captions("identities", tmp_path)
