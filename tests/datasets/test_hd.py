import pytest

from clipfh.core.errors import InputError
from clipfh.datasets import hd
from clipfh.images.photo_files import HIDDEN


@pytest.fixture
def root(tmp_path, touch):
    names = [f"1-501/{subject}_{n}.jpg" for subject in (1, 2, 3, 446, 447, 448, 501) for n in range(1, 6)]
    names += ["1-501/500_1.JPG", "1-501/Thumbs.db", "502-712/502_1.jpg", "502-712/448_1.jpg"]
    touch(tmp_path / "Original Images", names)
    return tmp_path


def test_splits_and_distractors(root, items_by_split):
    dataset = hd.read(root)
    items = items_by_split(dataset.table)
    assert items["train"] | items["val"] == {"1", "2", "3", "446", "447"}
    assert len(items["val"]) == 2
    assert items["query"] == {"448", "501"}
    # a distractor is nobody of 1-501, whatever number it bears; subject 500 has one image, hence no query
    assert items["gallery"] == {"448", "500", "501", "distractor_502", "distractor_448"}
    counts = dataset.table.groupby(["item_id", "split"]).size()
    assert counts["448", "gallery"] == 1
    assert counts["448", "query"] == 4
    assert dataset.random_protocol == "one_gallery"
    assert dataset.image_dir == root / "Original Images"
    assert {"1-501/1_1.jpg", "502-712/502_1.jpg", "1-501/500_1.JPG"} <= set(dataset.table["image"])
    assert len(dataset.table) == 38
    assert dataset.left_out == (("1-501/Thumbs.db", HIDDEN),)


def test_photos_that_are_not_used_are_counted(root, touch):
    touch(root / "Original Images", ["1-501/hand.jpg", "1-501/deeper/9_1.tiff", "loose.jpg", "extra/1_1.jpg"])
    dataset = hd.read(root)
    assert "1-501/deeper/9_1.tiff" in set(dataset.table["image"])
    assert dict(dataset.left_out) == {
        "1-501/Thumbs.db": HIDDEN,
        "1-501/hand.jpg": "name not of the form 1_1.jpg (subject number, underscore, anything)",
        "loose.jpg": "outside 1-501 and 502-712",
        "extra/1_1.jpg": "outside 1-501 and 502-712",
    }


def test_numbers_with_leading_zeros_are_the_same_subject(root, touch, items_by_split):
    touch(root / "Original Images", ["1-501/0448_9.jpg"])
    table = hd.read(root).table
    assert (table["item_id"] == "448").sum() == 6


def test_bad_input(root, touch):
    with pytest.raises(InputError, match="does not exist"):
        hd.read(root / "nowhere")
    for path in (root / "Original Images" / "502-712").iterdir():
        path.unlink()
    touch(root / "Original Images", ["502-712/hand.jpg"])
    with pytest.raises(InputError, match=r"502-712 has no photo that can be used \(1 name not of the form 1_1\.jpg"):
        hd.read(root)
    (root / "Original Images" / "502-712" / "hand.jpg").unlink()
    (root / "Original Images" / "502-712").rmdir()
    with pytest.raises(InputError, match=r"(?s)502-712 does not exist.*Original Images/502-712/502_1\.jpg"):
        hd.read(root)
