import math
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from clipfh.core.errors import InputError
from clipfh.metrics import match_ranks, reach_counts
from clipfh.metrics.retrieval import evaluate_retrieval

NAMES = ("rank1", "rank5", "rank10", "mAP", "mINP")


def oracle(query, gallery, query_ids, gallery_ids, query_cameras=None, gallery_cameras=None, query_positions=None):
    """The figures by sorting one query's ranking after the other; of tied images the non-matches come first."""
    precisions, inps, firsts = [], [], []
    for q in range(len(query)):
        ranking = []
        for g in range(len(gallery)):
            match = query_ids[q] == gallery_ids[g]
            if query_positions is not None and query_positions[q] == g:
                continue
            same_camera = query_cameras is not None and query_cameras[q] and query_cameras[q] == gallery_cameras[g]
            if match and same_camera:
                continue
            ranking.append((-sum(a * b for a, b in zip(query[q], gallery[g], strict=True)), match))
        ranking.sort()
        ranks = [place for place, (_, match) in enumerate(ranking, start=1) if match]
        precisions.append(sum(n / rank for n, rank in enumerate(ranks, start=1)) / len(ranks) if ranks else math.nan)
        inps.append(len(ranks) / ranks[-1] if ranks else math.nan)
        firsts.append(ranks[0] if ranks else 0)
    counted = [q for q in range(len(query)) if firsts[q]]
    if not counted:
        return None
    mean = {f"rank{k}": sum(firsts[q] <= k for q in counted) / len(counted) for k in (1, 5, 10)}
    mean["mAP"] = sum(precisions[q] for q in counted) / len(counted)
    mean["mINP"] = sum(inps[q] for q in counted) / len(counted)
    return mean, precisions, firsts


def test_average_precision_is_scikit_learns():
    query, gallery = F.normalize(torch.randn(20, 16), dim=1), F.normalize(torch.randn(300, 16), dim=1)
    query_ids, gallery_ids = np.arange(20) % 10, np.arange(300) % 10
    figures = evaluate_retrieval(query, gallery, query_ids.astype(str).tolist(), gallery_ids.astype(str).tolist())
    scores = (query.double() @ gallery.double().T).numpy()
    expected = [average_precision_score(gallery_ids == i, row) for i, row in zip(query_ids, scores, strict=True)]
    np.testing.assert_allclose(figures.average_precision, expected, atol=1e-12)


def check_against_oracle(query, gallery, query_ids, gallery_ids, few_matches=24, **protocol):
    features = (torch.tensor(rows, dtype=torch.float32) for rows in (query, gallery))
    expected = oracle(query, gallery, query_ids, gallery_ids, **protocol)
    arguments = (*features, query_ids, gallery_ids)
    with mock.patch.object(reach_counts, "FEW_VALUES", few_matches):
        if expected is None:
            with pytest.raises(InputError, match="no query has a match"):
                evaluate_retrieval(*arguments, **protocol)
            return
        figures = evaluate_retrieval(*arguments, **protocol)
    mean, precisions, firsts = expected
    assert {name: getattr(figures, name) for name in NAMES} == pytest.approx(mean, abs=1e-12)
    assert figures.first_match_rank.tolist() == firsts
    np.testing.assert_allclose(figures.average_precision, precisions, atol=1e-12)
    assert figures.num_query == sum(first > 0 for first in firsts)
    assert figures.num_without_match == sum(first == 0 for first in firsts)
    assert figures.num_gallery == len(gallery)


# small integers: exact in float32, and tied more often than not
vectors = st.tuples(*[st.integers(-1, 1)] * 3)
ids = st.sampled_from("aaaabc")  # skewed: most images are of one identity
cameras = st.sampled_from(["", "x", "y"])


@settings(max_examples=150, deadline=None)
@given(
    query=st.lists(st.tuples(vectors, ids, cameras), min_size=1, max_size=40),
    gallery=st.lists(st.tuples(vectors, ids, cameras), min_size=1, max_size=40),
    use_cameras=st.booleans(),
    few_matches=st.sampled_from([0, 3, 24]),
)
def test_query_gallery_equals_the_oracle(query, gallery, use_cameras, few_matches):
    query_features, query_ids, query_cameras = zip(*query, strict=True)
    gallery_features, gallery_ids, gallery_cameras = zip(*gallery, strict=True)
    protocol = {"query_cameras": query_cameras, "gallery_cameras": gallery_cameras} if use_cameras else {}
    check_against_oracle(query_features, gallery_features, query_ids, gallery_ids, few_matches, **protocol)


@settings(max_examples=100, deadline=None)
@given(
    images=st.lists(st.tuples(vectors, ids, cameras), min_size=1, max_size=40),
    distractors=st.lists(vectors, max_size=20),
    use_cameras=st.booleans(),
    not_in_gallery=st.sets(st.integers(0, 39)),
)
def test_leave_one_out_equals_the_oracle(images, distractors, use_cameras, not_in_gallery):
    features, item_ids, camera_names = zip(*images, strict=True)
    positions = [-1 if place in not_in_gallery else place for place in range(len(images))]
    protocol = {"query_positions": positions}
    if use_cameras:
        protocol |= {
            "query_cameras": camera_names,
            "gallery_cameras": [*camera_names, *[""] * len(distractors)],
        }
    gallery_ids = [*item_ids, *["nobody"] * len(distractors)]
    check_against_oracle(features, [*features, *distractors], item_ids, gallery_ids, 1, **protocol)


def test_random_features_over_several_chunks_equal_the_oracle(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(50, 8, generator=generator, dtype=torch.float64), dim=1)
    gallery = F.normalize(torch.randn(70, 8, generator=generator, dtype=torch.float64), dim=1)
    query_ids = [str(n % 7) for n in range(50)]
    gallery_ids = [str(n % 9) for n in range(70)]
    expected, _, firsts = oracle(query.tolist(), gallery.tolist(), query_ids, gallery_ids)
    for size, few_matches in ((16, 0), (16, 24), (48, 7), (4096, 24)):
        for name in ("CHUNK", "BLOCK"):
            monkeypatch.setattr(match_ranks, name, size)
        monkeypatch.setattr(reach_counts, "FEW_VALUES", few_matches)
        figures = evaluate_retrieval(query, gallery, query_ids, gallery_ids)
        assert {name: getattr(figures, name) for name in NAMES} == pytest.approx(expected, abs=1e-12)
        assert figures.first_match_rank.tolist() == firsts


def at_angles(*degrees):
    radians = torch.tensor(degrees, dtype=torch.float32).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_hand_written_table():
    # ranking of the query at 0 degrees: b a b a b  ->  matches at 2 and 4;  at 90 degrees: b a b a b backwards
    figures = evaluate_retrieval(at_angles(0, 90), at_angles(10, 20, 30, 40, 50), ["a", "b"], list("babab"))
    assert figures.average_precision.tolist() == pytest.approx([(1 / 2 + 2 / 4) / 2, (1 + 2 / 3 + 3 / 5) / 3])
    assert figures.first_match_rank.tolist() == [2, 1]
    assert figures.as_dict() == pytest.approx(
        {
            "rank1": 0.5,
            "rank5": 1.0,
            "rank10": 1.0,
            "mAP": (0.5 + 34 / 45) / 2,
            "mINP": (2 / 4 + 3 / 5) / 2,
            "num_query": 2,
            "num_without_match": 0,
            "num_gallery": 5,
        }
    )


@pytest.mark.parametrize(("place", "expected"), [(0, (1, 1, 1)), (1, (0, 1, 1)), (4, (0, 1, 1)), (5, (0, 0, 1))])
def test_rank_boundaries(place, expected):
    item_ids = ["other"] * 12
    item_ids[place] = "a"
    figures = evaluate_retrieval(at_angles(0), at_angles(*range(5, 17)), ["a"], item_ids)
    assert (figures.rank1, figures.rank5, figures.rank10) == expected
    assert figures.mAP == figures.mINP == pytest.approx(1 / (place + 1))


def test_rank_10_ends_at_10():
    for place, expected in ((9, 1.0), (10, 0.0)):
        item_ids = ["other"] * 12
        item_ids[place] = "a"
        assert evaluate_retrieval(at_angles(0), at_angles(*range(5, 17)), ["a"], item_ids).rank10 == expected


@pytest.mark.parametrize("num_query", [1, 5, 33])
@pytest.mark.parametrize("D", [3, 64, 129, 256, 512])
def test_constant_features_score_worst(num_query, D):
    # whatever the shapes: a matrix product adds up its last rows and columns in another order than the others
    row = F.normalize(torch.randn(1, D, generator=torch.Generator().manual_seed(D)), dim=1)
    for num_gallery in (13, 17, 31, 33, 129):
        gallery_ids = ["a", "b"] + ["other"] * (num_gallery - 3) + ["a"]
        for query_id, num_matches in (("a", 2), ("b", 1)):
            figures = evaluate_retrieval(
                row.repeat(num_query, 1), row.repeat(num_gallery, 1), [query_id] * num_query, gallery_ids
            )
            ranks = range(num_gallery - num_matches + 1, num_gallery + 1)
            assert figures.rank1 == figures.rank10 == 0.0
            assert set(figures.first_match_rank.tolist()) == {ranks[0]}
            assert figures.mAP == pytest.approx(sum(n / rank for n, rank in enumerate(ranks, 1)) / num_matches)


def test_a_query_whose_matches_are_all_of_its_camera_is_left_out_of_every_figure():
    query, gallery = at_angles(0, 0, 0), at_angles(0, 1, 2)
    figures = evaluate_retrieval(
        query,
        gallery,
        ["a", "b", "stranger"],
        ["a", "b", "b"],
        query_cameras=["1", "1", "1"],
        gallery_cameras=["1", "1", "2"],
    )
    assert figures.num_query == 1 and figures.num_without_match == 2
    assert figures.first_match_rank.tolist() == [0, 2, 0]  # the excluded image of b is not in the ranking either
    assert np.isnan(figures.average_precision).tolist() == [True, False, True]
    assert figures.mAP == figures.mINP == 0.5 and figures.rank1 == 0.0 and figures.rank5 == 1.0


def test_an_unknown_camera_excludes_nothing():
    arguments = (at_angles(0), at_angles(0), ["a"], ["a"])
    assert evaluate_retrieval(*arguments, query_cameras=[""], gallery_cameras=[""]).mAP == 1.0
    with pytest.raises(InputError, match="no query has a match"):
        evaluate_retrieval(*arguments, query_cameras=["x"], gallery_cameras=["x"])


def test_inputs_are_not_changed():
    query, gallery = at_angles(0, 10), at_angles(0, 10)
    before = query.clone(), gallery.clone()
    evaluate_retrieval(query, gallery, ["a", "a"], ["a", "a"], query_positions=[0, 1])
    assert torch.equal(query, before[0]) and torch.equal(gallery, before[1])


def test_a_place_of_another_identity_is_refused():
    with pytest.raises(ValueError, match="another identity"):
        evaluate_retrieval(at_angles(0), at_angles(0, 1), ["a"], ["b", "a"], query_positions=[0])


def test_half_precision_is_computed_in_float32():
    query, gallery = at_angles(0, 40).half(), at_angles(0.5, 1, 41).half()
    figures = evaluate_retrieval(query, gallery, ["a", "b"], ["b", "a", "b"])
    assert (
        figures.as_dict() == evaluate_retrieval(query.float(), gallery.float(), ["a", "b"], ["b", "a", "b"]).as_dict()
    )


def test_nothing_to_measure():
    some, none = at_angles(0), at_angles()
    for query, gallery in ((none, some), (some, none)):
        with pytest.raises(InputError, match="needs queries and a gallery"):
            evaluate_retrieval(query, gallery, ["a"] * len(query), ["a"] * len(gallery))
    with pytest.raises(InputError, match="no query has a match"):
        evaluate_retrieval(some, some, ["a"], ["b"])


def test_unequal_lengths_and_numbers_that_are_none():
    query, gallery = at_angles(0), at_angles(0, 1)
    with pytest.raises(ValueError, match="1 query and 2 gallery features, but a list of 1 ids"):
        evaluate_retrieval(query, gallery, ["a"], ["a"])
    with pytest.raises(ValueError, match="1 query and 2 gallery features, but a list of 2 ids"):
        evaluate_retrieval(query, gallery, ["a", "b"], ["a", "b"])
    for wrong, message in (
        ({"query_cameras": ["x"]}, "both or neither"),
        ({"query_cameras": ["x"], "gallery_cameras": ["x"]}, "a list of 1 ids or cameras"),
        ({"query_positions": [2]}, "places for 1 queries in a gallery of 2"),
        ({"query_positions": [0, 1]}, "places for 1 queries in a gallery of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_retrieval(query, gallery, ["a"], ["a", "b"], **wrong)
    with pytest.raises(ValueError, match="an item id is missing"):
        evaluate_retrieval(query, gallery, [None], ["a", "b"])
    with pytest.raises(ValueError, match=r"features of shapes \(1, 3\) and \(2, 2\)"):
        evaluate_retrieval(torch.ones(1, 3), gallery, ["a"], ["a", "b"])
    for value in (torch.nan, torch.inf):
        broken = at_angles(0, 1)
        broken[1, 0] = value
        for query, gallery in ((broken, at_angles(0, 1)), (at_angles(0, 1), broken)):
            with pytest.raises(ValueError, match="not finite"):
                evaluate_retrieval(query, gallery, ["a", "a"], ["a", "a"])


@pytest.mark.parametrize("unknown", ["", None, float("nan")])
def test_unknown_cameras_equal_none_and_camera_zero_is_one(unknown):
    query, gallery, ids = at_angles(0), at_angles(0, 1), (["a"], ["a", "a"])
    figures = evaluate_retrieval(query, gallery, *ids, query_cameras=[unknown], gallery_cameras=[unknown, unknown])
    assert figures.num_without_match == 0 and figures.rank1 == 1
    with pytest.raises(InputError, match="no query has a match"):
        evaluate_retrieval(query, gallery, *ids, query_cameras=[0], gallery_cameras=[0, 0])


def test_features_of_two_types_are_compared_in_the_finer_one():
    query, gallery = at_angles(0), at_angles(0, 1)
    for one, other in ((query.double(), gallery), (query, gallery.double()), (query.half(), gallery)):
        assert evaluate_retrieval(one, other, ["a"], ["a", "b"]).rank1 == 1
