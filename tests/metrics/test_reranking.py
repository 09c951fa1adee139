import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipfh.core.errors import InputError
from clipfh.metrics import k_reciprocal, neighbours
from clipfh.metrics.k_reciprocal import k_reciprocal_distances
from clipfh.metrics.neighbours import nearest_of_all, nearest_of_gallery
from clipfh.metrics.reranking import KReciprocal, QueryExpansion
from clipfh.metrics.retrieval import evaluate_retrieval
from clipfh.metrics.same_identity import SameIdentity


def dense(query, gallery, k1, k2, weight):
    """The paper's algorithm with whole matrices: final distances (Q, G)."""
    features = np.concatenate([query, gallery]).astype(np.float64)
    N, Q = len(features), len(query)
    distances = np.maximum(2 - 2 * features @ features.T, 0)
    np.fill_diagonal(distances, 0)
    distances /= np.maximum(distances.max(axis=1, keepdims=True), 1e-300)
    order = distances.copy()
    np.fill_diagonal(order, -1)  # a photo is its own first neighbour
    rank = np.argsort(order, axis=1, kind="stable")
    place = np.argsort(rank, axis=1)

    def reciprocal(p, k):
        return [q for q in rank[p, : k + 1] if place[q, p] <= k]

    V = np.zeros((N, N))
    for p in range(N):
        expanded = set(found := reciprocal(p, k1))
        for q in found:
            candidate = reciprocal(q, int(np.around(k1 / 2)))
            if len(set(candidate) & set(found)) > 2 / 3 * len(candidate):
                expanded |= set(candidate)
        members = sorted(expanded)
        V[p, members] = np.exp(-distances[p, members])
        V[p] /= V[p].sum()
    V = np.stack([V[rank[p, :k2]].mean(axis=0) for p in range(N)])
    smaller = np.minimum(V[:Q, None], V[None, Q:]).sum(axis=2)
    larger = np.maximum(V[:Q, None], V[None, Q:]).sum(axis=2)
    return (1 - weight) * (1 - smaller / larger) + weight * distances[:Q, Q:]


def clusters(num_query=25, num_gallery=35, seed=0, dim=16, dtype=np.float32, num_ids=9):
    """Unit rows around the centers of some identities, and the identities."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, num_ids, num_query + num_gallery)
    rows = rng.standard_normal((num_ids, dim))[ids] + 0.8 * rng.standard_normal((len(ids), dim))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)
    return rows[:num_query], rows[num_query:], ids[:num_query], ids[num_query:]


def measured(query, gallery, query_ids, gallery_ids, method, **protocol):
    features = torch.from_numpy(query), torch.from_numpy(gallery)
    return evaluate_retrieval(
        *features, query_ids.astype(str), gallery_ids.astype(str), ranks=method.match_ranks, **protocol
    )


def distances_of(query, gallery, k1=20, k2=6, weight=0.3):
    return k_reciprocal_distances(query, gallery, k1=k1, k2=k2, weight=weight).of(np.arange(len(query)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k1", [1, 2, 5, 7, 20, 59, 200])  # the last two: all photos, and more than there are
def test_distances_equal_the_dense_algorithm(seed, k1):
    query, gallery, *_ = clusters(seed=seed)
    for k2, weight in ((1, 0.3), (min(6, k1), 0.0), (min(3, k1), 1.0), (k1, 0.5)):
        found = distances_of(query, gallery, k1, k2, weight)
        np.testing.assert_allclose(found, dense(query, gallery, k1, k2, weight), atol=3e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_query_and_one_gallery_image(dtype):
    query, gallery, *_ = clusters(1, 30, dtype=dtype)
    assert distances_of(query, gallery).dtype == dtype
    np.testing.assert_allclose(distances_of(query, gallery), dense(query, gallery, 20, 6, 0.3), atol=3e-6)
    # V of both is (1/2, 1/2) after the expansion, whatever it was: Jaccard distance 0
    np.testing.assert_allclose(distances_of(query, gallery[:1], weight=0.25), [[0.25]], atol=1e-6)


def at_angles(*degrees):
    radians = np.deg2rad(np.array(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_hand_made_sets():
    # at k1 = 1 a photo and its nearest. 0 (query) and 1 are each other's; 3's nearest is 1, which is not mutual;
    # 40 and 42 are each other's. So V(0) = V of {0, 1}, V(3) = {3} alone, V(40) = V of {40, 42}
    found = distances_of(at_angles(0), at_angles(1, 3, 40, 42), k1=1, k2=1, weight=0.0)
    squared = 2 - 2 * np.cos(np.deg2rad([1, 41, 42]))
    of_query, of_1 = np.exp(-squared[0] / squared[2]), np.exp(-squared[0] / squared[1])
    v_query, v_1 = np.array([1, of_query]) / (1 + of_query), np.array([of_1, 1]) / (1 + of_1)
    jaccard = 1 - np.minimum(v_query, v_1).sum() / np.maximum(v_query, v_1).sum()
    np.testing.assert_allclose(found, [[jaccard, 1, 1, 1]], atol=1e-6)


def test_a_weight_of_1_is_the_ranking_as_it_was():
    data = clusters(60, 90)
    plain = evaluate_retrieval(*map(torch.from_numpy, data[:2]), data[2].astype(str), data[3].astype(str))
    assert measured(*data, KReciprocal(weight=1.0)).as_dict() == plain.as_dict()


@pytest.mark.parametrize("method", [KReciprocal(), KReciprocal(5, 3, 0.1), QueryExpansion()])
def test_re_ranking_helps_clustered_photos(method):
    data = clusters(200, 300, num_ids=20, dim=12)
    plain = evaluate_retrieval(*map(torch.from_numpy, data[:2]), data[2].astype(str), data[3].astype(str))
    assert measured(*data, method).mAP > plain.mAP


def test_ranks_are_those_of_the_dense_distances():
    for seed in range(3):
        query, gallery, query_ids, gallery_ids = clusters(seed=seed)
        figures = measured(query, gallery, query_ids, gallery_ids, KReciprocal(8, 4, 0.3))
        distances = dense(query, gallery, 8, 4, 0.3)
        for q, row in enumerate(distances):
            is_match = gallery_ids == query_ids[q]
            ranks = np.flatnonzero(is_match[np.lexsort((is_match, np.round(row, 5)))]) + 1
            assert figures.first_match_rank[q] == (ranks[0] if len(ranks) else 0)
            if len(ranks):
                assert figures.average_precision[q] == pytest.approx((np.arange(1, len(ranks) + 1) / ranks).mean())


@pytest.mark.parametrize("method", [KReciprocal(), KReciprocal(4, 2), QueryExpansion(), QueryExpansion(3, 0.0)])
def test_the_order_of_the_photos_changes_no_figure(method):
    query, gallery, query_ids, gallery_ids = clusters(120, 200, num_ids=15)
    expected = measured(query, gallery, query_ids, gallery_ids, method).as_dict()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        q, g = rng.permutation(120), rng.permutation(200)
        assert measured(query[q], gallery[g], query_ids[q], gallery_ids[g], method).as_dict() == pytest.approx(
            expected, abs=1e-12
        )


@pytest.mark.parametrize("method", [KReciprocal(), KReciprocal(3, 2), QueryExpansion(4)])
def test_chunks_and_threads_change_nothing(monkeypatch, method):
    data = clusters(70, 110)
    data[1][40:60] = data[1][20:40]  # photos that stand twice in the gallery
    expected = measured(*data, method)
    for chunk_bytes, rows, threads in ((1, 1, 1), (2000, 7, 2), (1 << 24, 512, 3), (5000, 33, 5)):
        monkeypatch.setattr(neighbours, "CHUNK_BYTES", chunk_bytes)
        monkeypatch.setattr(k_reciprocal, "ROWS", rows)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found = measured(*data, method)
        assert found.as_dict() == expected.as_dict()
        np.testing.assert_array_equal(found.first_match_rank, expected.first_match_rank)


def test_neighbours_are_a_stable_sort_and_begin_with_the_photo_itself():
    query, gallery, *_ = clusters(30, 50, dim=4)
    features = np.concatenate([query, gallery, query[:20], gallery[:7]])
    exact = features.astype(np.float64) @ features.astype(np.float64).T
    exact[:, 80:] = exact[:, np.r_[:20, 30:37]]  # of equal photos, equal similarities
    order = exact.copy()
    np.fill_diagonal(order, np.inf)
    for K in (1, 2, 9, 107, 500):
        index, lowest = nearest_of_all(features, K)
        np.testing.assert_array_equal(index, np.argsort(-np.round(order, 11), axis=1, kind="stable")[:, :K])
        np.testing.assert_allclose(lowest, exact.min(axis=1), atol=1e-11)


@pytest.mark.parametrize("D", [3, 64, 129, 512])
def test_equal_photos_come_in_the_order_of_their_places(D):
    rng = np.random.default_rng(D)
    rows = rng.standard_normal((3, D)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gallery = np.tile(rows, (40, 1))
    same = SameIdentity(np.zeros(3, dtype=int), np.ones(120, dtype=int))
    index, similarities = nearest_of_gallery(rows, gallery, same, 45)
    for q in range(3):
        assert index[q, :40].tolist() == list(range(q, 120, 3))
        assert len(set(similarities[q, :40])) == 1 and similarities[q, 40] < similarities[q, 39]
        second = index[q, 40] % 3
        assert index[q, 40:].tolist() == list(range(second, 120, 3))[:5]


@pytest.mark.parametrize("num_gallery", [5, 33, 65])
@pytest.mark.parametrize("D", [3, 64, 512])
@pytest.mark.parametrize("method", [KReciprocal(), KReciprocal(100, 6), QueryExpansion(50)])
def test_constant_features_give_no_hit(method, D, num_gallery):
    row = F.normalize(torch.randn(1, D, generator=torch.Generator().manual_seed(D)), dim=1).numpy()
    gallery_ids = np.array([1, *[0] * (num_gallery - 1)])
    num_query = 30  # more than k1: of equal photos the first are neighbours, and here none of the gallery is
    data = np.repeat(row, num_query, axis=0), np.repeat(row, num_gallery, axis=0), np.ones(num_query, dtype=int)
    figures = measured(*data, gallery_ids, method)
    assert figures.rank1 == 0 and set(figures.first_match_rank.tolist()) == {num_gallery}


def test_photos_without_shared_neighbours_tie_by_the_original_distance():
    # at k1 = k2 = 1 the query and the photo at 1 degree have each other alone, the others nothing of either
    query, gallery = at_angles(0), at_angles(1, 40, -40, 60, 61)
    for match, rank in ((0, 1), (1, 3), (2, 3), (3, 4), (4, 5)):  # 40 and -40 tie
        ids = np.arange(5) == match
        assert measured(query, gallery, np.array([True]), ids, KReciprocal(1, 1)).first_match_rank.tolist() == [rank]


def test_memory_grows_with_the_photos_not_with_their_square():
    peaks = []
    for num in (1500, 3000):
        data = clusters(num // 2, num // 2, num_ids=num // 8, dim=32)
        measured(*data, KReciprocal())  # compiled
        tracemalloc.start()
        measured(*data, KReciprocal())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    chunks = torch.get_num_threads() * neighbours.CHUNK_BYTES
    assert peaks[1] < chunks + 12 * 2**20  # N x N float32 would be 34 MiB


def test_no_product_of_all_photos_is_made(monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 40_000)
    shapes = []

    def spy(function):
        def call(products, *others):
            shapes.append(products.shape)
            return function(products, *others)

        return call

    for module, name in ((neighbours, "_nearest"), (neighbours, "_lowest"), (k_reciprocal, "_finish")):
        monkeypatch.setattr(module, name, spy(getattr(module, name)))
    measured(*clusters(60, 90), KReciprocal())
    measured(*clusters(60, 90), QueryExpansion())
    assert len(shapes) > 6 and max(rows * columns for rows, columns in shapes) * 4 <= 40_000


def test_query_expansion_by_hand():
    query, gallery = torch.from_numpy(at_angles(0, 90)), torch.from_numpy(at_angles(30, 60, 120, 200))
    same = SameIdentity(np.array([0, 1]), np.array([2, 2, 2, 2]))
    c30, c60 = np.cos(np.pi / 6), 0.5
    total = at_angles(0)[0] + c30**3 * at_angles(30)[0] + c60**3 * at_angles(60)[0]
    expanded = QueryExpansion(2, 3.0).expand(query, gallery, same).numpy()
    np.testing.assert_allclose(expanded[0], total / np.linalg.norm(total), atol=1e-12)
    np.testing.assert_allclose(expanded[1], [0, 1], atol=1e-12)  # 60 and 120 degrees, alike
    # all of the gallery, of which 120 and 200 degrees lie on the other side: they count 0, as alpha is not 0
    everything = QueryExpansion(50, 3.0).expand(query, gallery, same).numpy()
    np.testing.assert_allclose(everything[0], expanded[0], atol=1e-12)
    mean = (at_angles(0) + at_angles(30) + at_angles(60) + at_angles(120))[0]
    of_three = QueryExpansion(3, 0.0).expand(query, gallery, same).numpy()
    np.testing.assert_allclose(of_three[0], mean / np.linalg.norm(mean), atol=1e-12)
    opposite = QueryExpansion(1, 0.0).expand(query[:1], -query[:1], SameIdentity(np.array([0]), np.array([1])))
    np.testing.assert_array_equal(opposite.numpy(), query[:1].numpy())  # the sum is 0: as it was


def test_what_the_protocol_leaves_out_does_not_feed_the_expansion():
    query = torch.from_numpy(at_angles(0)).float()
    gallery = torch.from_numpy(at_angles(2, 40, 3, 90)).float()
    ids, cameras = (np.array([0]), np.array([0, 0, 1, 1])), (np.array([5]), np.array([5, 6, 5, 6]))
    expansion = QueryExpansion(1, 0.0)
    expanded = expansion.expand(query, gallery, SameIdentity(*ids, *cameras)).numpy()[0]
    assert np.rad2deg(np.arctan2(expanded[1], expanded[0])) == pytest.approx(1.5, abs=1e-3)  # of another identity
    expanded = expansion.expand(query, gallery, SameIdentity(*ids)).numpy()[0]
    assert np.rad2deg(np.arctan2(expanded[1], expanded[0])) == pytest.approx(1.0, abs=1e-3)
    own = SameIdentity(
        ids[0], np.array([0, *ids[1]]), query_positions=np.array([0])
    )  # the query is in the gallery, too
    itself = expansion.expand(query, torch.cat([query, gallery]), own)
    np.testing.assert_allclose(itself.numpy()[0], at_angles(1)[0], atol=1e-6)
    # nothing is left: the query as it was
    alone = expansion.expand(query, gallery[:1], SameIdentity(ids[0], np.array([0]), cameras[0], np.array([5])))
    np.testing.assert_allclose(alone.numpy(), query.numpy(), atol=1e-7)


@pytest.mark.parametrize("method", [KReciprocal(10, 3), QueryExpansion()])
def test_photos_of_the_querys_camera_are_left_out_of_the_ranking(method):
    query, gallery, query_ids, gallery_ids = clusters(40, 80)
    rng = np.random.default_rng(1)
    cameras = rng.integers(0, 2, 40).astype(str), rng.integers(0, 2, 80).astype(str)
    figures = measured(
        query, gallery, query_ids, gallery_ids, method, query_cameras=cameras[0], gallery_cameras=cameras[1]
    )
    if isinstance(method, KReciprocal):
        rows = -dense(query, gallery, 10, 3, 0.3)
    else:
        same = SameIdentity(query_ids, gallery_ids, *(part.astype(int) for part in cameras))
        rows = method.expand(torch.from_numpy(query), torch.from_numpy(gallery), same).numpy() @ gallery.T
    for q, row in enumerate(rows):
        is_match = gallery_ids == query_ids[q]
        kept = ~(is_match & (cameras[1] == cameras[0][q]))
        ranks = np.flatnonzero(is_match[kept][np.argsort(-row[kept])]) + 1
        assert figures.first_match_rank[q] == (ranks[0] if len(ranks) else 0)


def test_inputs_are_not_changed():
    query, gallery, query_ids, gallery_ids = clusters()
    before = query.copy(), gallery.copy()
    for method in (KReciprocal(), QueryExpansion()):
        measured(query, gallery, query_ids, gallery_ids, method)
        np.testing.assert_array_equal(query, before[0])
        np.testing.assert_array_equal(gallery, before[1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: KReciprocal(k1=0), "--rerank_k1 is 0; it must be at least 1"),
        (lambda: KReciprocal(k1=10**6), "--rerank_k1 is 1000000; .* at most 100"),
        (lambda: KReciprocal(k2=0), "--rerank_k2 is 0"),
        (lambda: KReciprocal(k1=4), "--rerank_k2 is 6, more than --rerank_k1 4"),
        (lambda: KReciprocal(weight=2), "--rerank_lambda is 2; it must be at least 0 and at most 1"),
        (lambda: KReciprocal(weight=-0.1), "--rerank_lambda is -0.1"),
        (lambda: KReciprocal(weight=float("nan")), "--rerank_lambda is nan"),
        (lambda: QueryExpansion(n=0), "--aqe_n is 0"),
        (lambda: QueryExpansion(alpha=-1), "--aqe_alpha is -1"),
    ],
)
def test_impossible_parameters(make, says):
    with pytest.raises(InputError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [KReciprocal(), QueryExpansion()])
def test_features_that_cannot_be_ranked(method):
    query, gallery, query_ids, gallery_ids = clusters()
    same = SameIdentity(query_ids, gallery_ids)
    for value in (np.nan, np.inf):
        broken = gallery.copy()
        broken[3, 0] = value
        with pytest.raises(InputError, match=r"the features of photo 3 are not finite"):
            list(method.match_ranks(torch.from_numpy(query), torch.from_numpy(broken), same))
    with pytest.raises(ValueError, match="unit length"):
        list(method.match_ranks(torch.from_numpy(query), torch.from_numpy(2 * gallery), same))


def test_queries_in_the_gallery_are_refused():
    gallery = torch.from_numpy(clusters()[1])
    ids = np.zeros(len(gallery), dtype=int)
    same = SameIdentity(ids, ids, query_positions=np.arange(len(gallery)))
    with pytest.raises(ValueError, match="not in the gallery"):
        list(KReciprocal().match_ranks(gallery, gallery, same))
