"""Photo and text as one query, beside similarities that are added up one by one."""

import math
import statistics
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipfh.core.errors import InputError
from clipfh.metrics import neighbours
from clipfh.metrics.retrieval import evaluate_retrieval
from clipfh.metrics.same_identity import SameIdentity
from clipfh.metrics.text_fusion import TextFusion

Q, G, D = 30, 50, 16


def unit(*shape, seed=0, dtype=torch.float32):
    return F.normalize(torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=1)


def ids(num, seed=0):
    return np.random.default_rng(seed).integers(0, 6, num).astype(str)


@pytest.fixture
def data():
    """Queries, gallery, texts and identities; texts are all near each other, as those of a CLIP are."""
    text = F.normalize(unit(1, D, seed=9) + 0.2 * unit(Q, D, seed=3), dim=1)
    return unit(Q, D), unit(G, D, seed=1), text, ids(Q), ids(G, 1)


def measured(query, gallery, text, query_ids, gallery_ids, weight, **protocol):
    ranks = partial(TextFusion(weight).match_ranks, text_features=text)
    return evaluate_retrieval(query, gallery, query_ids, gallery_ids, ranks=ranks, **protocol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_the_similarity_is_the_weighted_sum_of_both_divided_by_their_spread(data, weight, dtype):
    query, gallery, text = (part.to(dtype) for part in data[:3])
    query, gallery, text = (F.normalize(part, dim=1) for part in (query, gallery, text))
    fused = TextFusion(weight).fuse(query, gallery, text)
    assert fused.dtype == dtype
    expected = np.zeros((Q, G))
    for share, rows in ((1 - weight, query), (weight, text)):
        similarities = [
            [sum(a * b for a, b in zip(row, g, strict=True)) for g in gallery.tolist()] for row in rows.tolist()
        ]
        expected += share * np.array(similarities) / np.mean([statistics.pstdev(values) for values in similarities])
    np.testing.assert_allclose(fused.double() @ gallery.double().T, expected, atol=2e-5)


def test_by_hand():
    # similarities of the photo .8 and .6, spread .1; of the text .28 and .5376, spread .1288
    gallery = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    query, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[-0.352, 0.936]])
    np.testing.assert_allclose((text @ gallery.T).numpy(), [[0.28, 0.5376]], atol=1e-6)
    fused = TextFusion(0.25).fuse(query, gallery, text)
    expected = 0.75 * np.array([0.8, 0.6]) / 0.1 + 0.25 * np.array([0.28, 0.5376]) / 0.1288
    np.testing.assert_allclose((fused @ gallery.T).numpy()[0], expected, rtol=1e-5)
    # the photo is for the first image, the text for the second, by one spread to either side each: the heavier decides
    for weight, rank in ((0.4, 2), (0.6, 1)):
        assert measured(query, gallery, text, ["b"], ["a", "b"], weight).first_match_rank.tolist() == [rank]


@pytest.mark.parametrize("cameras", [False, True])
def test_ends_of_the_weight_are_the_photo_and_the_text_alone(data, cameras):
    protocol = {}
    if cameras:
        protocol = {"query_cameras": list("ab" * (Q // 2)), "gallery_cameras": list("ab" * (G // 2))}
    for weight, rows in ((0.0, data[0]), (1.0, data[2])):
        alone = evaluate_retrieval(rows, data[1], *data[3:], **protocol)
        found = measured(*data, weight, **protocol)
        assert found.as_dict() == alone.as_dict()
        np.testing.assert_array_equal(found.first_match_rank, alone.first_match_rank)


def test_figures_are_those_of_sorted_sums(data):
    query, gallery, text, query_ids, gallery_ids = data
    photo, words = (query @ gallery.T).double().numpy(), (text @ gallery.T).double().numpy()
    sums = 0.6 * photo / photo.std(axis=1).mean() + 0.4 * words / words.std(axis=1).mean()
    figures = measured(*data, 0.4)
    for q in range(Q):
        ranks = np.flatnonzero(gallery_ids[np.argsort(-sums[q])] == query_ids[q]) + 1
        assert figures.average_precision[q] == pytest.approx((np.arange(1, len(ranks) + 1) / ranks).mean())


def test_a_text_that_knows_what_the_photo_does_not_helps():
    """Photos show the shape, texts say the colour, and an identity is both."""
    identity = np.repeat(np.arange(16), 10)
    rng = np.random.default_rng(0)
    parts = [np.eye(4)[identity % 4], np.eye(4)[identity // 4]]
    noise = [rng.normal(0, 0.4, (160, 8)), rng.normal(0, 0.4, (160, 8))]
    gallery = F.normalize(torch.from_numpy(np.hstack(parts) + noise[0]), dim=1)
    query = F.normalize(torch.from_numpy(np.hstack([parts[0], 0.2 * parts[1]]) + noise[1]), dim=1)
    text = torch.from_numpy(np.hstack([0 * parts[0], parts[1]]))
    photo, both, words = (measured(query, gallery, text, identity, identity, w).mAP for w in (0, 0.5, 1))
    assert both > photo + 0.1 and both > words + 0.1


def test_what_changes_no_ranking(data):
    """A part of all photos and texts that is the same, as the gap between photos and texts of a CLIP is; the order."""
    query, gallery, text, *both_ids = data
    expected = measured(*data, 0.5).average_precision
    q, g = np.random.default_rng(0).permutation(Q), np.random.default_rng(1).permutation(G)
    mixed = measured(query[q], gallery[g], text[q], both_ids[0][q], both_ids[1][g], 0.5)
    np.testing.assert_array_equal(mixed.average_precision, expected[q])

    def wider(rows, last):  # one dimension more, in which all photos are .6 and texts are `last`
        return torch.cat([math.sqrt(1 - last**2) * rows, torch.full((len(rows), 1), last)], dim=1)

    moved = measured(wider(query, 0.6), wider(gallery, 0.6), wider(text, -0.9), *both_ids, 0.5)
    np.testing.assert_allclose(moved.average_precision, expected)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("D", [3, 64, 512])
def test_equal_photos_tie_and_constant_features_give_no_hit(weight, D):
    gallery_ids = np.array(["b"] + ["a"] * 32)
    query, text = unit(20, D, seed=D), unit(20, D, seed=D + 1)
    figures = measured(query, unit(1, D, seed=5).repeat(33, 1), text, ["b"] * 20, gallery_ids, weight)
    assert set(figures.first_match_rank.tolist()) == {33}
    # twice the same photos, of which the second half matches: one that ties is above each
    half = unit(17, D, seed=6)
    twice = measured(query, torch.cat([half, half]), text, ["b"] * 20, ["a"] * 17 + ["b"] * 17, weight)
    np.testing.assert_allclose(twice.average_precision, 0.5)
    assert set(twice.first_match_rank.tolist()) == {2}


def test_a_similarity_without_spread_counts_nothing(data):
    query, gallery, text, *both_ids = data
    plain = evaluate_retrieval(query, gallery, *both_ids)
    gallery_and_0, query_and_0 = (torch.cat([rows, torch.zeros(len(rows), 1)], dim=1) for rows in (gallery, query))
    orthogonal = torch.zeros(Q, D + 1)
    orthogonal[:, -1] = 1
    for no_text in (orthogonal, torch.zeros(Q, D + 1)):
        assert measured(query_and_0, gallery_and_0, no_text, *both_ids, 0.5).as_dict() == plain.as_dict()
        assert measured(query_and_0, gallery_and_0, no_text, *both_ids, 1.0).rank1 == 0  # all tie: no hit
    one = measured(query[:1], gallery[:1], text[:1], ["a"], ["a"], 0.5)
    assert (one.rank1, one.mAP) == (1, 1)


def test_queries_without_a_text_leave_the_others_as_they_are(data):
    query, gallery, text = data[:3]
    fused = TextFusion(0.5).fuse(torch.cat([query, query]), gallery, torch.cat([text, torch.zeros(Q, D)]))
    torch.testing.assert_close(fused[:Q], TextFusion(0.5).fuse(query, gallery, text))
    torch.testing.assert_close(F.normalize(fused[Q:], dim=1), query)


def test_a_text_that_fits_all_photos_alike_counts_less(data):
    """Of a text with a hundredth of the others' spread, the photo decides."""
    query, gallery, text, *both_ids = data
    gap = torch.zeros(1, D + 1)
    gap[:, -1] = 1
    gallery, query, text = (torch.cat([rows, torch.zeros(len(rows), 1)], dim=1) for rows in (gallery, query, text))
    text[0] = F.normalize(0.01 * text[0] + gap[0], dim=0)
    found, plain = measured(query, gallery, text, *both_ids, 0.5), evaluate_retrieval(query, gallery, *both_ids)
    assert found.average_precision[0] == pytest.approx(plain.average_precision[0], abs=0.02)
    assert abs(found.average_precision - plain.average_precision).mean() > 0.05


def test_chunks_change_nothing_and_inputs_stay(data, monkeypatch):
    expected, before = TextFusion(0.4).fuse(*data[:3]), [part.clone() for part in data[:3]]
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 8 * D * 7)
    torch.testing.assert_close(TextFusion(0.4).fuse(*data[:3]), expected)
    assert all(torch.equal(part, copy) for part, copy in zip(data[:3], before, strict=True))


def test_memory_is_that_of_the_vectors(monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 1 << 16)
    query, gallery, text = unit(4000, 64), unit(4000, 64, seed=1), unit(4000, 64, seed=2)
    tracemalloc.start()
    TextFusion().fuse(query, gallery, text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * query.numel() * 4 + 2**20  # all products in float32 would be 61 MiB


@pytest.mark.parametrize("weight", [-0.1, 2, float("nan"), float("inf")])
def test_impossible_weights(weight):
    with pytest.raises(InputError, match=f"--text_weight is {weight}; it must be at least 0 and at most 1"):
        TextFusion(weight)


def test_features_that_cannot_be_ranked(data):
    query, gallery, text = data[:3]
    same = SameIdentity(np.zeros(Q, dtype=int), np.zeros(G, dtype=int))
    broken = gallery.clone()
    broken[3, 0] = torch.nan
    with pytest.raises(InputError, match="the features of photo 3 are not finite"):
        list(TextFusion().match_ranks(query, broken, same, text_features=text))
    with pytest.raises(ValueError, match="unit length"):
        TextFusion().fuse(2 * query, gallery, text)
    for wrong in (text[1:], text[:, 1:], torch.full_like(text, torch.nan)):
        with pytest.raises(ValueError, match="as many finite texts"):
            TextFusion().fuse(query, gallery, wrong)


def test_method_and_weight_are_named():
    assert str(TextFusion(0.25)) == "text_fusion 0.25"
    assert TextFusion().as_dict() == {"method": "text_fusion", "text_weight": 0.1}
