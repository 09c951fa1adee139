from itertools import permutations

import numpy as np
import pytest
import torch
from no_float64 import NoFloat64

from clipfh.metrics.feature_similarity import linear_cka


def test_cka_of_a_rotation_is_one_and_of_a_constant_zero():
    X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    assert linear_cka(X, 3 * X @ rotation + 1) == pytest.approx(1)
    assert linear_cka(X, torch.ones(50, 3)) == 0
    with pytest.raises(ValueError, match="3 images"):
        linear_cka(X[:3], X[:3])


def test_cka_on_a_device_without_float64():
    X, Y = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    expected = linear_cka(X, Y)
    with NoFloat64():
        assert linear_cka(X, Y) == expected


def test_cka_as_its_definition():
    """The estimator is the mean over all different i, j, q, r of K_ij (L_ij + L_qr - 2 L_iq), Song et al. 2012."""
    X, Y = (torch.randn(7, 3, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    Y = Y + X

    def hsic(A, B):
        K, L = ((F - F.mean(0)) @ (F - F.mean(0)).T for F in (A, B))
        terms = [K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in permutations(range(7), 4)]
        return float(torch.stack(terms).mean())

    expected = hsic(X, Y) / (hsic(X, X) * hsic(Y, Y)) ** 0.5
    assert linear_cka(X, Y) == pytest.approx(expected)


@pytest.mark.parametrize("N", [20, 200])
def test_independent_features_are_not_alike_on_average_however_few_there_are(N):
    values = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        values.append(linear_cka(torch.randn(N, 100, generator=generator), torch.randn(N, 100, generator=generator)))
    assert abs(np.mean(values)) < 0.1
