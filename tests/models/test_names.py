import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from clipfh.core.errors import InputError
from clipfh.models.clip import load_clip, open_clip
from clipfh.models.names import canonical_model_name, load_tokenizer, require_transformers


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B/16", "ViT-B-16"),
        ("vit-b-16", "ViT-B-16"),
        ("openai/clip-vit-base-patch32", "ViT-B-32"),
        ("openai/clip-vit-large-patch14-336", "ViT-L-14-336"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "hf-hub:timm/ViT-B-16-SigLIP"),
        ("local-dir:a/b", "local-dir:a/b"),
    ],
)
def test_names(name, expected):
    assert canonical_model_name(name) == expected


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = load_clip("tiny-vit", "random").model
    save_file(
        {k: v.contiguous().clone() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors"
    )
    config = {"model_cfg": open_clip.get_model_config("tiny-vit")}
    config["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    return tmp_path, model


def test_a_folder_is_a_model(folder):
    path, model = folder
    clip = load_clip(f"local-dir:{path}")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in clip.model.state_dict().items())
    assert (tuple(clip.mean), tuple(clip.std), clip.resize_mode) == ((0.5,) * 3, (0.25,) * 3, "squash")
    assert clip.name == f"local-dir:{path}" and clip.tokenizer(["a mug"]).shape == (1, 77)


def test_folders_that_are_no_models(folder):
    path, _ = folder
    (path / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"the folder has no open_clip_model.safetensors"):
        load_clip(f"local-dir:{path}")
    for content in ("{}", "[", '{"model_cfg": 3}'):
        (path / "open_clip_config.json").write_text(content)
        with pytest.raises(InputError, match=r"open_clip_config.json"):
            load_clip(f"local-dir:{path}")
    with pytest.raises(InputError, match=r"the folder has no open_clip_config.json"):
        load_clip(f"local-dir:{path / 'gone'}")


def test_a_model_that_needs_transformers_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("ViT-B-16-SigLIP", "roberta-ViT-B-32"):
        with pytest.raises(InputError, match=rf"{name} needs the package transformers .*extra `hf`"):
            require_transformers(name)
    require_transformers("ViT-B-16")


def test_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot be had from the hub .*--model local-dir:FOLDER"):
        load_clip("hf-hub:nobody/nothing")
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(InputError, match=r"the tokenizer of ViT-B-16 cannot be loaded \(OSError\)"):
        load_tokenizer("ViT-B-16")
