"""Query-gallery retrieval figures, exact, from features. Pure: tensors in, figures out.

One idea serves all of them: the figures depend only on the *ranks of the matches* (`clipfh.metrics.match_ranks`).

Shapes: Q queries, G gallery images, D embedding, q queries of a chunk, M matches of the query with the most.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from clipfh.core.errors import InputError
from clipfh.metrics.match_ranks import match_ranks
from clipfh.metrics.same_identity import SameIdentity

RANKS = (1, 5, 10)
MatchRanks = Callable[[torch.Tensor, torch.Tensor, SameIdentity], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class RetrievalFigures:
    """The figures of one query-gallery split; fractions in 0..1.

    Attributes:
        rank1, rank5, rank10: share of queries with a match among the first 1, 5, 10 images (CMC).
        mAP: mean over queries of the average precision over the *whole* ranking.
        mINP: mean over queries of (number of matches / rank of the last match), Ye et al. 2021.
        num_query: queries that count; num_without_match: queries left out, having no match in the gallery.
        num_gallery: images in the gallery.
        average_precision: (Q,) float64 per query; NaN for queries that were left out.
        first_match_rank: (Q,) int64 per query, from 1; 0 for queries that were left out.
    """

    rank1: float
    rank5: float
    rank10: float
    mAP: float  # noqa: N815  (the field's spelling)
    mINP: float  # noqa: N815
    num_query: int
    num_without_match: int
    num_gallery: int
    average_precision: np.ndarray
    first_match_rank: np.ndarray

    def as_dict(self) -> dict[str, float | int]:
        """The figures and counts without the per-query arrays."""
        names = ("rank1", "rank5", "rank10", "mAP", "mINP", "num_query", "num_without_match", "num_gallery")
        return {name: getattr(self, name) for name in names}


def evaluate_retrieval(
    query_features: torch.Tensor,
    gallery_features: torch.Tensor,
    query_ids: Sequence[str],
    gallery_ids: Sequence[str],
    *,
    query_cameras: Sequence[str] | None = None,
    gallery_cameras: Sequence[str] | None = None,
    query_positions: Sequence[int] | None = None,
    ranks: MatchRanks = match_ranks,
) -> RetrievalFigures:
    """Exact Rank-1/5/10, mAP and mINP by cosine similarity.

    A tied non-match ranks before a match (the pessimistic rank), so constant features score worst, not best. Ties are
    decided within the tolerance of `match_ranks`, whatever the machine's matrix product does to the last bits.

    Args:
        query_features, gallery_features: (Q, D) and (G, D) float, unit rows, on one device. Half precision is computed
            in float32.
        query_ids, gallery_ids: Q and G item ids; equal ids are matches.
        query_cameras, gallery_cameras: gallery images of the query's identity *and* camera are left out of that query's
            ranking. A camera that is empty or missing is unknown and equals none. Both or neither.
        query_positions: for each query its own place in the gallery, or -1: that image is left out of its ranking
            (leave-one-out).
        ranks: by what the gallery is ranked, if not by the features' similarity: a method of
            `clipfh.metrics.reranking` or `text_fusion`. It is called as `match_ranks` is, and yields what that does.

    Raises:
        ValueError: lengths or sizes that do not fit, missing ids, features that are not finite, or a query's own place
            that lies outside the gallery or holds another identity.
        InputError: no queries, an empty gallery, or no query with a match in it.
    """
    Q, G = len(query_features), len(gallery_features)
    if not Q or not G:
        raise InputError(f"retrieval needs queries and a gallery, got {Q} queries and {G} gallery images")
    for values, count in ((query_ids, Q), (gallery_ids, G), (query_cameras, Q), (gallery_cameras, G)):
        if values is not None and len(values) != count:
            raise ValueError(f"{Q} query and {G} gallery features, but a list of {len(values)} ids or cameras")
    if (query_cameras is None) != (gallery_cameras is None):
        raise ValueError("cameras of queries and of the gallery: give both or neither")
    query_features, gallery_features = _checked(query_features, gallery_features)
    query_codes, gallery_codes = _codes(query_ids, gallery_ids)
    if min(query_codes.min(), gallery_codes.min()) < 0:
        raise ValueError("an item id is missing")
    cameras = {}
    if query_cameras is not None:
        codes = _codes(query_cameras, gallery_cameras)
        codes[0][[_is_unknown(camera) for camera in query_cameras]] = len(codes[0]) + len(codes[1])  # equals no other
        cameras = dict(zip(("query_cameras", "gallery_cameras"), codes, strict=True))
    positions = None if query_positions is None else np.asarray(query_positions)
    if positions is not None:
        if len(positions) != Q or positions.max() >= G:
            raise ValueError(f"query_positions are {len(positions)} places for {Q} queries in a gallery of {G}")
        if (gallery_codes[positions] != query_codes)[positions >= 0].any():
            raise ValueError("a query's own place in the gallery holds another identity")
    same = SameIdentity(query_codes, gallery_codes, **cameras, query_positions=positions)
    average_precision, inp, first_rank = np.empty(Q), np.empty(Q), np.empty(Q, dtype=np.int64)
    for queries, of_matches in ranks(query_features, gallery_features, same):
        average_precision[queries], inp[queries], first_rank[queries] = _figures_of_matches(of_matches)
    return _summarise(average_precision, inp, first_rank, G)


def _checked(query_features: torch.Tensor, gallery_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both, detached, in one dtype: float64 if one of them is, else float32."""
    if query_features.ndim != 2 or query_features.shape[1:] != gallery_features.shape[1:]:
        raise ValueError(f"features of shapes {tuple(query_features.shape)} and {tuple(gallery_features.shape)}")
    dtype = torch.promote_types(torch.promote_types(query_features.dtype, gallery_features.dtype), torch.float32)
    both = query_features.detach().to(dtype), gallery_features.detach().to(dtype)
    # a row that is not finite has no finite sum of squares; the features need no copy to find out
    if not all(torch.isfinite(torch.linalg.vector_norm(features, dim=1)).all() for features in both):
        raise ValueError("features are not finite")
    return both


def _codes(query_values: Sequence[str], gallery_values: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Two lists of strings as integers from 0 that are equal where the strings are; -1 for None and NaN."""
    codes, _ = pd.factorize(np.concatenate([np.asarray(query_values, object), np.asarray(gallery_values, object)]))
    return codes[: len(query_values)], codes[len(query_values) :]


def _is_unknown(camera: str) -> bool:
    return camera == "" or pd.isna(camera)


def _figures_of_matches(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(q, M) ranks to average precision (q,), inverse negative penalty (q,), first match's rank (q,)."""
    counts = (ranks > 0).sum(axis=1)
    found = np.arange(1, ranks.shape[1] + 1)
    precision = np.divide(found, ranks, out=np.zeros(ranks.shape), where=ranks > 0)
    one = np.maximum(counts, 1)
    average_precision = np.where(counts > 0, precision.sum(axis=1) / one, np.nan)
    inp = np.where(counts > 0, counts / np.maximum(ranks.max(axis=1), 1), np.nan)
    return average_precision, inp, ranks[:, 0]


def _summarise(
    average_precision: np.ndarray, inp: np.ndarray, first_rank: np.ndarray, num_gallery: int
) -> RetrievalFigures:
    counted = first_rank > 0
    num_query = int(counted.sum())
    if num_query == 0:
        raise InputError("no query has a match in the gallery: nothing can be measured")
    rank = {k: float((first_rank[counted] <= k).mean()) for k in RANKS}
    return RetrievalFigures(
        rank1=rank[1],
        rank5=rank[5],
        rank10=rank[10],
        mAP=float(average_precision[counted].mean()),
        mINP=float(inp[counted].mean()),
        num_query=num_query,
        num_without_match=int((~counted).sum()),
        num_gallery=num_gallery,
        average_precision=average_precision,
        first_match_rank=first_rank,
    )
