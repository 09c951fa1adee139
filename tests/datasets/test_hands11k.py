import shutil

import pytest

from clipfh.core.errors import InputError
from clipfh.datasets import hands11k
from clipfh.images.photo_files import count_reasons

HEADER = "id,age,gender,skinColor,accessories,nailPolish,aspectOfHand,imageName,irregularities"


def hand_info():
    """Ten train ids below every threshold, test ids above, one of them with a single photo and a trailing blank."""
    rows = []

    def add(item_id, aspect, accessories=0, polish=0, irregular=0, age=27):
        number = len(rows) + 1
        rows.append(f"{item_id},{age},female,fair,{accessories},{polish},{aspect},Hand_{number:07}.jpg,{irregular}")

    for item_id in [*range(1, 11), 1050, 1051, 1100]:
        for _ in range(3):
            add(item_id, "dorsal right", polish=int(item_id == 1100))
    add("1200000 ", "dorsal right", irregular=1, age=70)
    add(1100, "dorsal right", accessories=1)
    add(1, "palmar left")
    add(1043, "palmar left")
    add(1043, "palmar left")
    return rows


def write_info(root, rows, header=HEADER):
    (root / "Hands").mkdir(exist_ok=True)
    (root / "HandInfo.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def root(tmp_path):
    write_info(tmp_path, hand_info())
    for row in hand_info():
        (tmp_path / "Hands" / row.split(",")[7]).write_bytes(b"x")
    return tmp_path


def test_split_by_threshold(root, items_by_split):
    dataset = hands11k.read(root)
    items = items_by_split(dataset.table)
    assert items["train"] | items["val"] == {*map(str, range(1, 11)), "1050"}
    assert len(items["val"]) == 2
    assert items["gallery"] == {"1051", "1100", "1200000"}
    assert items["query"] == {"1051", "1100"}  # the only photo of 1200000 has no match, so it is no query
    counts = dataset.table.groupby(["item_id", "split"]).size()
    assert counts["1051", "gallery"] == 1
    assert counts["1051", "query"] == 2
    assert count_reasons(dataset.left_out) == {"another aspect than dorsal_right": 3, "hand with accessories": 1}
    assert dataset.missing == ()
    assert dataset.random_protocol == "one_gallery"
    assert dataset.image_dir == root / "Hands"
    assert "Hand_0000001.jpg" in set(dataset.table["image"])


def test_files_and_list_are_compared(root):
    (root / "Hands" / "Hand_0000001.jpg").unlink()
    (root / "Hands" / "Hand_0000002.jpg").write_bytes(b"")
    (root / "Hands" / "Hand_9.JPG").write_bytes(b"x")
    dataset = hands11k.read(root)
    assert dataset.missing == (("Hand_0000001.jpg", "file not found"), ("Hand_0000002.jpg", "empty file"))
    assert {"Hand_0000001.jpg", "Hand_0000002.jpg"} <= set(dataset.table["image"])  # the protocol names them
    assert ("Hand_9.JPG", "not in HandInfo.csv") in dataset.left_out


def test_other_aspect(root, items_by_split):
    items = items_by_split(hands11k.read(root, aspect="palmar_left").table)
    assert items == {"train": {"1"}, "query": {"1043"}, "gallery": {"1043"}}


@pytest.mark.parametrize(
    ("aspect", "last_train"),
    [("dorsal_right", 1050), ("dorsal_left", 1037), ("palmar_right", 1051), ("palmar_left", 1042)],
)
def test_thresholds(tmp_path, items_by_split, aspect, last_train):
    spelled = aspect.replace("_", " ")
    ids = [last_train, last_train, last_train + 1, last_train + 1]
    rows = [f"{item_id},30,male,dark,0,0,{spelled},{n}.jpg,0" for n, item_id in enumerate(ids)]
    write_info(tmp_path, rows)
    items = items_by_split(hands11k.read(tmp_path, aspect=aspect).table)
    assert items["train"] == {str(last_train)}
    assert items["query"] == items["gallery"] == {str(last_train + 1)}


def test_descriptions_from_attributes(root):
    descriptions = hands11k.read(root).descriptions
    assert descriptions["1100"].category == "hand"
    assert descriptions["1100"].attributes == (
        "dorsal side of the right hand",
        "female",
        "fair skin",
        "aged 20 to 29",
        "nail polish",
    )
    assert descriptions["1200000"].attributes[-2:] == ("aged 70 to 79", "irregularities")


def test_seeded(root):
    first, again = (hands11k.read(root, seed=3).table for _ in range(2))
    assert first.equals(again)
    assert any(not first.equals(hands11k.read(root, seed=seed).table) for seed in (4, 5, 6))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("12a,27,female,fair,0,0,dorsal right,x.jpg,0", "line 3: id '12a' is not a whole number"),
        ("12,27,female,fair,,0,dorsal right,x.jpg,0", "line 3: accessories '' is not a whole number"),
        ("12,27,female,fair,0,0,upside down,x.jpg,0", "line 3: unknown aspectOfHand 'upside down'"),
        ("12,27,female,fair,0,0,dorsal right", "line 3: 7 values, the header has 9"),
        ("12,27,female,fair,0,0,dorsal right,../x.jpg,0", "line 3: imageName '../x.jpg'"),
    ],
)
def test_malformed_row(root, row, message):
    rows = hand_info()
    write_info(root, [rows[0], row, *rows[1:]])
    with pytest.raises(InputError, match=message):
        hands11k.read(root)


def test_missing_parts(root, tmp_path):
    with pytest.raises(InputError, match=r"unknown aspect 'thumb'; the aspects are dorsal_right, "):
        hands11k.read(root, aspect="thumb")
    write_info(root, hand_info(), header=HEADER.replace("accessories", "rings"))
    with pytest.raises(InputError, match="line 1: no column 'accessories'"):
        hands11k.read(root)
    (root / "HandInfo.csv").unlink()
    with pytest.raises(InputError, match=r"(?s)HandInfo\.csv does not exist.*Hands/Hand_0000002"):
        hands11k.read(root)
    shutil.rmtree(root / "Hands")
    with pytest.raises(InputError, match=r"Hands does not exist"):
        hands11k.read(root)
