"""Query-gallery retrieval figures, exact, from features. Pure: tensors in, figures out.

One idea serves all of them: the figures depend only on the *ranks of the matches*, and a match's rank is one more than
the number of gallery images above it. So nothing is sorted; per chunk of queries, similarities are computed once and
what lies above each match is counted.

Shapes: Q queries, G gallery images, D embedding, M matches of the query with the most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clipfh.errors import InputError

RANKS = (1, 5, 10)
BLAS_TILE = 16  # rows and columns that a matrix product takes at once, at most


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
    chunk_bytes: int = 16 * 2**20,
) -> RetrievalFigures:
    """Exact Rank-1/5/10, mAP and mINP by cosine similarity.

    A tied non-match ranks before a match (the pessimistic rank), so constant features score worst, not best.

    Args:
        query_features, gallery_features: (Q, D) and (G, D) float, unit rows, on one device.
        query_ids, gallery_ids: Q and G item ids; equal ids are matches.
        query_cameras, gallery_cameras: where both are given, gallery images of the query's identity *and* camera are
            left out of that query's ranking. An empty camera is unknown and equals none.
        query_positions: for each query its own place in the gallery, or -1: that image is left out of its ranking
            (leave-one-out).
        chunk_bytes: memory for the similarities of one chunk of queries.

    Raises:
        ValueError: lengths that do not fit, or features that are not finite.
        InputError: no queries, an empty gallery, or no query with a match in it.
    """
    Q, G = len(query_features), len(gallery_features)
    if not Q or not G:
        raise InputError(f"retrieval needs queries and a gallery, got {Q} queries and {G} gallery images")
    if len(query_ids) != Q or len(gallery_ids) != G:
        raise ValueError(f"{Q} query and {G} gallery features, but {len(query_ids)} and {len(gallery_ids)} ids")
    if not (torch.isfinite(query_features).all() and torch.isfinite(gallery_features).all()):
        raise ValueError("features are not finite")
    device = query_features.device
    query_codes, gallery_codes = (codes.to(device) for codes in _codes(query_ids, gallery_ids))
    use_cameras = query_cameras is not None and gallery_cameras is not None
    if use_cameras:
        query_camera_codes, gallery_camera_codes = (c.to(device) for c in _codes(query_cameras, gallery_cameras))
        query_camera_codes[torch.tensor([not c for c in query_cameras], device=device)] = -1
    positions = None if query_positions is None else torch.as_tensor(query_positions, device=device)
    average_precision, inp, first_rank = [], [], []
    # BLAS adds up the last few rows and columns in another order: equal features would not have equal similarities
    padded_query, padded_gallery = (_pad_rows(features) for features in (query_features, gallery_features))
    chunk = max(BLAS_TILE, chunk_bytes // (4 * G) // BLAS_TILE * BLAS_TILE)
    for start in range(0, Q, chunk):
        rows = slice(start, min(start + chunk, Q))
        similarities = (padded_query[start : start + chunk] @ padded_gallery.T)[: rows.stop - start, :G]  # (q, G)
        is_match = query_codes[rows, None] == gallery_codes[None]
        if use_cameras:
            excluded = is_match & (query_camera_codes[rows, None] == gallery_camera_codes[None])
            is_match &= ~excluded
            similarities.masked_fill_(excluded, -torch.inf)
        if positions is not None:
            own = positions[rows]
            here = (own >= 0).nonzero()[:, 0]
            similarities[here, own[here]] = -torch.inf
            is_match[here, own[here]] = False
        figures = _figures_of_matches(_match_ranks(similarities, is_match).cpu())  # MPS has no float64
        for parts, part in zip((average_precision, inp, first_rank), figures, strict=True):
            parts.append(part)
    return _summarise(*(torch.cat(parts).numpy() for parts in (average_precision, inp, first_rank)), G)


def _pad_rows(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(features, (0, 0, 0, -len(features) % BLAS_TILE))


def _codes(query_values: Sequence[str], gallery_values: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two lists of strings as integers that are equal where the strings are."""
    values = np.concatenate([np.asarray(query_values, dtype=str), np.asarray(gallery_values, dtype=str)])
    codes = torch.from_numpy(np.unique(values, return_inverse=True)[1].astype(np.int64))
    return codes[: len(query_values)].clone(), codes[len(query_values) :].clone()


def _match_ranks(similarities: torch.Tensor, is_match: torch.Tensor) -> torch.Tensor:
    """Ranks of each query's matches in increasing order: (q, M) int64 from 1; 0 fills the rows with fewer matches."""
    counts = is_match.sum(dim=1)
    M = int(counts.max())
    if M == 0:
        return torch.zeros(len(similarities), 0, dtype=torch.int64, device=similarities.device)
    rows, columns = is_match.nonzero(as_tuple=True)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    matches = torch.full((len(similarities), M), torch.inf, device=similarities.device, dtype=similarities.dtype)
    matches[rows, place] = similarities[rows, columns]
    filled = torch.arange(M, device=rows.device)[None] < counts[:, None]
    matches = matches.masked_fill(~filled, -torch.inf).sort(dim=1, descending=True).values  # best match first
    others = similarities.masked_fill(is_match, -torch.inf)
    above = torch.zeros(len(similarities), M, dtype=torch.int64, device=similarities.device)
    for m in range(M):  # a column has as many comparisons as a pass over the similarities, and needs no extra memory
        some = (counts > m).nonzero()[:, 0]
        block = others if len(some) == len(others) else others[some]
        above[some, m] = (block >= matches[some, m, None]).sum(dim=1)
    ranks = above + torch.arange(1, M + 1, device=rows.device)[None]  # the better matches are above as well
    return ranks.masked_fill(~filled, 0)


def _figures_of_matches(ranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(q, M) ranks to average precision (q,), inverse negative penalty (q,), first match's rank (q,)."""
    counts = (ranks > 0).sum(dim=1)
    nothing = torch.full((len(ranks),), torch.nan, dtype=torch.float64, device=ranks.device)
    if ranks.shape[1] == 0:
        return nothing, nothing.clone(), counts
    found = torch.arange(1, ranks.shape[1] + 1, device=ranks.device, dtype=torch.float64)[None]
    precision = torch.where(ranks > 0, found / ranks.clamp(min=1), 0.0)
    average_precision = precision.sum(dim=1) / counts  # 0/0 is NaN: a query without a match
    last = ranks.max(dim=1).values
    return average_precision, torch.where(counts > 0, counts / last.clamp(min=1).double(), nothing), ranks[:, 0]


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
