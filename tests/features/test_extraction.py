import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipfh.features.extraction import (
    MAX_DISTRACTORS,
    draw_distractors,
    encode_batches,
    extract_features,
    image_to_image,
    rank_gallery,
    val_figures,
)
from clipfh.models.clip import load_clip
from clipfh.tables.records import make_table


def unit_rows(num, dim, seed=0):
    return F.normalize(torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_rank_gallery_equals_a_full_sort(chunk_size):
    query, gallery = unit_rows(7, 5), unit_rows(20, 5, seed=1)
    indices, similarities = rank_gallery(query, gallery, 6, chunk_size=chunk_size)
    order = (query @ gallery.T).argsort(dim=1, descending=True)[:, :6]
    assert torch.equal(indices, order)
    torch.testing.assert_close(similarities, (query @ gallery.T).gather(1, order))


def test_rank_gallery_of_a_small_gallery_is_all_of_it():
    indices, similarities = rank_gallery(unit_rows(2, 4), unit_rows(3, 4, seed=1), 50)
    assert indices.shape == similarities.shape == (2, 3)
    assert indices.sort(dim=1).values.tolist() == [[0, 1, 2]] * 2


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return load_clip("tiny-rn", "random", image_size=32)


def test_features_are_unit_float32_and_the_mode_is_kept(clip):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    clip.model.train()
    statistics = {name: value.clone() for name, value in clip.model.named_buffers()}
    features = extract_features(clip, pixels, "cpu", batch_size=2, quiet=True)
    assert clip.model.training
    assert features.shape == (5, 256) and features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    assert all(torch.equal(value, statistics[name]) for name, value in clip.model.named_buffers())
    clip.model.eval()
    again = extract_features(clip, pixels, "cpu", batch_size=5, quiet=True)
    assert not clip.model.training
    torch.testing.assert_close(again, features, atol=1e-5, rtol=0)
    # usable in autograd, which tensors made in inference mode are not
    weight = torch.ones(256, requires_grad=True)
    (features @ weight).sum().backward()
    assert weight.grad is not None


def test_batches_start_anywhere_and_leave_the_mode_alone_when_the_consumer_stops(clip, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    whole = extract_features(clip, pixels, "cpu", quiet=True)
    clip.model.train()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    batches = encode_batches(clip, pixels, "cpu", batch_size=2, start=3, quiet=True)
    first = next(batches)
    assert not clip.model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not torch.backends.cudnn.allow_tf32  # or features would differ from those of an evaluation
    torch.testing.assert_close(first, whole[3:5], atol=1e-5, rtol=0)
    batches.close()
    assert clip.model.training and torch.backends.cudnn.allow_tf32
    clip.model.eval()
    sizes = [len(part) for part in encode_batches(clip, pixels, "cpu", batch_size=2, start=2, quiet=True)]
    assert sizes == [2, 2, 1] and not clip.model.training
    assert list(encode_batches(clip, pixels, "cpu", start=7, quiet=True)) == []


TABLE = make_table(
    [
        ("a1", "a", "query", "x"),
        ("a2", "a", "gallery", "x"),
        ("a3", "a", "gallery", "y"),
        ("b1", "b", "query", "x"),
        ("b2", "b", "gallery", "y"),
    ]
)
FEATURES = F.normalize(torch.tensor([[1.0, 0], [1, 0.1], [0.2, 1], [0, 1], [0.1, 1]]), dim=1)


def test_image_to_image_looks_images_up_by_name_and_excludes_cameras():
    split = {"query": ["b1", "a1"], "gallery": ["b2", "a3", "a2"]}
    plain = image_to_image(FEATURES, TABLE, **split, exclude_same_camera=False)
    assert plain.first_match_rank.tolist() == [1, 1]
    strict = image_to_image(FEATURES, TABLE, **split, exclude_same_camera=True)
    assert strict.first_match_rank.tolist() == [1, 1]  # a3 before b2, a2 left out
    assert plain.average_precision.tolist() == [1.0, 1.0] and strict.average_precision.tolist() == [1.0, 1.0]
    only_own_camera = image_to_image(FEATURES, TABLE, ["a1", "b1"], ["a2", "b2"], exclude_same_camera=True)
    assert only_own_camera.num_without_match == 1


def test_val_queries_do_not_find_themselves_and_distractors_are_in_the_way():
    alone = val_figures(FEATURES, TABLE, FEATURES[:0], exclude_same_camera=False)
    assert alone.num_query == 5 and alone.num_gallery == 5
    # between a1 and its best match; matches nobody
    distractor = F.normalize(torch.tensor([[1.0, 0.05]]), dim=1)
    crowded = val_figures(FEATURES, TABLE, distractor, exclude_same_camera=False)
    assert crowded.num_gallery == 6 and crowded.first_match_rank[0] == 2 and alone.first_match_rank[0] == 1
    assert val_figures(FEATURES, TABLE, distractor, exclude_same_camera=True).first_match_rank[0] == 2


def test_distractors_repeat_and_are_bounded():
    assert draw_distractors(10, 0).tolist() == list(range(10))
    drawn = draw_distractors(3 * MAX_DISTRACTORS, 5)
    assert len(drawn) == len(set(drawn.tolist())) == MAX_DISTRACTORS
    assert (np.diff(drawn) > 0).all() and drawn.max() < 3 * MAX_DISTRACTORS
    assert np.array_equal(drawn, draw_distractors(3 * MAX_DISTRACTORS, 5))
    assert not np.array_equal(drawn, draw_distractors(3 * MAX_DISTRACTORS, 6))
