"""Any user's own data: a folder of photos for each identity.

Raw layout below the data root: see `LAYOUT`. The name of a folder is the item id; photos in folders below it are of the
same identity, and photos beside the folders are of nobody. `prompts.json` may say something of some or all identities:
`{item_id: "a red mug"}`, or a list of texts instead of one.

Protocol: half of the identities (or another `test_fraction`) are test, the others train; 10% of the train identities,
at least two of four or more, are held out as val. In the official split floor(n / 2) of the n photos of a test identity
are queries and the rest gallery; the only photo of an identity goes to the gallery. All draws are seeded.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clipfh.core.errors import InputError
from clipfh.core.values import normal_id
from clipfh.datasets.layout import read_raw_json, require_folder
from clipfh.images.photo_files import HIDDEN, LeftOut, find_photos, name_problem, require_photos
from clipfh.prompts.description import Description
from clipfh.tables.dataset import Dataset
from clipfh.tables.records import make_table
from clipfh.tables.splits import VAL_FRACTION, assign_val_identities, split_test_images

LAYOUT = """\
    DATA_ROOT/<item_id>/<any name>.jpg    (or .png, .webp, .tif and others; folders below <item_id> as you like)
    DATA_ROOT/prompts.json                (optional: {"<item_id>": "a red mug"})"""

PROTOCOL = "half"
PROMPTS = "prompts.json"
# folders of these names alone are the splits of another layout
SPLIT_NAMES = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "query", "gallery"))


def read(data_root: Path, *, seed: int = 0, test_fraction: float = 0.5) -> Dataset:
    """Read a folder of folders.

    Args:
        data_root: the folder of `LAYOUT`.
        seed: chooses test and val identities and the official split.
        test_fraction: share of the identities that are tested on, between 0 and 1; at least one is, at least one is
            trained on.

    Raises:
        InputError: a missing folder, fewer than two identities, folders of splits in their place, no test identity with
            two photos, malformed prompts.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction must lie between 0 and 1, not be {test_fraction}")
    data_root = require_folder(Path(data_root), LAYOUT)
    images_per_identity, left_out = _list_identities(data_root)
    item_ids = sorted(images_per_identity)
    if len(item_ids) < 2:
        raise InputError(
            f"{data_root} has {len(item_ids)} folders with images; at least 2 identities are needed. "
            f"The expected layout is:\n{LAYOUT}"
        )
    descriptions = _read_prompts(data_root / PROMPTS, images_per_identity)

    generator = np.random.default_rng(seed)
    order = generator.permutation(len(item_ids))
    num_test = min(max(1, round(test_fraction * len(item_ids))), len(item_ids) - 1)
    test = {item_ids[index]: images_per_identity[item_ids[index]] for index in order[:num_test]}
    if all(len(images) < 2 for images in test.values()):
        raise InputError(
            f"{data_root}: none of the {num_test} test identities has two photos, so there is no query with a match. "
            "Add photos, or try another --test_fraction or --seed."
        )
    several = {item_id for item_id, images in images_per_identity.items() if len(images) > 1}
    val_ids = assign_val_identities(set(item_ids) - set(test), VAL_FRACTION, seed, measurable=several)
    rows = [
        (image, item_id, "val" if item_id in val_ids else "train", "")
        for item_id in item_ids
        if item_id not in test
        for image in images_per_identity[item_id]
    ]
    rows += split_test_images(test, PROTOCOL, generator)
    return Dataset(
        name="folder",
        image_dir=data_root,
        table=make_table(rows),
        descriptions=descriptions,
        random_protocol=PROTOCOL,
        left_out=tuple(left_out),
        notes=tuple(_notes(data_root, images_per_identity)),
    )


def _list_identities(data_root: Path) -> tuple[dict[str, list[str]], list[LeftOut]]:
    """Item id to images, and what is left out."""
    photos, left_out = find_photos(data_root)
    left_out = [entry for entry in left_out if entry[0] != PROMPTS]
    images_per_identity: dict[str, list[str]] = {}
    folder_of: dict[str, str] = {}
    for photo in photos:
        folder, slash, _ = photo.partition("/")
        item_id = normal_id(folder)
        if slash and folder_of.setdefault(item_id, folder) != folder:
            raise InputError(
                f"{data_root}: two folders are called {item_id!r}, with composed and decomposed letters; rename one"
            )
        if slash:
            images_per_identity.setdefault(item_id, []).append(photo)
        else:
            left_out.append((photo, "beside the folders: of no identity"))
    require_photos(data_root, photos, left_out)
    if len(images_per_identity) > 1 and {item_id.lower() for item_id in images_per_identity} <= SPLIT_NAMES:
        raise InputError(
            f"{data_root} holds {' and '.join(sorted(images_per_identity))}: splits, not identities. They are drawn "
            "here, so give a --data_root that has one folder an identity"
        )
    return images_per_identity, sorted(left_out)


def _notes(data_root: Path, images_per_identity: dict[str, list[str]]) -> Iterator[str]:
    """What is as the layout allows, but perhaps not as it was meant."""
    deeper = [image for images in images_per_identity.values() for image in images if image.count("/") > 1]
    if deeper:
        item_id = deeper[0].partition("/")[0]
        yield f"{len(deeper):,} photos lie in folders of an identity's folder, the first: {deeper[0]} is of {item_id}"
    folders = {
        normal_id(path.name) for path in data_root.iterdir() if path.is_dir() and name_problem(path.name) != HIDDEN
    }
    empty = sorted(folders - images_per_identity.keys())
    if empty:
        yield f"{len(empty):,} folders have no photo that can be used, the first: {empty[0]}"


def _read_prompts(path: Path, images_per_identity: dict[str, list[str]]) -> dict[str, Description]:
    if not path.exists():
        return {}
    prompts = read_raw_json(path, LAYOUT)
    if not isinstance(prompts, dict):
        raise InputError(f'{path}: expected an object {{"<item_id>": "prompt"}}')
    descriptions = {}
    for key, prompt in prompts.items():
        item_id = normal_id(key)
        if item_id not in images_per_identity:
            raise InputError(f"{path}: there is no folder with images named {item_id!r}; remove the entry or rename it")
        lines = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise InputError(f"{path}: the prompt of {item_id!r} must be a string or a list of strings")
        filled = tuple(line.strip() for line in lines if line.strip())
        if not filled:
            raise InputError(f"{path}: the prompt of {item_id!r} is empty; fill it in, or remove the entry")
        descriptions[item_id] = Description(lines=filled)
    return descriptions
