"""Photos to features: a batch is decoded, then embedded. Every way of running an extraction calls these functions.

Shapes: B photos of a batch, S image size, D embedding.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipfh.core.cli import option
from clipfh.core.errors import InputError
from clipfh.core.run import pick_device
from clipfh.features.extraction import extract_features
from clipfh.images.transforms import RESIZE_MODES, TRANSFORM_VERSION, ImageSize, height_and_width
from clipfh.index.photos import PhotoSource
from clipfh.index.shards import Model
from clipfh.models.checkpoint import read_checkpoint, weights_digest
from clipfh.models.clip import LoadedClip, load_clip
from clipfh.models.names import model_config


@dataclass(frozen=True)
class ModelConfig:
    """The flags that say which model makes features."""

    ckpt: Path | None = option(None, "the fine-tuned checkpoint, such as a stage's BEST")
    model: str | None = option(
        None, "architecture, where there is no --ckpt or it does not say its own", aliases=("--model_arch",)
    )
    pretrained: str | None = option(None, "weights of --model without --ckpt: a tag of open_clip, a file, or random")
    resize_mode: str | None = option(None, "in place of the checkpoint's own", choices=RESIZE_MODES)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")


@dataclass(frozen=True)
class Decoded:
    """A batch after decoding.

    Attributes:
        pixels: (B, S, S, 3) uint8; of a photo that cannot be read, black.
        reasons: for each photo why it cannot be read, or "".
    """

    pixels: np.ndarray
    reasons: list[str]


def load_model(config: ModelConfig) -> LoadedClip:
    """The model that the flags name, on their device.

    Raises:
        InputError: they name none, or one that cannot be loaded.
    """
    device = str(pick_device(config.device))
    if config.ckpt is None:
        if config.model is None:
            raise InputError("which model? Give --ckpt FILE, or --model NAME with --pretrained TAG")
        return load_clip(config.model, config.pretrained, resize_mode=config.resize_mode, device=device)
    if config.pretrained is not None:
        raise InputError("--ckpt and --pretrained are both weights: leave one of them out")
    name = config.model or read_checkpoint(config.ckpt).get("model")
    if name is None:
        raise InputError(f"--ckpt {config.ckpt} does not say its architecture: add --model NAME")
    return load_clip(name, str(config.ckpt), resize_mode=config.resize_mode, device=device)


def model_of(clip: LoadedClip) -> Model:
    """All of a model that its features depend on, as JSON values: those of equal ones can be compared."""
    facts = {
        "weights": weights_digest(clip.model.state_dict()),
        "dimension": model_config(clip.name)["embed_dim"],
        "transform_version": TRANSFORM_VERSION,
        **clip.architecture(),
    }
    return json.loads(json.dumps(facts))  # tuples become lists, as they come back from a file


def decode_photos(
    source: PhotoSource,
    photos: Sequence[str],
    image_size: ImageSize,
    resize_mode: str,
    in_order: Callable[..., Iterable[Any]] = map,
) -> Decoded:
    """Decode a batch of photos of `source`; `in_order` is `map`, or that of a pool of threads."""
    pixels = np.zeros((len(photos), *height_and_width(image_size), 3), np.uint8)
    reasons = [""] * len(photos)
    found = in_order(lambda photo: source.read(photo, image_size, resize_mode), photos)
    for place, result in enumerate(found):
        if isinstance(result, str):
            reasons[place] = result
        else:
            pixels[place] = result
    return Decoded(pixels, reasons)


def embed_photos(clip: LoadedClip, decoded: Decoded, device: str | torch.device) -> np.ndarray:
    """Unit-length features (B, D) float32, made as an evaluation makes them; zeros for what cannot be read."""
    features = extract_features(clip, decoded.pixels, device, quiet=True).cpu().numpy()
    features[[reason != "" for reason in decoded.reasons]] = 0
    return features
