"""Stage 4: teach an image encoder to land in the space of a text encoder that never moves.

    python model/stage4_frozen_text_alignment/train_frozen_text_alignment.py
    python model/stage4_frozen_text_alignment/train_frozen_text_alignment.py --dataset coco --data_root DIR

Symmetric InfoNCE between images and captions. Of each image one caption is drawn at random in every step; what else is
true of it is never its negative. The features of all captions are computed once. BEST is chosen by the mean recall on
val. A linear head on the frozen backbone, from the same weights, is trained beside it as the baseline.

Values are read from config/default.yaml, then small.yaml (beside a tiny CLIP, or without a GPU), tiny.yaml (beside a
tiny CLIP), small_clip.yaml (beside small-clip), from_random.yaml (from random weights), then from the files of
--config; flags win.

Reads:   the raw captions, or metadata/<name>/ where prepare_captions.py was run; weights
Writes:  checkpoints/<run>_BEST.pth, _LAST.pth and _LINEAR.pth (the baseline), logs/<run>/ beside this script; of a
         CLIP's own image encoder (--image_encoder clip) also _CLIP.pth, which stages 1 to 3 start from;
         with <run> = clip_frozen_text_YYYYMMDD_HHMMSS
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import project_environment  # noqa: F401  (finds the project's .venv when started with another Python)

# isort: split
import torch
from dataset import Batch, CaptionedPixels, encode_pixels, make_batches, prepare, smaller
from linear_baseline import full_state, mean_recall, train_baseline, val_recall
from loss import caption_info_nce_loss, is_caption_of
from own_encoder import require_head, save_as_clip
from settings import Config, eval_size, recipe, text_model
from torch import Tensor, nn

from clipfh.captions.table import CaptionDataset, captions_digest
from clipfh.core.cli import run_script
from clipfh.core.config_file import parse_with_files
from clipfh.core.errors import InputError
from clipfh.core.paths import display
from clipfh.core.processes import by_first, first_alone, gather_rows
from clipfh.core.run import autocast
from clipfh.models.checkpoint import read_stage_checkpoint
from clipfh.models.clip import require_any_size
from clipfh.models.frozen_text_clip import CLIP, OWN, CLIPImageEncoder, create_clip_model
from clipfh.models.image_layers import hold_image_layers, require_shared_statistics
from clipfh.prompts.tokens import token_counter
from clipfh.tables.prepared import prepare_weights
from clipfh.training.identities import augmentation
from clipfh.training.loop import Loop
from clipfh.training.runs import TrainingRun, prepare_run, start_run
from clipfh.training.sampler import RandomBatchSampler
from clipfh.training.settings import shrunk
from clipfh.training.state import Validation, decay_groups

STAGE = 4


def make_step(config: Config, model: CLIP) -> Callable[[Batch], dict[str, Tensor]]:
    """The step on one batch: forward, InfoNCE with the drawn captions, backward."""

    def step(batch: Batch) -> dict[str, Tensor]:
        with autocast(batch.images.device, config.run.precision):
            own_features = model.encode_image(batch.images)  # of this process's rows
        image_features = gather_rows(own_features, len(batch.indices))  # (B, D)
        is_caption = is_caption_of(batch.captions, batch.texts)
        loss = caption_info_nce_loss(image_features, batch.text_features, model.logit_scale.exp(), is_caption)
        (loss / config.optimisation.accumulate).backward()
        return {"infonce": loss.detach()}

    return step


def validate(encoder: nn.Module, val: CaptionedPixels, train: CaptionedPixels, device: torch.device) -> Validation:
    """Recall on val, of its images for captions, with those of train in the way, and its captions for images."""
    both_ways = by_first(val_recall, encode_pixels(encoder, val, device), val, train)
    value, (to_text, to_image) = mean_recall(both_ways), (figures.recall[1] for figures in both_ways)
    figures = {
        "val_recall": value,
        "val_image_to_text_recall1": to_text,
        "val_text_to_image_recall1": to_image,
    }
    text = f"val recall {100 * value:.1f} R@1 to text {100 * to_text:.1f} to image {100 * to_image:.1f}"
    return Validation(figures, text)


def main(config: Config) -> None:
    """Data, model, objective, the baseline, the loop."""
    if config.run.smoke:
        config = shrunk(config, source=smaller(config.source), batch_size=16)
    config = replace(config, model=text_model(config.source.dataset, config.model))  # what is recorded of the run
    place = prepare_run(config.run, STAGE)

    # ---- model: an image encoder that learns, a text encoder that does not; a run to continue brings its own weights
    with first_alone():
        data = prepare(config.source)
        prepare_weights(config.model, config.pretrained)
        encoder = replace(config.encoder, image_weights="random") if config.run.resume_ckpt else config.encoder
        model = create_clip_model(
            place.device,
            text_model=config.model,
            text_weights=config.pretrained,
            temperature=config.temperature,
            **{**asdict(encoder), "image_size": eval_size(config)},
        )
    image, view_size = model.image_encoder, config.encoder.image_size or model.image_encoder.image_size
    if view_size != image.image_size:
        require_any_size(image, view_size, encoder.image_encoder)
    require_head(config, image)
    hold(config, image)
    text_digest = model.text_encoder.digest()

    # ---- data: decoded images, and the frozen features of their captions
    with first_alone():
        train, val = (CaptionedPixels(data, split, image.image_size, model, text_digest) for split in ("train", "val"))
    if len(train.images) < 2:
        raise InputError(f"{data.name} has {len(train.images)} train image; a caption needs others to differ from")
    sampler = RandomBatchSampler(len(train.images), config.batch_size, place.seed)

    def batches(epoch: int) -> Iterator[Batch]:
        hold(config, image, epoch)
        where = (place.seed, epoch)
        views = augmentation(config.views)
        return make_batches(
            train, sampler, views, place.device, *where, further=config.further_captions, size=view_size
        )

    # ---- optimisation: two learning rates; the temperature goes with the head
    decay = config.optimisation.weight_decay
    groups = decay_groups(image.backbone, config.backbone_lr, decay, name="backbone")
    groups += decay_groups(image.head, config.head_lr, decay, name="head")
    groups.append({"params": [model.logit_scale], "lr": config.head_lr, "weight_decay": 0.0, "name": "head"})
    modules = {"image_encoder": image, "temperature": nn.ParameterList([model.logit_scale])}
    names = [captioned.image for captioned in train.images]
    loop = Loop(model, groups, modules, sampler, names, config.optimisation, averaged=image, chosen_by="val_recall")

    model.train()
    hold(config, image)
    require_shared_statistics(model)  # of all epochs, before the first minutes are spent

    # ---- the run: the baseline before anything moves, then the loop
    recorded = record(config, model, text_digest, data)
    run = start_run(place, config, recorded, prefix="clip_frozen_text", restore=loop.load_state)
    say_what_trains(run, config, model, train, len(sampler))
    if loop.epoch == 0 and config.baseline:
        train_baseline(config, model, train, val, run)
    average = loop.average.module
    validation = partial(validate, average, val, train, place.device)
    loop.fit(run, batches, make_step(config, model), validation, lambda: full_state(model, average.state_dict()))
    if model.text_encoder.digest() != text_digest:
        raise RuntimeError("the text encoder has changed: it must stay as it was loaded")
    run.log.say(f"text encoder unchanged, bit for bit: sha256 {text_digest[:16]} before and after")
    if config.encoder.image_encoder == OWN:
        path = by_first(save_as_clip, run.best, model)
        run.log.say(f"the same as a CLIP for stages 1 to 3, --pretrained stage4 or its path: {display(path)}")
    run.log.close()


def hold(config: Config, image: CLIPImageEncoder, epoch: int = 0) -> None:
    """Let what learns in `epoch` (from 1 on; 0: what learns in any) learn."""
    image.backbone.requires_grad_(not config.freeze_backbone)
    image.hold_backbone(config.freeze_backbone or 0 < epoch <= config.head_warmup_epochs)
    if not config.freeze_backbone:
        hold_image_layers(image, config.freeze_until)


def record(config: Config, model: CLIP, text_digest: str, data: CaptionDataset) -> dict[str, Any]:
    """What every checkpoint says of the model."""
    encoder, text, image = config.encoder, model.text_encoder, model.image_encoder
    record = {**asdict(encoder), "stage": STAGE, "model": f"{encoder.image_encoder}+{config.model}", "variant": ""}
    record |= {"text_model": config.model, "text_digest": text_digest, "quick_gelu": text.quick_gelu}
    record |= {"image_size": image.image_size, "resize_mode": data.resize_mode or image.resize_mode}
    record |= {"dataset": data.name, "data_digest": captions_digest(data)}
    record |= {"mean": image.mean, "std": image.std, "seen_identities": dict(data.seen_identities)}
    if encoder.image_encoder != OWN:
        return record
    resumed = config.run.resume_ckpt and read_stage_checkpoint(config.run.resume_ckpt, STAGE)
    record |= {"image_weights": resumed["image_weights"] if resumed else text.source}
    record |= {"first_weights": text.first_weights}
    return {**record, "seen_identities": {**text.seen_identities, **data.seen_identities}}


def say_what_trains(run: TrainingRun, config: Config, model: CLIP, train: CaptionedPixels, num_batches: int) -> None:
    """The first lines of the log."""
    if run.log.is_writer:
        model.print_parameter_summary()
    name, text = config.encoder.image_encoder, model.text_encoder
    run.log.say(
        f"{run.name}: {name} ({run.recorded['image_weights']}, {run.recorded['image_size']} px) to the "
        f"text tower of {run.recorded['text_model']} ({text.source}), {run.recorded['dataset']}: {len(train.images):,} "
        f"images, {len(train.texts):,} captions, {num_batches} batches of {config.batch_size}, {run.place.device}"
    )
    counter = token_counter(text.tokenizer)
    if cut := sum(counter.count(caption) > counter.context_length for caption in set(train.texts)):
        run.log.say(f"{cut:,} captions are longer than its {counter.context_length} tokens: the tokenizer cuts them")


if __name__ == "__main__":
    run_script(main, Config, __doc__, partial(parse_with_files, files=recipe), in_processes=True)
