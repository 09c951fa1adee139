"""Zero-shot classification by hand."""

import pytest
import torch

from clipfh.captions.zeroshot import class_features, top_k_accuracy


def test_a_class_is_the_mean_direction_of_its_prompts():
    prompts = {"a cat": [1.0, 0.0], "cat": [0.0, 1.0], "a dog": [0.0, 1.0], "dog": [0.0, 1.0]}
    features = class_features(["cat", "dog"], lambda texts: torch.tensor([prompts[t] for t in texts]), ("a {}", "{}"))
    assert features[0].tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    assert features[1].tolist() == [0.0, 1.0]


def test_accuracy_with_ties_counted_against():
    classifiers = torch.eye(3)
    images = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.5, 0.1], [0.2, 0.3, 0.1]])
    # right; tied with another class, hence second; third of three
    assert top_k_accuracy(images, classifiers, [0, 0, 2], ks=(1, 2, 3)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0})


def test_what_rounding_alone_sets_apart_is_tied():
    classifiers = torch.tensor([[0.6, 0.8], [0.6 - 6e-8, 0.8]])
    assert top_k_accuracy(torch.tensor([[1.0, 0.0]]), classifiers, [0], ks=(1, 2)) == {1: 0.0, 2: 1.0}
