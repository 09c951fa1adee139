import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipfh.core.errors import InputError
from clipfh.tables.records import make_table, read_image_meta, write_image_meta

ROWS = [
    ("b/1.jpg", "b", "query", "c1"),
    ("b/2.jpg", "b", "gallery", "c2"),
    ("a/1.jpg", "a", "train", ""),
    ("ç/1.jpg", "ç", "val", ""),
]


def test_table_is_sorted_and_survives_the_file(tmp_path):
    table = make_table(ROWS)
    assert table["image"].tolist() == ["a/1.jpg", "b/1.jpg", "b/2.jpg", "ç/1.jpg"]
    path = tmp_path / "new" / "image_paths.json"
    write_image_meta(path, table)
    assert read_image_meta(path).equals(table)
    assert json.loads(path.read_text(encoding="utf-8"))["b/1.jpg"] == {"item_id": "b", "split": "query", "camera": "c1"}
    assert "ç/1.jpg" in path.read_text(encoding="utf-8")


safe_name = st.text(st.characters(exclude_characters="/\\:", exclude_categories=("C",)), min_size=1).filter(
    lambda name: name.strip(".")
)


@given(names=st.sets(safe_name, min_size=1), folder=safe_name)
def test_any_name_survives_the_file(tmp_path_factory, names, folder):
    table = make_table([(f"{folder}/{name}", f"id {name}", "train", "") for name in names])
    path = tmp_path_factory.mktemp("meta") / "image_paths.json"
    write_image_meta(path, table)
    assert read_image_meta(path).equals(table)


def test_camera_and_number_ids_written_by_hand(tmp_path):
    path = tmp_path / "image_paths.json"
    path.write_text(
        '{"1.jpg": {"item_id": 7, "split": "train"}, "2.jpg": {"item_id": "8", "split": "val", "camera": null}}'
    )
    table = read_image_meta(path)
    assert table["item_id"].tolist() == ["7", "8"]
    assert table["camera"].tolist() == ["", ""]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "lists no image"),
        ([("a.jpg", "a", "test", "")], "unknown split 'test'; the splits are train, val, query, gallery"),
        ([("a.jpg", "a", "train", ""), ("a.jpg", "b", "train", "")], r"a\.jpg is listed twice"),
        ([("a.jpg", " ", "train", "")], r"a\.jpg has no item id"),
        (
            [("a.jpg", "a", "train", ""), ("b.jpg", "a", "val", "")],
            "identity a is in more than one of train, val and test",
        ),
        ([("a.jpg", "a", "train", ""), ("b.jpg", "a", "gallery", "")], "identity a is in more than one"),
        ([("a.jpg", "a", "val", ""), ("b.jpg", "a", "query", "")], "identity a is in more than one"),
    ],
)
def test_contract_is_checked(rows, message):
    with pytest.raises(InputError, match=message):
        make_table(rows)


@pytest.mark.parametrize("image", ["/etc/a.jpg", "../a.jpg", "a/../../b.jpg", "C:/a.jpg", "a\\b.jpg", "", "."])
def test_images_stay_in_the_root(image):
    with pytest.raises(InputError, match="leaves the image root"):
        make_table([(image, "a", "train", "")])


def test_name_that_is_not_utf8():
    with pytest.raises(InputError, match="is not UTF-8; rename the file"):
        make_table([("a/\udcff.jpg", "a", "train", "")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "unexpected shape"),
        ('{"a.jpg": }', "line 1, column 11: not valid JSON"),
        ('{"a.jpg": "a"}', "entry 'a.jpg' needs the keys"),
        ('{"a.jpg": {"item_id": "a"}}', "entry 'a.jpg' needs the keys"),
        ("{}", "lists no image"),
    ],
)
def test_malformed_file(tmp_path, text, message):
    path = tmp_path / "image_paths.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_image_meta(path)


def test_missing_file_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"does not exist\. Make it with: python preprocessing/00_prepare_dataset"):
        read_image_meta(tmp_path / "image_paths.json")


def test_a_bad_table_leaves_the_old_file(tmp_path):
    path = tmp_path / "image_paths.json"
    write_image_meta(path, make_table(ROWS))
    before = path.read_bytes()
    bad = make_table(ROWS)
    bad.loc[0, "split"] = "holiday"
    with pytest.raises(InputError, match="unknown split"):
        write_image_meta(path, bad)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["image_paths.json"]


def read_entry(tmp_path, **entry):
    path = tmp_path / "image_paths.json"
    path.write_text(json.dumps({"a.jpg": {"item_id": "a", "split": "train", **entry}}))
    return read_image_meta(path).iloc[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0, "0"), (4, "4"), (4.0, "4"), (4.5, "4.5"), (-1, "-1"), ("0", "0"), ("é\u200d👩", "é\u200d👩")],
)
def test_numbers_are_ids_and_cameras_and_zero_is_one(tmp_path, value, text):
    row = read_entry(tmp_path, item_id=value, camera=value)
    assert (row["item_id"], row["camera"]) == (text, text)


@pytest.mark.parametrize("value", [None, float("nan"), "", " "])
def test_nothing_is_an_unknown_camera_but_no_id(tmp_path, value):
    assert read_entry(tmp_path, camera=value)["camera"] == ""
    with pytest.raises(InputError, match=r"image_paths.json: 'a.jpg' has no item id"):
        read_entry(tmp_path, item_id=value)


@pytest.mark.parametrize("key", ["item_id", "camera", "split"])
@pytest.mark.parametrize(
    "value", [True, False, [], {}, ["a"], {"a": 1}, float("inf"), "a\0b", "a\nb", "\ud800", "\u202ea"]
)
def test_other_values_are_refused_with_the_image(tmp_path, key, value):
    with pytest.raises(InputError, match=r"a\.jpg|unknown split") as refused:
        read_entry(tmp_path, **{key: value})
    assert str(refused.value).isprintable() and len(str(refused.value)) - len(str(tmp_path)) < 200


@pytest.mark.parametrize("other", ["./a/b.jpg", "a//b.jpg", "a/./b.jpg", "././/a/b.jpg"])
def test_one_image_has_one_path(tmp_path, other):
    entry = {"item_id": "a", "split": "train"}
    (tmp_path / "t.json").write_text(json.dumps({other: entry}))
    assert read_image_meta(tmp_path / "t.json")["image"].tolist() == ["a/b.jpg"]
    assert make_table([(other, "a", "train", "")])["image"].tolist() == ["a/b.jpg"]
    (tmp_path / "t.json").write_text(json.dumps({other: entry, "a/b.jpg": {**entry, "split": "val"}}))
    with pytest.raises(InputError, match=r"a/b.jpg is listed twice"):
        read_image_meta(tmp_path / "t.json")


def test_composed_and_decomposed_ids_are_one(tmp_path):
    table = make_table([("1.jpg", "caf\u00e9", "query", ""), ("2.jpg", "cafe\u0301", "gallery", "")])
    assert set(table["item_id"]) == {"caf\u00e9"}
    write_image_meta(tmp_path / "t.json", table)
    assert read_entry(tmp_path, item_id="cafe\u0301")["item_id"] == "caf\u00e9"
