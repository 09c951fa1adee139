"""The checkpoint files of stage 5: `{img2text,text2img}_{generator,discriminator}_epoch_N.pth`, and `LAST.pth`.

A generator's file says all that its use needs: the network's settings, the CLIP it stands on, the captions.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from captions import CaptionSpace
from networks import (
    Img2TextDiscriminator,
    Img2TextGenerator,
    Text2ImageDiscriminator,
    Text2ImageGenerator,
)
from settings import Config
from torch import nn
from unfrozen import FINETUNED_CLIP

from clipfh.core.errors import InputError, shortened
from clipfh.core.files import writable_folder
from clipfh.core.paths import ROOT, display, stage_dir
from clipfh.models.checkpoint import (
    read_checkpoint,
    read_stage_checkpoint,
    require_keys,
    weights_digest,
    write_checkpoint,
)
from clipfh.models.clip import LoadedClip, load_clip
from clipfh.training.state import require_same_flags

STAGE = 5
GENERATORS = {"img2text": Img2TextGenerator, "text2img": Text2ImageGenerator}
GANS = tuple(GENERATORS)
GENERATOR_KEYS = (
    "data_digest",
    "seen_faces",
    "settings",
    "clip",
    "captions",
    "faces",
    "variant",
    "epoch",
    "state_dict",
)
STATE_KEYS = ("run", "gan", "epoch", "flags", "random", "clip", "modules", "optimizers")
_NAME = re.compile(r"(img2text|text2img)_(generator|discriminator)_epoch_(\d+)\.pth")


def build_networks(gan: str, config: Config, dim: int) -> tuple[nn.Module, nn.Module]:
    """The generator and the discriminator of one GAN, for embeddings of size `dim`."""
    generator = GENERATORS[gan](**generator_settings(gan, config, dim))
    shape = {"latent_dim": dim, "image_size": config.text2img.image_size, "channels": config.text2img.channels}
    judging = {"conditional": config.conditional, "spectral": config.spectral_norm}
    if gan == "img2text":
        discriminator = Img2TextDiscriminator(**shape, width=max(1, config.img2text.width // 2), **judging)
    else:
        discriminator = Text2ImageDiscriminator(**shape, ndf=config.text2img.ndf, **judging)
    return generator.to(memory_format=torch.channels_last), discriminator.to(memory_format=torch.channels_last)


def generator_settings(gan: str, config: Config, dim: int) -> dict[str, Any]:
    """What builds the generator again, as plain values."""
    shape = {"latent_dim": dim, "image_size": config.text2img.image_size, "channels": config.text2img.channels}
    if gan == "img2text":
        return {**shape, "width": config.img2text.width}
    return {**shape, "noise_dim": config.text2img.noise_dim, "ngf": config.text2img.ngf}


def save_networks(
    gan: str, config: Config, networks: dict[str, nn.Module], recorded: dict[str, Any], epoch: int, folder: Path
) -> None:
    """Write the generator and the discriminator of one GAN after an epoch.

    Args:
        gan: which.
        config: of the run.
        networks: `generator` (the averaged one) and `discriminator`.
        recorded: what a file says beside the weights.
        epoch: finished ones.
        folder: of the checkpoints.
    """
    settings = generator_settings(gan, config, len(recorded["captions"]["mean"]))
    for part, network in networks.items():
        content = {**recorded, "gan": gan, "part": part, "epoch": epoch, "settings": settings}
        write_checkpoint(folder / f"{gan}_{part}_epoch_{epoch}.pth", {**content, "state_dict": network.state_dict()})


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator of a checkpoint, ready to use, and what the file says of it."""

    network: nn.Module
    space: CaptionSpace
    recorded: dict[str, Any]
    path: Path


def newest_run(variant: str, dataset: str | None = None, image_size: int | None = None) -> Path | None:
    """The folder with the newest text-to-image generator of a variant, on some faces and of some size if given."""
    root = stage_dir(STAGE) / "checkpoints"
    found = sorted(root.glob("*/text2img_generator_epoch_*.pth"), key=lambda path: path.stat().st_mtime_ns)
    for path in reversed(found):
        try:
            content = read_checkpoint(path)
            require_keys(path, content, GENERATOR_KEYS)
        except InputError as error:  # it is not asked for by its name: an older one may do
            print(f"note: passed over {shortened(error)}")
            continue
        suits = content["variant"] == variant and dataset in (None, content["dataset"])
        if suits and image_size in (None, content["settings"]["image_size"]):
            return path.parent
    return None


def newest_epoch(folder: Path, gan: str, part: str = "generator") -> Path:
    """The file of the last epoch of one network.

    Raises:
        InputError: there is none.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the checkpoints of a run")
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.glob(f"{gan}_{part}_epoch_*.pth")]
    epochs = {int(match[3]): path for match, path in matches if match}
    if not epochs:
        raise InputError(f"{display(folder)} holds no {gan}_{part}_epoch_N.pth. Train with --gans both or {gan}")
    return epochs[max(epochs)]


def load_generator(path: Path, gan: str, device: torch.device, *, image_size: int | None = None) -> TrainedGenerator:
    """Read one generator's file.

    Args:
        path: the file.
        gan: what it has to be.
        device: where to put it.
        image_size: what the other networks of this run work with.

    Raises:
        InputError: another stage's or network's file, or one of another image size.
    """
    content = read_stage_checkpoint(path, STAGE)
    if content["gan"] != gan or content.get("part") != "generator":
        raise InputError(f"{path} is no {gan} generator of stage {STAGE}")
    require_keys(path, content, GENERATOR_KEYS)
    settings = content["settings"]
    if image_size is not None and settings["image_size"] != image_size:
        raise InputError(
            f"{path} is of {settings['image_size']} px, not of {image_size} px; take checkpoints of one run, or train "
            f"with --text2img.image_size {settings['image_size']}"
        )
    network = GENERATORS[gan](**settings)
    try:
        network.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise InputError(
            f"{path}: its weights are not those of its settings; train again ({str(error).splitlines()[0]})"
        ) from None
    network = network.to(device, memory_format=torch.channels_last).eval()
    recorded = {name: value for name, value in content.items() if name != "state_dict"}
    return TrainedGenerator(network, CaptionSpace.from_state(content["captions"]).to(device), recorded, path)


def clip_record(clip: LoadedClip) -> dict[str, Any]:
    """Which CLIP a run stands on: the name, where its weights came from, their digest."""
    return {"model": clip.name, "pretrained": clip.pretrained, "digest": weights_digest(clip.model.state_dict())}


def load_recorded_clip(generator: TrainedGenerator, pretrained: str | None, device: torch.device) -> LoadedClip:
    """The CLIP that a generator was trained around.

    Args:
        generator: of a checkpoint.
        pretrained: where its weights are now, if not where they were.
        device: where to put it.

    Raises:
        InputError: the weights are not the same.
    """
    record = generator.recorded["clip"]
    candidates = (generator.path.parent / FINETUNED_CLIP, ROOT / record["pretrained"])
    files = [str(path) for path in candidates if path.is_file()]
    clip = load_clip(record["model"], pretrained or (files or [record["pretrained"]])[0], device=str(device))
    if weights_digest(clip.model.state_dict()) != record["digest"]:
        raise InputError(
            f"{generator.path} was trained around other weights of {record['model']} than {clip.pretrained}; "
            f"give the ones it knows with --pretrained (then: {record['pretrained']})"
        )
    return clip


def fresh_folder(folder: Path) -> Path:
    """A folder for the checkpoints of a new run.

    Raises:
        InputError: it cannot be written, or holds those of another run.
    """
    writable_folder(folder, "--checkpoint_dir")
    if not (folder / "LAST.pth").exists():  # a run that was stopped before its first GAN left no more than this
        (folder / FINETUNED_CLIP).unlink(missing_ok=True)
    held = [path.name for path in folder.glob("*.pth")]
    if held:
        raise InputError(
            f"{folder} holds checkpoints of another run ({held[0]}); choose another --checkpoint_dir, or continue "
            f"that run with --resume_ckpt {folder / 'LAST.pth'} if it is there"
        )
    return folder


def read_state(path: Path, config: Config) -> dict[str, Any]:
    """The state of the run to continue.

    Raises:
        InputError: it is no LAST.pth of this stage, or of a run with other flags.
    """
    state = read_stage_checkpoint(path, STAGE)
    if "optimizers" not in state:
        raise InputError(f"{path} does not hold the state of a run of stage {STAGE}; give its LAST.pth")
    require_keys(path, state, STATE_KEYS)
    size = state["flags"].get("text2img.image_size")
    if size != config.text2img.image_size:
        raise InputError(
            f"{path} is of a run at {size} px, this one is at {config.text2img.image_size} px; continue it with "
            f"--text2img.image_size {size}"
        )
    require_same_flags(state["flags"], config)
    return state
