import math

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner

from clipfh.losses import batch_hard_triplet_loss, triplet

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])  # identity 2 has no positive


def random_features(rows=8, dim=5, seed=0, dtype=torch.float64):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loss_by_loops(features, labels, margin):
    losses = []
    for a in range(len(features)):
        positive = [
            torch.dist(features[a], features[j]) for j in range(len(features)) if labels[j] == labels[a] and j != a
        ]
        negative = [torch.dist(features[a], features[j]) for j in range(len(features)) if labels[j] != labels[a]]
        if positive and negative:
            difference = max(positive) - min(negative)
            losses.append(torch.log1p(difference.exp()) if margin is None else (difference + margin).clamp(min=0))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [None, 0.0, 0.3, 5.0])
@pytest.mark.parametrize("at_once", [1, 3, 1024])
@pytest.mark.parametrize("labels", [LABELS, torch.tensor([5, 2, 9, 2, 5, 2, 9, 0])], ids=["sorted", "unsorted"])
def test_equals_plain_loops(margin, at_once, labels, monkeypatch):
    monkeypatch.setattr(triplet, "ANCHORS_AT_ONCE", at_once)
    ours, theirs = random_features().requires_grad_(), random_features().requires_grad_()
    loss, expected = batch_hard_triplet_loss(ours, labels, margin), loss_by_loops(theirs, labels, margin)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert theirs.grad.abs().max() > 0
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_equals_pytorch_metric_learning():
    features, labels = random_features(24, 6), torch.arange(24) % 6
    distance = {"normalize_embeddings": False}
    miner = BatchHardMiner(distance=LpDistance(**distance))
    peer = TripletMarginLoss(margin=0.4, distance=LpDistance(**distance))
    # the peer averages over the active triplets alone: undo it with the number of these
    triplets = miner(features, labels)
    active = sum(
        (torch.dist(features[a], features[p]) - torch.dist(features[a], features[n]) + 0.4 > 0).item()
        for a, p, n in zip(*triplets, strict=True)
    )
    expected = peer(features, labels, triplets) * active / 24
    assert 0 < active <= 24
    torch.testing.assert_close(batch_hard_triplet_loss(features, labels, margin=0.4), expected)


@pytest.mark.parametrize("margin", [None, 5.0])
def test_gradient(margin):
    features = random_features().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: batch_hard_triplet_loss(x, LABELS, margin), features)


def test_gradient_cannot_be_differentiated_again():
    features = random_features().requires_grad_()
    (gradient,) = torch.autograd.grad(batch_hard_triplet_loss(features, LABELS), features, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "labels", [torch.arange(8), torch.zeros(8, dtype=torch.int64)], ids=["no positive", "no negative"]
)
def test_without_usable_anchors_is_a_differentiable_zero(labels):
    features = random_features().requires_grad_()
    loss = batch_hard_triplet_loss(features, labels, 0.3)
    loss.backward()
    assert loss.item() == 0
    assert (features.grad == 0).all()


def test_batch_of_one():
    assert batch_hard_triplet_loss(random_features(1), torch.tensor([7])).item() == 0


@pytest.mark.parametrize("margin", [None, 0.3])
def test_identical_features_have_a_finite_gradient(margin):
    features = torch.ones(8, 5, requires_grad=True)
    loss = batch_hard_triplet_loss(features, LABELS, margin)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) if margin is None else margin)
    assert (features.grad == 0).all()


def test_close_features_far_from_the_origin():
    """The search must not lose the small distances to the large common offset."""
    small = random_features() * 1e-2
    expected = loss_by_loops(small, LABELS, 0.01)
    loss = batch_hard_triplet_loss((small + 100).float(), LABELS, 0.01)
    assert loss.item() == pytest.approx(expected.item(), abs=3e-5)


def test_not_finite_features_show():
    features = random_features()
    features[5, 0] = math.nan  # not an anchor itself, but a negative of every other
    assert not torch.isfinite(batch_hard_triplet_loss(features, LABELS, 0.3))


def test_half_precision_is_computed_in_float32():
    features = random_features(dtype=torch.float32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch_hard_triplet_loss(features, LABELS, 0.3)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, batch_hard_triplet_loss(features.float(), LABELS, 0.3), rtol=0, atol=0)


@pytest.mark.parametrize("features, labels", [((8, 5), (7,)), ((8,), (8,)), ((0, 5), (0,))])
def test_shapes_are_checked(features, labels):
    with pytest.raises(ValueError, match="must be"):
        batch_hard_triplet_loss(torch.zeros(features), torch.zeros(labels))


def test_negative_margin_is_an_error():
    with pytest.raises(ValueError, match="margin"):
        batch_hard_triplet_loss(random_features(), LABELS, -0.1)
