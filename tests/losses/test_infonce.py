import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss

from clipfh.losses import info_nce_loss, tiles

LABELS = torch.tensor([0, 1, 0, 2, 0, 1])


def unit_features(seed, rows=6, dim=5):
    return F.normalize(
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def loss_by_loops(images, texts, logit_scale, labels):
    total = 0.0
    for i in range(len(images)):
        kept = [j for j in range(len(images)) if j == i or labels[j] != labels[i]]
        own = torch.exp(logit_scale * images[i] @ texts[i])
        total = total - torch.log(own / sum(torch.exp(logit_scale * images[i] @ texts[j]) for j in kept)) / 2
        total = total - torch.log(own / sum(torch.exp(logit_scale * images[j] @ texts[i]) for j in kept)) / 2
    return total / len(images)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("tile_rows, kept", [(512, 2**23), (4, 2**23), (4, 20), (1, 0)])
def test_equals_plain_loops(labels, tile_rows, kept, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE_ROWS", tile_rows)
    monkeypatch.setattr(tiles, "KEPT_LOGITS", kept)
    images, texts = unit_features(0), unit_features(1)
    expected = loss_by_loops(images, texts, 7.0, torch.arange(6) if labels is None else labels)
    torch.testing.assert_close(info_nce_loss(images, texts, 7.0, labels), expected)


def test_equals_the_two_cross_entropies_of_clip():
    images, texts, scale = unit_features(0), unit_features(1), torch.tensor(20.0, dtype=torch.float64)
    logits_per_image, own = scale * images @ texts.T, torch.arange(6)
    expected = (F.cross_entropy(logits_per_image, own) + F.cross_entropy(logits_per_image.T, own)) / 2
    torch.testing.assert_close(info_nce_loss(images, texts, scale), expected)


def test_equals_pytorch_metric_learning():
    images, texts, pairs = unit_features(0), unit_features(1), torch.arange(6)
    peer = NTXentLoss(temperature=0.1)
    own = pairs.clone()  # the peer takes the very same tensor for the labels of the same images
    expected = (
        peer(images, pairs, ref_emb=texts, ref_labels=own) + peer(texts, pairs, ref_emb=images, ref_labels=own)
    ) / 2
    torch.testing.assert_close(info_nce_loss(images, texts, 10.0), expected)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("tile_rows", [512, 4])
def test_gradient(labels, tile_rows, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE_ROWS", tile_rows)
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    inputs = (unit_features(0).requires_grad_(), unit_features(1).requires_grad_(), scale)
    assert torch.autograd.gradcheck(lambda i, t, s: info_nce_loss(i, t, s, labels), inputs)


def test_frozen_texts_or_images():
    images, texts = unit_features(0).requires_grad_(), unit_features(1).requires_grad_()
    info_nce_loss(images, texts, 10.0, LABELS).backward()
    (of_images,) = torch.autograd.grad(info_nce_loss(images, texts.detach(), 10.0, LABELS), images)
    (of_texts,) = torch.autograd.grad(info_nce_loss(images.detach(), texts, 10.0, LABELS), texts)
    assert torch.equal(of_images, images.grad)
    assert torch.equal(of_texts, texts.grad)


def test_gradient_cannot_be_differentiated_again():
    images = unit_features(0).requires_grad_()
    (gradient,) = torch.autograd.grad(info_nce_loss(images, unit_features(1), 10.0), images, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_not_finite_features_show():
    images = unit_features(0)
    images[5, 0] = math.nan
    assert not torch.isfinite(info_nce_loss(images, unit_features(1), 10.0))


def test_pairs_of_one_identity_do_not_repel():
    """With one identity alone there is no negative: the loss is zero, without gradient."""
    images = unit_features(0).requires_grad_()
    loss = info_nce_loss(images, unit_features(1), 10.0, torch.zeros(6, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert images.grad.abs().max() < 1e-12


def test_batch_of_one():
    images = unit_features(0, rows=1).requires_grad_()
    loss = info_nce_loss(images, unit_features(1, rows=1), 10.0)
    loss.backward()
    assert loss.item() == 0
    assert (images.grad == 0).all()


def test_identical_features():
    features = torch.full((6, 4), 0.5, requires_grad=True)
    loss = info_nce_loss(features, features, 100.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(6), abs=1e-4)
    assert torch.isfinite(features.grad).all()


def test_large_logits_do_not_overflow():
    images, texts = unit_features(0), unit_features(1)
    expected = info_nce_loss(images, texts, 2000.0)
    loss = info_nce_loss(images.float(), texts.float(), 2000.0)
    assert expected > 100
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_half_precision_is_computed_in_float32():
    images, texts = unit_features(0).bfloat16(), unit_features(1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce_loss(images, texts, 14.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, info_nce_loss(images.float(), texts.float(), 14.0))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="one shape"):
        info_nce_loss(unit_features(0), unit_features(1, rows=5), 1.0)
    with pytest.raises(ValueError, match="labels must be"):
        info_nce_loss(unit_features(0), unit_features(1), 1.0, LABELS[:5])
