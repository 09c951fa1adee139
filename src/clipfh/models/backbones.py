"""Image encoders without their classifier, from torchvision and timm, and the weights they were pretrained with."""

import difflib
from pathlib import Path

import torch
from torch import nn

import clipfh.models.torchvision_guard  # noqa: F401  (before torchvision and timm)
from clipfh.core.errors import InputError
from clipfh.models.clip import MEAN, STD
from clipfh.models.parts import IMAGE_MEAN, IMAGE_MODEL, IMAGE_STD, has_parts, image_weights

import timm  # isort: skip
import torchvision  # isort: skip
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # isort: skip

Colour = tuple[float, float, float]
TORCHVISION_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
WAY_OUT = "Fetch the file where there is a network and give --image_weights PATH, or start with --image_weights random"


def build_backbone(name: str, image_size: int) -> tuple[nn.Module, int]:
    """A model without its classifier, with random weights, and the number of its features, F.

    Raises:
        InputError: neither torchvision nor timm knows it, or it cannot take images of that size.
    """
    if name in TORCHVISION_MODELS:
        backbone = torchvision.models.get_model(name, weights=None)
        num_features, backbone.fc = backbone.fc.in_features, nn.Identity()
        return backbone, num_features
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*TORCHVISION_MODELS, *timm.list_models()], n=3, cutoff=0.5)
        hint = f" Closest: {', '.join(close)}." if close else ""
        raise InputError(
            f"unknown image encoder {name!r}: it is {', '.join(TORCHVISION_MODELS)} or a model of timm.{hint}"
        )
    config = timm.get_pretrained_cfg(name)
    fixed = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=0, **fixed).eval()
        with torch.inference_mode():
            # timm's own count leaves some heads out
            num_features = backbone(torch.zeros(1, 3, image_size, image_size)).shape[1]
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} cannot take images of {image_size} px ({str(error)[:160]}); try --image_size"
        ) from error
    return backbone.train(), num_features


def normalisation_of(name: str, source: str) -> tuple[Colour, Colour]:
    """Mean and standard deviation of the 0..1 RGB images that a backbone with the weights `source` was trained on.

    Random weights take any: CLIP's.
    """
    if source == "random":
        return MEAN, STD
    if name == IMAGE_MODEL:
        return IMAGE_MEAN, IMAGE_STD
    config = None if name in TORCHVISION_MODELS else timm.get_pretrained_cfg(name)
    return (config.mean, config.std) if config else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def load_backbone_weights(backbone: nn.Module, name: str, source: str) -> None:
    """Load what a backbone was pretrained with.

    Args:
        backbone: from `build_backbone`.
        name: its name.
        source: a file; `pretrained`, the default weights of torchvision (IMAGENET1K_V2 for ResNet50), timm or, of
            EfficientNet-Lite0, the package that carries them; one of torchvision's names of weights; or `random`, which
            leaves it as it is.

    Raises:
        InputError: weights that cannot be had, or of another architecture; the message names the way out.
    """
    if source == "random":
        return
    if Path(source).is_file():
        state, where = _read_weights(Path(source)), source
    elif Path(source).suffix:
        raise InputError(f"the weights file {source} does not exist. {WAY_OUT}")
    else:
        state, where = _download_weights(name, source), f"{name} {source}"
    own = backbone.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or wrong:
        first = (missing or wrong)[0]
        raise InputError(
            f"{where} does not hold the weights of {name}: {len(missing)} of its {len(own)} tensors are missing and "
            f"{len(wrong)} have another shape, the first: {first}. Pass the --image_encoder that they are of"
        )
    backbone.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of torchvision, timm or our own; wrappers around them are taken off."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch, pickle and safetensors raise anything
        raise InputError(f"{path} is not a file of weights ({str(error).splitlines()[0][:160]}). {WAY_OUT}") from error
    for key in ("state_dict", "model", "state_dict_ema"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path} is not a dictionary of tensors. {WAY_OUT}")
    prefix = next((p for p in ("module.", "image_encoder.backbone.") if any(key.startswith(p) for key in state)), "")
    return {key.removeprefix(prefix): value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _download_weights(name: str, source: str) -> dict[str, torch.Tensor]:
    """From the cache of torchvision or timm, or the network."""
    url = ""
    try:
        if name == IMAGE_MODEL and source == "pretrained" and has_parts():
            return image_weights()
        if name not in TORCHVISION_MODELS:
            if source != "pretrained":
                raise InputError(f"{name} is a model of timm: its weights are a file, `pretrained` or `random`")
            return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
        known = torchvision.models.get_model_weights(name)
        if source != "pretrained" and source not in known.__members__:
            valid = ", ".join(("pretrained", "random", *known.__members__))
            raise InputError(f"--image_weights {source!r} is neither a file nor weights of {name}: {valid}")
        weights = known.DEFAULT if source == "pretrained" else known[source]
        url = f" from {weights.url}"
        return weights.get_state_dict(progress=False, check_hash=True)
    except InputError:
        raise
    except Exception as error:  # urllib, huggingface_hub and httpx each raise their own kinds
        raise InputError(
            f"the weights of {name} cannot be downloaded{url} ({type(error).__name__}). {WAY_OUT}"
        ) from error
