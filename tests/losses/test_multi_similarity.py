"""clipfh.losses.multi_similarity against sums written out, and against pytorch-metric-learning's."""

import math

import pytest
import torch
import torch.nn.functional as F

from clipfh.losses import multi_similarity_loss

VALUES = {"alpha": 3.0, "beta": 20.0, "base": 0.4, "epsilon": 0.2}


def batch(rows: int = 12, classes: int = 4, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % classes
    centers = torch.randn(classes, 6, generator=generator, dtype=dtype)
    noise = torch.randn(rows, 6, generator=generator, dtype=dtype)
    return F.normalize(centers[labels] + noise, dim=1), labels


def by_hand(features, labels, alpha, beta, base, epsilon):
    total, rows = 0.0, features.tolist()
    for i, anchor in enumerate(rows):
        s = [sum(a * b for a, b in zip(anchor, row, strict=True)) for row in rows]
        positive = [s[j] for j in range(len(rows)) if labels[j] == labels[i] and j != i]
        negative = [s[j] for j in range(len(rows)) if labels[j] != labels[i]]
        if positive and negative:
            kept_p = [x for x in positive if x - epsilon < max(negative)]
            kept_n = [x for x in negative if x + epsilon > min(positive)]
            total += math.log(1 + sum(math.exp(-alpha * (x - base)) for x in kept_p)) / alpha
            total += math.log(1 + sum(math.exp(beta * (x - base)) for x in kept_n)) / beta
    return total / len(rows)


@pytest.mark.parametrize("epsilon", [-0.3, 0.0, 0.2, 3.0])
def test_it_is_the_sum_over_the_pairs_that_are_kept(epsilon):
    features, labels = batch()
    values = {**VALUES, "epsilon": epsilon}
    expected = by_hand(features, labels.tolist(), **values)
    assert multi_similarity_loss(features, labels, **values).item() == pytest.approx(expected, abs=1e-12)


def test_it_is_pytorch_metric_learnings():
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="the extra bench brings it")
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    features, labels = batch(32, 8)
    features.requires_grad_()
    theirs = losses.MultiSimilarityLoss(alpha=15.94, beta=156.61, base=0.72)
    expected = theirs(features, labels, miners.MultiSimilarityMiner(epsilon=0.34)(features, labels))
    unit = F.normalize(features, dim=1)  # as theirs does
    found = multi_similarity_loss(unit, labels, alpha=15.94, beta=156.61, base=0.72, epsilon=0.34)
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(loss, features)[0] for loss in (found, expected)))


def test_the_gradient_is_that_of_the_differences():
    features, labels = batch()
    features = features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: multi_similarity_loss(x, labels, **VALUES), features)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_rows_without_positives_or_without_negatives_count_with_zero(labels):
    features = batch(4)[0].requires_grad_()
    loss = multi_similarity_loss(features, torch.tensor(labels), **VALUES)
    loss.backward()
    assert loss.item() == 0 and features.grad.abs().max() == 0


def test_sharp_values_do_not_overflow_in_half_precision():
    features = F.normalize(torch.ones(4, 6), dim=1).to(torch.bfloat16).requires_grad_()
    values = {**VALUES, "alpha": 1e3, "beta": 1e4}
    loss = multi_similarity_loss(features, torch.tensor([0, 0, 1, 1]), **values)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(0.6, abs=0.01)  # identical rows: 1 - base
    assert features.grad.isfinite().all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError):
        multi_similarity_loss(batch()[0], torch.zeros(3, dtype=torch.long), **VALUES)
