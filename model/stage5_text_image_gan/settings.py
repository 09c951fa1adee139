"""The configuration of stage 5: the keys of config/*.yaml, each also a flag (`--lr`, `--text2img.image_size`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from captions import TEMPLATES
from diff_augment import parse_policy
from loss import LOSSES
from networks import IMAGE_SIZES

from clipfh.core.cli import option
from clipfh.core.config_file import IN_FILE, parse_with_files
from clipfh.core.errors import InputError
from clipfh.core.paths import stage_dir

FILES = stage_dir(5) / "config"

CLIP_MODES = ("frozen", "finetuned", "joint")


@dataclass(frozen=True)
class Img2Text:
    """The section `img2text`: the GAN from an image to the embedding of its caption."""

    latent_dim: int | None = option(IN_FILE, "size of an embedding; null: the CLIP's (512 of ViT-B/32)", at_least=1)
    width: int = option(IN_FILE, "channels of the first convolution", at_least=1)
    epochs: int | None = option(IN_FILE, "passes over the train faces; null: `epochs`", at_least=1)
    lr: float | None = option(IN_FILE, "learning rate of this GAN; null: `lr`", above=0)
    matching: float = option(IN_FILE, "weight of the matching loss of the generator; 0: adversarial alone", at_least=0)


@dataclass(frozen=True)
class Text2Img:
    """The section `text2img`: the GAN from the embedding of a caption to an image."""

    latent_dim: int | None = option(IN_FILE, "size of an embedding; null: the CLIP's (512 of ViT-B/32)", at_least=1)
    noise_dim: int = option(IN_FILE, "size of the noise beside the embedding", at_least=1)
    ngf: int = option(IN_FILE, "channels of the generator before the last layer", at_least=1)
    ndf: int = option(IN_FILE, "channels of the discriminator after the first layer", at_least=1)
    image_size: int = option(IN_FILE, "pixels a side, of both GANs", choices=IMAGE_SIZES)
    cycle: float = option(IN_FILE, "weight of what the first GAN reads in a generated face; 0: none", at_least=0)
    cycle_floor: float = option(
        IN_FILE, "share of its loss of real faces at which the cycle is content; 0: never", at_least=0
    )
    channels: int = option(IN_FILE, "1: grey, 3: colour, of both GANs", choices=(1, 3))
    epochs: int | None = option(IN_FILE, "passes over the train faces; null: `epochs`", at_least=1)


@dataclass(frozen=True)
class Config:
    """All of it."""

    img2text: Img2Text
    text2img: Text2Img
    dataset: Path = option(IN_FILE, "folder with train/<emotion>/ and test/<emotion>/, or fer2013.csv")
    data_seed: int = option(IN_FILE, "of the choice of the val faces: the same for every --seed", at_least=0)
    val_fraction: float = option(IN_FILE, "share of the train faces to validate on", above=0, at_most=0.5)
    model: str = option(IN_FILE, "the CLIP, any name of open_clip")
    pretrained: str | None = option(IN_FILE, "its weights: tag or file; null: openai, or stage 0's of a tiny model")
    clip: str = option(IN_FILE, "frozen, finetuned before the GANs, or joint: trained along", choices=CLIP_MODES)
    clip_lr: float = option(IN_FILE, "learning rate of a CLIP that is trained", above=0)
    clip_epochs: int = option(IN_FILE, "passes over the train faces with --clip finetuned", at_least=1)
    clip_weight: float = option(IN_FILE, "of the CLIP loss of the generator with --clip joint", at_least=0)
    gans: str = option(IN_FILE, "which GANs to train", choices=("both", "img2text", "text2img"))
    img2text_ckpt: Path | None = option(IN_FILE, "with --gans text2img: a generator that reads the faces (`cycle`)")
    epochs: int = option(IN_FILE, "passes over the train faces, of a GAN without its own `epochs`", at_least=1)
    batch_size: int = option(IN_FILE, "faces a batch", at_least=2)
    lr: float = option(IN_FILE, "learning rate of Adam", above=0)
    lr_discriminator: float | None = option(IN_FILE, "of the discriminators, null: that of the generators", above=0)
    lr_decay: bool = option(IN_FILE, "all learning rates fall to 0 along a cosine")
    beta1: float = option(IN_FILE, "of Adam", at_least=0, at_most=0.999)
    beta2: float = option(IN_FILE, "of Adam", at_least=0, at_most=0.9999)
    loss: str = option(IN_FILE, "adversarial loss", choices=LOSSES)
    conditional: bool = option(IN_FILE, "discriminators see the condition")
    mismatch: bool = option(IN_FILE, "conditional discriminators refuse mismatched pairs too")
    spectral_norm: bool = option(IN_FILE, "in the discriminators")
    r1: float = option(IN_FILE, "weight of the R1 penalty, 0: none", at_least=0)
    r1_interval: int = option(IN_FILE, "batches from one R1 penalty to the next", at_least=1)
    ema_decay: float = option(IN_FILE, "a step, of the averaged generator; 0: none", at_least=0, at_most=0.99999)
    augment: str = option(IN_FILE, "before the discriminators: any of color,translation,cutout")
    captions: int = option(IN_FILE, "captions of each emotion", at_least=1, at_most=len(TEMPLATES))
    center_captions: bool = option(IN_FILE, "take the captions' mean off their embeddings")
    embedding_noise: float = option(IN_FILE, "length of the noise on a caption's embedding (of length 1)", at_least=0)
    flip: bool = option(IN_FILE, "mirror faces by chance")
    save_interval: int = option(IN_FILE, "epochs from one checkpoint and sample grid to the next", at_least=1)
    log_interval: int = option(IN_FILE, "batches from one printed line to the next", at_least=1)
    checkpoint_dir: Path | None = option(
        IN_FILE, "of the checkpoints; null: checkpoints/<run>/", aliases=("--save_path",)
    )
    log_dir: Path | None = option(IN_FILE, "folder of the logs; null: logs/ beside this script")
    precision: str = option(IN_FILE, "auto: bfloat16 where it is fast", choices=("auto", "float32", "bfloat16"))
    device: str = option(IN_FILE, "auto, cpu, cuda, cuda:1, mps")
    seed: int = option(IN_FILE, "of everything that is drawn at random", at_least=0)
    skip_unreadable: bool = option(IN_FILE, "go on without images that cannot be read")
    resume_ckpt: Path | None = option(None, "a LAST.pth: continue that run")
    smoke: bool = option(False, "one epoch of small networks on few faces of each emotion: does every step work?")


def default_files(arguments: Sequence[str]) -> list[Path]:
    """default.yaml, and over it small.yaml on a machine without a GPU."""
    small = [] if torch.cuda.is_available() else [FILES / "small.yaml"]
    return [FILES / "default.yaml", *small]


parse_settings = partial(parse_with_files, files=default_files)


def complete(config: Config) -> Config:
    """Fill in the epochs of the GANs, check what one field alone cannot tell, and shrink a smoke run.

    Raises:
        InputError: an unknown augmentation.
    """
    try:
        parse_policy(config.augment)
    except ValueError as error:
        raise InputError(f"--augment {config.augment}: {error}") from None
    img2text = replace(config.img2text, epochs=config.img2text.epochs or config.epochs)
    text2img = replace(config.text2img, epochs=config.text2img.epochs or config.epochs)
    if config.smoke:
        img2text = replace(img2text, epochs=1, width=8)
        text2img = replace(text2img, epochs=1, ngf=8, ndf=8, image_size=64)
        config = replace(config, epochs=1, clip_epochs=1, batch_size=min(16, config.batch_size))
    return replace(config, img2text=img2text, text2img=text2img)
