"""Stage 0: pretrain a small CLIP from scratch, for machines without pretrained weights.

    python model/stage0_pretrain/pretrain_tiny_clip.py
    python model/stage0_pretrain/pretrain_tiny_clip.py --model tiny-vit

InfoNCE on generated garments with their descriptions. None of these garments is in the dataset `synthetic`: neither an
item id nor a combination of attributes is shared. With real pretrained weights this stage is not needed.

Writes:  checkpoints/<model>_<digest of the configuration>.pth and logs/<model>_<digest>/ beside this script.
         A checkpoint of the same configuration is reused.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import torch
import torch.nn.functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from clipfh.core.cli import jsonable, option, run_script
from clipfh.core.config_file import IN_FILE, parse_with_files
from clipfh.core.files import writable_folder
from clipfh.core.paths import TINY_MODELS, display, processed_dir, stage_dir
from clipfh.core.run import autocast, pick_device, seed_everything
from clipfh.core.run_log import RunLog
from clipfh.datasets import inshop, synthetic
from clipfh.images.augment import Augmentation, augment
from clipfh.images.pixels import load_pixels
from clipfh.images.transforms import to_float
from clipfh.losses import info_nce_loss
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import clamp_logit_scale, load_clip
from clipfh.prompts.description import Description
from clipfh.prompts.structured import token_safe_prompt
from clipfh.training.sampler import RandomBatchSampler
from clipfh.training.schedule import cosine_with_warmup
from clipfh.training.state import decay_groups, require_finite

SETTINGS_VERSION = 3  # raise it when a change of this script changes the weights


@dataclass(frozen=True)
class Config:
    """The command line."""

    model: str = option(IN_FILE, "which small CLIP", choices=TINY_MODELS)
    num_identities: int = option(IN_FILE, "generated garments to learn from", at_least=2)
    batch_size: int = option(IN_FILE, "photo-description pairs a batch", at_least=1)
    epochs: int = option(IN_FILE, "passes over the photos", at_least=1)
    lr: float = option(IN_FILE, "peak learning rate", above=0)
    weight_decay: float = option(IN_FILE, "AdamW's, on matrices only", at_least=0)
    temperature: float = option(IN_FILE, "first value of the learned temperature", above=0)
    precision: str = option("auto", "auto: bfloat16 where it is fast", choices=("auto", "float32", "bfloat16"))
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    seed: int = option(0, "of the garments, the weights and the batches", at_least=0)
    save_path: Path | None = option(None, "folder of the checkpoints (default: checkpoints/ beside this script)")
    log_dir: Path | None = option(None, "folder of the logs (default: logs/ beside this script)")
    force: bool = option(False, "pretrain again, although the configuration is the same")
    smoke: bool = option(False, "few garments, one epoch: does every step work?")


def digest(config: Config) -> str:
    """Short digest of all that decides the weights."""
    values = {k: v for k, v in jsonable(config).items() if k not in ("save_path", "log_dir", "force", "device")}
    text = json.dumps([SETTINGS_VERSION, torch.__version__, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def train_one_epoch(clip, pixels, tokens, labels, sampler, optimizer, scheduler, config, device, epoch):
    """One pass over the pairs; returns the mean loss."""
    clip.model.train()
    augmentation, total = Augmentation(), 0.0
    bar = tqdm(sampler, f"epoch {epoch}", len(sampler), unit="batch", disable=None, leave=False)
    for number, indices in enumerate(bar, start=1):
        images = augment(to_float(pixels.array[indices], device), augmentation, mean=clip.mean, std=clip.std)
        with autocast(device, config.precision):
            image_features = clip.model.encode_image(images)  # (B, D)
            text_features = clip.model.encode_text(tokens[indices])  # (B, D)
        loss = info_nce_loss(
            F.normalize(image_features.float(), dim=1),
            F.normalize(text_features.float(), dim=1),
            clip.model.logit_scale.exp(),
            labels[indices],
        )
        require_finite({"infonce": loss}, epoch=epoch, batch=number, images=[pixels.images[i] for i in indices])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        clamp_logit_scale(clip.model)
        total += loss.item()
    return total / len(sampler)


def main(config: Config) -> None:
    """Generate, train, save."""
    if config.smoke:
        config = replace(config, num_identities=24, epochs=1)
    name = f"{config.model}_{digest(config)}"
    apart = "smoke" if config.smoke else ""  # so that a smoke run's weights are never anybody's default
    checkpoint = (config.save_path or stage_dir(0) / "checkpoints" / apart) / f"{name}.pth"
    if checkpoint.is_file() and not config.force:
        print(f"{display(checkpoint)} has this configuration already; --force makes it again")
        return
    writable_folder(checkpoint.parent, "--save_path")
    logs = writable_folder(config.log_dir or stage_dir(0) / "logs", "--log_dir")
    seed_everything(config.seed)
    device = pick_device(config.device)

    # ---- data: garments of the pretraining pool, each with its token-safe description
    raw = f"synthetic_pretrain_{config.num_identities}_{config.seed}"
    folder = ROOT / "data" / "raw" / raw
    synthetic.generate(
        folder, num_identities=config.num_identities, seed=config.seed, pool="pretraining", progress=True
    )
    garments = inshop.read(folder)
    clip = load_clip(config.model, "random", device=str(device))
    images = garments.table["image"].tolist()
    pixels = load_pixels(garments.image_dir, images, clip.image_size, processed_dir(raw))
    item_ids = sorted(set(garments.table["item_id"]))
    place = {item_id: index for index, item_id in enumerate(item_ids)}
    labels = torch.tensor([place[item_id] for item_id in garments.table["item_id"]])  # (N,)
    texts = [token_safe_prompt(garments.descriptions.get(item_id, Description())) for item_id in item_ids]
    tokens = clip.tokenizer(texts)[labels].to(device)  # (N, L)
    same_text = {text: number for number, text in reversed(list(enumerate(texts)))}  # equal text is no negative
    labels = torch.tensor([same_text[text] for text in texts])[labels].to(device)

    # ---- optimisation
    sampler = RandomBatchSampler(len(images), config.batch_size, config.seed)
    clip.model.logit_scale.data.fill_(torch.tensor(1 / config.temperature).log())
    optimizer = AdamW(decay_groups(clip.model, config.lr, config.weight_decay), betas=(0.9, 0.98), eps=1e-6, fused=True)
    total_steps = config.epochs * len(sampler)
    factor = partial(cosine_with_warmup, total_steps=total_steps, warmup_steps=total_steps // 20)
    scheduler = LambdaLR(optimizer, factor)

    # ---- training
    log = RunLog(logs / name, config, last_row={})  # the name is the configuration's: the log of an earlier try goes
    log.say(
        f"{name}: {len(images):,} photos of {len(item_ids):,} generated garments, "
        f"{len(sampler)} batches of {config.batch_size}, {device}"
    )
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        sampler.set_epoch(epoch)
        loss = train_one_epoch(clip, pixels, tokens, labels, sampler, optimizer, scheduler, config, device, epoch)
        seconds = round(time.perf_counter() - started, 2)
        log.epoch({"epoch": epoch, "loss_infonce": loss, "lr": scheduler.get_last_lr()[0], "seconds": seconds})
        log.say(f"epoch {epoch}/{config.epochs}  infonce {loss:.3f}  {seconds:.1f} s")
    recorded = {**clip.architecture(), "stage": 0, "dataset": raw, "variant": "", "epoch": config.epochs}
    write_checkpoint(checkpoint, {**recorded, "state_dict": clip.model.state_dict()})
    log.say(f"wrote {display(checkpoint)}")
    log.close()


if __name__ == "__main__":
    files = [Path(__file__).parent / "config" / "pretrain.yaml"]
    run_script(main, Config, __doc__, partial(parse_with_files, files=files))
