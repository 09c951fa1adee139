"""All epochs of one of the two GANs of stage 5: its batches, what it is validated by, its checkpoints, its lines."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from checkpoints import STAGE, save_networks
from dataset import mirrored, signed_batches, tiled, to_pixels, to_signed
from gan_steps import STEPS, Gan, set_learning_rates
from PIL import Image

from clipfh.core.files import replace_atomically
from clipfh.core.run import random_state, restore_random_state
from clipfh.core.run_log import RunLog
from clipfh.datasets.fer2013 import EMOTIONS, Faces
from clipfh.models.checkpoint import write_checkpoint
from clipfh.training.sampler import RandomBatchSampler
from clipfh.training.state import binding_flags, require_finite

T = TypeVar("T")
GRID_COLUMNS = 8
LABELS = {"img2text": "Img2Text", "text2img": "Text2Img"}  # in printed lines
D_AND_G = {"loss_discriminator": "D_loss", "loss_generator": "G_loss"}  # the adversarial terms


@dataclass(frozen=True)
class Run:
    """What both GANs of a run share.

    Attributes:
        splits: the faces; `train`, `val`.
        recorded: what every checkpoint says beside its weights.
        folder: of the checkpoints.
        resumed: the content of LAST.pth of a run that is continued.
        device: of the networks.
        log: of the run.
    """

    splits: dict[str, Faces]
    recorded: dict[str, Any]
    folder: Path
    resumed: dict[str, Any] | None
    device: torch.device
    log: RunLog


def train_gan(gan: Gan, run: Run) -> None:
    """From the first epoch that `run.resumed` has not finished to the last one of this GAN, with its checkpoints."""
    config, name, log = gan.config, gan.name, run.log
    faces, epochs = run.splits["train"], getattr(config, name).epochs
    batch_size = min(config.batch_size, len(faces))
    sampler = RandomBatchSampler(len(faces), batch_size, config.seed)
    if run.resumed and run.resumed["gan"] == name:
        finished = restore(gan, run.resumed)
    else:
        finished = 0
        save_state(gan, run, 0, {"gan": name, "epoch": 0})  # a run killed in its first epoch can be continued too
    log.say(f"{name}: {len(faces):,} faces, {epochs} epochs of {len(sampler)} batches of {batch_size}")
    for epoch in range(finished + 1, epochs + 1):
        started = time.perf_counter()
        gan.generator.train()
        figures = train_one_epoch(gan, faces, sampler, run.device, epoch, log)
        line = f"[{LABELS[name]}] Epoch {epoch}/{epochs} done - "
        line += ", ".join(f"Avg {term}: {value:.4f}" for term, value in in_short(figures).items())
        if name == "img2text":
            figures["val_accuracy"] = caption_accuracy(gan, run.splits["val"], run.device)
            line += f", val accuracy: {figures['val_accuracy']:.4f}"
        figures["seconds"] = round(time.perf_counter() - started, 2)
        row = {"gan": name, "epoch": epoch, **{f"{name}_{figure}": value for figure, value in figures.items()}}
        if epoch % config.save_interval == 0 or epoch == epochs:
            save_epoch(gan, run, epoch)
        save_state(gan, run, epoch, row)
        log.epoch(row)  # after the checkpoint: a run that is continued has the lines of its epochs, once
        log.say(f"{line}, {figures['seconds']:.1f} s")


def train_one_epoch(
    gan: Gan, faces: Faces, sampler: RandomBatchSampler, device: torch.device, epoch: int, log: RunLog
) -> dict[str, float]:
    """One pass over the faces; returns the mean of each loss term."""
    config, sums = gan.config, {}
    sampler.set_epoch(epoch)
    for number, rows in enumerate(sampler, start=1):
        images = to_signed(faces[rows], config.text2img.channels, device)
        images = mirrored(images) if config.flip else images
        labels = torch.from_numpy(faces.labels[rows]).to(device)
        step = (epoch - 1) * len(sampler) + number
        set_learning_rates(gan, step - 1, getattr(config, gan.name).epochs * len(sampler))
        values = {name: value.detach() for name, value in STEPS[gan.name](gan, images, labels, step).items()}
        require_finite(values, epoch=epoch, batch=number, images=[faces.names[row] for row in rows])
        gan.average.update_parameters(gan.generator, now=number == len(sampler))
        log.step(step, {f"{gan.name}/{name}": value for name, value in values.items()})
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        if number % config.log_interval == 0:
            terms = ", ".join(f"{term} {value.item():.4f}" for term, value in in_short(values).items())
            log.say(f"Batch {number}/{len(sampler)}: {terms}")
    return {name: total.item() / len(sampler) for name, total in sums.items()}


def in_short(losses: dict[str, T]) -> dict[str, T]:
    """Loss terms as printed lines call them: D_loss and G_loss, and what else there is behind them."""
    others = {name.removeprefix("loss_"): value for name, value in losses.items() if name not in D_AND_G}
    return {short: losses[name] for name, short in D_AND_G.items()} | others


@torch.inference_mode()
def caption_accuracy(gan: Gan, faces: Faces, device: torch.device) -> float:
    """The share of faces whose embedding is nearest to a caption of the right emotion."""
    gan.average.module.eval()
    batches = signed_batches(faces, gan.config.text2img.channels, device)
    emotions = torch.cat([gan.space.nearest(gan.average.module(images))[0].cpu() for images in batches])
    return float((emotions.numpy() == faces.labels).mean())


@torch.inference_mode()
def sample_grid(gan: Gan, device: torch.device) -> np.ndarray:
    """A row of generated faces for each emotion, always of the same captions and noise: uint8 (H, W, 3)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(EMOTIONS)).repeat_interleave(GRID_COLUMNS).to(device)
    noise = torch.randn(len(labels), gan.config.text2img.noise_dim, generator=generator).to(device)
    gan.average.module.eval()
    return tiled(to_pixels(gan.average.module(gan.space.features[labels, 0], noise)), GRID_COLUMNS)


def restore(gan: Gan, state: dict[str, Any]) -> int:
    """Put the GAN where LAST.pth left it, and return how many epochs it had finished."""
    for kind, parts in (("modules", gan.modules()), ("optimizers", gan.optimizers)):
        for part, values in state[kind].items():
            parts[part].load_state_dict(values)
    restore_random_state(state["random"])
    return state["epoch"]


def save_state(gan: Gan, run: Run, epoch: int, row: dict[str, Any]) -> None:
    """Write LAST.pth after an epoch; `row` is its line of metrics.jsonl."""
    state = {"stage": STAGE, "run": run.log.folder.name, "row": row, "gan": gan.name, "epoch": epoch}
    state |= {"flags": binding_flags(gan.config), "random": random_state()}
    state |= {key: run.recorded[key] for key in ("clip", "data_digest")}
    state["modules"] = {part: module.state_dict() for part, module in gan.modules().items()}
    state["optimizers"] = {part: optimizer.state_dict() for part, optimizer in gan.optimizers.items()}
    write_checkpoint(run.folder / "LAST.pth", state)


def save_epoch(gan: Gan, run: Run, epoch: int) -> None:
    """Write the networks after an epoch, a CLIP that is trained along, and of the second GAN a grid of faces."""
    networks = {"generator": gan.average.module, "discriminator": gan.discriminator}
    save_networks(gan.name, gan.config, networks, run.recorded, epoch, run.folder)
    if gan.joint:
        joint = {"stage": STAGE, "epoch": epoch, **gan.joint.checkpoint()}
        write_checkpoint(run.folder / f"clip_joint_epoch_{epoch}.pth", joint)
    if gan.name == "text2img":
        grid = sample_grid(gan, run.device)
        run.log.image("samples", grid, epoch)
        with replace_atomically(run.log.folder / f"samples_epoch_{epoch}.png") as temporary:
            Image.fromarray(grid).save(temporary)
