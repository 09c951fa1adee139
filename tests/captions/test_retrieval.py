"""Recall@K between images and captions, against hand-made tables and a naive loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipfh.captions.retrieval import caption_recall, first_match_ranks
from clipfh.core.errors import InputError


def naive_ranks(queries, gallery, matches):
    """The rank of the best match by sorting, a tied non-match first."""
    ranks = []
    for row, own in zip((queries @ gallery.T).tolist(), matches, strict=True):
        best = max(row[i] for i in own)
        ranks.append(1 + sum(value >= best for i, value in enumerate(row) if i not in own))
    return ranks


def random_pairs(seed: int, N: int, T: int):
    rng = np.random.default_rng(seed)
    captions = [rng.choice(T, rng.integers(1, 5), replace=False) for _ in range(N)]
    captions[0] = np.union1d(captions[0], np.setdiff1d(np.arange(T), np.concatenate(captions)))
    generator = torch.Generator().manual_seed(seed)
    features = [F.normalize(torch.randn(count, 8, generator=generator), dim=1) for count in (N, T)]
    return *features, captions


def test_by_hand():
    # similarities, images as rows: the best caption of image 0 is third, of image 1 first, of image 2 second
    text_features = torch.eye(4)
    image_features = torch.tensor([[0.2, 0.1, 0.9, 0.3], [0.1, 0.2, 0.8, 0.3], [0.5, 0.3, 0.1, 0.4]])
    captions = [np.array([0, 1]), np.array([2]), np.array([3, 1])]
    to_text, to_image = caption_recall(image_features, text_features, captions)
    assert to_text.first_match_rank.tolist() == [3, 1, 2]
    assert to_text.recall == {1: 1 / 3, 5: 1.0, 10: 1.0} and to_text.median_rank == 2
    # caption 1 is of images 0 and 2: 0.3 is the best of both; caption 2 is of image 1, behind image 0
    assert to_image.first_match_rank.tolist() == [2, 1, 2, 1]
    assert to_image.recall[1] == 0.5 and to_image.median_rank == 1.5
    assert to_image.as_dict() == {
        "recall1": 0.5, "recall5": 1.0, "recall10": 1.0, "median_rank": 1.5, "num_query": 4, "num_gallery": 3
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_as_a_naive_loop(seed):
    images, texts, captions = random_pairs(seed, 40, 60)
    to_text, to_image = caption_recall(images, texts, captions)
    owners = [[i for i, own in enumerate(captions) if text in own] for text in range(len(texts))]
    assert to_text.first_match_rank.tolist() == naive_ranks(images, texts, [set(own.tolist()) for own in captions])
    assert to_image.first_match_rank.tolist() == naive_ranks(texts, images, owners)


def test_other_texts_are_in_the_way_of_images_alone():
    images, texts, captions = random_pairs(5, 40, 30)
    others = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    to_text, to_image = caption_recall(images, texts, captions, other_texts=others)
    naive = naive_ranks(images, torch.cat([texts, others]), [set(own.tolist()) for own in captions])
    assert to_text.first_match_rank.tolist() == naive and to_text.num_gallery == 80
    plain_to_text, plain_to_image = caption_recall(images, texts, captions)
    assert to_image.first_match_rank.tolist() == plain_to_image.first_match_rank.tolist()
    assert (to_text.first_match_rank >= plain_to_text.first_match_rank).all()
    none = caption_recall(images, texts, captions, other_texts=others[:0])[0]
    assert none.first_match_rank.tolist() == plain_to_text.first_match_rank.tolist()


def test_chunks_do_not_change_ranks(monkeypatch):
    images, texts, captions = random_pairs(9, 50, 70)
    whole = [figures.first_match_rank.tolist() for figures in caption_recall(images, texts, captions)]
    monkeypatch.setattr("clipfh.captions.retrieval._CHUNK", 7)
    assert [figures.first_match_rank.tolist() for figures in caption_recall(images, texts, captions)] == whole


def test_features_are_left_as_they_were():
    images, texts, captions = random_pairs(3, 10, 12)
    before = images.clone(), texts.clone()
    caption_recall(images, texts, captions)
    assert torch.equal(images, before[0]) and torch.equal(texts, before[1])


def test_constant_features_find_nothing():
    same = F.normalize(torch.ones(5, 3), dim=1)
    to_text, to_image = caption_recall(same, same, [np.array([i]) for i in range(5)])
    assert to_text.recall[1] == to_image.recall[1] == 0 and to_text.median_rank == 5


def test_a_caption_of_all_images_is_found_first():
    ranks = first_match_ranks(torch.ones(1, 2), torch.rand(3, 2), np.zeros(3, dtype=int), np.arange(3))
    assert ranks.tolist() == [1]


def test_bad_input():
    images, texts, captions = random_pairs(0, 6, 8)
    with pytest.raises(ValueError, match="6 image features, but the captions of 5"):
        caption_recall(images, texts, captions[:5])
    with pytest.raises(ValueError, match="no caption"):
        caption_recall(images, texts, [*captions[:5], np.array([], dtype=int)])
    with pytest.raises(ValueError, match="every row is a caption"):
        caption_recall(images, torch.cat([texts, texts[:1]]), captions)
    with pytest.raises(ValueError, match="not finite"):
        caption_recall(images * float("nan"), texts, captions)
    with pytest.raises(InputError, match="no image"):
        caption_recall(images[:0], texts, [])


def test_what_rounding_alone_sets_apart_is_tied():
    gallery = torch.tensor([[0.6, 0.8], [0.6 - 6e-8, 0.8], [0.5, 0.8]])
    ranks = first_match_ranks(torch.tensor([[1.0, 0.0]]), gallery, np.array([0]), np.array([0]))
    assert ranks.tolist() == [2]
