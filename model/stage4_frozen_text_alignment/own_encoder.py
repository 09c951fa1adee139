"""A CLIP whose own image encoder is aligned: what it was before, and what it becomes for the other stages."""

from pathlib import Path
from typing import Any

import torch
from settings import Config

from clipfh.core.errors import InputError
from clipfh.core.paths import source_of
from clipfh.models.checkpoint import read_stage_checkpoint, write_checkpoint
from clipfh.models.frozen_text_clip import CLIP, OWN, CLIPImageEncoder, create_clip_model

STAGE = 4
_KEPT = ("image_size", "resize_mode", "mean", "std", "quick_gelu")
_KEPT += ("stage", "dataset", "data_digest", "seen_identities", "first_weights", "epoch")


def require_head(config: Config, image: CLIPImageEncoder) -> None:
    """Refuse to train the head alone where there is none."""
    if (config.freeze_backbone or config.head_warmup_epochs) and not any(True for _ in image.head.parameters()):
        raise InputError(
            f"the image encoder of {config.model} has no projection apart from its blocks: leave --freeze_backbone and "
            "--head_warmup_epochs out; --freeze_until holds blocks"
        )


def save_as_clip(best: Path, model: CLIP) -> Path:
    """Save a checkpoint of this stage, `<run>_BEST.pth`, as an ordinary CLIP: `<run>_<model>_CLIP.pth` beside it."""
    content = read_stage_checkpoint(best, STAGE)
    recorded = {"model": content["text_model"], **{name: content[name] for name in _KEPT}}
    path = best.with_name(best.name.replace("_BEST", f"_{content['text_model'].replace('/', '-')}_CLIP"))
    write_checkpoint(path, {**recorded, "state_dict": model.as_clip(content["state_dict"])})
    return path


def own_start(content: dict[str, Any], device: torch.device) -> CLIP | None:
    """The CLIP whose own image encoder was trained, as it was before; None of other encoders, and of random weights."""
    if content["image_encoder"] != OWN or content["image_weights"] == "random":
        return None
    try:
        return create_clip_model(
            device,
            image_encoder=OWN,
            text_model=content["text_model"],
            text_weights=source_of(content["image_weights"]),
            image_size=content["image_size"],
            quick_gelu=content["quick_gelu"],
        ).eval()
    except InputError as error:
        print(f"note: the weights that it started from are not here, so they are not measured ({error})")
        return None
