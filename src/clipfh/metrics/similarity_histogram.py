"""How similar matches are and how similar non-matches, over all pairs of a query and a gallery image.

Shapes: Q queries, G gallery images, D embedding, q queries of a chunk, N pairs of one identity, B bins.
"""

from typing import NamedTuple

import numpy as np
import torch

from clipfh.metrics.same_identity import SameIdentity

_FINE = 4000  # bins of width 0.0005 that are counted first; those that are returned are made of whole ones
_CHUNK = 1 << 24  # similarities at a time: 64 MB
_MAX_PAIRS = 1 << 20  # of one identity at a time


class SimilarityHistogram(NamedTuple):
    """Counts of pairs by their cosine similarity.

    Attributes:
        edges: (B + 1,) of the bins, from the least similarity that occurs to the largest.
        matches, others: (B,) pairs of one identity that count, and of two.
        auc: the chance that a match is more similar than a non-match, both drawn at random; ties count half.
    """

    edges: np.ndarray
    matches: np.ndarray
    others: np.ndarray
    auc: float

    def as_dict(self) -> dict[str, list[float] | list[int] | float]:
        """For JSON."""
        edges = [round(float(edge), 4) for edge in self.edges]
        return {"edges": edges, "matches": self.matches.tolist(), "others": self.others.tolist(), "auc": self.auc}


def similarity_histogram(
    query_features: torch.Tensor, gallery_features: torch.Tensor, same: SameIdentity, *, num_bins: int = 50
) -> SimilarityHistogram:
    """Count all pairs of a query and a gallery image, without those that the protocol leaves out of the rankings.

    Args:
        query_features, gallery_features: (Q, D) and (G, D) float, unit rows, on one device.
        same: which gallery images have each query's identity, and which of them are left out.
        num_bins: B at most; fewer where the similarities span little.

    Raises:
        ValueError: there is no match or no non-match.
    """
    pairs_of_all, of_identity, matches = (np.zeros(_FINE, dtype=np.int64) for _ in range(3))
    for queries in same.chunks(max(1, _CHUNK // len(gallery_features)), _MAX_PAIRS):
        similarity = query_features[torch.from_numpy(queries).to(query_features.device)] @ gallery_features.T  # (q, G)
        pairs_of_all += _counts(similarity)
        pairs = same.pairs(queries)
        rows, columns = (torch.from_numpy(place.astype(np.int64)).to(similarity.device) for place in pairs[1:3])
        own = similarity[rows, columns]  # (N,)
        of_identity += _counts(own)
        matches += _counts(own[torch.from_numpy(pairs.counted).to(own.device)])
    others = pairs_of_all - of_identity
    if not matches.any() or not others.any():
        raise ValueError(f"{matches.sum()} matches and {others.sum()} non-matches: both are needed")
    below = np.cumsum(others) - others / 2
    auc = float((matches * below).sum() / matches.sum() / others.sum())
    occurring = np.flatnonzero(matches + others)
    low, high = int(occurring[0]), int(occurring[-1]) + 1
    starts = np.arange(low, high, -(-(high - low) // num_bins))
    edges = np.append(starts, high) * (2 / _FINE) - 1
    return SimilarityHistogram(
        edges, np.add.reduceat(matches[:high], starts), np.add.reduceat(others[:high], starts), auc
    )


def _counts(similarity: torch.Tensor) -> np.ndarray:
    """(_FINE,) from -1 to 1; rounding may take a similarity of equal vectors just beyond."""
    clipped = similarity.float().clamp(-1, 1).cpu()
    return torch.histc(clipped, bins=_FINE, min=-1, max=1).numpy().astype(np.int64)
