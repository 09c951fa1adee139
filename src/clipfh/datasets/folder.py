"""Any user's own data: a folder of photos for each identity.

Raw layout below the data root: see `LAYOUT`. The name of a folder is the item id. `prompts.json` may say something of
some or all identities: `{item_id: "a red mug"}`, or a list of texts instead of one.

Protocol: half of the identities (or another `test_fraction`) are test, the others train; 10% of the train identities,
at least two of four or more, are held out as val. In the official split floor(n / 2) of the n photos of a test identity
are queries and the rest gallery; the only photo of an identity goes to the gallery. All draws are seeded.
"""

from pathlib import Path

import numpy as np

from clipfh.datasets import Dataset, Description
from clipfh.datasets.layout import IMAGE_SUFFIXES, list_images, read_raw_json, require_folder
from clipfh.errors import InputError
from clipfh.records import make_table, normal_id
from clipfh.splits import VAL_FRACTION, assign_val_identities, split_test_images

LAYOUT = f"""\
    DATA_ROOT/<item_id>/<any name>{{{",".join(IMAGE_SUFFIXES)}}}
    DATA_ROOT/prompts.json    (optional: {{"<item_id>": "a red mug"}})"""

PROTOCOL = "half"


def read(data_root: Path, *, seed: int = 0, test_fraction: float = 0.5) -> Dataset:
    """Read a folder of folders.

    Args:
        data_root: the folder of `LAYOUT`.
        seed: chooses test and val identities and the official split.
        test_fraction: share of the identities that are tested on, between 0 and 1; at least one is, at least one is
            trained on.

    Raises:
        InputError: a missing folder, fewer than two identities, no test identity with two photos, malformed prompts.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction must lie between 0 and 1, not be {test_fraction}")
    data_root = require_folder(Path(data_root), LAYOUT)
    images_per_identity, num_empty = _list_identities(data_root)
    item_ids = sorted(images_per_identity)
    if len(item_ids) < 2:
        raise InputError(
            f"{data_root} has {len(item_ids)} folders with images; at least 2 identities are needed. "
            f"The expected layout is:\n{LAYOUT}"
        )
    descriptions = _read_prompts(data_root / "prompts.json", images_per_identity)

    generator = np.random.default_rng(seed)
    order = generator.permutation(len(item_ids))
    num_test = min(max(1, round(test_fraction * len(item_ids))), len(item_ids) - 1)
    test = {item_ids[index]: images_per_identity[item_ids[index]] for index in order[:num_test]}
    if all(len(images) < 2 for images in test.values()):
        raise InputError(
            f"{data_root}: none of the {num_test} test identities has two photos, so there is no query with a match. "
            "Add photos, or try another --test_fraction or --seed."
        )
    val_ids = assign_val_identities(set(item_ids) - set(test), VAL_FRACTION, seed)
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
        left_out={"folders without an image": num_empty} if num_empty else {},
    )


def _list_identities(data_root: Path) -> tuple[dict[str, list[str]], int]:
    """Item id to images, and how many folders have none; hidden folders are not looked into."""
    images_per_identity = {}
    num_empty = 0
    for folder in sorted(data_root.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        names = list_images(folder)
        if names:
            item_id = normal_id(folder.name)
            if item_id in images_per_identity:
                raise InputError(
                    f"{data_root}: two folders are called {item_id!r}, with composed and decomposed letters; rename one"
                )
            images_per_identity[item_id] = [f"{folder.name}/{name}" for name in names]
        else:
            num_empty += 1
    return images_per_identity, num_empty


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
        descriptions[item_id] = Description(lines=tuple(line.strip() for line in lines if line.strip()))
    return descriptions
