import math

import pytest
import torch
import torch.nn.functional as F

from clipfh.losses import distillation_loss


def random_features(seed, rows=5, dim=6):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_by_loops(features, anchors):
    total = 0.0
    for feature, anchor in zip(features.tolist(), anchors.tolist(), strict=True):
        product = sum(x * y for x, y in zip(feature, anchor, strict=True))
        total += 1 - product / math.sqrt(sum(x * x for x in feature) * sum(y * y for y in anchor))
    return total / len(features)


def test_equals_plain_loops():
    features, anchors = random_features(0), random_features(1)
    assert distillation_loss(features, anchors).item() == pytest.approx(loss_by_loops(features, anchors), rel=1e-12)


def test_is_half_the_squared_distance_of_unit_vectors():
    features, anchors = F.normalize(random_features(0), dim=1), F.normalize(random_features(1), dim=1)
    expected = (features - anchors).square().sum(dim=1).mean() / 2
    torch.testing.assert_close(distillation_loss(features, anchors), expected)


def test_runs_from_zero_to_two():
    anchors = random_features(0)
    assert distillation_loss(3 * anchors, anchors).item() == pytest.approx(0, abs=1e-12)
    assert distillation_loss(-anchors, anchors).item() == pytest.approx(2, rel=1e-12)


def test_gradient_is_that_of_the_formula_at_right_angles_to_the_feature():
    features, anchors = random_features(0).requires_grad_(), random_features(1)
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, anchors), (features,))
    distillation_loss(features, anchors).backward()
    length = features.detach().norm(dim=1, keepdim=True)
    unit, target = features.detach() / length, F.normalize(anchors, dim=1)
    expected = ((unit * target).sum(dim=1, keepdim=True) * unit - target) / (length * len(features))
    torch.testing.assert_close(features.grad, expected)
    torch.testing.assert_close((features.grad * unit).sum(dim=1), torch.zeros(5, dtype=torch.float64))


def test_at_the_anchor_nothing_pulls():
    features = random_features(0).requires_grad_()
    distillation_loss(features, features.detach().clone()).backward()
    assert features.grad.abs().max() < 1e-12


def test_anchors_get_no_gradient():
    features, anchors = random_features(0).requires_grad_(), random_features(1).requires_grad_()
    distillation_loss(features, anchors).backward()
    assert anchors.grad is None and features.grad.abs().max() > 0


def test_half_precision_is_computed_in_float32():
    features, anchors = random_features(0).bfloat16().requires_grad_(), random_features(1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(features, anchors)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(features.detach().float(), anchors))
    assert torch.isfinite(features.grad).all()


def test_not_finite_features_show():
    features = random_features(0)
    features[2, 0] = math.nan
    assert not torch.isfinite(distillation_loss(features, random_features(1)))


@pytest.mark.parametrize(("rows", "dim"), [(4, 6), (5, 3), (1, 6)])
def test_shapes_are_checked(rows, dim):
    with pytest.raises(ValueError, match="features and anchors"):
        distillation_loss(random_features(0), random_features(1, rows, dim))
    with pytest.raises(ValueError, match="N >= 1"):
        distillation_loss(torch.empty(0, 6), torch.empty(0, 6))
