"""The linear probe of stage 5: what it learns, and that val alone chooses how."""

import numpy as np
import pytest
from places import stage_module
from sklearn.linear_model import LogisticRegression

module = stage_module("stage5_text_image_gan", "linear_probe")
CLASSES, SIZE = 4, 10


def blobs(count, seed, spread=0.3):
    """Points (count, SIZE) around one centre a class, and their classes."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, SIZE))
    rng, labels = np.random.default_rng(seed), np.arange(count) % CLASSES
    return (centres[labels] + spread * rng.normal(size=(count, SIZE))).astype(np.float32), labels


def test_it_tells_apart_what_a_line_parts_and_not_what_is_noise():
    (train, labels), (val, val_labels), (test, test_labels) = blobs(80, 1), blobs(20, 2), blobs(40, 3)
    probe = module.fit_linear_probe(train, labels, val, val_labels)
    assert probe.val_accuracy == 1 and probe.model.score(test, test_labels) == 1
    shuffled = np.random.default_rng(4).permutation(labels)
    blind = module.fit_linear_probe(train, shuffled, val, val_labels)
    assert blind.model.score(test, test_labels) < 0.6


def test_the_choice_is_the_best_on_val_of_all_that_are_tried():
    (train, labels), (val, val_labels) = blobs(40, 1, spread=2.0), blobs(200, 2, spread=2.0)
    probe = module.fit_linear_probe(train, labels, val, val_labels)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    accuracies = {}
    for standardised in (False, True):
        shift, scale = (mean, deviation) if standardised else (0, 1)
        for C in module.CS:
            model = LogisticRegression(C=C, max_iter=5000).fit((train - shift) / scale, labels)
            accuracies[standardised, C] = model.score((val - shift) / scale, val_labels)
    assert len(set(accuracies.values())) > 3  # otherwise any choice would do
    assert probe.val_accuracy == pytest.approx(max(accuracies.values()), abs=0.011)
    assert accuracies[probe.standardised, probe.C] == pytest.approx(probe.val_accuracy, abs=0.011)


def test_features_of_very_different_sizes_are_standardised():
    (train, labels), (val, val_labels) = blobs(80, 1), blobs(20, 2)
    sizes = np.where(np.arange(SIZE) < SIZE - 1, 1e-4, 1.0).astype(np.float32)
    train, val = train * sizes, val * sizes
    train[:, -1], val[:, -1] = (np.random.default_rng(seed).normal(size=len(of)) for seed, of in ((5, train), (6, val)))
    probe = module.fit_linear_probe(train, labels, val, val_labels)
    assert probe.standardised and probe.val_accuracy == 1


def test_of_equal_choices_the_strongest_penalty_is_taken():
    train, labels = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
    val, val_labels = train[[0, 3]], labels[[0, 3]]
    probe = module.fit_linear_probe(train, labels, val, val_labels)
    assert (probe.standardised, probe.C) == (False, module.CS[0])
