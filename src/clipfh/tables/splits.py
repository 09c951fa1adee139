"""Who is validated on, and which test photos are queries: pure functions of a table and a seed.

The test photos of a table are its `query` and `gallery` rows: the official split. A random split deals the photos of
the same identities anew. Identities without a query in the official split (distractors, identities with one photo) stay
in the gallery of every random split.

Protocols of `draw_queries`, for an identity with n >= 2 photos:

- "half": floor(n / 2) photos are queries, the rest gallery (In-Shop's and Market-1501's proportion);
- "one_gallery": one photo is gallery, the rest queries (the Monte Carlo runs of the hand datasets).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipfh.core.errors import InputError
from clipfh.core.files import read_json
from clipfh.core.values import normal_path

PROTOCOLS = ("half", "one_gallery")
VAL_FRACTION = 0.1  # of the train identities, for every dataset without an official val split

Split = dict[str, list[str]]


def measurable_identities(photos: Iterable[tuple[str, str]], *, exclude_same_camera: bool) -> set[str]:
    """The identities of (item id, camera) pairs, one a photo, that can be found again in another photo.

    That takes two photos and, where a query's own camera is left out of its gallery, two cameras; a camera that is
    empty is unknown and equals none.
    """
    cameras: dict[str, list[str]] = {}
    for item_id, camera in photos:
        cameras.setdefault(item_id, []).append(camera)
    return {
        item_id
        for item_id, of in cameras.items()
        if len(of) > 1 and (not exclude_same_camera or "" in of or len(set(of)) > 1)
    }


def assign_val_identities(
    item_ids: Iterable[str], fraction: float, seed: int, *, measurable: Collection[str] | None = None
) -> set[str]:
    """Choose the identities to validate on among the train identities.

    Args:
        item_ids: the train identities; order and repetition do not matter.
        fraction: share to hold out, 0 <= fraction < 1; rounded, and at least two identities where there are four or
            more (retrieval among one identity measures nothing). With fewer than four, none.
        seed: of the draw.
        measurable: those of `measurable_identities`, to draw from: at most half of them, as others teach little. None,
            or if there are fewer than two: all.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), not {fraction}")
    identities = sorted(set(item_ids))
    if fraction == 0 or len(identities) < 4:
        return set()
    count = max(2, round(fraction * len(identities)))
    drawn = [identities[index] for index in np.random.default_rng(seed).permutation(len(identities))]
    candidates = drawn if measurable is None else [item_id for item_id in drawn if item_id in measurable]
    if len(candidates) < 2:
        return set(drawn[:count])
    return set(candidates[: count if measurable is None else min(count, max(2, len(candidates) // 2))])


def hold_out_val(table: pd.DataFrame, fraction: float, seed: int, *, exclude_same_camera: bool) -> pd.DataFrame:
    """The table with its val identities drawn anew among train and val: a share `fraction` of them, 0 for none."""
    table = table.assign(split=table["split"].replace("val", "train"))
    train = table[table["split"] == "train"]
    pairs = zip(train["item_id"], train["camera"], strict=True)
    measurable = measurable_identities(pairs, exclude_same_camera=exclude_same_camera)
    val_ids = assign_val_identities(train["item_id"], fraction, seed, measurable=measurable)
    is_val = (table["split"] == "train") & table["item_id"].isin(val_ids)
    return table.assign(split=table["split"].mask(is_val, "val"))


def fold_val(table: pd.DataFrame, fold: int, num_folds: int, *, exclude_same_camera: bool) -> pd.DataFrame:
    """The table with another choice of val identities among train and val: those of one of `num_folds` folds.

    The measurable identities are dealt to the folds, each to one, always in the same way: a recipe that is judged in
    all folds is judged on all of them, each time by a model that has not learned them. The others are always train.

    Args:
        table: of `clipfh.tables.records`.
        fold: 0 to `num_folds` - 1.
        num_folds: 2 or more.
        exclude_same_camera: the dataset's protocol, see `measurable_identities`.

    Raises:
        InputError: fewer than two identities would be in a fold.
    """
    table = table.assign(split=table["split"].replace("val", "train"))
    train = table[table["split"] == "train"]
    pairs = zip(train["item_id"], train["camera"], strict=True)
    measurable = sorted(measurable_identities(pairs, exclude_same_camera=exclude_same_camera))
    if len(measurable) < 2 * num_folds:
        raise InputError(
            f"{num_folds} folds of {len(measurable):,} train identities that can be found again in another photo: "
            "a fold takes two or more"
        )
    dealt = np.random.default_rng(0).permutation(len(measurable))  # a constant: runs of any seed have the same folds
    val_ids = {measurable[place] for place in dealt[fold::num_folds]}
    is_val = (table["split"] == "train") & table["item_id"].isin(val_ids)
    return table.assign(split=table["split"].mask(is_val, "val"))


def num_queries(num_images: int, protocol: str) -> int:
    """How many of an identity's test photos are queries; 0 for a single photo, which goes to the gallery."""
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown split protocol {protocol!r}; the protocols are {', '.join(PROTOCOLS)}")
    return num_images // 2 if protocol == "half" else max(num_images - 1, 0)


def draw_queries(
    images_per_identity: Mapping[str, Sequence[str]], protocol: str, generator: np.random.Generator
) -> set[str]:
    """Draw the query images of one split; all other images are its gallery.

    Identities and images are visited in sorted order, so that a seeded `generator` gives the same split again.
    """
    queries: set[str] = set()
    for item_id in sorted(images_per_identity):
        images = sorted(images_per_identity[item_id])
        order = generator.permutation(len(images))
        queries.update(images[index] for index in order[: num_queries(len(images), protocol)])
    return queries


def split_test_images(
    images_per_identity: Mapping[str, Sequence[str]], protocol: str, generator: np.random.Generator
) -> list[tuple[str, str, str, str]]:
    """Rows (image, item_id, "query" or "gallery", no camera) of a table, for datasets without an official split."""
    queries = draw_queries(images_per_identity, protocol, generator)
    return [
        (image, item_id, "query" if image in queries else "gallery", "")
        for item_id, images in images_per_identity.items()
        for image in images
    ]


def official_split(table: pd.DataFrame) -> Split:
    """The query and gallery images of the table, in its order."""
    return {split: table.loc[table["split"] == split, "image"].tolist() for split in ("query", "gallery")}


def random_query_gallery_splits(table: pd.DataFrame, *, num_splits: int = 10, seed: int, protocol: str) -> list[Split]:
    """Draw random splits of the test photos.

    Every test photo is in each split, in either its query or its gallery; every query has a match in the gallery. The
    splits differ from one another (where that many different ones exist), and the first ones do not depend on
    `num_splits`.

    Raises:
        InputError: unknown protocol, or no test identity with two photos and a query in the official split.
    """
    test = table[table["split"].isin(["query", "gallery"])]
    images = sorted(test["image"])
    dealt = _dealt_images(test)
    if not dealt:
        raise InputError(
            "no random split can be drawn: no test identity has both a query and a second photo. "
            "Add photos of the test identities, or move more identities into the test part."
        )
    num_different = min(num_splits, count_possible_splits(table, protocol))
    generator = np.random.default_rng(seed)
    seen: set[frozenset[str]] = set()
    splits: list[Split] = []
    while len(splits) < num_splits:
        queries = frozenset(draw_queries(dealt, protocol, generator))
        if queries in seen and len(seen) < num_different:
            continue
        seen.add(queries)
        splits.append(
            {
                "query": [image for image in images if image in queries],
                "gallery": [image for image in images if image not in queries],
            }
        )
    return splits


def count_possible_splits(table: pd.DataFrame, protocol: str) -> int:
    """How many different random splits the table has."""
    dealt = _dealt_images(table[table["split"].isin(["query", "gallery"])])
    return math.prod(math.comb(len(images), num_queries(len(images), protocol)) for images in dealt.values())


def _dealt_images(test: pd.DataFrame) -> dict[str, list[str]]:
    """Identity to test photos, for the identities that random splits deal anew."""
    with_query = set(test.loc[test["split"] == "query", "item_id"])
    groups = test.groupby("item_id")["image"]
    return {item_id: sorted(group) for item_id, group in groups if item_id in with_query and len(group) >= 2}


def read_splits(path: Path, table: pd.DataFrame) -> dict[str, Any]:
    """Read `{"official": split, "random": [split, ...]}`, a split being `{"query": [...], "gallery": [...]}`.

    Raises:
        InputError: missing or malformed file; an image that is not a test image of `table`, is listed twice or is in
            both query and gallery of one split; a split without queries.
    """
    made_by = "python preprocessing/05_make_retrieval_splits.py --dataset NAME"
    splits = read_json(path, made_by=made_by, check=_has_shape_of_splits)
    for split in (splits["official"], *splits["random"]):
        split.update({side: [normal_path(image) for image in split[side]] for side in ("query", "gallery")})
    test_images = set(table.loc[table["split"].isin(["query", "gallery"]), "image"])
    named = [("official", splits["official"]), *((f"random {n}", split) for n, split in enumerate(splits["random"]))]
    for name, split in named:
        listed = [*split["query"], *split["gallery"]]
        strangers = sorted(set(listed) - test_images)
        if strangers:
            raise InputError(
                f"{path}, {name} split: {strangers[0]} is no test image of the table. Make it again with: {made_by}"
            )
        if len(set(listed)) < len(listed):
            twice = pd.Series(listed)[pd.Series(listed).duplicated()].iloc[0]
            raise InputError(f"{path}, {name} split: {twice} is listed twice. Make it again with: {made_by}")
        if not split["query"]:
            raise InputError(f"{path}, {name} split: no query image. Make it again with: {made_by}")
    return splits


def _has_shape_of_splits(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("random"), list):
        return False
    return all(
        isinstance(split, dict)
        and all(
            isinstance(split.get(key), list) and all(isinstance(image, str) for image in split[key])
            for key in ("query", "gallery")
        )
        for split in (value.get("official"), *value["random"])
    )
