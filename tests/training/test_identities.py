"""What trainings on identities share."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from clipfh.images.augment import Augmentation, augment, view_generator
from clipfh.models.clip import LoadedClip
from clipfh.training import identities
from clipfh.training.settings import Views


@pytest.mark.parametrize(("text", "mean"), [(SimpleNamespace(mAP=0.2), 0.4), (None, 0.6)])
def test_words_count_where_val_has_some(monkeypatch, text, mean):
    """`validate_both` judges by the mean of both figures; without prompts that tell apart, by photos alone."""
    monkeypatch.setattr(identities, "validate", lambda *_: (SimpleNamespace(mAP=0.6, rank1=0.7), text))
    clip = LoadedClip(**dict.fromkeys(LoadedClip.__dataclass_fields__))
    place = SimpleNamespace(device=torch.device("cpu"))
    loaded = identities.Identities(None, clip, None, {}, {}, None, place)
    found = loaded.validate_both(nn.Identity())
    assert found.figures["val_mean_mAP"] == pytest.approx(mean) and found.figures["val_mAP"] == 0.6
    assert ("val_text_mAP" in found.figures) == (text is not None) == ("mean 40.0" in found.text)
    assert "val_mean_mAP" not in loaded.validate(nn.Identity()).figures


def test_without_crops_a_view_is_the_whole_photo():
    plain = {"rotation": 0.0, "color_jitter": 0.0, "flip": 0.0, "erase": 0.0}
    images = torch.rand(8, 3, 16, 16)
    whole = identities.augmentation(Views(min_crop=1, **plain))
    torch.testing.assert_close(augment(images, whole, view_generator(0)), images)
    assert identities.augmentation(Views(min_crop=0.4, **plain)) == Augmentation(rotation=0, color=0, flip=0)


@pytest.mark.parametrize(
    ("recipe", "seen", "recorded"),
    [("f00d", {"5a": ["a"]}, {"start_recipe": "f00d"}), ("", {}, {"start_recipe": ""}), ("", {"5a": ["a"]}, {})],
    ids=["a training", "pretrained", "a training of an older version"],
)
def test_a_training_records_the_recipe_of_what_it_starts_from(recipe, seen, recorded):
    clip = LoadedClip(**dict.fromkeys(LoadedClip.__dataclass_fields__))
    clip = replace(clip, recipe=recipe, seen_identities=seen, pretrained="start")
    table = pd.DataFrame({"item_id": ["b"], "split": ["train"]})
    data = SimpleNamespace(name="photos", digest="6b", table=table)
    found = identities.Identities(data, clip, None, {}, {}, None, SimpleNamespace(stage=3)).record("v4")
    assert {name: value for name, value in found.items() if name == "start_recipe"} == recorded
