import numpy as np
import pytest
from places import SHARED

from clipfh.core.errors import InputError
from clipfh.datasets import grocery

REAL_DATA = SHARED / "data" / "grocery"
COLUMNS = (
    "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
    "Iconic Image Path (str),Product Description Path (str)"
)
NUM_CLASSES = 9


def class_row(class_id, name=None):
    name = name or f"Red-Apple-{class_id}"
    folder = f"/iconic-images-and-descriptions/Fruit/Red-Apple/{name}/{name}"
    return f"{name},{class_id},Red-Apple,0,{folder}_Iconic.jpg,{folder}_Description.txt"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "classes.csv").write_text("\n".join([COLUMNS, *map(class_row, range(NUM_CLASSES))]) + "\n")
    for class_id in range(NUM_CLASSES):
        folder = tmp_path / f"iconic-images-and-descriptions/Fruit/Red-Apple/Red-Apple-{class_id}"
        folder.mkdir(parents=True)
        text = f"A crème apple no {class_id}.\nIt is used e.g. in pies. 7 cm wide. Sweet! \n"
        (folder / f"Red-Apple-{class_id}_Description.txt").write_text(text, encoding="utf-8")
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        lines = [
            f"{name}/Fruit/Red-Apple/Red-Apple-{class_id}/{n:03}.jpg, {class_id}, 0"
            for class_id in range(NUM_CLASSES)
            for n in range(count)
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_products_are_split_by_identity(root, items_by_split):
    dataset = grocery.read(root)
    items = items_by_split(dataset.table)
    expected = {f"Red-Apple-{label}" for label in np.random.RandomState(0).permutation(NUM_CLASSES)[:5]}
    assert items["train"] | items["val"] == expected
    assert len(items["val"]) == 2
    assert items["query"] == items["gallery"]
    assert len(items["query"]) == 4
    table = dataset.table
    assert table.loc[table["split"] == "query", "image"].str.startswith("test/").all()
    assert not table.loc[table["split"] == "gallery", "image"].str.startswith("test/").any()
    assert table["image"].str.startswith("test/").equals(table["camera"] == "test")
    assert set(table["camera"]) == {"train", "test"}
    assert len(table) == 6 * NUM_CLASSES  # of train products the photos of all three lists are used
    assert dataset.exclude_same_camera
    assert dataset.image_dir == root


def test_descriptions(root):
    description = grocery.read(root).descriptions["Red-Apple-3"]
    assert description.category == "red apple"
    assert description.lines == ("A crème apple no 3.", "It is used e.g. in pies.", "7 cm wide.", "Sweet!")


def test_names_become_unique(root):
    rows = [class_row(0), class_row(1, name="Red-Apple-0"), *map(class_row, range(2, NUM_CLASSES))]
    (root / "classes.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    assert {"Red-Apple-0", "Red-Apple-0-1"} <= set(grocery.read(root).table["item_id"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/a.jpg, 0", "line 2: expected 'path, class id, coarse class id'"),
        ("train/a.jpg, apple, 0", "line 2: expected 'path, class id, coarse class id'"),
        ("train/a.jpg, 77, 0", r"line 2: class id 77 is not in classes\.csv"),
    ],
)
def test_malformed_list(root, line, message):
    (root / "train.txt").write_text(f"train/Fruit/x.jpg, 0, 0\n{line}\n")
    with pytest.raises(InputError, match=rf"train\.txt, {message}"):
        grocery.read(root)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([class_row(0), class_row(0)], "line 3: class id '0' is not a new whole number"),
        ([class_row(0), "Apple,1"], "line 3: 2 values, the header has 6"),
        ([class_row(0), class_row(1).replace("/Fruit/", "/../../")], "line 3: the path .* leaves the data root"),
        ([class_row(0)], "1 classes; at least 2"),
    ],
)
def test_malformed_classes(root, rows, message):
    (root / "classes.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    with pytest.raises(InputError, match=message):
        grocery.read(root)


@pytest.mark.parametrize("name", ["classes.csv", "val.txt"])
def test_missing_file(root, name):
    (root / name).unlink()
    with pytest.raises(InputError, match=rf"(?s){name} does not exist.*DATA_ROOT/classes\.csv"):
        grocery.read(root)


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"the Grocery Store Dataset is not at {REAL_DATA}")
def test_real_data(items_by_split):
    dataset = grocery.read(REAL_DATA)
    items = items_by_split(dataset.table)
    assert {split: len(group) for split, group in items.items()} == {"train": 37, "val": 4, "query": 40, "gallery": 40}
    assert dataset.table["split"].value_counts().to_dict() == {
        "train": 2408,
        "val": 336,
        "query": 1230,
        "gallery": 1447,
    }
    assert all((dataset.image_dir / image).is_file() for image in dataset.table["image"])
    assert len(dataset.descriptions) == 81
    assert all(description.lines for description in dataset.descriptions.values())
