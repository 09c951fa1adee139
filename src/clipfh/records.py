"""The table of images: one row an image, and its JSON form on disk.

Columns: `image` (path below the image root, `/` separators), `item_id` (string), `split`
(`train`, `val`, `query`, `gallery`), `camera` (string, empty where unknown). Rows are sorted by `image`.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pandas as pd

from clipfh.errors import InputError
from clipfh.files import read_json, write_json

COLUMNS = ("image", "item_id", "split", "camera")
SPLITS = ("train", "val", "query", "gallery")


def make_table(rows: Iterable[tuple[str, str, str, str]]) -> pd.DataFrame:
    """Build the table from (image, item_id, split, camera) rows, sorted by image, and check it."""
    table = pd.DataFrame(list(rows), columns=list(COLUMNS), dtype=object)
    table = table.sort_values("image", kind="stable", ignore_index=True)
    check_table(table, source="the dataset")
    return table


def check_table(table: pd.DataFrame, source: str) -> None:
    """Raise InputError where the table breaks its contract; `source` names its origin in the message.

    Checked: unknown splits, images listed twice, paths that leave the image root, empty item ids, identities shared
    between train, val and test.
    """
    if table.empty:
        raise InputError(f"{source} lists no image")
    unknown = sorted(set(table["split"]) - set(SPLITS))
    if unknown:
        raise InputError(f"{source}: unknown split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
    twice = table["image"][table["image"].duplicated()]
    if len(twice):
        raise InputError(f"{source}: {twice.iloc[0]} is listed twice")
    for image in table["image"]:
        path = PurePosixPath(image)
        if path.is_absolute() or ".." in path.parts or "\\" in image or not path.parts or ":" in path.parts[0]:
            raise InputError(
                f"{source}: {image!r} leaves the image root; write paths relative to it, with / separators"
            )
        if not image.isascii() and any(
            "\ud800" <= character <= "\udfff" for character in image
        ):  # how Python reads a name that is not UTF-8
            raise InputError(f"{source}: the file name {image!r} is not UTF-8; rename the file")
    if (table["item_id"].str.strip() == "").any():
        raise InputError(f"{source}: {table.loc[table['item_id'].str.strip() == '', 'image'].iloc[0]} has no item id")
    role = table["split"].replace({"query": "test", "gallery": "test"})
    roles_per_item = role.groupby(table["item_id"]).nunique()
    shared = roles_per_item[roles_per_item > 1]
    if len(shared):
        raise InputError(f"{source}: identity {shared.index[0]} is in more than one of train, val and test")


def write_image_meta(path: Path, table: pd.DataFrame) -> None:
    """Write `{image: {"item_id", "split", "camera"}}`."""
    check_table(table, source=str(path))
    columns = table[["item_id", "split", "camera"]].to_dict("records")
    write_json(path, dict(zip(table["image"], columns, strict=True)))


def read_image_meta(path: Path) -> pd.DataFrame:
    """Read and check the table written by `write_image_meta` (or by hand, in the same form).

    Raises:
        InputError: the file is missing, malformed, or breaks the contract of `check_table`.
    """
    entries = read_json(path, made_by="python preprocessing/00_prepare_dataset.py --dataset NAME --data_root DIR")
    rows = []
    for image, entry in entries.items():
        if not isinstance(entry, dict) or not {"item_id", "split"} <= entry.keys():
            raise InputError(f'{path}: entry {image!r} needs the keys "item_id" and "split"')
        rows.append((image, str(entry["item_id"]), str(entry["split"]), str(entry.get("camera") or "")))
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object).sort_values("image", ignore_index=True)
    check_table(table, source=str(path))
    return table
