import pytest
import torch

from clipfh.losses import CenterLoss

LABELS = torch.tensor([0, 2, 2, 1])


def make_case():
    generator = torch.Generator().manual_seed(0)
    loss = CenterLoss(num_classes=4, dim=3).double()
    with torch.no_grad():
        loss.centers.copy_(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    return loss, torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)


def test_equals_plain_loops_with_gradients_on_both_sides():
    center_loss, features = make_case()
    loss = center_loss(features, LABELS)
    loss.backward()
    expected = sum(
        0.5 * (features[i, d] - center_loss.centers[LABELS[i], d]) ** 2 / 4 for i in range(4) for d in range(3)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(features.grad, (features - center_loss.centers[LABELS]) / 4)
        of_two = (2 * center_loss.centers[2] - features[1] - features[2]) / 4
        torch.testing.assert_close(center_loss.centers.grad[2], of_two)
    assert (center_loss.centers.grad[3] == 0).all()  # not in the batch


def test_gradient():
    center_loss, features = make_case()
    centers = center_loss.centers.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, c: torch.func.functional_call(center_loss, {"centers": c}, (x, LABELS)), (features, centers)
    )


def test_centers_reach_the_mean_of_their_identity():
    center_loss, features = make_case()
    optimizer = torch.optim.SGD(center_loss.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        center_loss(features.detach(), LABELS).backward()
        optimizer.step()
    torch.testing.assert_close(center_loss.centers[2], features[1:3].detach().mean(0))


def test_the_papers_update_is_sgd_at_the_documented_rate():
    center_loss, features = make_case()
    labels, alpha, per_identity = torch.tensor([0, 0, 1, 1]), 0.5, 2
    before = center_loss.centers.detach().clone()
    optimizer = torch.optim.SGD(center_loss.parameters(), lr=alpha * len(labels) / (1 + per_identity))
    center_loss(features.detach(), labels).backward()
    optimizer.step()
    for identity in (0, 1):
        update = sum(before[identity] - x for x in features.detach()[labels == identity]) / (1 + per_identity)
        torch.testing.assert_close(center_loss.centers[identity].detach(), before[identity] - alpha * update)


def test_batch_of_one_and_half_precision():
    center_loss = CenterLoss(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = center_loss(torch.ones(1, 3, dtype=torch.bfloat16), torch.tensor([1]))
    assert loss.dtype == torch.float32
    assert loss.item() == 1.5


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="dimensions"):
        CenterLoss(2, 3)(torch.zeros(4, 5), LABELS)
    with pytest.raises(ValueError, match="labels must be"):
        CenterLoss(4, 3)(torch.zeros(3, 3), LABELS)
    with pytest.raises(ValueError, match="1 or more"):
        CenterLoss(0, 3)
