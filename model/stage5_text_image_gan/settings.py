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

    latent_dim: int | None = option(IN_FILE, "size of the CLIP's text embeddings; null: whatever it is", at_least=1)
    width: int = option(IN_FILE, "channels after the first convolution: capacity", at_least=1)
    epochs: int | None = option(IN_FILE, "passes over the train faces for this GAN; null: --epochs", at_least=1)
    lr: float | None = option(IN_FILE, "learning rate for this GAN; null: --lr", above=0)
    matching: float = option(
        IN_FILE, "weight of the generator's loss that names the emotion; 0: adversarial alone", at_least=0
    )


@dataclass(frozen=True)
class Text2Img:
    """The section `text2img`: the GAN from the embedding of a caption to an image."""

    latent_dim: int | None = option(IN_FILE, "size of the CLIP's text embeddings; null: whatever it is", at_least=1)
    noise_dim: int = option(IN_FILE, "size of the noise that enters beside the embedding", at_least=1)
    ngf: int = option(IN_FILE, "channels of the generator before its last layer: capacity", at_least=1)
    ndf: int = option(IN_FILE, "channels of the discriminator after its first layer: capacity", at_least=1)
    image_size: int = option(IN_FILE, "pixels a side of the faces, for both GANs", choices=IMAGE_SIZES)
    cycle: float = option(
        IN_FILE, "weight of the emotion that the first GAN reads in a drawn face; 0: none", at_least=0
    )
    cycle_floor: float = option(
        IN_FILE, "the cycle rests below this share of its loss on real faces; 0: never", at_least=0
    )
    channels: int = option(IN_FILE, "1: grey, 3: colour, for both GANs", choices=(1, 3))
    epochs: int | None = option(IN_FILE, "passes over the train faces for this GAN; null: --epochs", at_least=1)


@dataclass(frozen=True)
class Config:
    """All of it."""

    img2text: Img2Text
    text2img: Text2Img
    dataset: Path = option(
        IN_FILE, "folder with {train,test}/<emotion>/, or fer2013.csv; the default, if absent, is generated"
    )
    data_seed: int = option(IN_FILE, "draws the val faces, whatever --seed is", at_least=0)
    val_fraction: float = option(
        IN_FILE, "share of the train faces that become val, where there is no val split", above=0, at_most=0.5
    )
    model: str = option(
        IN_FILE, "architecture of the CLIP, by its name in open_clip; small-clip, tiny-rn and tiny-vit are stage 0's"
    )
    pretrained: str | None = option(
        IN_FILE, "weights of the CLIP: open_clip tag or file; null: openai, or stage 0's newest of its model"
    )
    clip: str = option(
        IN_FILE, "frozen, finetuned before the GANs, or joint: a copy is trained along", choices=CLIP_MODES
    )
    clip_lr: float = option(IN_FILE, "learning rate of CLIP, with --clip finetuned or joint", above=0)
    clip_epochs: int = option(IN_FILE, "passes over the train faces with --clip finetuned", at_least=1)
    clip_weight: float = option(IN_FILE, "weight of the CLIP loss of the generator, with --clip joint", at_least=0)
    gans: str = option(
        IN_FILE, "which to train: the first, img2text, the second, or both", choices=("both", "img2text", "text2img")
    )
    img2text_ckpt: Path | None = option(
        IN_FILE, "generator of a first GAN for the cycle; null: this run's, with --gans both"
    )
    epochs: int = option(
        IN_FILE, "passes over the train faces, for a GAN without --<gan>.epochs of its own", at_least=1
    )
    batch_size: int = option(IN_FILE, "faces a batch", at_least=2)
    lr: float = option(IN_FILE, "learning rate, for a GAN without its own", above=0)
    lr_discriminator: float | None = option(
        IN_FILE, "learning rate of the discriminators; null: that of the generators", above=0
    )
    lr_decay: bool = option(IN_FILE, "all learning rates fall to 0 along a cosine")
    beta1: float = option(IN_FILE, "first decay rate of Adam", at_least=0, at_most=0.999)
    beta2: float = option(IN_FILE, "second decay rate of Adam", at_least=0, at_most=0.9999)
    loss: str = option(IN_FILE, "adversarial loss", choices=LOSSES)
    conditional: bool = option(
        IN_FILE, "discriminators judge whether text and image belong together; off: only whether it looks real"
    )
    mismatch: bool = option(
        IN_FILE, "conditional discriminators have to refuse a real face with another emotion's caption too"
    )
    spectral_norm: bool = option(IN_FILE, "spectral norm in the discriminators instead of batch norm")
    r1: float = option(IN_FILE, "weight of the R1 gradient penalty of the discriminators; 0: none", at_least=0)
    r1_interval: int = option(IN_FILE, "batches from one R1 penalty to the next", at_least=1)
    ema_decay: float = option(
        IN_FILE, "share that the saved average of a generator keeps a step; 0: no average", at_least=0, at_most=0.99999
    )
    augment: str = option(
        IN_FILE, "random changes of what discriminators see: any of color,translation,cutout; '': none"
    )
    captions: int = option(IN_FILE, "how many captions of each emotion are used", at_least=1, at_most=len(TEMPLATES))
    center_captions: bool = option(IN_FILE, "take the captions' mean off their embeddings")
    embedding_noise: float = option(
        IN_FILE, "length of the noise on a caption's embedding, which has length 1", at_least=0
    )
    flip: bool = option(IN_FILE, "mirror train faces by chance")
    save_interval: int = option(IN_FILE, "epochs from one checkpoint and sample grid to the next", at_least=1)
    log_interval: int = option(IN_FILE, "batches of an epoch from one printed line to the next", at_least=1)
    checkpoint_dir: Path | None = option(
        IN_FILE, "folder of the checkpoints; null: checkpoints/<run>/ beside this script", aliases=("--save_path",)
    )
    log_dir: Path | None = option(IN_FILE, "folder of the logs; null: logs/ beside this script")
    precision: str = option(
        IN_FILE, "of the computation; auto: bfloat16 where it is fast", choices=("auto", "float32", "bfloat16")
    )
    device: str = option(IN_FILE, "auto (a GPU if there is one), cpu, cuda, cuda:1, mps")
    seed: int = option(IN_FILE, "seed of weights, batches, captions and noise", at_least=0)
    skip_unreadable: bool = option(IN_FILE, "leave out images that cannot be read, instead of stopping")
    resume_ckpt: Path | None = option(None, "LAST.pth of a run that was stopped: continue it, with the same flags")
    smoke: bool = option(False, "one epoch of small networks on few faces, to see that every step works")


def default_files(arguments: Sequence[str]) -> list[Path]:
    """default.yaml, and over it small.yaml on a machine without a GPU."""
    small = [] if torch.cuda.is_available() else [FILES / "small.yaml"]
    return [FILES / "default.yaml", *small]


parse_settings = partial(parse_with_files, files=default_files)


def complete(config: Config) -> Config:
    """Fill in the epochs of the GANs, check what one field alone cannot tell, and shrink a smoke run.

    Raises:
        InputError: an unknown augmentation; a first GAN for a cycle that there is not.
    """
    if config.img2text_ckpt and (config.gans == "img2text" or config.text2img.cycle == 0):
        reason = "--gans is img2text" if config.gans == "img2text" else "--text2img.cycle is 0"
        raise InputError(f"--img2text_ckpt is for the cycle of the second GAN, and {reason}")
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
