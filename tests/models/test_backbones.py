"""Backbones of torchvision and timm: their features, and weights from files made here."""

import pytest
import torch

import clipfh.models.torchvision_guard  # noqa: F401  (a PyPI torchvision beside a CPU torch)

import torchvision  # isort: skip
from clipfh.core.errors import InputError
from clipfh.models.backbones import build_backbone, load_backbone_weights


def test_a_model_of_timm():
    backbone, num_features = build_backbone("vit_tiny_patch16_224", 32)  # of a fixed input size
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, num_features) == (1, 192)
    with pytest.raises(InputError, match=r"unknown image encoder 'resnet81'.*Closest: resnet18"):
        build_backbone("resnet81", 64)
    with pytest.raises(InputError, match="cannot take images of 8 px"):
        build_backbone("vit_tiny_patch16_224", 8)  # smaller than a patch


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_a_file_are_loaded_without_their_classifier(tmp_path, suffix):
    other, path = torchvision.models.resnet18(), tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in other.state_dict().items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file(other.state_dict(), path)
    backbone, _ = build_backbone("resnet18", 64)
    load_backbone_weights(backbone, "resnet18", str(path))
    loaded = backbone.state_dict()
    assert len(loaded) == 120 and all(torch.equal(other.state_dict()[name], value) for name, value in loaded.items())


def test_weights_that_do_not_fit_name_the_way_out(tmp_path, monkeypatch):
    backbone, _ = build_backbone("resnet18", 64)
    before = backbone.conv1.weight.clone()
    path = tmp_path / "resnet34.pth"
    torch.save(torchvision.models.resnet50().state_dict(), path)
    with pytest.raises(InputError, match=r"does not hold the weights of resnet18: .* Pass the --image_encoder"):
        load_backbone_weights(backbone, "resnet18", str(path))
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(InputError, match=r"not a file of weights .*--image_weights PATH"):
        load_backbone_weights(backbone, "resnet18", str(tmp_path / "text.pth"))
    with pytest.raises(InputError, match=r"gone.pth does not exist.*--image_weights random"):
        load_backbone_weights(backbone, "resnet18", str(tmp_path / "gone.pth"))
    with pytest.raises(InputError, match=r"neither a file nor weights of resnet18: pretrained, random, IMAGENET1K_V1"):
        load_backbone_weights(backbone, "resnet18", "IMAGENET1K_V9")

    def offline(*arguments: object, **keywords: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(InputError, match=r"cannot be downloaded from https://.*resnet50.*--image_weights PATH"):
        load_backbone_weights(backbone, "resnet50", "IMAGENET1K_V2")
    assert torch.equal(backbone.conv1.weight, before)
