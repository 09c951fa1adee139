import pytest

from clipfh.datasets import market1501
from clipfh.errors import InputError


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
    assert dataset.left_out == {"junk boxes (person -1)": 2}
    camera = dict(zip(dataset.table["image"], dataset.table["camera"], strict=True))
    assert camera["bounding_box_test/0001_c6s3_077419_02.jpg"] == "c6"
    assert len(camera) == 12
    assert dataset.exclude_same_camera
    assert set(dataset.descriptions) == {"0001", "0002", "0007", "0010", "0011"}


def test_bad_input(root, touch):
    touch(root, ["query/somebody.jpg"])
    with pytest.raises(InputError, match=r"query/somebody\.jpg: the name is not of the form"):
        market1501.read(root)
    (root / "query" / "somebody.jpg").unlink()
    (root / "query" / "0001_c1s1_001051_00.jpg").unlink()
    (root / "query").rmdir()
    with pytest.raises(InputError, match=r"(?s)query does not exist.*DATA_ROOT/bounding_box_train"):
        market1501.read(root)


def test_person_in_train_and_test(root, touch):
    touch(root, ["bounding_box_train/0001_c1s1_000001_00.jpg"])
    with pytest.raises(InputError, match="identity 0001 is in more than one"):
        market1501.read(root)
