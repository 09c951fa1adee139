import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipfh.metrics import similarity_histogram as module
from clipfh.metrics.same_identity import SameIdentity
from clipfh.metrics.similarity_histogram import similarity_histogram


@pytest.mark.parametrize("with_cameras", [False, True])
def test_against_all_pairs_one_by_one(monkeypatch, with_cameras):
    monkeypatch.setattr(module, "_CHUNK", 60)  # several chunks
    generator = np.random.default_rng(0)
    query, gallery = (F.normalize(torch.randn(size, 6, dtype=torch.float64), dim=1) for size in (17, 30))
    codes = [generator.integers(0, 5, size) for size in (17, 30)]
    cameras = [generator.integers(0, 3, size) for size in (17, 30)]
    same = SameIdentity(*codes, *(cameras if with_cameras else (None, None)))
    histogram = similarity_histogram(query, gallery, same)
    values = {True: [], False: []}
    for i in range(17):
        for j in range(30):
            is_match = codes[0][i] == codes[1][j]
            if not (with_cameras and is_match and cameras[0][i] == cameras[1][j]):
                values[is_match].append(float(query[i] @ gallery[j]))
    for counts, found in ((histogram.matches, values[True]), (histogram.others, values[False])):
        assert counts.sum() == len(found)
        assert np.abs(counts - np.histogram(found, histogram.edges)[0]).max() <= 1  # rounding at an edge
    first, second = np.array(values[True])[:, None], np.array(values[False])[None]
    assert histogram.auc == pytest.approx((first > second).mean(), abs=2e-3)
    assert len(histogram.matches) <= 50 and (np.diff(histogram.edges) > 0).all()


def test_collapsed_features_are_one_bin():
    features = torch.ones(4, 4) / 2
    histogram = similarity_histogram(features, features, SameIdentity(np.arange(4), np.arange(4)))
    assert histogram.matches.tolist() == [4] and histogram.others.tolist() == [12] and histogram.auc == 0.5


def test_a_gallery_of_matches_alone():
    with pytest.raises(ValueError, match="16 matches and 0 non-matches"):
        similarity_histogram(torch.eye(4), torch.eye(4), SameIdentity(np.zeros(4, int), np.zeros(4, int)))
