"""Weights in the layouts of others load as the same model, or are refused for the true reason."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from clipfh.core.errors import InputError
from clipfh.models.clip import load_clip, open_clip
from clipfh.models.weights_file import load_weights


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return load_clip("tiny-vit", "random").model


@pytest.fixture(scope="module")
def state(model):
    return {name: value.contiguous().clone() for name, value in model.state_dict().items()}


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


LAYOUTS = {
    "plain": lambda s: s,
    "data parallel": lambda s: {"state_dict": prefixed(s, "module."), "epoch": 3, "name": "x"},
    "compiled": lambda s: {"state_dict": prefixed(s, "_orig_mod.")},
    "both": lambda s: {"state_dict": prefixed(s, "module._orig_mod.")},
    "both, turned": lambda s: prefixed(s, "_orig_mod.module."),
    "lightning": lambda s: {"state_dict": prefixed(s, "model."), "pytorch-lightning_version": "2.1"},
    "model": lambda s: {"model": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {}, "epoch": 3},
}


def assert_loaded(path, state, image_size=None):
    loaded = load_clip("tiny-vit", str(path), image_size=image_size).model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_layouts(tmp_path, state, layout, zipped):
    torch.save(LAYOUTS[layout](state), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert_loaded(tmp_path / "a.pt", state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(tmp_path, state, dtype):
    cast = {name: value.to(dtype) for name, value in state.items()}
    torch.save(cast, tmp_path / "a.pt")
    assert_loaded(tmp_path / "a.pt", {name: value.float() for name, value in cast.items()})


def as_transformers(state):
    """The layout of transformers' `CLIPModel`, spelled out from its source."""
    out = {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(len(state["positional_embedding"]))[None],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    norms = {
        "text_model.final_layer_norm": "ln_final",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
    }
    layers = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        for theirs, ours in norms.items():
            out[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
        for tower, blocks in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
            number = 0
            while f"{blocks}.resblocks.{number}.ln_1.weight" in state:
                theirs, ours = f"{tower}.encoder.layers.{number}", f"{blocks}.resblocks.{number}"
                for part, value in zip("qkv", state[f"{ours}.attn.in_proj_{kind}"].chunk(3), strict=True):
                    out[f"{theirs}.self_attn.{part}_proj.{kind}"] = value
                out[f"{theirs}.self_attn.out_proj.{kind}"] = state[f"{ours}.attn.out_proj.{kind}"]
                for their_layer, our_layer in layers.items():
                    out[f"{theirs}.{their_layer}.{kind}"] = state[f"{ours}.{our_layer}.{kind}"]
                number += 1
    return out


def test_the_layout_of_transformers(tmp_path, state):
    save_file(
        {name: value.contiguous().clone() for name, value in as_transformers(state).items()}, tmp_path / "a.safetensors"
    )
    assert_loaded(tmp_path / "a.safetensors", state)


@pytest.mark.parametrize(
    ("value", "says"), [(float("nan"), "NaN"), (float("inf"), "infinite"), (-float("inf"), "infinite")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_no_numbers(tmp_path, state, value, says, dtype):
    broken = {name: tensor.to(dtype) for name, tensor in state.items()}
    broken["visual.proj"] = broken["visual.proj"].clone()
    broken["visual.proj"][3, 1] = value
    torch.save({"state_dict": prefixed(broken, "module.")}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=rf"a\.pt: visual\.proj holds {says}") as caught:
        load_clip("tiny-vit", str(tmp_path / "a.pt"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused_for_what_it_is(tmp_path, model, zipped):
    torch.save(model, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"a\.pt is not a file of plain tensors.*whole pickled module.*state_dict\(\)"):
        load_clip("tiny-vit", str(tmp_path / "a.pt"))


@pytest.mark.parametrize("content", [3, [torch.ones(1)], {}, {"state_dict": {}}, {"epoch": 1}, torch.ones(2)])
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(
        InputError, match=r"a\.pt (does not hold the weights of a tiny-vit \(it holds|is not a dictionary)"
    ):
        load_clip("tiny-vit", str(tmp_path / "a.pt"))


def test_the_attention_pool_of_a_resnet_is_interpolated():
    torch.manual_seed(0)
    small, large = (
        open_clip.model.CLIP(
            8,
            {"layers": [1, 1, 1, 1], "width": 8, "image_size": size},
            {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
        )
        for size in (64, 96)
    )
    name = "visual.attnpool.positional_embedding"
    state = small.state_dict()
    before = state[name]  # (1 + 2 * 2, C)
    load_weights(large, dict(state))
    after = large.state_dict()[name]  # (1 + 3 * 3, C)
    assert torch.equal(after[0], before[0])
    grid = F.interpolate(before[1:].T.reshape(1, -1, 2, 2), (3, 3), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(after[1:], grid.reshape(-1, 9).T)
    assert large.encode_image(torch.zeros(1, 3, 96, 96)).shape == (1, 8)
