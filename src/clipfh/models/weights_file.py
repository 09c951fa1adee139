"""Weights files in the layouts that users have, read as one state dict in open_clip's names. Nothing in them is run.

Read: safetensors; `torch.save`'s zip and legacy formats; OpenAI's TorchScript archives; wrapped in `state_dict`,
`model_state_dict`, `model` or `module`; with the prefixes of DataParallel, torch.compile and Lightning; the names of
Hugging Face transformers' `CLIPModel`.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import clipfh.models.torchvision_guard  # noqa: F401  (before open_clip)
from clipfh.core.errors import InputError
from clipfh.core.paths import display
from clipfh.models.torchscript_archive import read_torchscript_tensors

import open_clip  # isort: skip

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's archives

_TRANSFORMERS_NAMES = {  # of CLIPModel -> open_clip's
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # transformers' own spelling
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
}
_TRANSFORMERS_LAYER = {
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


def members_of_zip(path: Path) -> set[str]:
    """The names of a zip's members, without their folders; empty for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.rpartition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile:  # safetensors, or damaged: whoever reads it says so
        return set()


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: torch.save writes a zip as well, but without constants.pkl."""
    return "constants.pkl" in members_of_zip(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a weights file, in open_clip's names and the file's dtypes.

    Raises:
        InputError: a whole module was pickled, or a weight is not a finite number.
        Exception: damaged files make torch, pickle, zipfile and safetensors raise anything.
    """
    if is_torchscript(path):
        # an attention mask is no weight, and holds infinities by design
        state = {k: v for k, v in read_torchscript_tensors(path).items() if not k.endswith("attn_mask")}
    else:
        state = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    state = _unwrapped(state)
    _require_finite(state, path)
    if "text_model.embeddings.token_embedding.weight" in state:
        state = _from_transformers(state)
    return {name: value for name, value in state.items() if name not in _NOT_WEIGHTS}


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # of torch's legacy format, or not torch's at all
        raise InputError(
            f"{display(path)} is not a file of plain tensors and values; it is not loaded, as that could run "
            "code. A whole pickled module? Save its state_dict() where it was made"
        ) from error


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """The innermost dictionary of tensors, without the prefixes that wrappers give to every name."""
    while isinstance(content, dict):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, no state dict")
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError("it holds no tensors by name")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _require_finite(state: dict[str, Tensor], path: Path) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            kind = "NaN" if torch.isnan(value).any() else f"infinite values (an overflow of {value.dtype}?)"
            raise InputError(f"{display(path)}: {name} holds {kind}: these weights are broken. Use another file")


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names for the tensors of transformers' `CLIPModel`; its three attention inputs become one."""
    renamed = {}
    for name, value in state.items():
        if name.endswith("embeddings.position_ids") or ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            continue
        if ".self_attn.q_proj." in name:
            value = torch.cat([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace(".self_attn.q_proj.", ".attn.in_proj_")
        for projection, to in (("text_projection", "text_projection"), ("visual_projection", "visual.proj")):
            if name == f"{projection}.weight":
                name, value = to, value.T.contiguous()
        for old, new in _TRANSFORMERS_NAMES.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        for old, new in _TRANSFORMERS_LAYER.items():
            name = name.replace(old, new)
        renamed[name] = value
    return renamed


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of open_clip's CLIP with a ViT by the names of transformers' `CLIPModel`: `read_weights` undoes it.

    The one matrix of an attention's three inputs becomes three.
    """
    renamed = {}
    for name, value in state.items():
        for new, old in _TRANSFORMERS_NAMES.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        for new, old in _TRANSFORMERS_LAYER.items():
            name = name.replace(old, new)
        if ".attn.in_proj_" in name:
            for part, its in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = its.contiguous()
            continue
        if name in ("text_projection", "visual.proj"):
            name = "text_projection.weight" if name == "text_projection" else "visual_projection.weight"
            value = value.T
        renamed[name] = value.contiguous()
    return renamed


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict into an open_clip model, in place, interpolating position embeddings where sizes differ.

    Raises:
        RuntimeError: names or shapes are another architecture's.
    """
    state = open_clip.factory.convert_state_dict(model, state)  # MobileCLIP's own names
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    bias = getattr(model, "logit_bias", None)
    if bias is not None and "logit_bias" not in state:  # a softmax model's weights in a sigmoid model
        state["logit_bias"] = torch.zeros_like(bias)
    for name in ("logit_scale", "logit_bias"):  # 0-d or of one element
        if name in state and getattr(model, name, None) is not None:
            state[name] = state[name].reshape(getattr(model, name).shape)
    ids = "text.transformer.embeddings.position_ids"  # a buffer of older transformers
    if ids in state and ids not in model.state_dict():
        del state[ids]
    # halves can't be interpolated on every device
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    open_clip.factory.resize_pos_embed(state, model)
    open_clip.factory.resize_text_pos_embed(state, model)
    _resize_attention_pool(state, model)
    model.load_state_dict(state)


def _resize_attention_pool(state: dict[str, Tensor], model: nn.Module) -> None:
    """Interpolate the position embeddings of a ResNet's attention pool, which open_clip leaves as they are."""
    name = "visual.attnpool.positional_embedding"  # (1 + S/32 * S/32, C): the mean's, then the grid's
    wanted = model.state_dict().get(name)
    if name not in state or wanted is None or state[name].shape == wanted.shape:
        return
    mean, grid = state[name][:1].float(), state[name][1:].float()
    old, new = int(len(grid) ** 0.5), int((len(wanted) - 1) ** 0.5)
    grid = grid.T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    state[name] = torch.cat([mean, grid.reshape(-1, new * new).T])
