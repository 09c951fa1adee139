"""Grocery Store Dataset: smartphone photos of fruit, vegetables and cartons in shops, with a description per product.

Source: Klasson, Zhang, Kjellström, "A Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels",
WACV 2019; https://github.com/marcusklasson/GroceryStoreDataset (its folder `dataset/`)

Raw layout below the data root: see `LAYOUT`. Lines of the lists are `path, class id, coarse class id`.

Protocol: the dataset is made for classification; here a product is an identity. Half of the products (41 of 81) are
train, drawn with `numpy.random.RandomState(seed).permutation`; the photos of all three lists belong to them. Of the
other products the photos of `test.txt` are the queries and those of `train.txt` and `val.txt` the gallery: they were
taken on other occasions. Photos of one occasion are near-duplicates, so that leaving one out of a single list measures
little; therefore the occasion (`test` or `train`) is the table's camera, and the same camera is excluded. That changes
nothing in the official split, but keeps the random ones honest. 10% of the train products are held out as val.
"""

import re
from pathlib import Path, PurePosixPath

import numpy as np

from clipfh.core.errors import InputError
from clipfh.datasets.layout import read_raw_csv, read_raw_lines, read_raw_text, require_folder
from clipfh.images.photo_files import compare_with_list
from clipfh.prompts.description import Description
from clipfh.tables.dataset import Dataset
from clipfh.tables.records import make_table
from clipfh.tables.splits import VAL_FRACTION, assign_val_identities, measurable_identities

LAYOUT = """\
    DATA_ROOT/classes.csv
    DATA_ROOT/train.txt, val.txt, test.txt
    DATA_ROOT/train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg    (so too val/ and test/)
    DATA_ROOT/iconic-images-and-descriptions/Fruit/Apple/Golden-Delicious/Golden-Delicious_Description.txt"""

NAME, CLASS_ID, COARSE_NAME, DESCRIPTION_PATH = CLASS_COLUMNS = (
    "Class Name (str)",
    "Class ID (int)",
    "Coarse Class Name (str)",
    "Product Description Path (str)",
)
OCCASIONS = {"test": "query", "train": "gallery"}  # of a test product
OCCASION_OF_LIST = {"train": "train", "val": "train", "test": "test"}


def read(data_root: Path, *, seed: int = 0) -> Dataset:
    """Read the Grocery Store Dataset.

    Args:
        data_root: the folder of `LAYOUT`.
        seed: chooses the train products and, among them, the val ones.

    Raises:
        InputError: a missing file or folder, or a malformed line.
    """
    data_root = require_folder(Path(data_root), LAYOUT)
    products = _read_classes(data_root / "classes.csv")
    class_ids = sorted(products)
    order = np.random.RandomState(seed).permutation(len(class_ids))
    train_classes = {class_ids[index] for index in order[: (len(class_ids) + 1) // 2]}
    photos = [
        (image, products[class_id][NAME], class_id in train_classes, occasion)
        for list_name, occasion in OCCASION_OF_LIST.items()
        for image, class_id in _read_list(data_root / f"{list_name}.txt", products)
    ]
    seen = [(item_id, occasion) for _, item_id, is_train, occasion in photos if is_train]
    val_ids = assign_val_identities(
        (products[class_id][NAME] for class_id in train_classes),
        VAL_FRACTION,
        seed,
        measurable=measurable_identities(seen, exclude_same_camera=True),
    )
    rows = []
    for image, item_id, is_train, occasion in photos:
        train_split, test_split = ("val" if item_id in val_ids else "train"), OCCASIONS[occasion]
        split = train_split if is_train else test_split
        rows.append((image, item_id, split, occasion))
    left_out, missing = compare_with_list(data_root, (row[0] for row in rows), "train.txt, val.txt or test.txt")
    read_too = {"classes.csv", *(f"{name}.txt" for name in OCCASION_OF_LIST)}
    read_too |= {product[DESCRIPTION_PATH].lstrip("/") for product in products.values()}
    return Dataset(
        name="grocery",
        image_dir=data_root,
        table=make_table(rows),
        descriptions={product[NAME]: _describe(data_root, product) for product in products.values()},
        exclude_same_camera=True,
        left_out=tuple(entry for entry in left_out if entry[0] not in read_too),
        missing=tuple(missing),
    )


def split_sentences(text: str) -> tuple[str, ...]:
    """Sentences of a description, one a line; line breaks of the file mean nothing."""
    return tuple(re.split(r"(?<=[.!?])\s+(?=[^a-z\s])", " ".join(text.split()))) if text.strip() else ()


def _describe(data_root: Path, product: dict[str, str]) -> Description:
    # the paths in classes.csv begin with "/", meaning the data root
    text = read_raw_text(data_root / product[DESCRIPTION_PATH].lstrip("/"), LAYOUT)
    return Description(category=product[COARSE_NAME].replace("-", " ").lower(), lines=split_sentences(text))


def _read_classes(path: Path) -> dict[int, dict[str, str]]:
    """Class id to the row of `classes.csv`; the name is made unique, as it becomes the item id."""
    products: dict[int, dict[str, str]] = {}
    names: set[str] = set()
    for line, row in read_raw_csv(path, CLASS_COLUMNS, LAYOUT):
        if not row[CLASS_ID].isdecimal() or int(row[CLASS_ID]) in products:
            raise InputError(f"{path}, line {line}: class id {row[CLASS_ID]!r} is not a new whole number")
        if not row[NAME]:
            raise InputError(f"{path}, line {line}: the class has no name")
        if ".." in PurePosixPath(row[DESCRIPTION_PATH]).parts:
            raise InputError(f"{path}, line {line}: the path {row[DESCRIPTION_PATH]!r} leaves the data root")
        name = row[NAME] if row[NAME] not in names else f"{row[NAME]}-{row[CLASS_ID]}"
        names.add(name)
        products[int(row[CLASS_ID])] = {**row, NAME: name}
    if len(products) < 2:
        raise InputError(f"{path} lists {len(products)} classes; at least 2 are needed, one to train and one to test")
    return products


def _read_list(path: Path, products: dict[int, dict[str, str]]) -> list[tuple[str, int]]:
    """(image, class id) of each line."""
    entries = []
    for number, line in enumerate(read_raw_lines(path, LAYOUT), start=1):
        if not line.strip():
            continue
        columns = [column.strip() for column in line.split(",")]
        if len(columns) != 3 or not columns[1].isdecimal():
            raise InputError(f"{path}, line {number}: expected 'path, class id, coarse class id', found {line!r}")
        if int(columns[1]) not in products:
            raise InputError(f"{path}, line {number}: class id {columns[1]} is not in classes.csv")
        entries.append((columns[0].lstrip("/"), int(columns[1])))
    return entries
