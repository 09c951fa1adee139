import math

import pytest
import torch

from clipfh.losses import BNNeckClassifier, identity_loss


def random_features(rows=6, dim=4):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_identity_loss_equals_plain_loops(smoothing):
    logits, labels = random_features(5, 3).double(), [2, 0, 1, 1, 2]
    total = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        normaliser = math.log(sum(math.exp(x) for x in row))
        for c, logit in enumerate(row):
            target = smoothing / 3 + (1 - smoothing if c == label else 0.0)
            total -= target * (logit - normaliser) / 5
    loss = identity_loss(logits, torch.tensor(labels), label_smoothing=smoothing)
    assert loss.item() == pytest.approx(total, rel=1e-12)


def test_identity_loss_gradient_and_large_logits():
    labels = torch.tensor([2, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda x: identity_loss(x, labels), random_features(5, 3).double().requires_grad_())
    assert torch.isfinite(identity_loss(random_features(5, 3) * 1e4, labels))
    assert identity_loss(random_features(5, 3).bfloat16(), labels).dtype == torch.float32
    with pytest.raises(ValueError, match="labels must be"):
        identity_loss(random_features(5, 3), labels[:4])


def test_neck_normalises_and_classifier_has_no_bias():
    head, features = BNNeckClassifier(4, 3), random_features()
    normalised, logits = head(features)
    expected = (features - features.mean(0)) / (features.var(0, unbiased=False) + head.neck.eps).sqrt()
    torch.testing.assert_close(normalised, expected)
    torch.testing.assert_close(logits, expected @ head.classifier.weight.T)
    assert logits.shape == (6, 3)


def test_shift_stays_zero_in_training():
    head = BNNeckClassifier(4, 3)
    before = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
    optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=1.0)
    identity_loss(head(random_features())[1], torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    optimizer.step()
    assert torch.equal(head.neck.bias, torch.zeros(4))
    assert not torch.equal(head.neck.weight, before["neck.weight"])
    assert not torch.equal(head.classifier.weight, before["classifier.weight"])


def test_half_precision_is_computed_in_float32():
    head, features = BNNeckClassifier(4, 3), random_features().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normalised, logits = head(features)
    assert normalised.dtype == logits.dtype == torch.float32


def test_batch_of_one_needs_evaluation_mode():
    head = BNNeckClassifier(4, 3)
    with pytest.raises(ValueError, match="more than 1 value"):
        head(random_features(1))
    assert head.eval()(random_features(1))[1].shape == (1, 3)
