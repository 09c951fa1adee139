"""Stage 5: two GANs around CLIP, one after the other: image to text embedding, then text embedding to image.

    python model/stage5_text_image_gan/train.py
    python model/stage5_text_image_gan/train.py --dataset PATH/fer2013 --text2img.image_size 64
    python model/stage5_text_image_gan/train.py --config model/stage5_text_image_gan/config/plain.yaml

The settings are in config/default.yaml; on a machine without a GPU config/small.yaml goes over it, then the file of
--config, then flags. Without arguments it trains on generated faces, where there is no data/fer2013.

Reads:   faces of seven emotions (folders or CSV), a CLIP
Writes:  {img2text,text2img}_{generator,discriminator}_epoch_N.pth and LAST.pth in --checkpoint_dir (default:
         checkpoints/<run>/ beside this script), logs/<run>/ (train.log, metrics.jsonl, config.json, TensorBoard, grids)
"""

import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import numpy as np
import torch
from captions import caption_space, require_latent_dim
from checkpoints import (
    GANS,
    STAGE,
    clip_record,
    fresh_folder,
    load_generator,
    newest_epoch,
    read_state,
    save_networks,
)
from dataset import (
    dataset_name,
    describe_faces,
    find_dataset,
    load_faces,
    mirrored,
    signed_batches,
    tiled,
    to_pixels,
    to_signed,
)
from gan_steps import STEPS, Gan, make_gan, set_learning_rates
from PIL import Image
from settings import Config, complete, parse_settings
from torch import nn
from unfrozen import finetuned

from clipfh.core.cli import run_script
from clipfh.core.errors import InputError
from clipfh.core.files import replace_atomically, require_file, writable_folder
from clipfh.core.freed_memory import keep_freed_memory
from clipfh.core.paths import display, stage_dir
from clipfh.core.run import (
    new_run_folder,
    pick_device,
    random_state,
    rank_and_world_size,
    restore_random_state,
    seed_everything,
)
from clipfh.core.run_log import RunLog
from clipfh.datasets.fer2013 import EMOTIONS, Faces
from clipfh.models.checkpoint import weights_digest, write_checkpoint
from clipfh.models.clip import load_clip
from clipfh.tables.prepared import prepare_weights
from clipfh.training.sampler import RandomBatchSampler
from clipfh.training.state import binding_flags, require_finite

GRID_COLUMNS = 8
SMOKE_FACES = 18  # of each emotion and split


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
        if step % config.log_interval == 0:
            terms = " ".join(f"{name.removeprefix('loss_')} {value.item():.3f}" for name, value in values.items())
            log.say(f"{gan.name} epoch {epoch} batch {number}/{len(sampler)} (step {step:,})  {terms}")
    return {name: total.item() / len(sampler) for name, total in sums.items()}


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


def train_gan(
    gan: Gan,
    splits: dict[str, Faces],
    recorded: dict[str, Any],
    flags: dict[str, Any],
    folder: Path,
    resumed: dict[str, Any] | None,
    device: torch.device,
    log: RunLog,
) -> None:
    """All epochs of one GAN, with its checkpoints; `resumed` is the state of LAST.pth after some of them."""
    config, name = gan.config, gan.name
    faces, epochs = splits["train"], getattr(gan.config, gan.name).epochs
    batch_size = min(config.batch_size, len(faces))
    sampler = RandomBatchSampler(len(faces), batch_size, config.seed)
    first_epoch = 1
    if resumed:
        for kind, parts in (("modules", gan.modules()), ("optimizers", gan.optimizers)):
            for part, state in resumed[kind].items():
                parts[part].load_state_dict(state)
        restore_random_state(resumed["random"])
        first_epoch = resumed["epoch"] + 1

    def save_state(epoch: int, row: dict[str, Any]) -> None:
        state = {"gan": name, "epoch": epoch, "flags": flags, "random": random_state(), "clip": recorded["clip"]}
        state["data_digest"] = recorded["data_digest"]
        state["modules"] = {part: module.state_dict() for part, module in gan.modules().items()}
        state["optimizers"] = {part: optimizer.state_dict() for part, optimizer in gan.optimizers.items()}
        write_checkpoint(folder / "LAST.pth", {"stage": STAGE, "run": log.folder.name, "row": row, **state})

    if resumed is None:  # a run that is killed in its first epoch can be continued too
        save_state(0, {"gan": name, "epoch": 0})
    log.say(f"{name}: {len(faces):,} faces, {epochs} epochs of {len(sampler)} batches of {batch_size}")
    for epoch in range(first_epoch, epochs + 1):
        started = time.perf_counter()
        gan.generator.train()
        losses = train_one_epoch(gan, faces, sampler, device, epoch, log)
        row = {f"{name}_{term}": value for term, value in losses.items()}
        if name == "img2text":
            row[f"{name}_val_accuracy"] = caption_accuracy(gan, splits["val"], device)
        row[f"{name}_seconds"] = round(time.perf_counter() - started, 2)
        figures = " ".join(f"{key.removeprefix(f'{name}_')} {value:.3f}" for key, value in row.items())
        row = {"gan": name, "epoch": epoch, **row}
        if epoch % config.save_interval == 0 or epoch == epochs:
            networks = {"generator": gan.average.module, "discriminator": gan.discriminator}
            save_networks(name, config, networks, recorded, epoch, folder)
            if gan.joint:
                joint = {"stage": STAGE, "epoch": epoch, **gan.joint.checkpoint()}
                write_checkpoint(folder / f"clip_joint_epoch_{epoch}.pth", joint)
            if name == "text2img":
                grid = sample_grid(gan, device)
                log.image("samples", grid, epoch)
                with replace_atomically(log.folder / f"samples_epoch_{epoch}.png") as temporary:
                    Image.fromarray(grid).save(temporary)
        save_state(epoch, row)
        log.epoch(row)  # after the checkpoint: a run that is continued has the lines of its epochs, once
        log.say(f"{name} epoch {epoch}/{epochs}  {figures}")


def load_reader(
    config: Config, clip: dict[str, Any], folder: Path, device: torch.device, log: RunLog
) -> nn.Module | None:
    """The finished generator of the first GAN, which reads what the second one draws; None, and a note, without one.

    Raises:
        InputError: `img2text_ckpt` is no such file, or was trained around another CLIP than `clip` (its record).
    """
    path = config.img2text_ckpt
    if path is None and config.gans == "both":
        path = newest_epoch(folder, "img2text")
    if path is None:
        log.say("note: no first GAN reads what this one draws; --img2text_ckpt names a img2text_generator_epoch_N.pth")
        return None
    reader = load_generator(path, "img2text", device, image_size=config.text2img.image_size)
    if reader.recorded["clip"]["digest"] != clip["digest"]:
        raise InputError(f"{path} was trained around other weights of CLIP than this run's ({clip['pretrained']})")
    return reader.network.requires_grad_(False)


def main(config: Config) -> None:
    """Faces, CLIP and captions; then one GAN after the other."""
    config = complete(config)
    rank_and_world_size()  # refuses several processes
    seed_everything(config.seed)
    keep_freed_memory()
    device = pick_device(config.device)
    if config.resume_ckpt:
        require_file(config.resume_ckpt, "--resume_ckpt")
    state = read_state(config.resume_ckpt, config) if config.resume_ckpt else None
    apart = "smoke" if config.smoke else ""  # so that a smoke run is never taken for the newest one
    logs = writable_folder(config.log_dir or stage_dir(STAGE) / "logs" / apart, "--log_dir")

    # ---- data
    source = find_dataset(config.dataset, config.smoke)
    splits, repeated = load_faces(
        source,
        config.text2img.image_size,
        data_seed=config.data_seed,
        val_fraction=config.val_fraction,
        skip_unreadable=config.skip_unreadable,
    )
    described = describe_faces(splits)
    if state and state["data_digest"] != described["data_digest"]:
        raise InputError(f"{config.resume_ckpt} was trained on other faces or splits than {display(source)} holds now")
    if config.smoke:
        splits = {name: faces.first_of_each_emotion(SMOKE_FACES) for name, faces in splits.items()}

    # ---- CLIP and the captions' embeddings: frozen, unless asked otherwise
    prepare_weights(config.model, config.pretrained)
    clip = load_clip(config.model, config.pretrained, device=str(device))
    clip.model.requires_grad_(False).eval()
    space = caption_space(clip, config.captions, device, center=config.center_captions)
    for gan in GANS:
        require_latent_dim(f"{gan}.latent_dim", getattr(config, gan).latent_dim, clip, space.dim)
    log_folder = logs / state["run"] if state else new_run_folder(logs, "text_image_gan", "--log_dir")
    run = log_folder.name
    if state:
        folder = config.resume_ckpt.parent
    else:
        folder = fresh_folder(config.checkpoint_dir or stage_dir(STAGE) / "checkpoints" / apart / run)
    log = RunLog(log_folder, config, last_row=state.get("row") if state else None)
    counts = ", ".join(f"{len(faces):,} {name}" for name, faces in splits.items())
    pixels = f"{config.text2img.image_size} px"
    log.say(f"{run}: {display(source)} ({counts}) at {pixels}, {clip.name} ({clip.pretrained}), {device}")
    if repeated:
        log.say(f"left out {repeated} train faces that are pixel for pixel in another split")
    if config.clip == "finetuned":
        clip, space = finetuned(clip, space, splits["train"], config, folder, device, log)
    record = clip_record(clip)
    space = space.to(device)

    # ---- the two GANs
    faces = {"source": display(source), "data_seed": config.data_seed, "val_fraction": config.val_fraction}
    recorded = {"stage": STAGE, "dataset": dataset_name(source), **described, "faces": faces}
    recorded |= {"clip": record, "captions": space.state()}
    recorded |= {"variant": "conditional" if config.conditional else "unconditional"}
    for name in GANS:
        if config.gans not in ("both", name) or (state and GANS.index(name) < GANS.index(state["gan"])):
            continue
        reader = None
        if name == "text2img" and config.text2img.cycle:
            reader = load_reader(config, record, folder, device, log)
        gan = make_gan(name, config, clip, space, reader, device)
        resumed = state if state and state["gan"] == name else None
        train_gan(gan, splits, recorded, binding_flags(config), folder, resumed, device, log)
    if weights_digest(clip.model.state_dict()) != record["digest"]:
        raise RuntimeError("the frozen CLIP has changed")
    log.say(f"CLIP is bit-identical to what it was before the GANs (SHA-256 {record['digest'][:12]})")
    log.say(f"wrote {display(folder)}")
    log.close()


if __name__ == "__main__":
    run_script(main, Config, __doc__, parse_settings)
