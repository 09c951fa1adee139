import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipfh.metrics.clustering import evaluate_clustering


def test_separate_identities_are_found_whatever_their_names_and_order():
    centers = F.normalize(torch.randn(6, 16), dim=1)
    ids = np.array(["b", "a", "c", "f", "e", "d"])[torch.randperm(60).numpy() % 6]
    places = np.unique(ids, return_inverse=True)[1]
    features = F.normalize(centers[places] + 0.01 * torch.randn(60, 16), dim=1)
    assert evaluate_clustering(features, ids).as_dict() == {
        "NMI": pytest.approx(1.0),
        "ARI": pytest.approx(1.0),
        "num_clusters": 6,
        "num_images": 60,
    }


def test_the_figures_of_a_known_confusion():
    """Clusters {a a a b} {b b b a}: pairs and entropies by hand."""
    features = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4) + 0.001 * torch.randn(8, 2)
    figures = evaluate_clustering(features, list("aaabbbba"))
    information = 2 * (3 / 8 * math.log(3 / 8 / 0.25) + 1 / 8 * math.log(1 / 8 / 0.25))
    assert figures.nmi == pytest.approx(information / math.log(2))
    same, both, expected = 12, 3 + 3, 12 * 12 / 28  # pairs within a partition, within both, and by chance
    assert figures.ari == pytest.approx((both - expected) / (same - expected))


def test_chance_scores_nothing_by_ari_and_much_by_nmi():
    features, ids = torch.randn(400, 8), np.arange(400) // 2
    figures = evaluate_clustering(features, np.random.default_rng(0).permutation(ids))
    assert abs(figures.ari) < 0.02 and figures.nmi > 0.7


def test_collapsed_features_end_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = evaluate_clustering(torch.ones(12, 4), list("aabbccddeeff"))
    assert figures.nmi == 0 and figures.ari == 0 and figures.num_clusters == 6


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 item ids"):
        evaluate_clustering(torch.ones(2, 4), list("abc"))
    with pytest.raises(ValueError):
        evaluate_clustering(torch.full((4, 2), torch.nan), list("aabb"))
