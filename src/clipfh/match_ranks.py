"""The ranks of each query's matches in the gallery, exact, without sorting the gallery.

The rank of a match is one more than the number of gallery images above it. So per chunk of queries the similarities of
the matches come first; then, block by block of the gallery, the product, and how many others reach each match. The
blocks' size does not depend on the gallery's: memory does not grow with it, and what is counted is still in the cache.

Shapes: Q queries, G gallery images, D embedding, c queries of a chunk, b gallery images of a block, M most matches,
N pairs of a query of the chunk and a gallery image of its identity.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from clipfh.reach_counts import ReachCounts

CHUNK, BLOCK = 448, 512  # queries and gallery images of one product; 1 MiB of similarities stays in the cache
BLOCKS_AT_ONCE = 5  # are counted by a table, which has to be fetched into the cache for every row anew
ALIGN = 64  # a multiple of the rows and columns that BLAS kernels take at once


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

    def chunks(self, size: int) -> list[np.ndarray]:
        """Places of all queries, in chunks.

        They come by number of pairs, then by identity: the queries of a chunk need about as many comparisons each, and
        share their gallery images. Those with most come first, lest one thread ends long after the others.
        """
        queries = np.lexsort((self.query_codes, -self._sizes[self.query_codes]))
        return np.split(queries, range(size, len(queries), size))

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


def match_ranks(
    query_features: torch.Tensor, gallery_features: torch.Tensor, same: SameIdentity
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, chunk by chunk, queries (c,) and the ranks of their matches (c, M) int64.

    Ranks are from 1, in increasing order; 0 fills the places of queries with fewer than M matches. A tied non-match
    ranks before a match; equal features have equal similarities, because every product of a call has the same shape.

    Args:
        query_features, gallery_features: (Q, D) and (G, D), float32 or float64, on one device.
        same: the pairs of one identity.
    """
    if query_features.device.type == "cuda":
        yield from _match_ranks_by_sorting(query_features, gallery_features, same)
    else:  # MPS shares the CPU's memory
        yield from _match_ranks_by_counting(query_features.cpu().numpy(), gallery_features.cpu().numpy(), same)


def _match_ranks_by_counting(
    query_features: np.ndarray, gallery_features: np.ndarray, same: SameIdentity
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    # numpy, not torch: on the CPU its matrix product is the faster one
    threads = torch.get_num_threads()
    free: SimpleQueue[_BlockProduct] = SimpleQueue()
    chunk = _chunk_size(len(query_features), threads)
    for _ in range(threads):
        free.put(_BlockProduct(query_features, gallery_features, chunk))

    def ranks_of(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        product = free.get()
        try:
            return queries, _ranks_of_chunk(product, same.pairs(queries))
        finally:
            free.put(product)

    # each thread has a chunk of its own, from the product to the counts: nothing waits, as it would between a product
    # on all threads and a count on all threads
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield from pool.map(ranks_of, same.chunks(chunk))


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: 20 ms, once


def _ranks_of_chunk(product: "_BlockProduct", pairs: Pairs) -> np.ndarray:
    product.take(pairs.queries)
    values = product.similarities_of(pairs)
    matches, num = _in_rows(values[pairs.counted], pairs.row[pairs.counted], len(pairs.queries))
    above = ReachCounts(matches, num)
    for similarities, width in product.non_matches(pairs, BLOCKS_AT_ONCE if above.by_table else 1):
        above.add(similarities, width)
    return _ranks(above.total(), num)


def _ranks(above: np.ndarray, num: np.ndarray) -> np.ndarray:
    place = np.arange(1, above.shape[1] + 1)  # among the matches: the better ones are above, too
    return np.where(place <= num[:, None], above + place, 0)


class _BlockProduct:
    """Similarities of a chunk of queries, some blocks of the gallery at a time, into the same buffer."""

    def __init__(self, query_features: np.ndarray, gallery_features: np.ndarray, chunk: int) -> None:
        self._query_features, self._gallery = query_features, gallery_features
        self._block = _even_part(len(gallery_features), -(-len(gallery_features) // BLOCK))
        wide = self._block * min(BLOCKS_AT_ONCE, -(-len(gallery_features) // self._block))
        D, dtype = query_features.shape[1], query_features.dtype
        self._queries = np.zeros((chunk, D), dtype)
        self._images = np.zeros((self._block, D), dtype)  # gathered ones, or the last block filled up
        self._similarities = np.empty((chunk, wide), dtype)

    def take(self, queries: np.ndarray) -> None:
        self._num = len(queries)
        self._queries[: self._num] = self._query_features[queries]

    def _multiply(self, images: np.ndarray, column: int) -> None:
        np.matmul(self._queries, images.T, out=self._similarities[:, column : column + self._block])

    def similarities_of(self, pairs: Pairs) -> np.ndarray:
        """(N,) of the pairs alone."""
        wanted = np.zeros(len(self._gallery), dtype=bool)
        wanted[pairs.position] = True
        images, place = np.flatnonzero(wanted), (np.cumsum(wanted, dtype=np.int32) - 1)[pairs.position]
        values = np.empty(len(place), self._queries.dtype)
        for start in range(0, len(images), self._block):
            block = images[start : start + self._block]
            np.take(self._gallery, block, axis=0, out=self._images[: len(block)], mode="clip")  # "raise" would copy
            self._multiply(self._images, 0)
            here = (place >= start) & (place < start + self._block)
            values[here] = self._similarities[pairs.row[here], place[here] - start]
        return values

    def non_matches(self, pairs: Pairs, num_blocks: int) -> Iterator[tuple[np.ndarray, int]]:
        """(c, b) of the whole gallery, `num_blocks` at a time, and how many columns count; -inf for pairs."""
        G, wide = len(self._gallery), self._block * num_blocks
        part_of_pair = (pairs.position // wide).astype(np.uint16)  # numpy sorts 16 bits by radix
        by_part = np.argsort(part_of_pair, kind="stable")
        ends = np.cumsum(np.bincount(part_of_pair, minlength=-(-G // wide)))
        for number, start in enumerate(range(0, G, wide)):
            for first in range(start, min(start + wide, G), self._block):
                block = self._gallery[first : first + self._block]
                if len(block) < self._block:
                    self._images[: len(block)] = block
                    block = self._images
                self._multiply(block, first - start)
            width = min(wide, G - start)
            inside = by_part[ends[number - 1] if number else 0 : ends[number]]
            self._similarities[pairs.row[inside], pairs.position[inside] - start] = -np.inf
            yield self._similarities[: self._num], width


def _chunk_size(num_queries: int, threads: int) -> int:
    return _even_part(num_queries, max(-(-num_queries // CHUNK), threads))


def _even_part(length: int, num_parts: int) -> int:
    """The size of `num_parts` parts of about equal size, aligned."""
    size = -(-length // num_parts)
    return -(-size // ALIGN) * ALIGN


def _in_rows(values: np.ndarray, row: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of the pairs (N,) as rows (c, M) in decreasing order, and how many each has (c,); M is at least 1."""
    num = np.bincount(row, minlength=num_rows)
    place = np.arange(len(row), dtype=np.int32) - np.repeat((np.cumsum(num) - num).astype(np.int32), num)
    negated = np.full((num_rows, max(num.max(), 1)), np.inf, dtype=values.dtype)
    negated[row, place] = -values
    negated.sort(axis=1)
    return np.negative(negated, out=negated), num


def _match_ranks_by_sorting(
    query_features: torch.Tensor, gallery_features: torch.Tensor, same: SameIdentity
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same on the features' device, where sorting whole rows is cheap beside moving them to the host."""
    gallery = torch.nn.functional.pad(gallery_features, (0, 0, 0, -len(gallery_features) % ALIGN))
    chunk = _chunk_size(len(query_features), 1)
    for pairs in map(same.pairs, same.chunks(chunk)):
        queries, row, position = (torch.from_numpy(part).to(gallery.device) for part in pairs[:3])
        filled = gallery.new_zeros(chunk, gallery.shape[1])
        filled[: len(queries)] = query_features[queries]
        similarities = (filled @ gallery.T)[: len(queries)]  # (c, G + padding)
        values = similarities[row, position].cpu().numpy()
        matches, num = _in_rows(values[pairs.counted], pairs.row[pairs.counted], len(queries))
        similarities[:, len(gallery_features) :] = -torch.inf
        similarities[row, position] = -torch.inf
        ascending = similarities.sort(dim=1).values
        below = torch.searchsorted(ascending, torch.from_numpy(matches).to(gallery.device))  # (c, M)
        above = ascending.shape[1] - below.cpu().numpy()
        yield pairs.queries, _ranks(above, num)
