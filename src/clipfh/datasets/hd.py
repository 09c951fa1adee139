"""PolyU HD: the Hong Kong Polytechnic University Contactless Hand Dorsal Images Database.

Source: Kumar, Xu, "Personal Identification Using Minor Knuckle Patterns From Palm Dorsal Surface", IEEE Transactions
on Information Forensics and Security, 2016; https://www4.comp.polyu.edu.hk/~csajaykr/knuckleV2.htm

Raw layout below the data root: see `LAYOUT`. A file name begins with the subject's number and an underscore;
what is named otherwise is left out.

Protocol of Baisa et al., "Hand-Based Person Identification using Global and Part-Aware Deep Feature Representation
Learning" (2021): subjects up to 447 are train, the rest of 1-501 test; ten Monte Carlo splits, in each of which one
random image of a test subject is the gallery and its others are queries. The subjects of 502-712 are distractors in
every gallery; they are numbered on their own, hence the item ids `distractor_502`. The official split is the first
Monte Carlo one of the seed. 10% of the train subjects are held out as val.
"""

import re
from pathlib import Path

import numpy as np

from clipfh.datasets.layout import require_folder
from clipfh.images.photo_files import LeftOut, find_photos, require_photos
from clipfh.prompts.description import Description
from clipfh.tables.dataset import Dataset
from clipfh.tables.records import make_table
from clipfh.tables.splits import VAL_FRACTION, assign_val_identities, split_test_images

LAYOUT = """\
    DATA_ROOT/Original Images/1-501/1_1.jpg      (subject number, underscore, anything)
    DATA_ROOT/Original Images/502-712/502_1.jpg"""

SUBJECTS, DISTRACTORS = "1-501", "502-712"
LAST_TRAIN_SUBJECT = 447
PROTOCOL = "one_gallery"


def read(data_root: Path, *, seed: int = 0) -> Dataset:
    """Read PolyU HD.

    Args:
        data_root: the folder of `LAYOUT`.
        seed: chooses the val subjects and the official split.

    Raises:
        InputError: a missing folder, or one without an image whose name begins with a number and an underscore.
    """
    image_dir = require_folder(Path(data_root), LAYOUT) / "Original Images"
    for folder in (SUBJECTS, DISTRACTORS):
        require_folder(image_dir / folder, LAYOUT)
    photos, left_out = find_photos(image_dir)
    subjects = _group_by_subject(image_dir, SUBJECTS, photos, left_out)
    distractors = _group_by_subject(image_dir, DISTRACTORS, photos, left_out)
    outside = f"outside {SUBJECTS} and {DISTRACTORS}"
    left_out += [(photo, outside) for photo in photos if photo.partition("/")[0] not in (SUBJECTS, DISTRACTORS)]
    train = {str(subject): images for subject, images in subjects.items() if subject <= LAST_TRAIN_SUBJECT}
    test = {str(subject): images for subject, images in subjects.items() if subject > LAST_TRAIN_SUBJECT}
    several = {item_id for item_id, images in train.items() if len(images) > 1}
    val_ids = assign_val_identities(train, VAL_FRACTION, seed, measurable=several)

    rows = [
        (image, item_id, "val" if item_id in val_ids else "train", "") for item_id in train for image in train[item_id]
    ]
    rows += split_test_images(test, PROTOCOL, np.random.default_rng(seed))
    rows += [
        (image, f"distractor_{subject}", "gallery", "") for subject in distractors for image in distractors[subject]
    ]
    table = make_table(rows)
    hand = Description(category="hand", attributes=("dorsal side",))  # the dataset says nothing of its subjects
    return Dataset(
        name="hd",
        image_dir=image_dir,
        table=table,
        descriptions=dict.fromkeys(sorted(set(table["item_id"])), hand),
        random_protocol=PROTOCOL,
        left_out=tuple(sorted(left_out)),
    )


def _group_by_subject(image_dir: Path, folder: str, photos: list[str], left_out: list[LeftOut]) -> dict[int, list[str]]:
    """Subject number to its images among the `photos` in `folder`; those without a number are added to `left_out`."""
    images_per_subject: dict[int, list[str]] = {}
    for photo in photos:
        if photo.startswith(f"{folder}/"):
            match = re.match(r"([0-9]{1,9})_", photo.rpartition("/")[2])
            if match is None:
                left_out.append((photo, "name not of the form 1_1.jpg (subject number, underscore, anything)"))
            else:
                images_per_subject.setdefault(int(match[1]), []).append(photo)
    require_photos(image_dir / folder, images_per_subject, [e for e in left_out if e[0].startswith(f"{folder}/")])
    return images_per_subject
