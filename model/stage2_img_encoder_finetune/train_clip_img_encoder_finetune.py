"""Stage 2: fine-tune CLIP's image encoder for identity retrieval; the text encoder is frozen, and used.

    python model/stage2_img_encoder_finetune/train_clip_img_encoder_finetune.py
    python model/stage2_img_encoder_finetune/train_clip_img_encoder_finetune.py --dataset inshop --model ViT-B/16 \\
        --loss triplet+center+id+i2t --p 16 --k 4 --epochs 20

Each batch holds P identities with K photos each. The prompts of the train identities go through the frozen text
encoder once; their features are the classes of the image-to-text term. BEST is chosen by mAP on the val identities.

Reads:   metadata/<dataset>/ (scripts 00 to 04)
Writes:  checkpoints/<run>_BEST.pth, checkpoints/<run>_LAST.pth, logs/<run>/ beside this script,
         with <run> = clip_img_encoder_YYYYMMDD_HHMMSS
"""

import contextlib
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
from dataset import class_text_features, make_batches
from loss import WEIGHTS, ImageEncoderLoss, parse_terms
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import tqdm

from clipfh.core.cli import image_size, option, run_script
from clipfh.core.files import require_file, writable_folder
from clipfh.core.freed_memory import keep_freed_memory
from clipfh.core.paths import TINY_MODELS, display, stage_dir
from clipfh.core.run import RunLog, autocast, new_run_folder, pick_device, rank_and_world_size, seed_everything
from clipfh.images.augment import Augmentation
from clipfh.images.transforms import RESIZE_MODES
from clipfh.models.averaged_weights import AveragedWeights
from clipfh.models.checkpoint import read_stage_checkpoint, require_training_state, write_best_and_last
from clipfh.models.clip import (
    LoadedClip,
    canonical_model_name,
    clamp_logit_scale,
    freeze_text_encoder,
    load_clip,
    shown_size,
)
from clipfh.reports.figures import training_curves_figure
from clipfh.tables.digest import require_unseen, seen_with
from clipfh.tables.prepared import (
    DEFAULT_DATASET,
    TOKEN_SAFE_PROMPTS,
    load_prepared,
    load_prompts,
    prepare_default,
    say_cut_prompts,
)
from clipfh.training.data import TrainPhotos, load_training_data, made_ahead, validate
from clipfh.training.sampler import PKSampler
from clipfh.training.schedule import cosine_with_warmup
from clipfh.training.state import (
    BestSoFar,
    binding_flags,
    clipped_step,
    decay_groups,
    epoch_line,
    require_finite,
    require_same_flags,
    restore_training_state,
    training_state,
)

STAGE = 2


@dataclass(frozen=True)
class Config:
    """The command line."""

    dataset: str | None = option(
        None, "name of the prepared dataset, a folder under metadata/ (default: as --metadata_dir says, else synthetic)"
    )
    metadata_dir: Path | None = option(
        None, "metadata folder (default: metadata/<dataset>)", aliases=("--metadata", "--meta_dir")
    )
    image_dir: Path | None = option(None, "image root (default: the one that dataset.json records)")
    image_meta: Path | None = option(None, "table of images (default: image_paths_clean.json of the metadata folder)")
    prompt_json: Path | None = option(None, f"prompts (default: {TOKEN_SAFE_PROMPTS} of the metadata folder)")
    model: str = option("tiny-rn", "CLIP architecture, such as ViT-B/16", aliases=("--model_arch",))
    pretrained: str | None = option(
        None, "open_clip tag or weights file (default: openai; for the tiny models stage 0's newest checkpoint)"
    )
    image_size: int | tuple[int, int] | None = option(
        None,
        "input size in pixels, 224 or height x width as 256x128 (default: the architecture's own)",
        parse=image_size,
    )
    resize_mode: str | None = option(
        None,
        "how a photo fills it: shortest side and crop, squash, or pad (default: as the dataset's protocol, else the "
        "weights say)",
        choices=RESIZE_MODES,
    )
    loss: str = option("triplet+center+id+i2t", f"sum of {', '.join(WEIGHTS)}")
    p: int = option(16, "identities a batch", at_least=1)
    k: int = option(4, "photos of each identity", at_least=1)
    epochs: int = option(20, "passes over the train photos", at_least=1)
    lr: float | None = option(None, "peak learning rate (default: 1e-3 for the tiny models, else 1e-5)", above=0)
    center_lr: float = option(0.5, "rate at which a center follows its photos, alpha of Wen et al.", above=0, at_most=1)
    weight_decay: float = option(0.05, "AdamW's, on matrices only", at_least=0)
    warmup_fraction: float = option(0.1, "share of the steps in which the learning rate rises", at_least=0, at_most=1)
    clip_grad: float = option(1.0, "largest gradient norm", above=0)
    accumulate: int = option(1, "batches whose gradients are added up before a step", at_least=1)
    ema_decay: float = option(
        0.99, "of the moving average of the weights that is validated and saved; 0: none", at_least=0, at_most=0.9999
    )
    patience: int = option(0, "stop after so many epochs without a better val mAP; 0: never", at_least=0)
    min_crop: float = option(
        0.4, "smallest share of a photo's area that a random crop keeps; 1: no crops", above=0, at_most=1
    )
    color_jitter: float = option(
        0.2, "largest relative change of brightness, contrast and saturation", at_least=0, at_most=1
    )
    flip: float = option(
        0.5, "probability of a mirror image; 0 where left and right tell identities apart", at_least=0, at_most=1
    )
    erase: float = option(0.0, "probability of a blanked rectangle", at_least=0, at_most=1)
    fast_decode: bool = option(False, "decode JPEGs at reduced size: faster, differs by under 1 grey level on average")
    precision: str = option("auto", "auto: bfloat16 where it is fast", choices=("auto", "float32", "bfloat16"))
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    seed: int = option(0, "of everything that is drawn at random", at_least=0)
    save_path: Path | None = option(None, "folder of the checkpoints (default: checkpoints/ beside this script)")
    log_dir: Path | None = option(None, "folder of the logs (default: logs/ beside this script)")
    resume_ckpt: Path | None = option(None, "a _LAST checkpoint: continue that run")
    exclude_same_camera: bool | None = option(
        None, "leave a val query's own camera out of its gallery (default: as the dataset's protocol says)"
    )
    final_fit: bool = option(
        False, "train on train and val identities; nothing is validated, and the last epoch is BEST: for final figures"
    )
    unrelated_ids: bool = option(
        False, "item ids equal to ones that the first weights were trained on in another dataset stand for other things"
    )
    skip_unreadable: bool = option(False, "go on without images that cannot be read")
    smoke: bool = option(False, "one epoch with small batches: does every step work?")


def complete(config: Config) -> Config:
    """Fill the learning rate that suits the model, and shrink a smoke run."""
    if config.lr is None:
        config = replace(config, lr=1e-3 if canonical_model_name(config.model) in TINY_MODELS else 1e-5)
    return replace(config, p=4, k=2, epochs=1) if config.smoke else config


@dataclass(frozen=True)
class Training:
    """What one epoch works with; `main` makes it."""

    config: Config
    clip: LoadedClip
    photos: TrainPhotos
    sampler: PKSampler
    objective: ImageEncoderLoss
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: AveragedWeights
    log: RunLog
    rank: int = 0


def train_one_epoch(training: Training, epoch: int, step: int) -> tuple[dict[str, float], int]:
    """One pass; returns the mean of each loss term and the number of steps taken so far."""
    config, clip, photos, device = training.config, training.clip, training.photos, training.photos.device
    clip.model.train()
    sums, count = {}, len(training.sampler)
    batches = make_batches(photos, training.sampler, config.seed, training.rank, epoch)
    bar = tqdm(total=count, desc=f"epoch {epoch}", unit="batch", disable=None, leave=False)
    with contextlib.closing(made_ahead(batches, device)) as ready, bar:
        for number, batch in enumerate(ready, start=1):
            with autocast(device, config.precision):
                features = clip.model.encode_image(batch.images)  # (P*K, D)
            terms = training.objective(features, batch.labels, clip.model.logit_scale.exp())
            loss = sum(terms.values())
            (loss / config.accumulate).backward()
            require_finite(terms, epoch=epoch, batch=number, images=[photos.images[i] for i in batch.indices])
            training.objective.update_centers(features, batch.labels, config.center_lr)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach()
            bar.update()
            if number % config.accumulate and number < count:
                continue
            grad_norm = clipped_step(training.optimizer, config.clip_grad)
            training.optimizer.zero_grad(set_to_none=True)
            clamp_logit_scale(clip.model)
            values = {"loss": loss, "grad_norm": grad_norm, "lr": training.scheduler.get_last_lr()[0]}
            training.log.step(step, values)
            training.ema.update_parameters(clip.model, now=number == count)
            training.scheduler.step()
            step += 1
    return {name: total.item() / count for name, total in sums.items()}, step


def main(config: Config) -> None:
    """Load, train, keep the best."""
    config = complete(config)
    rank, world_size = rank_and_world_size()
    seed_everything(config.seed, rank)
    keep_freed_memory()
    device = pick_device(config.device)
    if config.resume_ckpt:
        require_file(config.resume_ckpt, "--resume_ckpt")
    terms = parse_terms(config.loss, config.p, config.k)
    apart = "smoke" if config.smoke else ""  # so that a smoke run is never taken for the newest BEST
    checkpoints = writable_folder(config.save_path or stage_dir(STAGE) / "checkpoints" / apart, "--save_path")
    logs = writable_folder(config.log_dir or stage_dir(STAGE) / "logs" / apart, "--log_dir")

    # ---- data: train photos, val photos, prompts
    if config.dataset in (None, DEFAULT_DATASET) and config.metadata_dir is None:
        prepare_default(config.model, config.pretrained)
    data = load_prepared(
        config.dataset,
        folder=config.metadata_dir,
        image_dir=config.image_dir,
        image_meta=config.image_meta,
        exclude_same_camera=config.exclude_same_camera,
        default_meta="image_paths_clean.json",
    )
    splits = ("train", "val") if config.final_fit else ("train",)
    prompts = load_prompts(data, config.prompt_json, TOKEN_SAFE_PROMPTS, *splits)
    start = str(config.resume_ckpt) if config.resume_ckpt else config.pretrained  # a checkpoint knows its image size
    clip = load_clip(
        config.model,
        start,
        image_size=config.image_size,
        resize_mode=config.resize_mode or data.resize_mode,
        device=device,
    )
    say_cut_prompts(prompts, clip.tokenizer, clip.name)
    require_unseen(
        clip.seen_identities,
        data.digest,
        data.table,
        weights=clip.pretrained,
        name=data.name,
        unrelated_ids=config.unrelated_ids,
    )
    pictures = load_training_data(
        data,
        clip,
        stage=STAGE,
        seed=config.seed,
        skip_unreadable=config.skip_unreadable,
        fast_decode=config.fast_decode,
        final_fit=config.final_fit,
    )
    augmentation = Augmentation(
        min_area=config.min_crop, color=config.color_jitter, flip=config.flip, erase=config.erase
    )
    photos = TrainPhotos(pictures.train_table, pictures.pixels, augmentation, clip, device)
    sampler = PKSampler(photos.labels, config.p, config.k, config.seed, rank, world_size)

    # ---- model: image encoder trained, text encoder frozen and its prompt features computed once
    freeze_text_encoder(clip.model)
    features, same_text = class_text_features(clip, [prompts[item_id] for item_id in photos.item_ids], device)
    objective = ImageEncoderLoss(terms, features, same_text).to(device)

    # ---- optimisation: AdamW, cosine with warm-up by step; the centers follow by themselves
    groups = decay_groups(clip.model, config.lr, config.weight_decay)
    if objective.classifier is not None:
        groups += decay_groups(objective.classifier, config.lr, config.weight_decay)
    optimizer = AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
    total_steps = config.epochs * -(-len(sampler) // config.accumulate)
    factor = partial(
        cosine_with_warmup, total_steps=total_steps, warmup_steps=int(config.warmup_fraction * total_steps)
    )
    scheduler = LambdaLR(optimizer, factor)
    ema = AveragedWeights(clip.model, config.ema_decay)
    best = BestSoFar(0 if config.final_fit else config.patience)

    # ---- run: its name, the run to resume, the log
    parts = {"modules": {"clip": clip.model, "objective": objective, "ema": ema}, "optimizers": {"model": optimizer}}
    averaged = replace(clip, model=ema.module)  # what is validated and saved
    parts |= {"scheduler": scheduler, "sampler": sampler, "best": best}
    recorded = {**clip.architecture(), "stage": STAGE, "variant": config.loss}
    recorded |= {"dataset": data.name, "data_digest": data.digest}
    recorded["seen_identities"] = seen_with(clip.seen_identities, data.digest, data.table)
    first_epoch, step, last_row = 1, 0, None
    if config.resume_ckpt:
        content = read_stage_checkpoint(config.resume_ckpt, STAGE)
        state = require_training_state(content, config.resume_ckpt, clip.name, data.digest)
        require_same_flags(state["flags"], config)
        last_epoch, step = restore_training_state(state, **parts)
        first_epoch, last_row = last_epoch + 1, state.get("row")
        folder = logs / config.resume_ckpt.stem.removesuffix("_LAST")
    else:
        folder = new_run_folder(logs, "clip_img_encoder", "--log_dir", checkpoints=checkpoints)
    run = folder.name
    # after the checks: a refused resume leaves that run's files alone
    log = RunLog(folder, config, rank=rank, last_row=last_row)
    log.say(
        f"{run}: {clip.name} ({clip.pretrained}, {shown_size(clip)}) on {data.name}, "
        f"{len(photos.labels):,} photos of "
        f"{len(photos.item_ids):,} identities, {len(sampler)} batches of {config.p} x {config.k}, loss {config.loss}, "
        f"lr {config.lr:g}, {device}"
    )
    if sampler.num_resampled_identities:
        log.say(f"{sampler.num_resampled_identities} identities have fewer than {config.k} photos: drawn repeatedly")

    if "i2t" in terms and len(objective.text_features) == 1:
        log.say("all identities have the same prompt: the term i2t teaches nothing here")

    # ---- training
    training = Training(config, clip, photos, sampler, objective, optimizer, scheduler, ema, log, rank)
    if first_epoch == 1 and not config.final_fit:  # where it starts from
        val = validate(averaged, pictures, device)
        log.say(f"before training  val mAP {100 * val.mAP:.1f} Rank-1 {100 * val.rank1:.1f}")
    for epoch in range(first_epoch, config.epochs + 1):
        started = time.perf_counter()
        sampler.set_epoch(epoch)
        lr_now = scheduler.get_last_lr()[0]
        losses, step = train_one_epoch(training, epoch, step)
        val = None if config.final_fit else validate(averaged, pictures, device)
        is_best = best.update(val.mAP, epoch) if val else epoch == config.epochs
        row = {"epoch": epoch, **{f"loss_{name}": value for name, value in losses.items()}, "lr": lr_now}
        row |= {"val_mAP": val.mAP, "val_rank1": val.rank1} if val else {}
        row["seconds"] = round(time.perf_counter() - started, 2)
        if rank == 0:
            content = {**recorded, "epoch": epoch, "state_dict": averaged.model.state_dict()}
            content |= {"val_mAP": val.mAP} if val else {}
            state = {**training_state(**parts, epoch=epoch, step=step), "row": row, "flags": binding_flags(config)}
            write_best_and_last(checkpoints, run, content, is_best=is_best, training=state)
        log.epoch(row)  # after the checkpoint: a run that is continued has the lines of its epochs, once
        log.say(epoch_line(row, config.epochs, is_best=is_best))
        if best.should_stop(epoch):
            log.say(f"no better val mAP for {config.patience} epochs: stopped early")
            break
    if rank == 0 and step:
        training_curves_figure(log.folder / "training_curves.png", log.epochs(), title=run)
    chosen = "the last epoch" if config.final_fit else f"epoch {best.epoch}, val mAP {100 * best.value:.1f}"
    log.say(f"BEST: {chosen}: {display(checkpoints / f'{run}_BEST.pth')}")
    log.close()


if __name__ == "__main__":
    run_script(main, Config, __doc__)
