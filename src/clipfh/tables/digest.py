"""A dataset is more than its name: a digest of what it holds, and the identities that weights have seen.

A checkpoint records `data_digest`, of the dataset that it was trained on, and `seen_identities`: for every dataset
that its weights and those they started from were fine-tuned on, digest to the ids of train and val. A row of
`results/summary.csv` records the digest of what it was measured on; only rows of one digest are compared.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from clipfh.core.errors import InputError

SHORT = 12  # characters of a digest that tell datasets apart in a table

Seen = Mapping[str, Sequence[str]]  # digest of a dataset to the item ids of its train and val


def digest_of(rows: Iterable[Sequence[str | int]]) -> str:
    """SHA-256 of rows of plain values, whatever their order."""
    lines = sorted(json.dumps(list(row), ensure_ascii=True) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, -1 where there is none: what tells other photos of the same names apart, without reading."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def table_digest(table: pd.DataFrame, image_dir: Path) -> str:
    """The digest of a table of `records`: images, their sizes in bytes, identities, splits and cameras."""
    columns = (table[name] for name in ("image", "item_id", "split", "camera"))
    return digest_of((*row, size_of(image_dir / row[0])) for row in zip(*columns, strict=True))


def seen_with(seen: Seen, digest: str, table: pd.DataFrame) -> dict[str, list[str]]:
    """`seen` and the train and val identities of a dataset: what weights know after a training on it."""
    item_ids = table.loc[table["split"].isin(("train", "val")), "item_id"]
    return {**{name: list(ids) for name, ids in seen.items()}, digest: sorted(set(item_ids))}


def require_unseen(
    seen: Seen, digest: str, table: pd.DataFrame, *, weights: str, name: str, unrelated_ids: bool
) -> None:
    """Refuse to measure weights on identities that they were trained or chosen on.

    Within one dataset the splits have no identity in common; a dataset that was prepared again, with another seed or
    more photos, draws them anew.

    Args:
        seen: of the weights.
        digest: of the dataset to measure on.
        table: its images.
        weights: what they are called in the message.
        name: of the dataset.
        unrelated_ids: equal ids of different datasets stand for different things: only say how many there are.

    Raises:
        InputError: test identities were seen, with their number.
    """
    others = {item_id for other, ids in seen.items() if other != digest for item_id in ids}
    test = set(table.loc[table["split"].isin(("query", "gallery")), "item_id"])
    shared = len(test & others)
    if shared and not unrelated_ids:
        raise InputError(
            f"{shared:,} of the {len(test):,} test identities of {name} were trained or validated on: {weights} is of "
            "other data or splits than these. Train again, or, if equal ids of two datasets stand for different "
            "things, add --unrelated_ids"
        )
    if shared:
        print(f"note: {shared:,} of {len(test):,} test ids are ids that {weights} was trained on; taken as unrelated")
    val = set(table.loc[table["split"] == "val", "item_id"])
    if val & others and not unrelated_ids:
        print(f"note: {len(val & others):,} of {len(val):,} val identities were trained on before: val figures flatter")
