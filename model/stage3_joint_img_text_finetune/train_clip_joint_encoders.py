"""Stage 3: fine-tune both encoders of CLIP together, images and prompts of one identity drawn to each other.

    python model/stage3_joint_img_text_finetune/train_clip_joint_encoders.py
    python model/stage3_joint_img_text_finetune/train_clip_joint_encoders.py --dataset inshop --model ViT-B/16 \\
        --init_ckpt stage2 --p 16 --k 4 --epochs 20

Four variants, from the naive one to the one to use (presets.py says what each changes):
    v1  InfoNCE on random batches with raw prompts
    v2  SupCon on P x K batches with filtered prompts
    v3  v2 continued from its BEST with a higher learning rate
    v4  SupCon on P x K batches, token-safe prompts, warm-up then cosine, early stopping (default)

BEST is chosen by mAP on the val identities.

Reads:   metadata/<dataset>/ (scripts 00 to 04)
Writes:  checkpoints/<run>_BEST.pth, checkpoints/<run>_LAST.pth, logs/<run>/ beside this script,
         with <run> = clip_joint_YYYYMMDD_HHMMSS
"""

import contextlib
import sys
import time
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import torch
from dataset import Batch, TrainPairs
from loss import TERMS, JointLoss, parse_terms
from presets import PRESETS, preset
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import tqdm

from clipfh.core.cli import image_size, option, run_script
from clipfh.core.errors import InputError
from clipfh.core.files import require_file, writable_folder
from clipfh.core.freed_memory import keep_freed_memory
from clipfh.core.paths import TINY_MODELS, display, stage_dir
from clipfh.core.run import RunLog, autocast, new_run_folder, pick_device, rank_and_world_size, seed_everything
from clipfh.images.augment import Augmentation
from clipfh.images.transforms import RESIZE_MODES
from clipfh.models.averaged_weights import AveragedWeights
from clipfh.models.checkpoint import (
    newest_checkpoint,
    read_stage_checkpoint,
    require_training_state,
    write_best_and_last,
)
from clipfh.models.clip import LoadedClip, canonical_model_name, clamp_logit_scale, encode_texts, load_clip, shown_size
from clipfh.models.gradient_cache import Tower, cached_backward
from clipfh.reports.figures import training_curves_figure
from clipfh.tables.digest import require_unseen, seen_with
from clipfh.tables.prepared import (
    CLEAN_PROMPTS,
    DEFAULT_DATASET,
    RAW_PROMPTS,
    TOKEN_SAFE_PROMPTS,
    load_prepared,
    load_prompts,
    prepare_default,
    say_cut_prompts,
)
from clipfh.training.data import TrainPhotos, load_training_data, made_ahead, validate
from clipfh.training.sampler import PKSampler, RandomBatchSampler
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

STAGE = 3
PROMPT_FILES = {"raw": RAW_PROMPTS, "filtered": CLEAN_PROMPTS, "token_safe": TOKEN_SAFE_PROMPTS}
SOURCES = ("stage2", "v1", "v2", "v3", "v4")  # words that --init_ckpt takes for "the newest BEST of"


@dataclass(frozen=True)
class Config:
    """The command line. A flag without a default has the variant's value."""

    variant: str = option("v4", "preset, see above", choices=tuple(PRESETS))
    dataset: str | None = option(
        None, "name of the prepared dataset, a folder under metadata/ (default: as --metadata_dir says, else synthetic)"
    )
    metadata_dir: Path | None = option(
        None, "metadata folder (default: metadata/<dataset>)", aliases=("--metadata", "--meta_dir")
    )
    image_dir: Path | None = option(None, "image root (default: the one that dataset.json records)")
    image_meta: Path | None = option(None, "table of images (default: image_paths_clean.json of the metadata folder)")
    prompt_json: Path | None = option(None, "prompts (default: the file that --prompts stands for)")
    prompts: str | None = option(None, "which prompts of the metadata folder", choices=tuple(PROMPT_FILES))
    model: str = option("tiny-rn", "CLIP architecture, such as ViT-B/16", aliases=("--model_arch",))
    pretrained: str | None = option(
        None, "open_clip tag or weights file (default: openai; for the tiny models stage 0's newest checkpoint)"
    )
    init_ckpt: str | None = option(
        None, f"start from this checkpoint, or from the newest BEST of {', '.join(SOURCES)} on the dataset"
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
    loss: str | None = option(None, f"sum of {', '.join(TERMS)}")
    batches: str | None = option(None, "pk: P identities x K photos; random: P*K photos", choices=("pk", "random"))
    temperature: float | None = option(None, "first value of the learned temperature", above=0)
    p: int = option(16, "identities a batch", at_least=1)
    k: int = option(2, "photos of each identity", at_least=1)
    epochs: int = option(50, "passes over the train photos", at_least=1)
    lr: float | None = option(
        None, "peak learning rate (default: 5e-4 for the tiny models, else 5e-6; v3: 3 times that)", above=0
    )
    weight_decay: float = option(0.05, "AdamW's, on matrices only", at_least=0)
    schedule: str | None = option(None, "of the learning rate, by step", choices=("constant", "cosine"))
    warmup_fraction: float = option(
        0.1, "cosine: share of the steps in which the learning rate rises", at_least=0, at_most=1
    )
    clip_grad: float = option(1.0, "largest gradient norm", above=0)
    accumulate: int = option(1, "batches whose gradients are added up before a step", at_least=1)
    grad_cache_chunk: int = option(
        0,
        "photos that go through the encoder at once, for batches larger than memory, with the gradients of the whole "
        "batch (batch norm, as in tiny-rn, normalises by the chunk); 0: all",
        at_least=0,
    )
    ema_decay: float = option(
        0.99, "of the moving average of the weights that is validated and saved; 0: none", at_least=0, at_most=0.9999
    )
    patience: int | None = option(None, "stop after so many epochs without a better val mAP; 0: never", at_least=0)
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
    """Fill the flags that were not given with the variant's values."""
    values = preset(config.variant)
    base_lr = 5e-4 if canonical_model_name(config.model) in TINY_MODELS else 5e-6
    values["lr"] = base_lr * values.pop("lr_factor")
    names = {field.name for field in fields(config)}
    config = replace(config, **{n: v for n, v in values.items() if n in names and getattr(config, n) is None})
    return replace(config, p=4, k=2, epochs=1) if config.smoke else config


def initial_weights(config: Config, dataset: str, data_digest: str | None = None) -> str | None:
    """The weights to start from: the run to resume, `--init_ckpt` (of this dataset), else `--pretrained`."""
    if config.resume_ckpt:
        return str(config.resume_ckpt)  # it knows its image size
    if not config.init_ckpt:
        return config.pretrained
    if config.init_ckpt not in SOURCES:
        if not Path(config.init_ckpt).is_file():
            raise InputError(f"--init_ckpt {config.init_ckpt} is neither a file nor one of {', '.join(SOURCES)}")
        return config.init_ckpt
    if config.init_ckpt == "stage2":
        stage, script, wanted = 2, "train_clip_img_encoder_finetune.py", {}
    else:
        stage, script, wanted = 3, f"train_clip_joint_encoders_{config.init_ckpt}.py", {"variant": config.init_ckpt}
    command = f"python {display(stage_dir(stage) / script)} --dataset {dataset}"
    wanted["dataset"] = dataset
    return str(newest_checkpoint(stage, "*_BEST.pth", made_by=command, data_digest=data_digest, **wanted))


@dataclass(frozen=True)
class Training:
    """What one epoch works with; `main` makes it."""

    config: Config
    clip: LoadedClip
    pairs: TrainPairs
    sampler: PKSampler | RandomBatchSampler
    objective: JointLoss
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: AveragedWeights
    log: RunLog
    rank: int = 0


def add_gradients(training: Training, batch: Batch) -> dict[str, torch.Tensor]:
    """Forward and backward of one batch, at once or, with `--grad_cache_chunk`, chunk by chunk: each loss term."""
    config, model, device = training.config, training.clip.model, training.pairs.photos.device
    terms: dict[str, torch.Tensor] = {}

    def encode_image(images: torch.Tensor) -> torch.Tensor:  # (n, 3, S, S) to (n, D)
        with autocast(device, config.precision):
            return model.encode_image(images)

    def encode_text(tokens: torch.Tensor) -> torch.Tensor:  # (n, L) to (n, D)
        with autocast(device, config.precision):
            return model.encode_text(tokens)

    def loss_of(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:  # (B, D), (U, D)
        labels = batch.image_labels, batch.text_labels, batch.prompt_of_image, batch.image_groups, batch.own_prompts
        texts = text_features[batch.token_row]  # (T, D)
        terms.update(training.objective(image_features, texts, *labels, model.logit_scale.exp()))
        return sum(terms.values()) / config.accumulate

    size = config.grad_cache_chunk
    if size == 0:
        loss_of(encode_image(batch.images), encode_text(batch.tokens)).backward()
    else:
        images = Tower(encode_image, lambda: made_ahead(training.pairs.image_chunks(batch, size), device))
        texts = Tower(encode_text, lambda: batch.tokens.split(size))
        cached_backward([images, texts], loss_of, modules=[model], device=device)
    return {name: value.detach() for name, value in terms.items()}


def train_one_epoch(training: Training, epoch: int, step: int) -> tuple[dict[str, float], int]:
    """One pass; returns the mean of each loss term and the number of steps taken so far."""
    config, model, pairs, optimizer = training.config, training.clip.model, training.pairs, training.optimizer
    device = pairs.photos.device
    model.train()
    sums, count = {}, len(training.sampler)
    place = (config.seed, training.rank, epoch)
    batches = pairs.batches(training.sampler, *place, with_images=not config.grad_cache_chunk)
    bar = tqdm(total=count, desc=f"epoch {epoch}", unit="batch", disable=None, leave=False)
    with contextlib.closing(made_ahead(batches, device)) as ready, bar:
        for number, batch in enumerate(ready, start=1):
            terms = add_gradients(training, batch)
            require_finite(terms, epoch=epoch, batch=number, images=[pairs.photos.images[i] for i in batch.indices])
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
            bar.update()
            if number % config.accumulate and number < count:
                continue
            values = {"logit_scale": model.logit_scale.detach().exp()}  # of this batch: before the step
            grad_norm = clipped_step(optimizer, config.clip_grad)
            optimizer.zero_grad(set_to_none=True)
            clamp_logit_scale(model)
            values |= {"loss": sum(terms.values()), "grad_norm": grad_norm, "lr": training.scheduler.get_last_lr()[0]}
            training.log.step(step, values)
            training.ema.update_parameters(model, now=number == count)
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
    terms = parse_terms(config.loss)
    if config.p * config.k < 2:
        raise InputError("a contrastive loss needs at least two photos a batch; raise --p or --k")
    apart = "smoke" if config.smoke else ""  # so that a smoke run is never taken for the newest BEST
    checkpoints = writable_folder(config.save_path or stage_dir(STAGE) / "checkpoints" / apart, "--save_path")
    logs = writable_folder(config.log_dir or stage_dir(STAGE) / "logs" / apart, "--log_dir")

    # ---- data: train photos with prompts, val photos
    if config.dataset in (None, DEFAULT_DATASET) and config.metadata_dir is None:
        prepare_default(config.model, initial_weights(config, DEFAULT_DATASET))
    data = load_prepared(
        config.dataset,
        folder=config.metadata_dir,
        image_dir=config.image_dir,
        image_meta=config.image_meta,
        exclude_same_camera=config.exclude_same_camera,
        default_meta="image_paths_clean.json",
    )
    splits = ("train", "val") if config.final_fit else ("train",)
    prompts = load_prompts(data, config.prompt_json, PROMPT_FILES[config.prompts], *splits)
    clip = load_clip(
        config.model,
        initial_weights(config, data.name, data.digest),
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
    pairs = TrainPairs(photos, prompts, clip)
    if config.batches == "pk":
        sampler = PKSampler(photos.labels, config.p, config.k, config.seed, rank, world_size)
    else:
        sampler = RandomBatchSampler(len(photos.labels), config.p * config.k, config.seed, rank, world_size)

    # ---- optimisation: AdamW for both encoders, by step
    if config.temperature:
        clip.model.logit_scale.data.fill_(torch.tensor(1 / config.temperature).log())
    embed_dim = encode_texts(clip, ["a photo"], device).shape[1]
    objective = JointLoss(terms, embed_dim, len(photos.item_ids)).to(device)
    groups = decay_groups(clip.model, config.lr, config.weight_decay)
    groups += decay_groups(objective, config.lr, config.weight_decay)
    optimizer = AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
    total_steps = config.epochs * -(-len(sampler) // config.accumulate)
    warmup_steps = int(config.warmup_fraction * total_steps)
    factor = partial(cosine_with_warmup, total_steps=total_steps, warmup_steps=warmup_steps)
    scheduler = LambdaLR(optimizer, factor if config.schedule == "cosine" else lambda step: 1.0)
    ema = AveragedWeights(clip.model, config.ema_decay)
    best = BestSoFar(0 if config.final_fit else config.patience)

    # ---- run: its name, the run to resume, the log
    parts = {"modules": {"clip": clip.model, "objective": objective, "ema": ema}, "optimizers": {"model": optimizer}}
    averaged = replace(clip, model=ema.module)  # what is validated and saved
    parts |= {"scheduler": scheduler, "sampler": sampler, "best": best}
    recorded = {**clip.architecture(), "stage": STAGE, "variant": config.variant}
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
        folder = new_run_folder(logs, "clip_joint", "--log_dir", checkpoints=checkpoints)
    run = folder.name
    # after the checks: a refused resume leaves that run's files alone
    log = RunLog(folder, config, rank=rank, last_row=last_row)
    log.say(
        f"{run}: {config.variant}, {clip.name} ({clip.pretrained}, {shown_size(clip)}) on {data.name}, "
        f"{len(photos.labels):,} photos of "
        f"{len(photos.item_ids):,} identities, {len(sampler)} batches of {config.p} x {config.k} ({config.batches}), "
        f"loss {config.loss}, {config.prompts} prompts, lr {config.lr:g} {config.schedule}, {device}"
    )
    if config.batches == "pk" and sampler.num_resampled_identities:
        log.say(f"{sampler.num_resampled_identities} identities have fewer than {config.k} photos: drawn repeatedly")
    if config.batches == "random" and sampler.num_left_out:
        log.say(f"{sampler.num_left_out} photos do not fill a batch: other ones are left out of each epoch")
    if told := pairs.say_what_prompts_tell_apart():
        log.say(told)
    if config.grad_cache_chunk and any(isinstance(module, nn.BatchNorm2d) for module in clip.model.modules()):
        log.say(f"{clip.name} normalises by the batch: with --grad_cache_chunk, by {config.grad_cache_chunk} photos")
    # ---- training
    training = Training(config, clip, pairs, sampler, objective, optimizer, scheduler, ema, log, rank)
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
        row["logit_scale"] = clip.model.logit_scale.exp().item()
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
