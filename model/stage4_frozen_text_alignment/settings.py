"""The flags of stage 4, and the YAML files that suit its data and the machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from dataset import DataConfig

from clipfh.core.cli import option, section
from clipfh.core.config_file import IN_FILE, flag_value
from clipfh.core.errors import InputError
from clipfh.core.paths import DEFAULT_MODEL, SMALL_MODEL, TINY_MODELS
from clipfh.models.frozen_text_clip import HEAD_NORMS, OWN
from clipfh.models.names import canonical_model_name
from clipfh.training.settings import Optimisation, Run, Views


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """The half that learns; the names are those of `create_clip_model`."""

    image_encoder: str = option(
        IN_FILE,
        "torchvision ResNet, timm model, or clip: the image encoder of --model, with its projection and weights",
        aliases=("--image_backbone",),
    )
    image_weights: str = option(IN_FILE, "pretrained, a torchvision name as IMAGENET1K_V2, a file, or random")
    image_size: int | None = option(
        IN_FILE, "pixels of the views, and of whole images without --eval_image_size; null: the CLIP's own", at_least=32
    )
    head_layers: int = option(IN_FILE, "linear layers of the projection head", at_least=1, at_most=6)
    head_norm: str = option(IN_FILE, "norm in the head, between its layers", choices=HEAD_NORMS)
    head_dropout: float = option(IN_FILE, "dropout in the head, between its layers", at_least=0, at_most=0.9)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The command line: the groups of flags that trainings share, and what is this stage's own."""

    source: DataConfig = section()
    model: str | None = option(
        None,
        "CLIP whose text tower is used (default: ViT-B/32; small-clip of stage 0 for the generated pictures)",
        aliases=("--model_arch",),
    )
    pretrained: str | None = option(
        None, "its weights: a tag, a file or random (default: openai; for a model that stage 0 makes its newest)"
    )
    encoder: ImageEncoder = section()
    freeze_backbone: bool = option(IN_FILE, "train the head alone")
    freeze_until: int = option(
        IN_FILE, "last block of the backbone that is frozen, with all before it; -1: none", at_least=-1
    )
    head_warmup_epochs: int = option(IN_FILE, "first epochs in which the head trains alone", at_least=0)
    batch_size: int = option(IN_FILE, "images a batch", at_least=2)
    further_captions: int = option(
        IN_FILE, "captions drawn from all others as more negatives of each image", at_least=0
    )
    backbone_lr: float = option(IN_FILE, "peak learning rate of the backbone", above=0)
    head_lr: float = option(IN_FILE, "peak learning rate of the head", above=0)
    temperature: float = option(IN_FILE, "first value of the learned temperature", above=0)
    baseline: bool = option(True, "train the linear head on the frozen backbone as well")
    optimisation: Optimisation = section()
    views: Views = section()
    run: Run = section()


def text_model(dataset: str, model: str | None) -> str:
    """The CLIP whose text tower is used; that of the generated pictures needs no download."""
    return canonical_model_name(model or (DEFAULT_MODEL if dataset == "synthetic" else "ViT-B/32"))


def eval_size(config: Config) -> int | None:
    """Pixels at which images are found, in val and test; None: the CLIP's own."""
    size = config.views.eval_image_size or config.encoder.image_size
    if isinstance(size, tuple):
        raise InputError(f"--eval_image_size {size[0]}x{size[1]}: the images of this stage are square, give one number")
    return size


def recipe(arguments: Sequence[str]) -> list[Path]:
    """The YAML files that suit the data and the machine."""
    dataset = flag_value(arguments, "--dataset", default="synthetic")
    model = text_model(dataset, flag_value(arguments, "--model", "--model_arch", default="") or None)
    is_tiny, is_small = model in TINY_MODELS, model == SMALL_MODEL
    has_gpu = torch.cuda.is_available() and flag_value(arguments, "--device", default="auto") != "cpu"
    encoder = flag_value(arguments, "--image_encoder", "--image_backbone", default=OWN if is_small else "")
    is_own = encoder == OWN  # starts from the CLIP's weights, at its size
    weights = flag_value(arguments, "--image_weights", default="random" if is_tiny else "pretrained")
    weights = flag_value(arguments, "--pretrained", default="") if is_own else weights
    chosen = {"small": (is_tiny or not has_gpu) and not is_own, "tiny": is_tiny and not is_own, "own": is_own}
    chosen |= {"small_clip": is_small and is_own, "from_random": weights == "random"}
    folder = Path(__file__).parent / "config"
    return [folder / f"{name}.yaml" for name in ("default", *(name for name in chosen if chosen[name]))]
