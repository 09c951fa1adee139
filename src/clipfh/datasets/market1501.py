"""Market-1501, person re-identification.

Source: Zheng, Shen, Tian, Wang, Wang, Tian, "Scalable Person Re-identification: A Benchmark", ICCV 2015;
https://zheng-lab-anu.github.io/Project/project_reid.html

Raw layout below the data root (the folder `Market-1501-v15.09.15` of the archive): see `LAYOUT`. A file name is
`<person>_c<camera>s<sequence>_<frame>_<box>`, with the suffix of any photo; what is named otherwise is left out.

Protocol: 751 train persons with 12,936 images; 3,368 queries of 750 other persons. In `bounding_box_test`, person -1 is
junk (left out: it counts neither for nor against) and person 0 a distractor, a box without a person (kept in the
gallery), unless train or query know a person 0: own data may count from there. `0101` and `101` are one person.
Gallery images of the query's person from the query's camera are excluded. 10% of the train persons are held out as val.
"""

import re
from pathlib import Path

from clipfh.datasets.layout import require_folder
from clipfh.images.photo_files import find_photos, require_photos
from clipfh.prompts.description import Description
from clipfh.tables.dataset import Dataset
from clipfh.tables.records import make_table
from clipfh.tables.splits import VAL_FRACTION, assign_val_identities, measurable_identities

LAYOUT = """\
    DATA_ROOT/bounding_box_train/0002_c1s1_000451_03.jpg
    DATA_ROOT/query/0001_c1s1_001051_00.jpg
    DATA_ROOT/bounding_box_test/0001_c1s1_001051_03.jpg    (so too -1_c1s1_000401_03.jpg, 0000_c1s1_000151_01.jpg)"""

SPLIT_OF_FOLDER = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
FILE_NAME = re.compile(r"(?P<person>-1|\d+)_c(?P<camera>\d+)s\d+_\d+_\d+\.\w+", re.IGNORECASE)
JUNK, DISTRACTOR = "-1", "0000"


def read(data_root: Path, *, seed: int = 0) -> Dataset:
    """Read Market-1501.

    Args:
        data_root: the folder of `LAYOUT`.
        seed: chooses the val persons.

    Raises:
        InputError: a missing folder, or one without an image whose name is of the form above.
    """
    data_root = require_folder(Path(data_root), LAYOUT)
    for folder in SPLIT_OF_FOLDER:
        require_folder(data_root / folder, LAYOUT)
    photos, left_out = find_photos(data_root)
    rows = []
    for photo in photos:
        folder, _, name = photo.partition("/")
        match = FILE_NAME.fullmatch(name.rpartition("/")[2])
        if folder not in SPLIT_OF_FOLDER:
            left_out.append((photo, f"outside {', '.join(SPLIT_OF_FOLDER)}"))
        elif match is None:
            left_out.append((photo, "name not of the form 0002_c1s1_000451_03.jpg"))
        elif match["person"] == JUNK:
            left_out.append((photo, "junk box (person -1)"))
        else:
            rows.append((photo, f"{int(match['person']):04d}", SPLIT_OF_FOLDER[folder], f"c{match['camera']}"))
    for folder, split in SPLIT_OF_FOLDER.items():
        here = [entry for entry in left_out if entry[0].startswith(f"{folder}/")]
        require_photos(data_root / folder, [row for row in rows if row[2] == split], here)
    of_persons = {person for _, person, split, _ in rows if split != "gallery"}
    notes = [f"{DISTRACTOR} is a person here, not a box without one: it is in train or query"]
    train = [(person, camera) for _, person, split, camera in rows if split == "train"]
    measurable = measurable_identities(train, exclude_same_camera=True)
    val_ids = assign_val_identities((person for person, _ in train), VAL_FRACTION, seed, measurable=measurable)
    return Dataset(
        name="market1501",
        image_dir=data_root,
        table=make_table(
            (image, person, "val" if split == "train" and person in val_ids else split, camera)
            for image, person, split, camera in rows
        ),
        descriptions={
            person: Description(category="person")
            for person in sorted({row[1] for row in rows} - ({DISTRACTOR} - of_persons))
        },
        exclude_same_camera=True,
        resize_mode="squash",  # a crop of a person is 128 x 64: a square out of its middle has no head
        left_out=tuple(sorted(left_out)),
        notes=tuple(notes) if DISTRACTOR in of_persons else (),
    )
