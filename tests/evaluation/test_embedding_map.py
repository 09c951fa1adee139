import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipfh.evaluation import embedding_map
from clipfh.reports.embedding_map import embedding_map_figure

ALL = {"exclude_same_camera": False}


def test_whole_identities_are_chosen_and_never_too_many():
    ids = np.array([f"{number:03}" for number in np.random.default_rng(0).integers(0, 100, 1000)])
    chosen = embedding_map.choose_photos(ids, 200)
    assert 150 < len(chosen) <= 200 and (np.diff(chosen) > 0).all()
    names = set(ids[chosen])
    assert all((ids[chosen] == name).sum() == (ids == name).sum() for name in names)
    with_a_large_one = np.concatenate([np.full(500, "large"), ids])
    assert len(embedding_map.choose_photos(with_a_large_one, 200)) > 150
    assert embedding_map.choose_photos(ids, 1000).tolist() == list(range(1000))
    assert len(embedding_map.choose_photos(np.array([], dtype=object))) == 0


def test_what_is_similar_lies_together():
    features = F.normalize(torch.randn(4, 32).repeat_interleave(10, 0) + 0.05 * torch.randn(40, 32), dim=1)
    places = embedding_map.project(features.numpy())
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 10 == np.arange(40) // 10).all()


@pytest.mark.parametrize("collapsed", [False, True])
def test_the_map_is_drawn(tmp_path, collapsed):
    names = [f"{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        Image.new("RGB", (30 + number, 40), (20 * number, 100, 0)).save(tmp_path / name)
    table = pd.DataFrame({"image": names, "item_id": [str(number // 3) for number in range(12)], "camera": ""})
    features = torch.ones(12, 8) if collapsed else torch.randn(12, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = embedding_map.make_map(F.normalize(features), table, **ALL)
        embedding_map_figure(tmp_path / "map.png", tmp_path, made.images, made.places, made.wrong, title="stage1")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size == (1500, 1590)
        assert len(picture.convert("RGB").getcolors(1 << 22)) > 20
    assert embedding_map.make_map(F.normalize(features[:3]), table[:3], **ALL) is None


def test_frames_follow_the_protocol_and_identities_of_one_photo_stay_out():
    """Photos of an item lie together by camera; across cameras, each is nearest to another item's."""
    places = [*([0, 90] * 2), *([93, 180] * 2), 45]  # degrees: two cameras of items a and b, and a single photo
    angles = torch.deg2rad(torch.tensor(places, dtype=torch.float32))
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    names = [f"{number}.png" for number in range(9)]
    table = pd.DataFrame({"image": names, "item_id": [*"aaaabbbbc"], "camera": ["1", "2"] * 4 + ["1"]})
    any_camera, other_camera = (
        embedding_map.make_map(features, table, exclude_same_camera=exclude) for exclude in (False, True)
    )
    assert any_camera.images == names[:8] and any_camera.item_ids == [*"aaaabbbb"]
    assert any_camera.chosen.tolist() == list(range(8))
    assert not any_camera.wrong.any() and other_camera.wrong.tolist() == [False, True] * 2 + [True, False] * 2
