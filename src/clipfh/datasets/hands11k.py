"""11k Hands: 11,076 photos of the hands of 190 subjects.

Source: Afifi, "11K Hands: Gender recognition and biometric identification using a large dataset of hand images",
Multimedia Tools and Applications, 2019; https://sites.google.com/view/11khands

Raw layout below the data root: see `LAYOUT`. The columns of `HandInfo.csv` are those of `COLUMNS`.

Protocol of Baisa et al., "Hand-Based Person Identification using Global and Part-Aware Deep Feature Representation
Learning" (2021): each of the four aspects (side of the right or left hand) is a dataset of its own; photos with
accessories are left out; subjects up to the id of `LAST_TRAIN_ID` are train, the rest test; ten Monte Carlo splits, in
each of which one random image of a test subject is the gallery and its others are queries. The official split is the
first Monte Carlo one of the seed. 10% of the train subjects are held out as val.
"""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from clipfh.core.errors import InputError
from clipfh.datasets.layout import read_raw_csv, require_folder
from clipfh.images.photo_files import compare_with_list
from clipfh.prompts.description import Description
from clipfh.tables.dataset import Dataset
from clipfh.tables.records import make_table
from clipfh.tables.splits import VAL_FRACTION, assign_val_identities, split_test_images

LAYOUT = """\
    DATA_ROOT/HandInfo.csv
    DATA_ROOT/Hands/Hand_0000002.jpg"""

INFO = "HandInfo.csv"
COLUMNS = (
    "id",
    "age",
    "gender",
    "skinColor",
    "accessories",
    "nailPolish",
    "aspectOfHand",
    "imageName",
    "irregularities",
)
NUMBERS = ("id", "age", "accessories", "nailPolish", "irregularities")
LAST_TRAIN_ID = {"dorsal_right": 1050, "dorsal_left": 1037, "palmar_right": 1051, "palmar_left": 1042}
PROTOCOL = "one_gallery"

Aspect = Literal["dorsal_right", "dorsal_left", "palmar_right", "palmar_left"]


def read(data_root: Path, *, seed: int = 0, aspect: Aspect = "dorsal_right") -> Dataset:
    """Read one aspect of 11k Hands.

    Args:
        data_root: the folder of `LAYOUT`.
        seed: chooses the val subjects and the official split.
        aspect: which side of which hand.

    Raises:
        InputError: unknown aspect, a missing file or folder, or a malformed line.
    """
    if aspect not in LAST_TRAIN_ID:
        raise InputError(f"unknown aspect {aspect!r}; the aspects are {', '.join(LAST_TRAIN_ID)}")
    image_dir = require_folder(require_folder(Path(data_root), LAYOUT) / "Hands", LAYOUT)
    photos: dict[str, list[dict[str, str]]] = {}  # item id to the rows of its photos
    reasons: dict[str, str] = {}  # photos of the list that are not used
    for row in _read_hand_info(Path(data_root) / INFO):
        if row["aspectOfHand"].replace(" ", "_") != aspect:
            reasons[row["imageName"]] = f"another aspect than {aspect}"
        elif row["accessories"] != "0":
            reasons[row["imageName"]] = "hand with accessories"
        else:
            photos.setdefault(row["id"], []).append(row)

    images = {item_id: [row["imageName"] for row in rows] for item_id, rows in photos.items()}
    train = {item_id: names for item_id, names in images.items() if int(item_id) <= LAST_TRAIN_ID[aspect]}
    test = {item_id: names for item_id, names in images.items() if item_id not in train}
    several = {item_id for item_id, names in train.items() if len(names) > 1}
    val_ids = assign_val_identities(train, VAL_FRACTION, seed, measurable=several)
    rows = [
        (image, item_id, "val" if item_id in val_ids else "train", "") for item_id in train for image in train[item_id]
    ]
    rows += split_test_images(test, PROTOCOL, np.random.default_rng(seed))
    left_out, missing = compare_with_list(image_dir, (row[0] for row in rows), INFO, reasons=reasons)
    return Dataset(
        name="hands11k",
        image_dir=image_dir,
        table=make_table(rows),
        descriptions={item_id: describe(photos[item_id], aspect) for item_id in sorted(photos, key=int)},
        random_protocol=PROTOCOL,
        left_out=tuple(left_out),
        missing=tuple(missing),
    )


def describe(rows: list[dict[str, str]], aspect: Aspect) -> Description:
    """What HandInfo says of one subject's photos; nail polish and irregularities count if most photos show them."""
    side, hand = aspect.split("_")
    most = {column: Counter(row[column] for row in rows).most_common(1)[0][0] for column in COLUMNS}
    attributes = [
        f"{side} side of the {hand} hand",
        most["gender"],
        f"{most['skinColor']} skin" if most["skinColor"] else "",
        age_group(int(most["age"])),
        "nail polish" if most["nailPolish"] != "0" else "",
        "irregularities" if most["irregularities"] != "0" else "",
    ]
    return Description(category="hand", attributes=tuple(attribute for attribute in attributes if attribute))


def age_group(age: int) -> str:
    """Age in decades: 27 gives "aged 20 to 29"."""
    decade = age // 10 * 10
    return f"aged {decade} to {decade + 9}"


def _read_hand_info(path: Path) -> list[dict[str, str]]:
    """Rows of `HandInfo.csv`, with values stripped: one row of the dataset has the id `1200000 ` with a blank."""
    rows = []
    aspects = {aspect.replace("_", " ") for aspect in LAST_TRAIN_ID}
    for line, row in read_raw_csv(path, COLUMNS, LAYOUT):
        for column in NUMBERS:
            if not row[column].isdecimal():
                raise InputError(f"{path}, line {line}: {column} {row[column]!r} is not a whole number")
        if row["aspectOfHand"] not in aspects:
            raise InputError(
                f"{path}, line {line}: unknown aspectOfHand {row['aspectOfHand']!r}; it is one of "
                + ", ".join(sorted(aspects))
            )
        if not row["imageName"] or len(PurePosixPath(row["imageName"]).parts) != 1:
            raise InputError(f"{path}, line {line}: imageName {row['imageName']!r} is not the name of a file in Hands/")
        rows.append({**row, "id": str(int(row["id"]))})
    return rows
