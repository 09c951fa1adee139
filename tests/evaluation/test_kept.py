"""What is kept of the first weights: the probe, the features' likeness, the weights' distance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from no_float64 import NoFloat64
from PIL import Image
from safetensors.torch import save_file

from clipfh.core.errors import InputError
from clipfh.evaluation import kept as module
from clipfh.evaluation import probe as probe_module
from clipfh.evaluation.kept import Kept
from clipfh.evaluation.probe import find_probe, zero_shot_probe
from clipfh.images.pixels import Pixels
from clipfh.metrics.feature_similarity import linear_cka
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import first_weights_of, load_clip
from clipfh.models.parts import has_parts

import open_clip  # isort: skip

CPU = torch.device("cpu")
RECORDED = {"stage": 0, "dataset": "photos", "variant": "", "epoch": 1}


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return load_clip("tiny-rn", "random", image_size=32)


@pytest.fixture
def fine_tuned(clip, tmp_path):
    """(before, after): the second records a checkpoint of the first as its first weights."""
    path = tmp_path / "start.pth"
    write_checkpoint(path, {**RECORDED, **clip.architecture(), "state_dict": clip.model.state_dict()})
    start = load_clip("tiny-rn", str(path))
    tuned = load_clip("tiny-rn", str(path))
    with torch.no_grad():
        for parameter in tuned.model.visual.parameters():
            parameter += 0.003 * torch.randn_like(parameter)
    return start, replace(tuned, first_weights=str(path), seen_identities={"0": ["a"]})


@pytest.fixture
def probe_folder(tmp_path, monkeypatch):
    """Three photos of each of two classes, and what belongs to none."""
    monkeypatch.setattr(probe_module, "processed_dir", lambda name: tmp_path / "processed" / name)
    folder = tmp_path / "probe"
    for name, color in (("red-thing", (200, 0, 0)), ("blue_thing", (0, 0, 200))):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40), color).save(folder / name / f"{number}.png")
    Image.new("RGB", (40, 40)).save(folder / "of_no_class.png")
    return folder


def pixels(N: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)


def features_of(clip, images: np.ndarray) -> torch.Tensor:
    return module.extract_features(clip, images, CPU, quiet=True)


def test_a_clip_that_was_not_fine_tuned_has_nothing_to_compare_with(clip):
    result = measure_kept(clip, None, pixels(), features_of(clip, pixels()))
    assert (result.probe, result.moved, result.rows(), result.as_dict(), str(result)) == (None, None, [], None, "")


def test_what_moved_is_measured_against_the_first_weights(fine_tuned):
    start, tuned = fine_tuned
    result = measure_kept(tuned, None, pixels(), features_of(tuned, pixels()))
    names = [name for name, _ in start.model.visual.named_parameters()]
    before, after = (
        torch.cat([dict(clip.model.visual.named_parameters())[name].detach().flatten() for name in names])
        for clip in fine_tuned
    )
    assert result.moved.weights == pytest.approx(
        float((after - before).double().norm() / before.double().norm()), rel=1e-5
    )
    assert result.moved.cka == pytest.approx(linear_cka(features_of(start, pixels()), features_of(tuned, pixels())))
    assert 0.1 < result.moved.cka < 1 and result.moved.start in str(result)
    same = measure_kept(replace(start, first_weights=tuned.first_weights), None, pixels(), features_of(start, pixels()))
    assert same.moved.cka == pytest.approx(1) and same.moved.weights == 0


def test_features_of_few_photos_are_not_compared(fine_tuned):
    start, tuned = fine_tuned
    few, enough = (measure_kept(tuned, None, pixels(N), features_of(tuned, pixels(N))).moved for N in (19, 20))
    assert few.cka is None and few.weights == enough.weights
    assert enough.cka == pytest.approx(linear_cka(features_of(start, pixels(20)), features_of(tuned, pixels(20))))
    assert "CKA" not in str(Kept(None, few, 0.1)) and "CKA" in str(Kept(None, enough, 0.1))


def test_the_weights_distance_on_a_device_without_float64(fine_tuned):
    expected = module.weight_distance(*fine_tuned)
    with NoFloat64():
        assert module.weight_distance(*fine_tuned) == expected


@pytest.fixture
def tagged(fine_tuned, monkeypatch, tmp_path):
    """(before, after), fine-tuned from a tag of the hub, to which there is no way."""

    def download(config):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-rn", {"photos_s1": {"hf_hub": "someone/tiny/"}})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    start, tuned = fine_tuned
    return start, replace(tuned, first_weights="photos_s1")


def test_first_weights_of_a_tag_are_not_downloaded(tagged, capsys):
    _, tuned = tagged
    result = measure_kept(tuned, None, pixels(), features_of(tuned, pixels()))
    said = capsys.readouterr().out
    assert result.moved is None and "this machine does not have" in said and "--pretrained photos_s1 once" in said


@pytest.mark.parametrize(
    ("hub", "name"),
    [
        ("someone/tiny/", "open_clip_model.safetensors"),
        ("someone/tiny/", "open_clip_pytorch_model.bin"),
        ("someone/tiny/pytorch_model.bin", "pytorch_model.safetensors"),
        ("someone/tiny/pytorch_model.bin", "pytorch_model.bin"),
    ],
)
def test_first_weights_of_a_tag_are_taken_from_the_hubs_cache(tagged, monkeypatch, tmp_path, capsys, hub, name):
    start, tuned = tagged
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED["tiny-rn"]["photos_s1"], "hf_hub", hub)
    repository = tmp_path / "hub" / "models--someone--tiny"
    for folder in ("refs", "snapshots/1a2b"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("1a2b")
    save = save_file if name.endswith(".safetensors") else torch.save
    weights = {key: value.contiguous() for key, value in start.model.state_dict().items()}
    save(weights, repository / "snapshots" / "1a2b" / name)
    result = measure_kept(tuned, None, pixels(), features_of(tuned, pixels()))
    assert result.moved.start == "photos_s1" and capsys.readouterr().out == ""
    assert result.moved.weights == pytest.approx(module.weight_distance(start, tuned))


def test_first_weights_that_are_gone_are_said(fine_tuned, capsys, tmp_path):
    _, tuned = fine_tuned
    (tmp_path / "start.pth").unlink()
    result = measure_kept(tuned, None, pixels(), features_of(tuned, pixels()))
    assert result.moved is None and "cannot be loaded" in capsys.readouterr().out


def test_what_a_fine_tuning_records_as_its_first_weights(clip):
    assert first_weights_of(replace(clip, pretrained="openai")) == "openai"
    assert first_weights_of(replace(clip, pretrained="stage2.pth", first_weights="openai")) == "openai"
    assert first_weights_of(replace(clip, pretrained="old.pth", seen_identities={"0": ["a"]})) == ""


def test_a_folder_of_photos_is_classified_by_its_folders_names(clip, probe_folder, monkeypatch):
    texts = []
    directions = {"red": features_of(clip, flat(200, 0, 0))[0], "blu": features_of(clip, flat(0, 0, 200))[0]}

    def encode(_clip, given, _device):
        texts.extend(given)
        return torch.stack([directions["red" if "red" in text else "blu"] for text in given])

    monkeypatch.setattr(probe_module, "encode_texts", encode)
    probe = zero_shot_probe(clip, find_probe(probe_folder), CPU)
    assert texts == ["a photo of a blue thing", "blue thing", "a photo of a red thing", "red thing"]
    assert (probe.figures.rank1, probe.figures.num_query, probe.figures.num_gallery) == (1, 6, 2)
    assert probe.name.startswith("6 photos of 2 classes") and probe.name.endswith("1 files left out")
    directions["red"], directions["blu"] = directions["blu"], directions["red"]
    assert zero_shot_probe(clip, find_probe(probe_folder), CPU).figures.rank1 == 0
    (row,) = Kept(probe, None, 0.1).rows()
    assert row["protocol"] == "probe" and row["rank1"] == 1


def measure_kept(clip, folder, images, features):
    """Without saved features."""
    names = [str(number) for number in range(len(images))]
    pixels = Pixels(images, tuple(names), ())
    return module.measure_kept(clip, find_probe(folder), pixels, features, CPU, Path("nowhere"))


def flat(*color: int) -> np.ndarray:
    return np.full((1, 32, 32, 3), color, dtype=np.uint8)


def test_the_probe_of_both_is_compared(fine_tuned, probe_folder):
    start, tuned = fine_tuned
    result = measure_kept(tuned, probe_folder, pixels(), features_of(tuned, pixels()))
    assert result.as_dict()["start_top1"] == zero_shot_probe(start, find_probe(probe_folder), CPU).figures.rank1
    assert result.as_dict()["top1"] == result.probe.figures.rank1 and " -> " in str(result)


def test_bad_probes(clip, probe_folder, tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        find_probe(tmp_path / "nowhere")
    with pytest.raises(InputError, match="two classes or more"):
        find_probe(probe_folder / "red-thing")
    (probe_folder / "red-thing" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"red-thing/broken\.png cannot be read"):
        zero_shot_probe(clip, find_probe(probe_folder), CPU)


@pytest.mark.skipif(not has_parts(), reason="the packages of small-clip's parts are not installed")
def test_small_clip_has_a_probe_of_its_own():
    clip = load_clip("small-clip", "random")
    probe = zero_shot_probe(clip, None, CPU)
    assert (probe.figures.num_query, probe.figures.num_gallery) == (1000, 998)  # cranes and maillots are two each
    assert probe.figures.rank1 < 0.05  # random weights know no class
