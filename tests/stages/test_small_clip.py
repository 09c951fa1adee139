"""How small-clip's image encoder is brought into the space of its text encoder."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from places import stage_module

stage = stage_module("stage0_pretrain", "make_small_clip")
K, FEATURES, E, D = 20, 24, 6, 22  # classes, image features, dimensions of text, of the embedding
CONFIG = SimpleNamespace(threshold=2.0, aligned_scale=0.5)


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(3)
    classifier, bias = torch.randn(K, FEATURES, generator=generator), torch.randn(K, generator=generator)
    texts = F.normalize(torch.randn(K, E, generator=generator), dim=1)
    return classifier, bias, texts


def projected(weights: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """What timm's MLP makes of them."""
    hidden = F.gelu(features @ weights["fc1.weight"].T + weights["fc1.bias"])
    return hidden @ weights["fc2.weight"].T + weights["fc2.bias"]


def test_the_first_dimensions_are_the_texts_of_the_likely_classes(parts):
    classifier, bias, texts = parts
    weights = stage.image_projection(*parts, D, CONFIG)
    features = torch.randn(50, FEATURES, generator=torch.Generator().manual_seed(4))
    logits = features @ classifier.T + bias
    expected = 0.5 * F.gelu(logits - 2.0) @ texts
    torch.testing.assert_close(projected(weights, features)[:, :E], expected, atol=1e-4, rtol=1e-4)
    assert (logits > 2).any() and (logits < -2).any()


def test_the_others_keep_the_distances_within_the_leading_directions(parts):
    classifier = parts[0]
    weights = stage.image_projection(*parts, D, CONFIG)
    features = F.normalize(torch.randn(50, FEATURES, generator=torch.Generator().manual_seed(5)), dim=1)
    _, _, directions = torch.linalg.svd(classifier - classifier.mean(dim=0), full_matrices=False)
    inside = features @ directions[: D - E].T
    ours = projected(weights, features)[:, E:]
    torch.testing.assert_close(torch.cdist(ours, ours), torch.cdist(inside, inside), atol=1e-3, rtol=1e-3)


def test_the_signs_of_the_directions_are_no_matter_of_chance(parts, monkeypatch):
    first = stage.image_projection(*parts, D, CONFIG)
    svd = torch.linalg.svd

    def other_signs(matrix, **kwargs):
        left, values, directions = svd(matrix, **kwargs)
        flips = torch.where(torch.arange(len(directions)) % 2 == 0, -1.0, 1.0)[:, None]
        return left, values, directions * flips

    monkeypatch.setattr(torch.linalg, "svd", other_signs)
    second = stage.image_projection(*parts, D, CONFIG)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_class_has_three_texts():
    texts = stage.class_texts()
    assert len(texts) == 1000 and all(len(several) == 3 and all(several) for several in texts)
    assert texts[1] == ["goldfish", "a photo of goldfish", "goldfish, Carassius auratus"]
