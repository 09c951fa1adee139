"""Re-ranking: a query's ranking, mended by how the photos lie to each other.

Nothing is trained, and labels say only what the protocol leaves out. Both methods are transductive: what a query finds
depends on which other photos there are, in k-reciprocal re-ranking on the other queries, too. Their figures are
therefore no figures of the features alone. Each gives the ranks of the matches as `match_ranks` does, for
`evaluate_retrieval(..., ranks=method.match_ranks)`, on the CPU.

Shapes: Q queries, G gallery images, D embedding, c queries of a chunk, n gallery images of an expansion.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from clipfh.core.errors import InputError
from clipfh.metrics.k_reciprocal import k_reciprocal_distances
from clipfh.metrics.match_ranks import match_ranks, match_ranks_of_rows, tie_tolerance
from clipfh.metrics.neighbours import consecutive, nearest_of_gallery, rows_at_once
from clipfh.metrics.same_identity import SameIdentity

MAX_K = 100  # five times the paper's k1: beyond, a photo's vector has thousands of entries
MAX_EXPANSION = 1000  # gallery images: they are kept of every query
MAX_ALPHA = 100  # beyond, the nearest photo alone counts


@dataclass(frozen=True)
class KReciprocal:
    """k-reciprocal re-ranking, see `clipfh.metrics.k_reciprocal`; the defaults are the paper's.

    All photos of queries and gallery are neighbours of each other, as in the paper and in common practice: also those
    of a query's own identity and camera, which only the ranking leaves out afterwards.

    Attributes:
        k1: neighbours that reciprocity is asked of.
        k2: nearest photos, itself among them, over which a photo's vector is averaged; 1 leaves it as it is.
        weight: lambda, of the original distance beside the Jaccard distance: 1 is the ranking as it was.

    Raises:
        InputError: k1 or k2 out of 1 to 100, k2 above k1, or a weight out of 0 to 1.
    """

    method: ClassVar[str] = "k_reciprocal"
    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        require_within("rerank_k1", self.k1, 1, MAX_K)
        require_within("rerank_k2", self.k2, 1, MAX_K)
        require_within("rerank_lambda", self.weight, 0, 1)
        if self.k2 > self.k1:
            raise InputError(
                f"--rerank_k2 is {self.k2}, more than --rerank_k1 {self.k1}: a photo's vector is averaged over the "
                "nearest of its neighbours"
            )

    def as_dict(self) -> dict[str, Any]:
        """The method and its parameters, by the names of the flags."""
        return {
            "method": self.method,
            "rerank_k1": self.k1,
            "rerank_k2": self.k2,
            "rerank_lambda": self.weight,
        }

    def __str__(self) -> str:
        return f"{self.method} {self.k1}/{self.k2}/{self.weight:g}"

    def match_ranks(
        self, query_features: torch.Tensor, gallery_features: torch.Tensor, same: SameIdentity
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `match_ranks.match_ranks`, by increasing final distance.

        Tied is what rounding could have put in either order: for the original distance the tolerance of `match_ranks`.

        Raises:
            InputError: features that are not finite.
            ValueError: rows that are not of unit length, or queries that are gallery images themselves, which would
                be among their own neighbours twice.
        """
        if same.query_positions is not None:
            raise ValueError("k-reciprocal re-ranking needs queries that are not in the gallery")
        query, gallery = unit_rows(query_features), unit_rows(gallery_features)
        distances = k_reciprocal_distances(query, gallery, k1=self.k1, k2=self.k2, weight=self.weight)
        tolerance = distances.rounding(tie_tolerance(torch.from_numpy(query), torch.from_numpy(gallery)).numpy())
        chunk = rows_at_once(len(gallery) * gallery.itemsize)
        yield from match_ranks_of_rows(lambda queries: -distances.of(queries), tolerance, same, chunk)


@dataclass(frozen=True)
class QueryExpansion:
    """Alpha query expansion (Radenović et al. 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation").

        q' = q + sum of s_i^alpha g_i over the n nearest gallery images g_i, brought to unit length

    with s_i the cosine similarity, 0 where it is negative. The gallery stays as it is. Images that the protocol leaves
    out of a query's ranking (of its identity and camera) do not feed its expansion. The paper takes n = 50 and
    alpha = 3 for landmarks, of which there are hundreds of photos; n should not be far above the photos of an identity.

    Attributes:
        n: gallery images; at most all that are not left out.
        alpha: 0 weighs all n alike.

    Raises:
        InputError: n out of 1 to 1,000, alpha out of 0 to 100.
    """

    method: ClassVar[str] = "aqe"
    n: int = 5
    alpha: float = 3.0

    def __post_init__(self) -> None:
        require_within("aqe_n", self.n, 1, MAX_EXPANSION)
        require_within("aqe_alpha", self.alpha, 0, MAX_ALPHA)

    def as_dict(self) -> dict[str, Any]:
        """The method and its parameters, by the names of the flags."""
        return {"method": self.method, **{f"aqe_{name}": value for name, value in asdict(self).items()}}

    def __str__(self) -> str:
        return f"{self.method} {self.n}/{self.alpha:g}"

    def expand(self, query_features: torch.Tensor, gallery_features: torch.Tensor, same: SameIdentity) -> torch.Tensor:
        """The expanded queries (Q, D) of (Q, D) and (G, D) unit rows; where the sum is 0, the query as it was.

        Raises:
            InputError: features that are not finite.
            ValueError: rows that are not of unit length.
        """
        query, gallery = unit_rows(query_features), unit_rows(gallery_features)
        nearest, similarities = nearest_of_gallery(query, gallery, same, self.n)
        weights = np.where(nearest < 0, 0, np.maximum(similarities, 0) ** self.alpha)
        expanded = np.empty_like(query)
        for part in consecutive(len(query), rows_at_once(8 * query.shape[1])):
            total = query[part].astype(np.float64)
            for place in range(nearest.shape[1]):  # in this order for all, so that equal queries stay equal
                total += weights[part, place, None] * gallery[nearest[part, place]]
            length = np.linalg.norm(total, axis=1, keepdims=True)
            expanded[part] = np.where(length > 0, total / np.where(length > 0, length, 1), query[part])
        return torch.from_numpy(expanded)

    def match_ranks(
        self, query_features: torch.Tensor, gallery_features: torch.Tensor, same: SameIdentity
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `match_ranks.match_ranks`, of the expanded queries; raises what `expand` does."""
        expanded = self.expand(query_features, gallery_features, same)
        yield from match_ranks(expanded.to(gallery_features.device), gallery_features, same)


Reranking = KReciprocal | QueryExpansion


def require_within(flag: str, value: float, low: float, high: float) -> None:
    """Check a parameter, named by its flag.

    Raises:
        InputError: it lies out of `low` to `high`, or is not a number.
    """
    if not low <= value <= high:
        raise InputError(f"--{flag} is {value}; it must be at least {low} and at most {high}")


def unit_rows(features: torch.Tensor) -> np.ndarray:
    """The same (N, D) on the CPU, checked: neighbours of NaN are none, and distances are those of unit rows.

    Raises:
        InputError: rows that are not finite.
        ValueError: rows that are not of unit length.
    """
    rows = np.ascontiguousarray(features.cpu().numpy())
    squares = np.einsum("nd,nd->n", rows, rows)
    if not np.isfinite(squares).all():
        row = int(np.flatnonzero(~np.isfinite(squares))[0])
        raise InputError(f"the features of photo {row} are not finite: nothing can be ranked by them")
    if (abs(squares - 1) > 0.01).any():
        raise ValueError("re-ranking needs features of unit length")
    return rows
