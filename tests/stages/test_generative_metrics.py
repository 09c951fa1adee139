"""FID and KID against the definitions, written out."""

import numpy as np
import pytest
from places import stage_module
from scipy import linalg

module = stage_module("stage5_text_image_gan", "generative_metrics")
frechet_distance, kernel_distance = module.frechet_distance, module.kernel_distance


def sets(n=40, m=50, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rng.normal(0.5, 1.5, size=(m, d))


def test_frechet_distance_is_that_of_the_definition():
    real, made = sets()
    c1, c2 = np.cov(real.T), np.cov(made.T)
    root = linalg.sqrtm(c1 @ c2).real
    expected = ((real.mean(0) - made.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_known_gaussians():
    points = np.array([[-1.0], [1.0]])  # variance 2
    assert frechet_distance(points, points + 3) == pytest.approx(9)
    assert frechet_distance(points, 2 * points) == pytest.approx((8**0.5 - 2**0.5) ** 2)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_with_fewer_images_than_features_is_finite():
    real, made = sets(6, 7, 20)
    distance = frechet_distance(real, made)
    assert np.isfinite(distance) and abs(frechet_distance(real, real)) < 1e-6 * distance


def test_kernel_distance_is_that_of_plain_loops():
    real, made = sets(7, 5, 3)

    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / 3 + 1) ** 3

    first = sum(kernel(x, y) for i, x in enumerate(real) for j, y in enumerate(real) if i != j) / (7 * 6)
    second = sum(kernel(x, y) for i, x in enumerate(made) for j, y in enumerate(made) if i != j) / (5 * 4)
    cross = sum(kernel(x, y) for x in real for y in made) / 35
    assert kernel_distance(real, made) == pytest.approx(first + second - 2 * cross)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(0)
    values = [kernel_distance(rng.normal(size=(20, 4)), rng.normal(size=(30, 4))) for _ in range(300)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_sets_that_cannot_be_compared_are_refused(distance):
    with pytest.raises(ValueError, match="two images or more"):
        distance(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="equal sizes"):
        distance(np.zeros((4, 3)), np.zeros((4, 2)))
