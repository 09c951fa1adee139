import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipfh import match_ranks, reach_counts
from clipfh.match_ranks import SameIdentity


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
@pytest.mark.parametrize("blocks", [{}, {"CHUNK": 64, "BLOCK": 64}, {"FEW_VALUES": 200}, {"FEW_VALUES": 0}])
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


def test_an_image_twice_in_the_gallery_ties_with_itself_wherever_it_stands():
    generator = torch.Generator().manual_seed(4)
    rows = F.normalize(torch.randn(40, 100, generator=generator), dim=1)
    gallery = rows.repeat(50, 1)  # 2,000 images in two blocks
    codes = np.arange(2000)
    for function in FUNCTIONS.values():
        found = collected(function(gallery, gallery, SameIdentity(codes, codes)), 2000)
        assert all(ranks == [50] for ranks in found.values())  # 49 equal images of other identities come first


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
def test_every_thread_has_a_chunk_and_none_is_too_large(num_queries):
    for threads in (1, 2, 8):
        size = match_ranks._chunk_size(num_queries, threads)
        assert size % 64 == 0 and size <= match_ranks.CHUNK + 64
        assert size < 64 * 2 or -(-num_queries // size) >= threads
