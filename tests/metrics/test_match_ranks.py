import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipfh.metrics import match_ranks, reach_counts
from clipfh.metrics.same_identity import SameIdentity


def by_sorting_every_row(query, gallery, same):
    """{query: ranks of its matches}, from one product and a loop over everything."""
    similarities = (query @ gallery.T).numpy()
    ranks = {}
    for q, row in enumerate(similarities):
        is_match = same.gallery_codes == same.query_codes[q]
        left_out = np.zeros(len(row), dtype=bool)
        if same.query_cameras is not None:
            left_out |= is_match & (same.gallery_cameras == same.query_cameras[q])
        if same.query_positions is not None and same.query_positions[q] >= 0:
            left_out[same.query_positions[q]] = True
        kept = np.flatnonzero(~left_out)
        order = kept[np.lexsort((is_match[kept], -row[kept]))]  # of equal similarities, the non-matches first
        ranks[q] = (np.flatnonzero(is_match[order]) + 1).tolist()
    return ranks


def collected(parts, num_query):
    ranks = {}
    for queries, rows in parts:
        for q, row in zip(queries.tolist(), rows.tolist(), strict=True):
            assert q not in ranks
            found = [rank for rank in row if rank]
            assert row == found + [0] * (len(row) - len(found))
            ranks[q] = found
    assert len(ranks) == num_query
    return ranks


def skewed(num_query, num_gallery, seed, values=None):
    """Features and identities, a few of which have hundreds of images. Few values tie most of the similarities."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, 60)
    codes = [rng.choice(59, n, p=share / share.sum()) for n in (num_query, num_gallery)]
    if values:
        features = [torch.randint(0, values, (n, 4), generator=generator).float() for n in (num_query, num_gallery)]
    else:  # float64: no two similarities are so near to each other that the order of addition matters
        features = [torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (num_query, num_gallery)]
        features = [F.normalize(rows, dim=1) for rows in features]
    return *features, codes


FUNCTIONS = {
    "counting": lambda query, gallery, same: match_ranks.match_ranks(query, gallery, same),
    # what runs on a GPU; here on the CPU
    "sorting": lambda query, gallery, same: match_ranks._match_ranks_by_sorting(query, gallery, same),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("values", [None, 2, 3])
@pytest.mark.parametrize(
    "blocks", [{}, {"CHUNK": 64, "BLOCK": 64}, {"MAX_SIMILARITIES": 3000}, {"FEW_VALUES": 200}, {"FEW_VALUES": 0}]
)
def test_ranks_equal_those_of_sorted_rows(monkeypatch, function, values, blocks):
    for name, value in blocks.items():
        monkeypatch.setattr(reach_counts if name == "FEW_VALUES" else match_ranks, name, value)
    query, gallery, codes = skewed(150, 700, seed=len(blocks), values=values)
    rng = np.random.default_rng(1)
    cameras = [rng.integers(0, 3, len(part)) for part in codes]
    for same in (SameIdentity(*codes), SameIdentity(*codes, *cameras)):
        found = collected(FUNCTIONS[function](query, gallery, same), 150)
        assert found == by_sorting_every_row(query, gallery, same)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_leave_one_out(function):
    _, gallery, (_, codes) = skewed(1, 300, seed=2, values=2)
    positions = np.where(np.arange(300) % 7 == 0, -1, np.arange(300))
    same = SameIdentity(codes, codes, query_positions=positions)
    assert collected(FUNCTIONS[function](gallery, gallery, same), 300) == by_sorting_every_row(gallery, gallery, same)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    query, gallery, codes = skewed(90, 400, seed=3, values=2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = collected(match_ranks.match_ranks(query, gallery, SameIdentity(*codes)), 90)
    finally:
        torch.set_num_threads(before)
    assert found == by_sorting_every_row(query, gallery, SameIdentity(*codes))


def last_bits_differ(monkeypatch):
    """Make the product a worse one: each entry is moved by up to two thirds of what two orders of addition may differ.

    What a BLAS does to equal columns depends on the processor and on where they stand; this does it everywhere.
    """
    rng = np.random.default_rng(5)

    def multiply(queries, images, out):
        np.matmul(queries, images.T, out=out)
        lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(images, axis=1).max()
        reach = np.sqrt(queries.shape[1]) * np.finfo(out.dtype).eps / 3 * lengths
        out += (rng.uniform(-1, 1, out.shape) * reach).astype(out.dtype)

    monkeypatch.setattr(match_ranks, "_multiply", multiply)


def test_an_image_twice_in_the_gallery_ties_with_itself_wherever_it_stands(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    rows = F.normalize(torch.randn(40, 100, generator=generator), dim=1)
    gallery = rows.repeat(50, 1)  # 2,000 images in four blocks
    codes = np.arange(2000)
    for function in FUNCTIONS.values():
        found = collected(function(gallery, gallery, SameIdentity(codes, codes)), 2000)
        assert all(ranks == [50] for ranks in found.values())  # 49 equal images of other identities come first
    last_bits_differ(monkeypatch)
    found = collected(match_ranks.match_ranks(gallery, gallery, SameIdentity(codes, codes)), 2000)
    assert all(ranks == [50] for ranks in found.values())


@pytest.mark.parametrize("few_values", [48, 0])  # by comparison, by the table
@pytest.mark.parametrize("num_gallery", [5, 63, 64, 65, 127, 129, 200, 321, 385])  # a remainder, none, several blocks
@pytest.mark.parametrize("num_query", [1, 64, 65, 130])
def test_equal_images_tie_in_every_block_whatever_the_product_does_to_their_last_bits(
    monkeypatch, num_query, num_gallery, few_values
):
    for module, name, value in ((match_ranks, "CHUNK", 64), (match_ranks, "BLOCK", 64)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(reach_counts, "FEW_VALUES", few_values)
    last_bits_differ(monkeypatch)
    codes = np.arange(num_gallery) % 3 % 2  # identity 0 has more
    for D, dtype, length in ((3, torch.float32, 1.0), (512, torch.float32, 30.0), (2048, torch.float64, 1e-3)):
        row = F.normalize(torch.randn(1, D, generator=torch.Generator().manual_seed(D), dtype=dtype), dim=1) * length
        query, gallery = row.repeat(num_query, 1), row.repeat(num_gallery, 1)
        same = SameIdentity(np.zeros(num_query, dtype=int), codes)
        found = collected(match_ranks.match_ranks(query, gallery, same), num_query)
        num_others = int((codes == 1).sum())
        assert all(ranks == list(range(num_others + 1, num_gallery + 1)) for ranks in found.values())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_further_apart_than_rounding_is_no_tie(function):
    D, eps = 256, torch.finfo(torch.float32).eps
    tie = D**0.5 * eps  # of unit rows
    query = torch.zeros(1, D)
    query[0, 0] = 1.0
    gallery = torch.zeros(4, D)
    gallery[:, 0] = 0.5 - tie * torch.tensor([0.0, 2.0, 0.5, -2.0])  # the match; below, a tie, above
    gallery[:, 1] = (1 - gallery[:, 0] ** 2).sqrt()
    same = SameIdentity(np.array([0]), np.array([0, 1, 1, 1]))
    assert collected(FUNCTIONS[function](query, gallery, same), 1) == {0: [3]}


def test_memory_hardly_grows_with_the_gallery():
    peaks = []
    for num_gallery in (20_000, 80_000):
        gallery, codes = torch.ones(num_gallery, 8), np.arange(num_gallery)
        tracemalloc.start()
        collected(match_ranks.match_ranks(gallery[:500], gallery, SameIdentity(codes[:500], codes)), 500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4 * 2**20  # 500 rows of similarities to 60,000 more images would be 114 MiB


@pytest.mark.parametrize("num_queries", [1, 63, 500, 5000])
def test_every_thread_has_a_chunk_and_none_is_too_large(monkeypatch, num_queries):
    sizes = []
    monkeypatch.setattr(match_ranks, "_ranks_of_chunk", lambda product, pairs, _: sizes.append(len(pairs.queries)))
    features, codes = torch.ones(num_queries, 2), np.arange(num_queries)
    for threads in (1, 2, 8):
        sizes.clear()
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        list(match_ranks.match_ranks(features, features[:10], SameIdentity(codes, codes[:10])))
        assert sum(sizes) == num_queries and max(sizes) <= match_ranks.CHUNK
        assert len(sizes) >= min(threads, num_queries)
