import json
import pickle
import urllib.error

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clipfh.core.errors import InputError
from clipfh.models import clip as clip_model
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import (
    canonical_model_name,
    clamp_logit_scale,
    encode_texts,
    freeze_text_encoder,
    is_image_parameter,
    is_text_parameter,
    load_clip,
    open_clip,
)
from clipfh.models.pretrained import recorded_architecture, training_of
from clipfh.training.state import decay_groups

SMALL = "small-vit-of-tests"


@pytest.fixture(scope="module", autouse=True)
def small_architecture(tmp_path_factory):
    """A ViT of a few thousand parameters, with the layout of OpenAI's."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    path = tmp_path_factory.mktemp("configs") / f"{SMALL}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(path)
    open_clip.factory._rescan_model_configs()


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return load_clip(SMALL, "random")


def assert_same_weights(model, state):
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ViT-B/16", "ViT-B-16"),
        ("ViT-B-16", "ViT-B-16"),
        ("vit-b/32", "ViT-B-32"),
        ("ViT-L/14", "ViT-L-14"),
        ("ViT-L/14-336", "ViT-L-14-336"),
        ("rn50", "RN50"),
        ("tiny-rn", "tiny-rn"),
        ("Tiny-ViT", "tiny-vit"),
    ],
)
def test_model_names(spelling, name):
    assert canonical_model_name(spelling) == name


def test_an_unknown_model_lists_the_valid_ones():
    with pytest.raises(InputError, match=r"'ViT-B/61'. Valid: small-clip, tiny-rn, tiny-vit, .*ViT-B/16.*ViT-B-16"):
        canonical_model_name("ViT-B/61")
    with pytest.raises(InputError, match="unknown model ''"):
        load_clip("")


def test_random_weights_and_what_feeds_them(clip):
    assert (clip.name, clip.pretrained, clip.image_size, clip.resize_mode) == (SMALL, "random", 16, "shortest")
    assert clip.mean == open_clip.OPENAI_DATASET_MEAN and clip.std == open_clip.OPENAI_DATASET_STD
    assert not clip.quick_gelu
    assert clip.model.encode_image(torch.zeros(2, 3, 16, 16)).shape == (2, 16)
    assert clip.tokenizer(["a red mug"]).shape == (1, 77)


def save_safetensors(state, path):
    save_file({name: value.contiguous() for name, value in state.items()}, path)  # it takes no channels last


def weights_files(clip, folder):
    state = clip.model.state_dict()
    torch.save(state, folder / "state.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": v for name, v in state.items()}}, folder / "module.pt")
    save_safetensors(state, folder / "weights.safetensors")
    write_checkpoint(folder / "ours.pth", {**clip.architecture(), "stage": 2, "state_dict": state})
    return [folder / name for name in ("state.pt", "module.pt", "weights.safetensors", "ours.pth")]


@pytest.mark.parametrize("number", range(4))
def test_weights_files_are_loaded_bit_by_bit(clip, tmp_path, number):
    path = weights_files(clip, tmp_path)[number]
    torch.manual_seed(1)
    loaded = load_clip(SMALL, str(path))
    assert_same_weights(loaded.model, clip.model.state_dict())
    assert loaded.architecture() == clip.architecture()
    assert loaded.pretrained == str(path)


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit"])
def test_checkpoints_of_the_tiny_models(tmp_path, name):
    torch.manual_seed(0)
    clip = load_clip(name, "random")
    write_checkpoint(tmp_path / "a.pth", {**clip.architecture(), "state_dict": clip.model.state_dict()})
    loaded = load_clip(name, str(tmp_path / "a.pth"))
    assert_same_weights(loaded.model, clip.model.state_dict())
    assert loaded.architecture() == clip.architecture()
    assert loaded.image_size == 64 and loaded.model.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, 256)


class OpenAIArchive(nn.Module):
    """Parameters under OpenAI's names and in their half precision, and the three numbers that their files carry."""

    def __init__(self, model):
        super().__init__()
        for name, value in model.state_dict().items():
            *folders, last = name.split(".")
            module = self
            for folder in folders:
                if not hasattr(module, folder):
                    module.add_module(folder, nn.Module())
                module = getattr(module, folder)
            module.register_parameter(last, nn.Parameter(value.half(), requires_grad=False))
        for name, number in (("input_resolution", 16), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(number))

    def forward(self, image):
        return image + self.logit_scale


def test_openai_archive(clip, tmp_path):
    path = tmp_path / "ViT-of-tests.pt"
    torch.jit.save(torch.jit.trace(OpenAIArchive(clip.model), torch.zeros(1)), path)
    names = torch.jit.load(path).state_dict().keys()
    assert {"visual.conv1.weight", "transformer.resblocks.0.attn.in_proj_weight", "input_resolution"} <= names
    loaded = load_clip(SMALL, str(path))
    assert loaded.quick_gelu
    assert any(type(module).__name__ == "QuickGELU" for module in loaded.model.modules())
    assert not any(isinstance(module, nn.GELU) for module in loaded.model.modules())
    assert_same_weights(loaded.model, {name: value.half().float() for name, value in clip.model.state_dict().items()})
    # a checkpoint made from it remembers, though its own name doesn't tell
    write_checkpoint(tmp_path / "tuned.pth", {**loaded.architecture(), "state_dict": loaded.model.state_dict()})
    again = load_clip(SMALL, str(tmp_path / "tuned.pth"))
    assert again.quick_gelu and any(type(module).__name__ == "QuickGELU" for module in again.model.modules())


@pytest.mark.parametrize(
    ("folder", "file", "expected"),
    [
        (".", "ViT-B-16.openai.safetensors", True),
        ("models--timm--vit_base_patch16_clip_224.openai/snapshots/1", "open_clip_model.safetensors", True),
        ("models--laion--CLIP-ViT-B-16-laion2B/snapshots/1", "open_clip_model.safetensors", False),
        ("openai-experiments", "laion.safetensors", False),
    ],
)
def test_a_file_without_activation_is_known_by_its_name(clip, tmp_path, folder, file, expected):
    path = tmp_path / folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(clip.model.state_dict(), path)
    assert load_clip(SMALL, str(path)).quick_gelu is expected


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [("ViT-B-32", "openai", True), ("ViT-B-32", "metaclip_400m", True), ("ViT-B-32", "laion2b_s34b_b79k", False)],
)
def test_tags_know_their_activation(name, tag, expected):
    assert training_of(name, tag, None).get("quick_gelu", False) is expected


@pytest.mark.parametrize("flag", [True, False])
def test_a_flag_beats_what_a_name_tells(clip, tmp_path, flag):
    path = tmp_path / "ViT-B-32.openai.safetensors"
    save_safetensors(clip.model.state_dict(), path)
    assert load_clip(SMALL, str(path), quick_gelu=flag).quick_gelu is flag


def test_weights_of_another_architecture(clip, tmp_path):
    paths = weights_files(clip, tmp_path)
    for path in paths[:3]:
        with pytest.raises(InputError, match=rf"{path.name} does not hold the weights of a tiny-vit"):
            load_clip("tiny-vit", str(path))
    with pytest.raises(InputError, match=rf"ours.pth holds a {SMALL}, not a tiny-vit. Pass --model {SMALL}"):
        load_clip("tiny-vit", str(paths[3]))
    archive = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.trace(OpenAIArchive(clip.model), torch.zeros(1)), archive)
    with pytest.raises(InputError, match=r"archive.pt does not hold the weights of a tiny-vit"):
        load_clip("tiny-vit", str(archive))


def damaged(content):
    half = len(content) // 2
    directory = content.replace(b"PK\x01\x02", b"PX\x01\x02")  # that of the zip archive; safetensors is none
    return {"cut": content[:half], "text": b"not weights", "empty": b"", "directory": directory}


@pytest.mark.parametrize(
    ("number", "kind"),
    [(n, kind) for n in range(4) for kind in ("cut", "text", "empty", "directory") if (n, kind) != (2, "directory")],
)
def test_damaged_files(clip, tmp_path, number, kind):
    path = weights_files(clip, tmp_path)[number]
    content = path.read_bytes()
    path.unlink()  # the loaded weights may be mapped from this very file
    path.write_bytes(damaged(content)[kind])
    with pytest.raises(InputError, match=path.name):
        load_clip(SMALL, str(path))


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("name", ["a.pt", "a.pth"])
def test_pickled_objects_are_not_executed(tmp_path, capsys, name):
    torch.save({"state_dict": Payload()}, tmp_path / name)
    with pytest.raises(InputError, match=name):
        load_clip(SMALL, str(tmp_path / name))
    (tmp_path / name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match=name):
        load_clip(SMALL, str(tmp_path / name))
    assert capsys.readouterr().out == ""


def test_missing_file_and_unknown_tag():
    with pytest.raises(InputError, match=r"'gone.pt' is neither a file nor a tag of ViT-B-32. Tags: .*openai.*laion2b"):
        load_clip("ViT-B/32", "gone.pt")
    with pytest.raises(InputError, match=r"'openai' is neither a file nor a tag of tiny-vit. Tags: none"):
        load_clip("tiny-vit", "openai")


@pytest.mark.parametrize("tag", [None, "OpenAI"])
def test_a_download_that_fails_says_what_to_fetch(monkeypatch, tag):
    def download(config):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    monkeypatch.setattr(clip_model, "_build", lambda name, **_: None)  # the real one is large
    with pytest.raises(InputError) as caught:
        load_clip("ViT-B/16", tag)
    message = str(caught.value)
    for part in ("ViT-B-16,openai", "URLError", "vit_base_patch16_clip_224.openai", "ViT-B-16.pt", "--pretrained PATH"):
        assert part in message


def test_tiny_models_start_from_stage_0(monkeypatch, tmp_path):
    monkeypatch.setattr("clipfh.models.checkpoint.stage_dir", lambda stage: tmp_path)
    with pytest.raises(InputError, match=r"no checkpoint.*tiny-vit.*pretrain_tiny_clip.py --model tiny-vit"):
        load_clip("tiny-vit")
    torch.manual_seed(0)
    clip = load_clip("tiny-vit", "random")
    path = tmp_path / "checkpoints" / "tiny-vit_1.pth"
    write_checkpoint(path, {**clip.architecture(), "state_dict": clip.model.state_dict()})
    write_checkpoint(path.with_name("zz_other.pth"), {"model": "tiny-rn"})
    loaded = load_clip("tiny-vit")
    assert_same_weights(loaded.model, clip.model.state_dict())
    assert loaded.pretrained == str(path)


def test_another_image_size_interpolates_position_embeddings(tmp_path):
    torch.manual_seed(0)
    clip = load_clip("tiny-vit", "random")
    state = clip.model.state_dict()
    torch.save(state, tmp_path / "a.pt")
    larger = load_clip("tiny-vit", str(tmp_path / "a.pt"), image_size=96)
    assert larger.image_size == 96 and larger.architecture()["image_size"] == 96
    positions = larger.model.visual.positional_embedding
    assert positions.shape == (1 + 12 * 12, 192)
    before = state["visual.positional_embedding"]
    assert torch.equal(positions[0], before[0])  # the class token's
    grid = before[1:].T.reshape(1, 192, 8, 8)
    expected = nn.functional.interpolate(grid, (12, 12), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(positions[1:], expected.reshape(192, 144).T)
    assert larger.model.encode_image(torch.zeros(1, 3, 96, 96)).shape == (1, 256)
    # our own checkpoints remember their size, and give it up when told to
    write_checkpoint(tmp_path / "b.pth", {**larger.architecture(), "state_dict": larger.model.state_dict()})
    assert load_clip("tiny-vit", str(tmp_path / "b.pth")).image_size == 96
    assert load_clip("tiny-vit", str(tmp_path / "b.pth"), image_size=64).image_size == 64


def test_recorded_architecture_is_plain_values(clip, tmp_path):
    paths = weights_files(clip, tmp_path)
    assert recorded_architecture(paths[0]) == {}
    assert recorded_architecture(paths[3]) == {**clip.architecture(), "stage": 2}


@pytest.mark.parametrize("suffix", [".pt", ".bin", ""])
def test_a_renamed_checkpoint_keeps_its_architecture(tmp_path, suffix):
    torch.manual_seed(0)
    clip = load_clip("tiny-vit", "random", image_size=32)
    recorded = {**clip.architecture(), "mean": [0.5] * 3, "std": [0.25] * 3, "quick_gelu": True}
    path = tmp_path / f"tuned{suffix}"
    write_checkpoint(path, {**recorded, "state_dict": clip.model.state_dict()})
    loaded = load_clip("tiny-vit", str(path))
    assert loaded.architecture() == {**recorded, "mean": (0.5,) * 3, "std": (0.25,) * 3}


def test_files_of_others_record_nothing(clip, tmp_path):
    state = clip.model.state_dict()
    np.savez(tmp_path / "a.npz", a=np.zeros(1))
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "name": "a run", "state_dict": state}, tmp_path / "open_clip.pth")
    torch.jit.save(torch.jit.trace(OpenAIArchive(clip.model), torch.zeros(1)), tmp_path / "archive.pth")
    save_safetensors(state, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        assert recorded_architecture(path) == {}, path.name
    assert_same_weights(load_clip(SMALL, str(tmp_path / "old.pth")).model, state)


def test_every_parameter_belongs_to_one_part(clip):
    names = [name for name, _ in clip.model.named_parameters()]
    image, text = (set(filter(part, names)) for part in (is_image_parameter, is_text_parameter))
    assert not image & text and set(names) - image - text == {"logit_scale"}
    assert {"visual.proj", "visual.positional_embedding"} <= image
    assert {"positional_embedding", "text_projection", "token_embedding.weight"} <= text


def test_a_frozen_text_encoder_is_bit_identical_after_a_step(clip):
    freeze_text_encoder(clip.model)
    before = {name: value.detach().clone() for name, value in clip.model.named_parameters()}
    optimizer = torch.optim.AdamW(decay_groups(clip.model, lr=0.1, weight_decay=0.5))
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    image_features, text_features, scale = clip.model(images, clip.tokenizer(["a", "b", "c", "d"]))
    nn.functional.cross_entropy(scale * image_features @ text_features.T, torch.arange(4)).backward()
    optimizer.step()
    for name, value in clip.model.named_parameters():
        assert torch.equal(value, before[name]) is is_text_parameter(name), name
        assert (value.grad is None) is is_text_parameter(name), name


def test_logit_scale_is_clamped(clip):
    for start, expected in ((9.0, 100.0), (-1.0, 1.0), (2.0, torch.tensor(2.0).exp().item())):
        with torch.no_grad():
            clip.model.logit_scale.fill_(start)
        clamp_logit_scale(clip.model)
        assert clip.model.logit_scale.exp().item() == pytest.approx(expected)
    assert clip.model.logit_scale.requires_grad


def test_text_features_are_unit_length(clip):
    clip.model.train()
    texts = ["a red mug", "a blue mug", "", "ein Becher " * 60]
    features = encode_texts(clip, texts, "cpu", batch_size=3)
    assert clip.model.training
    assert features.shape == (4, 16) and features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(encode_texts(clip, texts[1:2], "cpu"), features[1:2])
    assert not torch.allclose(features[0], features[1])
    (features @ torch.ones(16, requires_grad=True)).sum().backward()  # not an inference tensor
