import pytest

from clipfh.core.errors import InputError
from clipfh.datasets import market1501
from clipfh.images.photo_files import HIDDEN, count_reasons


@pytest.fixture
def root(tmp_path, touch):
    train = [
        f"bounding_box_train/{person:04}_c{camera}s1_000451_03.jpg" for person in (2, 7, 10, 11) for camera in (1, 2)
    ]
    test = [
        "bounding_box_test/0001_c1s1_001051_03.jpg",
        "bounding_box_test/0001_c6s3_077419_02.jpg",
        "bounding_box_test/0000_c3s2_001051_01.jpg",
        "bounding_box_test/-1_c1s1_000401_03.jpg",
        "bounding_box_test/-1_c2s1_000401_03.jpg",
        "bounding_box_test/Thumbs.db",
        "query/0001_c1s1_001051_00.jpg",
    ]
    touch(tmp_path, train + test)
    return tmp_path


def test_reads_names(root, items_by_split):
    dataset = market1501.read(root)
    items = items_by_split(dataset.table)
    assert items["train"] | items["val"] == {"0002", "0007", "0010", "0011"}
    assert len(items["val"]) == 2
    assert items["query"] == {"0001"}
    assert items["gallery"] == {"0001", "0000"}  # distractors stay, junk does not
    assert count_reasons(dataset.left_out) == {"junk box (person -1)": 2, HIDDEN: 1}
    camera = dict(zip(dataset.table["image"], dataset.table["camera"], strict=True))
    assert camera["bounding_box_test/0001_c6s3_077419_02.jpg"] == "c6"
    assert len(camera) == 12
    assert dataset.exclude_same_camera
    assert set(dataset.descriptions) == {"0001", "0002", "0007", "0010", "0011"}


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpeg", ".tif", ".webp"])
def test_photos_count_whatever_their_suffix(root, suffix):
    photos = sorted(root.rglob("*.jpg"))
    for photo in photos[::2]:
        photo.rename(photo.with_suffix(suffix))
    dataset = market1501.read(root)
    assert len(dataset.table) == len(photos) - 2  # as many as before: all but the junk


def test_photos_that_are_not_used_are_counted(root, touch):
    names = ["gt_bbox/0002_c1s1_000451_00.jpg", "query/somebody.jpg", "query/0001_c2s1_1_00.heic", "readme.txt"]
    touch(root, [*names, "query/deeper/0001_c2s1_000001_00.png"])
    dataset = market1501.read(root)
    assert "query/deeper/0001_c2s1_000001_00.png" in set(dataset.table["image"])
    reasons = dict(dataset.left_out)
    assert [reasons[name] for name in names] == [
        "outside bounding_box_train, query, bounding_box_test",
        "name not of the form 0002_c1s1_000451_03.jpg",
        "cannot be opened here (.heic): convert them to JPEG",
        "not a photo (.txt)",
    ]
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(dataset.table) + len(dataset.left_out) == len(files)


def test_bad_input(root, touch):
    (root / "query" / "0001_c1s1_001051_00.jpg").unlink()
    touch(root, ["query/somebody.jpg"])
    with pytest.raises(InputError, match=r"query has no photo that can be used \(1 name not of the form 0002_"):
        market1501.read(root)
    (root / "query" / "somebody.jpg").unlink()
    (root / "query").rmdir()
    with pytest.raises(InputError, match=r"(?s)query does not exist.*DATA_ROOT/bounding_box_train"):
        market1501.read(root)


def test_person_in_train_and_test(root, touch):
    touch(root, ["bounding_box_train/0001_c1s1_000001_00.jpg"])
    with pytest.raises(InputError, match="identity 0001 is in more than one"):
        market1501.read(root)
