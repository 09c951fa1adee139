import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import SupConLoss
from torch.utils._python_dispatch import TorchDispatchMode

from clipfh.losses import supcon_loss, tiles

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])  # identity 2 has no positive


def unit_features(rows=8, dim=5, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


class LargestOutput(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def loss_by_loops(features, labels, logit_scale):
    losses = []
    for i in range(len(features)):
        others = [a for a in range(len(features)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            normaliser = sum(torch.exp(logit_scale * features[i] @ features[a]) for a in others)
            terms = [torch.log(torch.exp(logit_scale * features[i] @ features[p]) / normaliser) for p in positives]
            losses.append(-sum(terms) / len(positives))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("logit_scale", [1.0, 14.3])
@pytest.mark.parametrize("tile_rows, kept", [(512, 2**23), (3, 2**23), (3, 20), (1, 0)])
def test_equals_plain_loops(logit_scale, tile_rows, kept, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE_ROWS", tile_rows)
    monkeypatch.setattr(tiles, "KEPT_LOGITS", kept)
    ours, theirs = unit_features().requires_grad_(), unit_features().requires_grad_()
    loss, expected = supcon_loss(ours, LABELS, logit_scale), loss_by_loops(theirs, LABELS, logit_scale)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_equals_pytorch_metric_learning():
    ours = unit_features(32, 16, dtype=torch.float32).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    labels = torch.arange(32) // 4
    # the peer normalises by itself, which is part of its gradient
    loss, expected = supcon_loss(F.normalize(ours), labels, 10.0), SupConLoss(temperature=0.1)(theirs, labels)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [5.0, 0.0])
@pytest.mark.parametrize("tile_rows", [512, 3])
def test_gradient_of_features_and_logit_scale(scale, tile_rows, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE_ROWS", tile_rows)
    scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    features = (3 * unit_features()).requires_grad_()  # the formula does not lean on unit length
    assert torch.autograd.gradcheck(lambda x, s: supcon_loss(x, LABELS, s), (features, scale))


def test_gradient_of_logit_scale_alone():
    scale = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)  # open_clip's may have one element
    loss = supcon_loss(unit_features(), LABELS, scale)
    loss.backward()
    above, below = (supcon_loss(unit_features(), LABELS, 5 + step) for step in (1e-5, -1e-5))
    assert scale.grad.item() == pytest.approx((above - below).item() / 2e-5, rel=1e-6)


def test_backward_scales_and_repeats():
    features = unit_features().requires_grad_()
    loss = supcon_loss(features, LABELS, 10.0)
    (once,) = torch.autograd.grad(loss, features, retain_graph=True)
    (tripled,) = torch.autograd.grad(3 * loss, features, retain_graph=True)
    (again,) = torch.autograd.grad(loss, features)
    torch.testing.assert_close(tripled, 3 * once)
    assert torch.equal(again, once)


def test_gradient_cannot_be_differentiated_again():
    features = unit_features().requires_grad_()
    (gradient,) = torch.autograd.grad(supcon_loss(features, LABELS, 10.0), features, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_without_gradient():
    features = unit_features()
    loss = supcon_loss(features, LABELS, 10.0)
    assert not loss.requires_grad
    assert torch.equal(loss, supcon_loss(features.requires_grad_(), LABELS, 10.0).detach())


def test_no_matrix_of_all_pairs_is_made(monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE_ROWS", 10)
    features = unit_features(40, 5).requires_grad_()
    with LargestOutput() as largest:
        supcon_loss(features, torch.arange(40) // 4, 10.0).backward()
    assert largest.numel == 40 * 5  # the size of the features, and more than that of a tile


def test_rows_without_a_positive_are_negatives_but_no_anchors():
    labels = torch.tensor([0, 0, 1])
    features = unit_features(3)
    expected = sum(
        torch.logsumexp(torch.stack([features[i] @ features[1 - i], features[i] @ features[2]]), 0)
        - features[0] @ features[1]
        for i in (0, 1)
    )
    torch.testing.assert_close(supcon_loss(features, labels, 1.0), expected / 2)


@pytest.mark.parametrize("rows", [1, 8])
def test_without_positives_is_a_differentiable_zero(rows):
    features = unit_features(rows).requires_grad_()
    loss = supcon_loss(features, torch.arange(rows), 10.0)
    loss.backward()
    assert loss.item() == 0
    assert (features.grad == 0).all()


def test_images_and_texts_together_have_each_other_as_positives():
    images, texts, labels = unit_features(2, seed=1), unit_features(2, seed=2), torch.tensor([4, 9])
    features = torch.cat((images, texts))
    pairs = torch.cat((labels, labels))
    torch.testing.assert_close(supcon_loss(features, pairs, 3.0), loss_by_loops(features, pairs, 3.0))


def test_identical_features():
    features = torch.ones(8, 4).div(2).requires_grad_()
    loss = supcon_loss(features, LABELS, 100.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7), abs=1e-4)
    assert torch.isfinite(features.grad).all()


def test_large_logits_do_not_overflow():
    features = unit_features()
    loss = supcon_loss(features.float(), LABELS, 1000.0)
    logits = 1000.0 * features @ features.T
    assert torch.exp(logits.float()).isinf().any()  # the plain formula does
    logits.fill_diagonal_(-math.inf)
    expected = [
        torch.logsumexp(logits[i], 0) - logits[i][(LABELS[i] == LABELS) & (torch.arange(8) != i)].mean()
        for i in range(8)
        if i != 5
    ]
    assert loss.item() == pytest.approx((sum(expected) / 7).item(), rel=1e-5)


def test_half_precision_is_computed_in_float32():
    features = unit_features(dtype=torch.float32).bfloat16().requires_grad_()
    scale = torch.tensor(14.0, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = supcon_loss(features, LABELS, scale)
    loss.backward()
    torch.testing.assert_close(loss, supcon_loss(features.detach().float(), LABELS, 14.0))
    assert loss.dtype == torch.float32
    assert torch.isfinite(features.grad).all()
    assert scale.grad != 0


def test_not_finite_features_show():
    features = unit_features()
    features[5, 0] = math.nan
    assert not torch.isfinite(supcon_loss(features, LABELS, 1.0))
    assert not torch.isfinite(supcon_loss(features, torch.arange(8), 1.0))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="labels must be"):
        supcon_loss(unit_features(), LABELS[:7], 1.0)
