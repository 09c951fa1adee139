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

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import numpy as np
import torch
from captions import CaptionSpace, caption_space, require_latent_dim
from checkpoints import (
    GANS,
    STAGE,
    build_networks,
    clip_record,
    fresh_folder,
    load_generator,
    newest_epoch,
    read_state,
    save_networks,
)
from dataset import find_dataset, load_faces, mirrored, tiled, to_pixels, to_signed
from loss import discriminator_loss, generator_loss, matching_loss, r1_penalty
from PIL import Image
from settings import Config, complete, parse_settings
from torch import nn
from torch.optim import Adam
from unfrozen import JointClip, finetuned

from clipfh.averaged_weights import AveragedWeights
from clipfh.checkpoint import weights_digest, write_checkpoint
from clipfh.cli import run_script
from clipfh.clip_model import LoadedClip, load_clip
from clipfh.datasets.fer2013 import EMOTIONS, Faces
from clipfh.diff_augment import diff_augment, parse_policy
from clipfh.files import replace_atomically, writable_folder
from clipfh.freed_memory import keep_freed_memory
from clipfh.paths import display, stage_dir
from clipfh.prepared import prepare_weights
from clipfh.run import (
    RunLog,
    autocast,
    new_run_name,
    pick_device,
    random_state,
    rank_and_world_size,
    restore_random_state,
    seed_everything,
)
from clipfh.sampler import RandomBatchSampler
from clipfh.schedule import cosine_with_warmup
from clipfh.training import binding_flags, require_finite

GRID_COLUMNS = 8


@dataclass(frozen=True)
class Gan:
    """One of the two, with all that a step of it needs."""

    name: str
    config: Config
    space: CaptionSpace
    policy: tuple[str, ...]
    generator: nn.Module
    discriminator: nn.Module
    average: AveragedWeights  # of the generator: what is validated and saved
    optimizers: dict[str, Adam]
    joint: JointClip | None  # a CLIP that is trained along
    reader: nn.Module | None  # the finished generator of the first GAN, which reads what the second one draws

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint has to hold, by name."""
        found = {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}
        return {**found, **({"joint": self.joint} if self.joint else {})}


def make_gan(
    name: str, config: Config, clip: LoadedClip, space: CaptionSpace, reader: nn.Module | None, device: torch.device
) -> Gan:
    """Seed, build, and give every network its optimiser."""
    seed_everything(config.seed)  # each GAN on its own: the second is the same, whether the first was trained here
    generator, discriminator = (network.to(device) for network in build_networks(name, config, space.dim))
    lr = config.img2text.lr if name == "img2text" and config.img2text.lr else config.lr
    adam = {"betas": (config.beta1, config.beta2), "fused": True}
    optimizers = {"generator": Adam(generator.parameters(), lr=lr, **adam)}
    optimizers["discriminator"] = Adam(discriminator.parameters(), lr=config.lr_discriminator or lr, **adam)
    joint = None
    if config.clip == "joint" and name == "text2img":
        joint = JointClip(clip, space, device)
        optimizers["joint"] = Adam(joint.parameters(), lr=config.clip_lr, betas=(0.9, 0.98), fused=True)
    average = AveragedWeights(generator, config.ema_decay)
    policy = parse_policy(config.augment)
    return Gan(name, config, space, policy, generator, discriminator, average, optimizers, joint, reader)


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside, gradients pass through the modules, and none is computed for their weights."""
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def update(optimizer: Adam, loss: torch.Tensor) -> None:
    """One step down the gradient."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def set_learning_rates(gan: Gan, step: int, total_steps: int) -> None:
    """A function of the step alone, so that a continued run needs no scheduler's state."""
    factor = cosine_with_warmup(step, total_steps=total_steps, warmup_steps=0) if gan.config.lr_decay else 1.0
    for optimizer in gan.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def wrong_captions(gan: Gan, labels: torch.Tensor) -> torch.Tensor | None:
    """Embeddings (B, E) of captions of other emotions, where mismatched pairs are to be refused."""
    if not (gan.config.mismatch and gan.config.conditional):
        return None
    others = torch.randint(1, len(EMOTIONS), labels.shape).to(labels.device)
    return gan.space.draw((labels + others) % len(EMOTIONS), gan.config.embedding_noise)


def img2text_step(gan: Gan, images: torch.Tensor, labels: torch.Tensor, number: int) -> dict[str, torch.Tensor]:
    """The image (B, C, S, S) is given, its caption's embedding (B, E) is what is real or generated."""
    config, judge = gan.config, gan.discriminator
    precision = autocast(images.device, config.precision)
    captions, wrong = gan.space.draw(labels, config.embedding_noise), wrong_captions(gan, labels)
    with precision:
        made = gan.generator(diff_augment(images, gan.policy))
        features = judge.features(diff_augment(images, gan.policy))
        real, fake = judge.score(features, captions), judge.score(features, made.detach())
        refused = None if wrong is None else judge.score(features, wrong).float()
    loss_d = discriminator_loss(config.loss, real.float(), fake.float(), refused)
    if config.r1 and number % config.r1_interval == 0:
        captions.requires_grad_(True)
        logits = judge(images, captions)
        loss_d = loss_d + config.r1 * config.r1_interval * r1_penalty(logits, captions)
    update(gan.optimizers["discriminator"], loss_d)

    with frozen(judge), precision:
        with torch.no_grad():
            features = judge.features(diff_augment(images, gan.policy))
        fake = judge.score(features, made)
    loss_g = generator_loss(config.loss, fake.float())
    matching = matching_loss(made, gan.space.features, labels)
    update(gan.optimizers["generator"], loss_g + config.img2text.matching * matching)
    return {"loss_discriminator": loss_d, "loss_generator": loss_g, "loss_matching": matching}


def text2img_step(gan: Gan, images: torch.Tensor, labels: torch.Tensor, number: int) -> dict[str, torch.Tensor]:
    """The caption's embedding (B, E) is given, the image (B, C, S, S) is what is real or generated."""
    config, judge = gan.config, gan.discriminator
    precision = autocast(images.device, config.precision)
    captions, wrong = gan.space.draw(labels, config.embedding_noise), wrong_captions(gan, labels)
    noise = torch.randn(len(labels), config.text2img.noise_dim).to(images.device)
    with precision:
        made = gan.generator(captions, noise)
        of_real = judge.features(diff_augment(images, gan.policy))  # apart, for their batch norms, where there are some
        of_fake = judge.features(diff_augment(made.detach(), gan.policy))
        real, fake = judge.score(of_real, captions), judge.score(of_fake, captions)
        refused = None if wrong is None else judge.score(of_real, wrong).float()
    loss_d = discriminator_loss(config.loss, real.float(), fake.float(), refused)
    if config.r1 and number % config.r1_interval == 0:
        inputs = diff_augment(images, gan.policy).requires_grad_(True)
        loss_d = loss_d + config.r1 * config.r1_interval * r1_penalty(judge(inputs, captions), inputs)
    update(gan.optimizers["discriminator"], loss_d)
    losses = {"loss_discriminator": loss_d}
    if gan.joint:
        with precision:
            losses["loss_clip_real"] = gan.joint.pair_loss(images, labels)
        update(gan.optimizers["joint"], losses["loss_clip_real"])

    with frozen(judge, *([gan.joint] if gan.joint else [])), precision:
        seen = diff_augment(made, gan.policy)
        fake = judge(seen, captions)
        loss = losses["loss_generator"] = generator_loss(config.loss, fake.float())
        if gan.reader:
            losses["loss_cycle"] = matching_loss(gan.reader(seen), gan.space.features, labels)
            loss = loss + config.text2img.cycle * losses["loss_cycle"]
        if gan.joint:
            losses["loss_clip_generated"] = gan.joint.pair_loss(made, labels)
            loss = loss + config.clip_weight * losses["loss_clip_generated"]
        update(gan.optimizers["generator"], loss)
    return losses


STEPS = {"img2text": img2text_step, "text2img": text2img_step}


def train_one_epoch(
    gan: Gan, faces: Faces, sampler: RandomBatchSampler, device: torch.device, epoch: int, log: RunLog
) -> dict[str, float]:
    """One pass over the faces; returns the mean of each loss term."""
    config, sums = gan.config, {}
    sampler.set_epoch(epoch)
    for number, rows in enumerate(sampler, start=1):
        images = to_signed(faces.pixels[rows], config.text2img.channels, device)
        images = mirrored(images) if config.flip else images
        labels = torch.from_numpy(faces.labels[rows]).to(device)
        step = (epoch - 1) * len(sampler) + number
        set_learning_rates(gan, step - 1, getattr(config, gan.name).epochs * len(sampler))
        values = {name: value.detach() for name, value in STEPS[gan.name](gan, images, labels, step).items()}
        gan.average.update_parameters(gan.generator, now=number == len(sampler))
        log.step(step, {f"{gan.name}/{name}": value for name, value in values.items()})
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        if step % config.log_interval == 0:
            require_finite(values, epoch=epoch, batch=number, images=[faces.names[row] for row in rows])
            terms = " ".join(f"{name.removeprefix('loss_')} {value.item():.3f}" for name, value in values.items())
            log.say(f"{gan.name} epoch {epoch} batch {number}/{len(sampler)} (step {step:,})  {terms}")
    return {name: total.item() / len(sampler) for name, total in sums.items()}


@torch.inference_mode()
def caption_accuracy(gan: Gan, faces: Faces, device: torch.device) -> float:
    """The share of faces whose embedding is nearest to a caption of the right emotion."""
    gan.average.module.eval()
    found = 0
    for start in range(0, len(faces), 256):
        images = to_signed(faces.pixels[start : start + 256], gan.config.text2img.channels, device)
        emotions, _ = gan.space.nearest(gan.average.module(images))
        found += int((emotions.cpu().numpy() == faces.labels[start : start + 256]).sum())
    return found / len(faces)


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
    log.say(f"{name}: {len(faces):,} faces, {epochs} epochs of {len(sampler)} batches of {batch_size}")
    for epoch in range(first_epoch, epochs + 1):
        started = time.perf_counter()
        gan.generator.train()
        losses = train_one_epoch(gan, faces, sampler, device, epoch, log)
        row = {f"{name}_{term}": value for term, value in losses.items()}
        if name == "img2text":
            row[f"{name}_val_accuracy"] = caption_accuracy(gan, splits["val"], device)
        row[f"{name}_seconds"] = round(time.perf_counter() - started, 2)
        log.epoch({"gan": name, "epoch": epoch, **row})
        figures = " ".join(f"{key.removeprefix(f'{name}_')} {value:.3f}" for key, value in row.items())
        log.say(f"{name} epoch {epoch}/{epochs}  {figures}")
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
        state = {"gan": name, "epoch": epoch, "flags": flags, "random": random_state(), "clip": recorded["clip"]}
        state["modules"] = {part: module.state_dict() for part, module in gan.modules().items()}
        state["optimizers"] = {part: optimizer.state_dict() for part, optimizer in gan.optimizers.items()}
        write_checkpoint(folder / "LAST.pth", {"stage": STAGE, "run": log.folder.name, **state})


def main(config: Config) -> None:
    """Faces, CLIP and captions; then one GAN after the other."""
    config = complete(config)
    rank_and_world_size()  # refuses several processes
    seed_everything(config.seed)
    keep_freed_memory()
    device = pick_device(config.device)
    state = read_state(config.resume_ckpt, config) if config.resume_ckpt else None
    run = state["run"] if state else new_run_name("text_image_gan")
    apart = "smoke" if config.smoke else ""  # so that a smoke run is never taken for the newest one
    logs = writable_folder(config.log_dir or stage_dir(STAGE) / "logs" / apart, "--log_dir")
    default_folder = stage_dir(STAGE) / "checkpoints" / apart / run

    # ---- data
    source = find_dataset(config.dataset, config.smoke)
    splits, repeated = load_faces(
        source,
        config.text2img.image_size,
        seed=config.seed,
        val_fraction=config.val_fraction,
        skip_unreadable=config.skip_unreadable,
    )

    # ---- CLIP and the captions' embeddings: frozen, unless asked otherwise
    prepare_weights(config.model, config.pretrained)
    clip = load_clip(config.model, config.pretrained, device=str(device))
    clip.model.requires_grad_(False).eval()
    space = caption_space(clip, config.captions, device, center=config.center_captions)
    for gan in GANS:
        require_latent_dim(f"{gan}.latent_dim", getattr(config, gan).latent_dim, clip, space.dim)
    folder = config.resume_ckpt.parent if state else fresh_folder(config.checkpoint_dir or default_folder)
    log = RunLog(logs / run, config)
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
    faces = {"source": display(source), "seed": config.seed, "val_fraction": config.val_fraction}
    recorded = {"stage": STAGE, "dataset": source.stem, "faces": faces, "clip": record, "captions": space.state()}
    recorded |= {"variant": "conditional" if config.conditional else "unconditional"}
    for name in GANS:
        if config.gans not in ("both", name) or (state and GANS.index(name) < GANS.index(state["gan"])):
            continue
        reader = None
        if name == "text2img" and config.text2img.cycle and config.gans == "both":
            reader = load_generator(newest_epoch(folder, "img2text"), "img2text", device).network
            reader.requires_grad_(False)
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
