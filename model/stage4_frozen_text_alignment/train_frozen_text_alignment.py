"""Stage 4: teach an image encoder to land in the space of a text encoder that never moves.

    python model/stage4_frozen_text_alignment/train_frozen_text_alignment.py
    python model/stage4_frozen_text_alignment/train_frozen_text_alignment.py --dataset coco --data_root DIR

Symmetric InfoNCE between images and captions. Of each image one caption is drawn at random in every step; what else is
true of it is never its negative. The features of all captions are computed once. BEST is chosen by the mean recall on
val. A linear head on the frozen backbone, from the same weights, is trained beside it as the baseline.

Reads:   the raw captions, or metadata/<name>/ where prepare_captions.py was run; weights
Writes:  checkpoints/<run>_BEST.pth, _LAST.pth and _LINEAR.pth (the baseline), logs/<run>/ beside this script,
         with <run> = clip_frozen_text_YYYYMMDD_HHMMSS
"""

import contextlib
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
from clip_model import CLIP, HEAD_NORMS, create_clip_model
from dataset import MEAN, STD, CaptionedPixels, DataConfig, make_batches, prepare, smaller
from linear_baseline import mean_recall, recall_of, train_linear_head, with_linear_head
from loss import caption_info_nce_loss, is_caption_of
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import tqdm

from clipfh.captions.table import captions_digest
from clipfh.core.cli import option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import require_file, writable_folder
from clipfh.core.freed_memory import keep_freed_memory
from clipfh.core.paths import TINY_MODELS, display, stage_dir
from clipfh.core.run import RunLog, autocast, new_run_folder, pick_device, rank_and_world_size, seed_everything
from clipfh.images.augment import Augmentation
from clipfh.models.averaged_weights import AveragedWeights
from clipfh.models.checkpoint import (
    read_stage_checkpoint,
    require_training_state,
    write_best_and_last,
    write_checkpoint,
)
from clipfh.models.clip import canonical_model_name, clamp_logit_scale
from clipfh.prompts.tokens import token_counter
from clipfh.reports.figures import training_curves_figure
from clipfh.tables.prepared import prepare_weights
from clipfh.training.data import made_ahead
from clipfh.training.sampler import RandomBatchSampler
from clipfh.training.schedule import cosine_with_warmup
from clipfh.training.state import (
    BestSoFar,
    binding_flags,
    clipped_step,
    decay_groups,
    require_finite,
    require_same_flags,
    restore_training_state,
    training_state,
)

STAGE = 4
RUN_NAME = "clip_frozen_text"


@dataclass(frozen=True)
class Config(DataConfig):
    """The command line."""

    model: str | None = option(
        None,
        "CLIP whose text tower is used (default: ViT-B/32; tiny-rn of stage 0 for the generated pictures)",
        aliases=("--model_arch",),
    )
    pretrained: str | None = option(
        None, "its weights: a tag, a file or random (default: openai; for a tiny model the newest of stage 0)"
    )
    image_encoder: str | None = option(
        None, "torchvision ResNet or timm model (default: resnet50; resnet18 without a GPU or beside a tiny CLIP)"
    )
    image_weights: str | None = option(
        None,
        "pretrained, a torchvision name as IMAGENET1K_V2, a file, or random (default: pretrained; random beside "
        "a tiny CLIP)",
    )
    image_size: int | None = option(None, "pixels (default: 224; 64 without a GPU or beside a tiny CLIP)", at_least=32)
    head_layers: int = option(2, "linear layers of the projection head", at_least=1, at_most=6)
    head_norm: str | None = option(
        None, "norm in the head, between its layers (default: none; batchnorm from random weights)", choices=HEAD_NORMS
    )
    head_dropout: float = option(0.0, "dropout in the head, between its layers", at_least=0, at_most=0.9)
    freeze_backbone: bool = option(False, "train the head alone")
    head_warmup_epochs: int = option(0, "first epochs in which the head trains alone", at_least=0)
    epochs: int | None = option(None, "passes over the images (default: 20; 10 beside a tiny CLIP)", at_least=1)
    batch_size: int | None = option(None, "images a batch (default: 128; 64 beside a tiny CLIP)", at_least=2)
    further_captions: int = option(0, "captions drawn from all others as more negatives of each image", at_least=0)
    backbone_lr: float | None = option(
        None, "peak learning rate of the backbone (default: 1e-4; 1e-3 from random weights)", above=0
    )
    head_lr: float = option(1e-3, "peak learning rate of the head", above=0)
    weight_decay: float = option(0.05, "AdamW's, on matrices only", at_least=0)
    warmup_fraction: float = option(0.05, "share of the steps in which the rates rise", at_least=0, at_most=0.9)
    temperature: float = option(0.07, "first value of the learned temperature", above=0)
    clip_grad: float = option(1.0, "largest norm of the gradient", above=0)
    ema_decay: float = option(
        0.99, "of the average of the weights that is validated and saved; 0: none", at_least=0, at_most=0.9999
    )
    min_crop: float = option(0.8, "smallest share of the image that a view keeps; 1: no crop", above=0, at_most=1)
    rotation: float = option(5.0, "largest rotation of a view, degrees", at_least=0, at_most=180)
    color_jitter: float = option(
        0.1, "largest relative change of brightness, contrast, saturation", at_least=0, at_most=1
    )
    flip: float = option(0.0, "probability of a mirror image; captions tell left from right", at_least=0, at_most=1)
    erase: float = option(0.0, "probability of a blanked rectangle", at_least=0, at_most=1)
    patience: int = option(0, "epochs without a better val figure before it stops; 0: never", at_least=0)
    baseline: bool = option(True, "train the linear head on the frozen backbone as well")
    precision: str = option("auto", "auto: bfloat16 where it is fast", choices=("auto", "float32", "bfloat16"))
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    seed: int = option(0, "of the weights, the batches, the views and the drawn captions", at_least=0)
    save_path: Path | None = option(None, "folder of the checkpoints (default: checkpoints/ beside this script)")
    log_dir: Path | None = option(None, "folder of the logs (default: logs/ beside this script)")
    resume_ckpt: Path | None = option(None, "a _LAST checkpoint: continue that run")
    smoke: bool = option(False, "few pictures, one epoch: does every step work?")


def complete(config: Config, on_cpu: bool) -> Config:
    """Fill in what suits the data and the machine, and shrink a smoke run."""
    model = canonical_model_name(config.model or ("tiny-rn" if config.dataset == "synthetic" else "ViT-B/32"))
    is_tiny = model in TINY_MODELS  # a machine without pretrained weights
    is_small = is_tiny or on_cpu
    image_weights = config.image_weights or ("random" if is_tiny else "pretrained")
    config = replace(
        config,
        model=model,
        image_weights=image_weights,
        image_encoder=config.image_encoder or ("resnet18" if is_small else "resnet50"),
        image_size=config.image_size or (64 if is_small else 224),
        backbone_lr=config.backbone_lr or (1e-3 if image_weights == "random" else 1e-4),
        head_norm=config.head_norm or ("batchnorm" if image_weights == "random" else "none"),
        epochs=config.epochs or (10 if is_tiny else 20),
        batch_size=config.batch_size or (64 if is_tiny else 128),
    )
    return replace(smaller(config), epochs=1, batch_size=16) if config.smoke else config


@dataclass(frozen=True)
class Training:
    """What one epoch works with; `main` makes it."""

    config: Config
    model: CLIP
    data: CaptionedPixels
    sampler: RandomBatchSampler
    augmentation: Augmentation
    optimizer: AdamW
    scheduler: LRScheduler
    ema: AveragedWeights
    log: RunLog
    rank: int = 0


def train_one_epoch(training: Training, epoch: int, step: int) -> tuple[float, int]:
    """One pass over the images; returns the mean loss and the number of steps taken so far."""
    config, model, sampler = training.config, training.model, training.sampler
    device, total, count = model.logit_scale.device, 0.0, len(sampler)
    model.train()
    model.image_encoder.hold_backbone(config.freeze_backbone or epoch <= config.head_warmup_epochs)
    place, further = (config.seed, training.rank, epoch), config.further_captions
    batches = make_batches(training.data, sampler, training.augmentation, device, *place, further=further)
    bar = tqdm(total=count, desc=f"epoch {epoch}", unit="batch", disable=None, leave=False)
    with contextlib.closing(made_ahead(batches, device)) as ready, bar:
        for number, batch in enumerate(ready, start=1):
            with autocast(device, config.precision):
                image_features = model.encode_image(batch.images)  # (B, D)
            is_caption = is_caption_of(batch.captions, batch.texts)
            loss = caption_info_nce_loss(image_features, batch.text_features, model.logit_scale.exp(), is_caption)
            loss.backward()
            images = [training.data.images[index].image for index in batch.indices]
            require_finite({"infonce": loss}, epoch=epoch, batch=number, images=images)
            grad_norm = clipped_step(training.optimizer, config.clip_grad)
            training.optimizer.zero_grad(set_to_none=True)
            clamp_logit_scale(model)
            lr = training.scheduler.get_last_lr()[0]
            values = {"loss": loss, "grad_norm": grad_norm, "lr": lr, "logit_scale": model.logit_scale.exp()}
            training.log.step(step, values)
            training.ema.update_parameters(model.image_encoder, now=number == count)
            training.scheduler.step()
            total, step = total + loss.detach(), step + 1
            bar.update()
    return total.item() / count, step


def describe(config: Config) -> dict[str, Any]:
    """What a checkpoint records of its run, so that it can be built again and is never taken for another."""
    names = ("image_encoder", "image_weights", "image_size", "head_layers", "head_norm", "head_dropout")
    parts = {name: getattr(config, name) for name in names}
    parts |= {"stage": STAGE, "model": f"{config.image_encoder}+{config.model}", "variant": ""}
    return {**parts, "text_model": config.model, "mean": MEAN, "std": STD}


def full_state(model: CLIP, image_encoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of the whole model with the given one of the image encoder."""
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith("image_encoder.")}
    return {**rest, **{f"image_encoder.{name}": value for name, value in image_encoder.items()}}


def train_baseline(
    config: Config,
    model: CLIP,
    train: CaptionedPixels,
    val: CaptionedPixels,
    recorded: dict[str, Any],
    path: Path,
    log: RunLog,
) -> None:
    """Train a linear head on the backbone as it is now, and save both as a model of their own."""
    started = time.perf_counter()
    head, value, epoch = train_linear_head(
        model.image_encoder.backbone,
        train,
        val,
        epochs=config.epochs,
        batch_size=config.batch_size,
        temperature=config.temperature,
        further=config.further_captions,
        seed=config.seed,
        device=model.logit_scale.device,
    )
    state = full_state(model, with_linear_head(model.image_encoder, head))
    content = {**recorded, "head_layers": 1, "head_norm": "none", "head_dropout": 0.0, "variant": "linear"}
    write_checkpoint(path, {**content, "epoch": epoch, "val_recall": value, "state_dict": state})
    seconds = time.perf_counter() - started
    log.say(f"baseline, a linear head on the frozen backbone: val recall {100 * value:.1f}  {seconds:.1f} s")


def main(config: Config) -> None:
    """Load, train the baseline, train, keep the best."""
    rank, world_size = rank_and_world_size()
    device = pick_device(config.device)
    if config.resume_ckpt:
        require_file(config.resume_ckpt, "--resume_ckpt")
    config = complete(config, on_cpu=device.type == "cpu")
    seed_everything(config.seed, rank)
    keep_freed_memory()
    apart = "smoke" if config.smoke else ""  # so that a smoke run is never taken for the newest BEST
    checkpoints = writable_folder(config.save_path or stage_dir(STAGE) / "checkpoints" / apart, "--save_path")
    logs = writable_folder(config.log_dir or stage_dir(STAGE) / "logs" / apart, "--log_dir")

    # ---- data and weights; a run to continue brings its own image encoder
    data = prepare(config)
    prepare_weights(config.model, config.pretrained)
    model = create_clip_model(
        device,
        image_encoder=config.image_encoder,
        image_weights="random" if config.resume_ckpt else config.image_weights,
        text_model=config.model,
        text_weights=config.pretrained,
        image_size=config.image_size,
        head_layers=config.head_layers,
        head_norm=config.head_norm,
        head_dropout=config.head_dropout,
        temperature=config.temperature,
    )
    model.image_encoder.backbone.requires_grad_(not config.freeze_backbone)
    text_digest = model.text_encoder.digest()
    train, val = (
        CaptionedPixels(data, split, config.image_size, model.text_encoder, text_digest) for split in ("train", "val")
    )
    augmentation = Augmentation(
        min_area=config.min_crop,
        rotation=config.rotation,
        color=config.color_jitter,
        flip=config.flip,
        erase=config.erase,
    )
    if len(train.images) < 2:
        raise InputError(f"{data.name} has {len(train.images)} train image; a caption needs others to differ from")
    sampler = RandomBatchSampler(len(train.images), config.batch_size, config.seed, rank, world_size)

    # ---- optimisation: two learning rates, cosine with warm-up by step; the temperature goes with the head
    encoder = model.image_encoder
    groups = decay_groups(encoder.backbone, config.backbone_lr, config.weight_decay, name="backbone")
    groups += decay_groups(encoder.head, config.head_lr, config.weight_decay, name="head")
    groups.append({"params": [model.logit_scale], "lr": config.head_lr, "weight_decay": 0.0, "name": "head"})
    optimizer = AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
    total_steps = config.epochs * len(sampler)
    warmup_steps = int(config.warmup_fraction * total_steps)
    factor = partial(cosine_with_warmup, total_steps=total_steps, warmup_steps=warmup_steps)
    scheduler = LambdaLR(optimizer, factor)
    ema = AveragedWeights(encoder, config.ema_decay)
    best = BestSoFar(config.patience)

    # ---- run: its name, the run to resume, the log
    modules = {"image_encoder": encoder, "temperature": nn.ParameterList([model.logit_scale]), "ema": ema}
    parts = {"modules": modules, "optimizers": {"model": optimizer}, "scheduler": scheduler, "sampler": sampler}
    parts["best"] = best
    recorded = {**describe(config), "dataset": data.name, "text_digest": text_digest}
    recorded["data_digest"] = captions_digest(data)
    recorded["quick_gelu"] = model.text_encoder.quick_gelu
    first_epoch, step, last_row = 1, 0, None
    if config.resume_ckpt:
        content = read_stage_checkpoint(config.resume_ckpt, STAGE)
        state = require_training_state(content, config.resume_ckpt, recorded["model"], recorded["data_digest"])
        require_same_flags(state["flags"], config)
        if content["text_digest"] != text_digest:
            raise InputError(f"{config.resume_ckpt} was trained beside other text weights; pass the same --pretrained")
        last_epoch, step = restore_training_state(state, **parts)
        first_epoch, last_row = last_epoch + 1, state.get("row")
        folder = logs / config.resume_ckpt.stem.removesuffix("_LAST")
    else:
        folder = new_run_folder(logs, RUN_NAME, "--log_dir", checkpoints=checkpoints)
    run = folder.name
    # after the checks: a refused resume leaves that run's files alone
    log = RunLog(folder, config, rank=rank, last_row=last_row)
    model.print_parameter_summary()
    log.say(
        f"{run}: {config.image_encoder} ({config.image_weights}, {config.image_size} px) to the text tower of "
        f"{config.model} ({model.text_encoder.source}), {data.name}: {len(train.images):,} images, "
        f"{len(train.texts):,} captions, {len(sampler)} batches of {config.batch_size}, {device}"
    )

    counter = token_counter(model.text_encoder.tokenizer)
    if cut := sum(counter.count(text) > counter.context_length for text in set(train.texts)):
        log.say(f"{cut:,} captions are longer than its {counter.context_length} tokens: the tokenizer cuts them")

    # ---- baseline: before anything moves
    if first_epoch == 1 and config.baseline:
        train_baseline(config, model, train, val, recorded, checkpoints / f"{run}_LINEAR.pth", log)

    # ---- training
    training = Training(config, model, train, sampler, augmentation, optimizer, scheduler, ema, log, rank)
    for epoch in range(first_epoch, config.epochs + 1):
        started = time.perf_counter()
        sampler.set_epoch(epoch)
        row = {"epoch": epoch, **{f"lr_{group['name']}": group["lr"] for group in optimizer.param_groups}}
        row["loss_infonce"], step = train_one_epoch(training, epoch, step)
        to_text, to_image = recall_of(ema.module, val, device)
        value = mean_recall((to_text, to_image))
        is_best = best.update(value, epoch)
        row |= {"val_recall": value, "val_image_to_text_recall1": to_text.recall[1]}
        row |= {"val_text_to_image_recall1": to_image.recall[1], "temperature": 1 / model.logit_scale.exp().item()}
        row["seconds"] = round(time.perf_counter() - started, 2)
        if rank == 0:
            content = {**recorded, "epoch": epoch, "val_recall": value}
            content["state_dict"] = full_state(model, ema.module.state_dict())
            state = {**training_state(**parts, epoch=epoch, step=step), "row": row, "flags": binding_flags(config)}
            write_best_and_last(checkpoints, run, content, is_best=is_best, training=state)
        log.epoch(row)  # after the checkpoint: a run that is continued has the lines of its epochs, once
        log.say(
            f"epoch {epoch}/{config.epochs}  infonce {row['loss_infonce']:.3f}  val recall {100 * value:.1f} "
            f"R@1 to text {100 * to_text.recall[1]:.1f} to image {100 * to_image.recall[1]:.1f}  "
            f"{row['seconds']:.1f} s{'  BEST' if is_best else ''}"
        )
        if best.should_stop(epoch):
            log.say(f"no better val recall for {config.patience} epochs: stopped early")
            break
    if rank == 0 and step:
        training_curves_figure(log.folder / "training_curves.png", log.epochs(), title=run, best_by="val_recall")
    if model.text_encoder.digest() != text_digest:
        raise RuntimeError("the text encoder has changed: it must stay as it was loaded")
    log.say(f"text encoder unchanged, bit for bit: sha256 {text_digest[:16]} before and after")
    log.say(f"BEST: epoch {best.epoch}, val recall {100 * best.value:.1f}: {display(checkpoints / f'{run}_BEST.pth')}")
    log.close()


if __name__ == "__main__":
    run_script(main, Config, __doc__)
