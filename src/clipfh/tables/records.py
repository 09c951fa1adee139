"""The table of images: one row an image, and its JSON form on disk.

Columns: `image` (path below the image root, `/` separators), `item_id` (string), `split`
(`train`, `val`, `query`, `gallery`), `camera` (string, empty where unknown). Rows are sorted by `image`.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from clipfh.core.errors import InputError, printable, shown
from clipfh.core.files import read_json, write_json
from clipfh.core.values import leaves_root, normal_id, normal_path, text_of

COLUMNS = ("image", "item_id", "split", "camera")
SPLITS = ("train", "val", "query", "gallery")


def make_table(rows: Iterable[tuple[str, str, str, str]]) -> pd.DataFrame:
    """Build the table from (image, item_id, split, camera) rows, sorted by image, and check it."""
    rows = [(normal_path(image), normal_id(item_id), split, camera) for image, item_id, split, camera in rows]
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
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
        if leaves_root(image):
            raise InputError(
                f"{source}: {shown(image)} leaves the image root; write paths relative to it, with / separators"
            )
        if printable(image) != image:  # half of a surrogate pair is how Python reads a name that is not UTF-8
            raise InputError(
                f"{source}: the file name {shown(image)} holds control characters or is not UTF-8; rename the file"
            )
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
        where = f"{path}: {shown(image)}"
        item_id, camera = (
            text_of(entry["item_id"], f"{where}: item_id"),
            text_of(entry.get("camera"), f"{where}: camera"),
        )
        if not item_id:
            raise InputError(f"{where} has no item id ({shown(entry['item_id'])}); leave the image out, or give it one")
        if not isinstance(entry["split"], str):
            raise InputError(f"{where}: unknown split {shown(entry['split'])}; the splits are {', '.join(SPLITS)}")
        rows.append((normal_path(image), normal_id(item_id), entry["split"], camera))
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object).sort_values("image", ignore_index=True)
    check_table(table, source=str(path))
    return table
