import math

import pytest
import torch
import torch.nn.functional as F

from clipfh.losses import image_to_text_loss

LABELS = torch.tensor([2, 0, 1, 3, 2])


def unit_features(seed, rows, dim=6):
    return F.normalize(
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def loss_by_loops(images, texts, labels, logit_scale, smoothing):
    total = 0.0
    for image, label in zip(images.tolist(), labels.tolist(), strict=True):
        logits = [logit_scale * sum(x * y for x, y in zip(image, text, strict=True)) for text in texts.tolist()]
        normaliser = math.log(sum(math.exp(x) for x in logits))
        for c, logit in enumerate(logits):
            target = smoothing / len(logits) + (1 - smoothing if c == label else 0.0)
            total -= target * (logit - normaliser) / len(labels)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_plain_loops(smoothing):
    images, texts = unit_features(0, 5), unit_features(1, 4)
    loss = image_to_text_loss(images, texts, LABELS, 8.0, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(loss_by_loops(images, texts, LABELS, 8.0, smoothing), rel=1e-12)


def test_gradient():
    inputs = (unit_features(0, 5).requires_grad_(), unit_features(1, 4).requires_grad_())
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda i, t, s: image_to_text_loss(i, t, LABELS, s, label_smoothing=0.1), (*inputs, scale)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_identities_with_the_same_prompt_are_one_class(smoothing):
    images, texts = unit_features(0, 5), unit_features(1, 4)
    texts[3] = texts[1]
    same_text = torch.tensor([70, 30, 90, 30])
    loss = image_to_text_loss(images, texts, LABELS, 8.0, label_smoothing=smoothing, same_text=same_text)
    merged = torch.tensor([2, 0, 1, 1, 2])
    assert loss.item() == pytest.approx(loss_by_loops(images, texts[:3], merged, 8.0, smoothing), rel=1e-12)
    assert loss < image_to_text_loss(images, texts, LABELS, 8.0, label_smoothing=smoothing)


def test_distinct_texts_change_nothing():
    images, texts = unit_features(0, 5), unit_features(1, 4)
    same_text = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(
        image_to_text_loss(images, texts, LABELS, 8.0, same_text=same_text),
        image_to_text_loss(images, texts, LABELS, 8.0),
    )


def test_frozen_texts_get_no_gradient():
    images, texts = unit_features(0, 5).requires_grad_(), unit_features(1, 4)
    image_to_text_loss(images, texts, LABELS, 8.0).backward()
    assert texts.grad is None
    assert images.grad.abs().max() > 0


def test_large_logits_one_image_one_class_and_half_precision():
    images, texts = unit_features(0, 5), unit_features(1, 4)
    expected = image_to_text_loss(images, texts, LABELS, 2000.0).item()
    assert image_to_text_loss(images.float(), texts.float(), LABELS, 2000.0).item() == pytest.approx(expected, rel=1e-5)
    assert image_to_text_loss(images[:1], texts[:1], torch.tensor([0]), 100.0).item() == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = image_to_text_loss(images.bfloat16(), texts.float(), LABELS, torch.tensor(14.0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, image_to_text_loss(images.bfloat16().float(), texts.float(), LABELS, 14.0))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="class text features"):
        image_to_text_loss(unit_features(0, 5), unit_features(1, 4, dim=3), LABELS, 1.0)
    with pytest.raises(ValueError, match="same_text"):
        image_to_text_loss(unit_features(0, 5), unit_features(1, 4), LABELS, 1.0, same_text=LABELS)
