"""Which gallery images have a query's identity, and which of them are left out of its ranking.

Shapes: Q queries, G gallery images, c queries of a chunk, N pairs of a query of the chunk and an image of its identity.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """The pairs of one identity in a chunk of queries.

    Attributes:
        queries: (c,) the chunk.
        row: (N,) int32, places in `queries`, in increasing order.
        position: (N,) int32, places in the gallery.
        counted: (N,) bool, whether the pair is a match; if not, the image is left out of the query's ranking.
    """

    queries: np.ndarray
    row: np.ndarray
    position: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class SameIdentity:
    """Which gallery images have each query's identity, and which of them are left out of its ranking.

    Attributes:
        query_codes, gallery_codes: (Q,) and (G,) identities as integers from 0.
        query_cameras, gallery_cameras: (Q,) and (G,) integers; an image of the query's own camera is left out. Or None.
        query_positions: (Q,) the query's own place in the gallery, which is left out, or -1. Or None.
    """

    query_codes: np.ndarray
    gallery_codes: np.ndarray
    query_cameras: np.ndarray | None = None
    gallery_cameras: np.ndarray | None = None
    query_positions: np.ndarray | None = None

    @cached_property
    def _by_code(self) -> np.ndarray:
        """(G,) places in the gallery, sorted by identity; of 32 bits, since hundreds a query are at hand at once."""
        return np.argsort(self.gallery_codes, kind="stable").astype(np.int32)

    @cached_property
    def _sizes(self) -> np.ndarray:
        """Of each identity in the gallery."""
        return np.bincount(self.gallery_codes, minlength=self.query_codes.max() + 1)

    def chunks(self, size: int, max_pairs: int) -> list[np.ndarray]:
        """Places of all queries, in chunks of at most `size` queries, and of at most `max_pairs` pairs or one query.

        They come by number of pairs, then by identity: the queries of a chunk need about as many comparisons each, and
        share their gallery images. Those with most come first, lest one thread ends long after the others.
        """
        sizes = self._sizes[self.query_codes]
        queries = np.lexsort((self.query_codes, -sizes))
        starts, num_pairs = [0], 0
        for place, size_of_query in enumerate(sizes[queries].tolist()):
            num_pairs += size_of_query
            if place - starts[-1] == size or (num_pairs > max_pairs and place > starts[-1]):
                starts.append(place)
                num_pairs = size_of_query
        return np.split(queries, starts[1:])

    def pairs(self, queries: np.ndarray) -> Pairs:
        """All pairs of some queries."""
        codes = self.query_codes[queries]
        num, starts = self._sizes[codes], (np.cumsum(self._sizes) - self._sizes)[codes]
        row = np.repeat(np.arange(len(queries), dtype=np.int32), num)
        # the k-th pair of a query is the k-th gallery image of its identity
        before = np.repeat((starts - (np.cumsum(num) - num)).astype(np.int32), num)
        position = self._by_code[before + np.arange(len(row), dtype=np.int32)]
        counted = np.ones(len(row), dtype=bool)
        if self.query_cameras is not None:
            counted &= self.query_cameras[queries][row] != self.gallery_cameras[position]
        if self.query_positions is not None:
            counted &= self.query_positions[queries][row] != position
        return Pairs(queries, row, position, counted)
