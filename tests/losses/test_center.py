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


def test_equals_plain_loops():
    center_loss, features = make_case()
    loss = center_loss(features, LABELS)
    loss.backward()
    expected = sum(
        0.5 * (features[i, d] - center_loss.centers[LABELS[i], d]) ** 2 / 4 for i in range(4) for d in range(3)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(features.grad, (features.detach() - center_loss.centers[LABELS]) / 4)


def test_gradient():
    center_loss, features = make_case()
    assert torch.autograd.gradcheck(lambda x: center_loss(x, LABELS), (features,))
    assert not list(center_loss.parameters()) and list(center_loss.state_dict()) == ["centers"]


@pytest.mark.parametrize("alpha", [0.5, 0.1, 1.0])
def test_the_update_is_the_papers(alpha):
    center_loss, features = make_case()
    features, before = features.detach(), center_loss.centers.clone()
    center_loss.update(features, LABELS, alpha)
    for identity in range(4):
        own = features[identity == LABELS]
        moved = sum((before[identity] - x for x in own), torch.zeros(3).double()) / (1 + len(own))
        torch.testing.assert_close(center_loss.centers[identity], before[identity] - alpha * moved)
    assert torch.equal(center_loss.centers[3], before[3])  # not in the batch


@pytest.mark.parametrize(("images", "share"), [(1, 1 / 4), (2, 1 / 3), (4, 2 / 5), (64, 32 / 65)])
def test_where_a_center_is_after_its_appearances(images, share):
    """With alpha 0.5 it has gone n / (2 (1 + n)) of the rest of the way each time, whatever else is in the batch."""
    center_loss = CenterLoss(num_classes=20, dim=3)
    mean = torch.tensor([1.0, 2.0, -3.0])
    spread = torch.randn(images, 3, generator=torch.Generator().manual_seed(0))
    own = mean + spread - spread.mean(dim=0)
    others = torch.randn(60, 3)
    labels = torch.cat([torch.full((images,), 7), torch.arange(60) % 6])
    for appearance in range(1, 6):
        center_loss.update(torch.cat([own, others]), labels)
        torch.testing.assert_close(center_loss.centers[7], mean * (1 - (1 - share) ** appearance))
    assert not center_loss.centers[8:].any()


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
