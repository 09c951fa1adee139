import math

import pytest
import torch
import torch.nn.functional as F

from clipfh.losses import image_to_text_loss, text_to_image_loss

LABELS = torch.tensor([2, 0, 1, 2, 2, 0])  # text 3 has no photo


def unit_features(seed, rows, dim=5):
    return F.normalize(
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def loss_by_loops(texts, images, labels, logit_scale):
    losses = []
    for t, text in enumerate(texts.tolist()):
        logits = [logit_scale * sum(x * y for x, y in zip(text, image, strict=True)) for image in images.tolist()]
        normaliser = math.log(sum(math.exp(x) for x in logits))
        positives = [logit - normaliser for logit, label in zip(logits, labels.tolist(), strict=True) if label == t]
        if positives:
            losses.append(-sum(positives) / len(positives))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("logit_scale", [1.0, 14.3])
def test_equals_plain_loops(logit_scale):
    texts, images = unit_features(0, 4), unit_features(1, 6)
    loss = text_to_image_loss(texts, images, LABELS, logit_scale)
    assert loss.item() == pytest.approx(loss_by_loops(texts, images, LABELS, logit_scale), rel=1e-12)


def test_with_a_photo_a_text_it_is_the_other_direction():
    texts, images, labels = unit_features(0, 4), unit_features(1, 4), torch.tensor([2, 0, 3, 1])
    expected = image_to_text_loss(texts, images, labels.argsort(), 7.0)  # the photos as classes of the texts
    torch.testing.assert_close(text_to_image_loss(texts, images, labels, 7.0), expected)


def test_gradient():
    inputs = (unit_features(0, 4).requires_grad_(), unit_features(1, 6).requires_grad_())
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, i, s: text_to_image_loss(t, i, LABELS, s), (*inputs, scale))


def test_a_text_without_photo_neither_learns_nor_counts():
    texts, images = unit_features(0, 4).requires_grad_(), unit_features(1, 6)
    loss = text_to_image_loss(texts, images, LABELS, 8.0)
    loss.backward()
    assert not texts.grad[3].any() and texts.grad[:3].any(dim=1).all()
    torch.testing.assert_close(loss, text_to_image_loss(texts[:3], images, LABELS, 8.0))


def test_large_logits_one_photo_and_half_precision():
    texts, images = unit_features(0, 4), unit_features(1, 6)
    expected = loss_by_loops(texts, images, LABELS, 300.0)
    assert text_to_image_loss(texts.float(), images.float(), LABELS, 300.0).item() == pytest.approx(expected, rel=1e-5)
    assert text_to_image_loss(texts, images[:1], LABELS[:1], 100.0).item() == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = text_to_image_loss(texts.float(), images.bfloat16(), LABELS, torch.tensor(14.0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, text_to_image_loss(texts.float(), images.bfloat16().float(), LABELS, 14.0))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="text features must be"):
        text_to_image_loss(unit_features(0, 4, dim=3), unit_features(1, 6), LABELS, 1.0)
    with pytest.raises(ValueError, match="labels must be"):
        text_to_image_loss(unit_features(0, 4), unit_features(1, 5), LABELS, 1.0)
