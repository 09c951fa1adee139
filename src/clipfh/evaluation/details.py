"""What stands behind the figures of the official split: similarities, groups of queries, identities that are mixed up.

It is measured on features and rankings that are there anyway; no photo is encoded for it.

Shapes: N images, D embedding, Q queries, G gallery images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from clipfh.evaluation.data import EvaluationData
from clipfh.metrics.query_groups import QueryGroup, figures_by_group
from clipfh.metrics.retrieval import RetrievalFigures
from clipfh.metrics.same_identity import SameIdentity
from clipfh.metrics.similarity_histogram import similarity_histogram

MAX_CATEGORIES = 20  # those of most queries are shown
MAX_CONFUSED = 8  # pairs of identities


def measure_details(
    test: EvaluationData,
    features: torch.Tensor,
    official: RetrievalFigures,
    rankings: pd.DataFrame,
    *,
    exclude_same_camera: bool,
) -> dict[str, Any]:
    """The details of the official split, as `metrics.json` holds them and the run's page shows them.

    Args:
        test: its images, splits and prompts.
        features: (N, D) unit rows, in the order of `test.table`.
        official: the figures of the Q queries.
        rankings: of the Q queries, see `clipfh.evaluation.rankings.ranking_table`.
        exclude_same_camera: as the protocol says.

    Returns:
        `similarity`: see `SimilarityHistogram`; None where the gallery holds matches alone. `by_category`: groups of
        queries, empty where there are no categories. `by_gallery_photos`: groups by the number of gallery photos of
        the query's identity. `confused`: see `confused_pairs`.
    """
    table = test.table.set_index("image", drop=False)
    query, gallery = table.loc[test.official["query"]], table.loc[test.official["gallery"]]
    same = _same_identity(query, gallery, exclude_same_camera=exclude_same_camera)
    place = pd.Series(np.arange(len(table)), index=table.index)
    q, g = place[test.official["query"]].to_numpy(), place[test.official["gallery"]].to_numpy()
    only_matches = set(query["item_id"]) == set(gallery["item_id"]) and query["item_id"].nunique() == 1
    kinds = categories(query)
    by_category = figures_by_group(kinds, official) if kinds else []
    return {
        "similarity": None if only_matches else similarity_histogram(features[q], features[g], same).as_dict(),
        "by_category": _as_dicts(sorted(by_category, key=lambda group: -group.num_query)[:MAX_CATEGORIES]),
        "num_categories": len(by_category),
        "by_gallery_photos": _as_dicts(by_gallery_photos(query, gallery, official)),
        "confused": confused_pairs(rankings, test.prompts),
    }


def _as_dicts(groups: Sequence[QueryGroup]) -> list[dict[str, Any]]:
    return [group._asdict() for group in groups]


def _same_identity(query: pd.DataFrame, gallery: pd.DataFrame, *, exclude_same_camera: bool) -> SameIdentity:
    codes = pd.factorize(np.concatenate([query["item_id"], gallery["item_id"]]))[0]
    cameras = {}
    if exclude_same_camera:
        of_both = np.concatenate([query["camera"], gallery["camera"]])
        camera_codes = pd.factorize(of_both)[0]
        unknown = (of_both == "") & (np.arange(len(of_both)) < len(query))
        camera_codes[unknown] = camera_codes.max() + 1  # equals none of the gallery
        cameras = dict(zip(("query_cameras", "gallery_cameras"), np.split(camera_codes, [len(query)]), strict=True))
    return SameIdentity(codes[: len(query)], codes[len(query) :], **cameras)


def categories(query: pd.DataFrame) -> list[str] | None:
    """The category of each query, the folders of its path; None where folders tell none, or one alone.

    Folders that all paths share are left out, and so are those below the deepest level at which some folder holds
    several identities: they are what the identities are called by.
    """
    folders = [image.split("/")[:-1] for image in query["image"]]
    shared = 0
    while all(len(path) > shared for path in folders) and len({path[shared] for path in folders}) == 1:
        shared += 1
    found = None
    for depth in range(shared + 1, max(map(len, folders)) + 1):
        kinds = ["/".join(path[shared:depth]) for path in folders]
        if pd.Series(query["item_id"].to_numpy()).groupby(kinds).nunique().max() == 1:
            break
        found = kinds
    return found


def by_gallery_photos(query: pd.DataFrame, gallery: pd.DataFrame, official: RetrievalFigures) -> list[QueryGroup]:
    """Queries by how many gallery photos their identity has, the same camera's among them: 1, 2, 3 to 4, 5 to 8, ..."""
    counts = query["item_id"].map(gallery["item_id"].value_counts()).fillna(0).astype(int)
    power = np.ceil(np.log2(counts.clip(lower=1))).astype(int)
    groups = figures_by_group(power.tolist(), official)
    return [group._replace(name=_range_of(group.name)) for group in sorted(groups, key=lambda group: group.name)]


def _range_of(power: int) -> str:
    low, high = (2 ** (power - 1) + 1 if power > 0 else 1), 2**power
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def confused_pairs(rankings: pd.DataFrame, prompts: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The pairs of identities that are mixed up most: queries of one whose most similar photo is of the other.

    Args:
        rankings: of the queries, with the first photo of each.
        prompts: of each test identity.

    Returns:
        At most `MAX_CONFUSED`, most queries first, then the most similar: `item_ids` (of a query, and of what was
        found), `num_query` of both directions, and of the most similar case `images` and `similarity`; `prompts`.
    """
    wrong = rankings[(rankings["rank"] == 1) & ~rankings["is_match"]]
    ids = wrong[["query_item_id", "item_id"]].to_numpy(dtype=str)
    keys = pd.MultiIndex.from_arrays(np.sort(ids, axis=1).T) if len(wrong) else []
    found = []
    for _, cases in wrong.groupby(keys, sort=False) if len(wrong) else ():
        nearest = cases.loc[cases["similarity"].idxmax()]
        item_ids = [nearest["query_item_id"], nearest["item_id"]]
        found.append(
            {
                "item_ids": item_ids,
                "num_query": len(cases),
                "images": [nearest["query"], nearest["image"]],
                "similarity": round(float(nearest["similarity"]), 6),
                "prompts": [prompts[item_id][0] for item_id in item_ids],
            }
        )
    return sorted(found, key=lambda pair: (-pair["num_query"], -pair["similarity"]))[:MAX_CONFUSED]
